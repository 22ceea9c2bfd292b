#!/usr/bin/env bash
# Runs every foreign client against the embedded Hub, the embedded bucket and a node. The first run installs
# them; as root on Debian also the system packages that are missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v curl >/dev/null || missing+=(curl)
command -v fusermount3 >/dev/null || command -v fusermount >/dev/null || missing+=(fuse3)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "run.sh: install ${missing[*]} and run this again" >&2
    exit 1
  fi
  apt-get update -q >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
fi

status=0
"$here/hub.sh" || status=1
"$here/layout.sh" || status=1
"$here/bucket.sh" "$@" || status=1
exit $status
