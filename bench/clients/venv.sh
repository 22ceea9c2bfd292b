#!/bin/sh
# Makes the Python environment that the foreign clients run in and prints its bin folder.
# It is made once, below $HEADSTART_CACHE (default: .cache of this repository), and again only when
# requirements.txt has changed. Several scripts may ask at a time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${HEADSTART_CACHE:-$(cd "$here/../.." && pwd)/.cache}/clients/venv
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
want=$(sha256sum <"$here/requirements.txt")
if [ "$(cat "$venv/made" 2>/dev/null)" != "$want" ]; then
	[ -x "$venv/bin/python" ] || python3 -m venv "$venv" >&2
	"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
	echo "$want" >"$venv/made"
fi
echo "$venv/bin"
