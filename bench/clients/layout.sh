#!/usr/bin/env bash
# Publishes the synthetic 270m with --layout hf, while it loads and when it is complete, and has
# huggingface_hub and transformers use it by its name, offline: one line a check, exit status 1 when one
# failed. Needs root and /dev/fuse; what it mounts is in a mount namespace of its own. HEADSTART names a
# binary that is built already.
#
#   bench/clients/layout.sh [PYTHON]
#
# PYTHON is one that has transformers and torch, such as bench/vllm/install.sh makes: it loads the weights
# too, while they arrive.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "$(id -u)" != 0 ] || ! [ -e /dev/fuse ]; then
  echo "layout.sh: not run: it needs root and /dev/fuse" >&2
  exit 0
fi
[ "${LAYOUT_INSIDE:-}" ] || LAYOUT_INSIDE=1 exec unshare --mount --propagation private "$0" "$@"

python=${1:-$("$here/venv.sh")/python}
work=$(mktemp -d)
pids=()
cleanup() {
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null && wait "${pids[i]}" || true; done
  umount -l "$work"/target-* 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
program=${HEADSTART:-$work/headstart}
[ -n "${HEADSTART:-}" ] || (cd "$here/../.." && go build -o "$program" ./cmd/headstart)

# serve NAME ARGUMENTS…: starts a server that prints its URL, and sets url
serve() {
  rm -f "$work/$1.url"
  "$program" "${@:2}" >"$work/$1.url" 2>"$work/$1.log" &
  pids+=($!)
  until [ -s "$work/$1.url" ]; do
    kill -0 $! 2>/dev/null || { cat "$work/$1.log" >&2; exit 1; }
    sleep 0.05
  done
  url=$(head -n 1 "$work/$1.url")
}

repo=google/gemma-3-270m-it
serve hub hub --model gemma-3-270m
export HF_ENDPOINT=$url HEADSTART_BUCKET=gs://models
serve bucket bucket --dir "$work/buckets" --create models
STORAGE_EMULATOR_HOST=$url "$program" stage "$repo" >"$work/stage.log" 2>&1 || { cat "$work/stage.log" >&2; exit 1; }
kill "${pids[-1]}" && wait "${pids[-1]}" || true
# The load takes longer than the client, or than its imports where it loads the weights.
rate=40000000
[ -z "${1:-}" ] || rate=12000000
serve bucket bucket --dir "$work/buckets" --rate "$rate"
export STORAGE_EMULATOR_HOST=$url

socket=$work/node.sock
"$program" node --medium disk --cache "$work/cache" --socket "$socket" --listen 127.0.0.1:0 2>"$work/node.log" &
pids+=($!)
until "$program" status --socket "$socket" >"$work/status" 2>&1; do
  kill -0 $! 2>/dev/null || { cat "$work/node.log" >&2; exit 1; }
  sleep 0.05
done

# publish LABEL WANT: publishes, looks whether it is shown as it should be, and runs the client on it
publish() {
  local target=$work/target-$1 said model
  said=$("$program" publish "$repo" "$target" --layout hf --socket "$socket" --json)
  [[ $said == *"\"mode\":\"$2\""* ]] || { echo "FAIL $1: shown as $said, want $2"; status=1; return; }
  model=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["model"])' "$said")
  "$python" "$here/layout_client.py" "$target" "$repo" "${model#*@}" "$1" || status=1
  snapshot=$target/hub/models--${repo/\//--}/snapshots/${model#*@}
}

status=0
publish loading stream
[ "${1:-}" ] || [[ $("$program" status --socket "$socket" --json) == *'"state":"loading"'* ]] || { echo "FAIL loading: the load was over before the client was"; status=1; }
"$program" wait "$repo" --socket "$socket" >"$work/wait.log" 2>&1 || { cat "$work/wait.log" >&2; exit 1; }
"$program" verify "$repo" "$snapshot" >"$work/verify.log" 2>&1 && echo "ok   loading: every byte of the snapshot verified" || { cat "$work/verify.log" >&2; status=1; }
publish complete bind
for target in "$work"/target-*; do "$program" unpublish "$target" --socket "$socket" || status=1; done
[ "$status" = 0 ] || cat "$work/node.log" >&2
exit $status
