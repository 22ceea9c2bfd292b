#!/usr/bin/env bash
# Loads the synthetic 270m with transformers on the CPU, through HF_ENDPOINT, and generates tokens.
#
#   bench/clients/transformers.sh PYTHON
#
# PYTHON is one that has transformers and torch, such as bench/vllm/install.sh makes. HEADSTART names a
# binary that is built already.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${1:?usage: transformers.sh PYTHON}
work=$(mktemp -d) server=
trap '[ -z "$server" ] || kill "$server"; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

program=${HEADSTART:-$work/headstart}
[ -n "${HEADSTART:-}" ] || (cd "$here/../.." && go build -o "$program" ./cmd/headstart)
"$program" hub --model gemma-3-270m >"$work/url" 2>"$work/log" &
server=$!
until [ -s "$work/url" ]; do
  kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.05
done
"$python" "$here/transformers_load.py" "$(head -n 1 "$work/url")" google/gemma-3-270m-it
