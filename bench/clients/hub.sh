#!/bin/sh
# Runs Python's huggingface_hub, hf_xet and transformers against the embedded Hub: one line a check,
# exit status 1 when one failed. Needs Go, Python 3.11 or later and, the first time, a package index.
# HEADSTART names a binary that is built already.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$("$here/venv.sh")
work=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

"$bin/python" - "$work/models" <<'PY'
import json, random, sys
from pathlib import Path

root, chance = Path(sys.argv[1]), random.Random(1)
for repo in ("small", "gated", "many"):
    folder = root / "org" / repo
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": repo, "padding": "x" * 3000}))
    (folder / "sub" / "notes.txt").write_text("Ωμέγα\n")
    (folder / "empty.txt").touch()
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "model.safetensors").write_bytes(chance.randbytes(24 << 20 if repo == "small" else 1000))
for i in range(1100):
    (root / "org" / "many" / "sub" / f"part {i:04} +%.txt").write_text(str(i))
PY

cd "$here/../.."
[ -n "${HEADSTART:-}" ] || go build -o "$work/headstart" ./cmd/headstart

# serve ARGUMENTS…: starts a Hub and sets url
serve() {
	[ -z "$server" ] || { kill $server; wait $server || true; }
	rm -f "$work/url"
	"${HEADSTART:-$work/headstart}" hub --dir "$work/models" --gated org/gated --model gemma-3-270m "$@" >"$work/url" 2>"$work/log" &
	server=$!
	until [ -s "$work/url" ]; do
		kill -0 $server 2>/dev/null || { cat "$work/log" >&2; exit 1; }
		sleep 0.05
	done
	url=$(head -n 1 "$work/url")
}

# check SCRIPT ARGUMENTS…: the script says what it checks
check() {
	script=$1
	shift
	"$bin/python" "$here/$script" "$url" "$work/models" "$@" 2>"$work/errors" || { cat "$work/errors" >&2; status=1; }
}

status=0
serve
check hub_client.py
serve --xet mixed --log-requests
check xet_client.py "$work/log"
exit $status
