#!/bin/sh
# Builds gcsfuse and prints where it is, or with --version which one that is. It is built once, below
# $HEADSTART_CACHE (default: .cache of this repository). Several scripts may ask at a time.
set -eu
version=3.11.4 # the newest that Go 1.26 builds
[ "${1:-}" != --version ] || { echo $version; exit; }
here=$(cd "$(dirname "$0")" && pwd)
bin=${HEADSTART_CACHE:-$(cd "$here/../.." && pwd)/.cache}/bin
mkdir -p "$bin" && bin=$(cd "$bin" && pwd)
exec 9>"$bin/gcsfuse.lock"
flock 9
if ! [ -x "$bin/gcsfuse-$version" ]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	GOBIN=$work go install "github.com/googlecloudplatform/gcsfuse/v3@v$version" >&2
	mv "$work/gcsfuse" "$bin/gcsfuse-$version"
fi
echo "$bin/gcsfuse-$version"
