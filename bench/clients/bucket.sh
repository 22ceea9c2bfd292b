#!/usr/bin/env bash
# Runs clients that nobody here wrote, unchanged, against the embedded bucket: one line a check, then
# a table; exit status 1 when a check failed.
#
#   bench/clients/bucket.sh [PYTHON]
#
# PYTHON is one that has runai-model-streamer[gcs], torch and safetensors, such as bench/vllm/install.sh
# makes; without it Run:ai's streamer is skipped. Needs Go, Python 3.10 or later, and for gcsfuse
# /dev/fuse. The first run installs the clients below $HEADSTART_CACHE (default: .cache of this
# repository), which takes some minutes and a package index. HEADSTART names a binary that is built already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HEADSTART_CACHE:-$here/../../.cache}
streamer_python=${1:-}
[ -z "$streamer_python" ] || [ -x "$streamer_python" ] || { echo "bucket.sh: $streamer_python is no program" >&2; exit 2; }

mkdir -p "$cache/bin" "$cache/clients" && cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
mnt=$work/mnt server= fuse=
cleanup() {
  if mountpoint -q "$mnt" 2>/dev/null; then umount "$mnt" 2>/dev/null || fusermount3 -u "$mnt" || fusermount -u "$mnt" || true; fi
  [ -z "$fuse" ] || kill "$fuse" 2>/dev/null || true
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  wait
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

install_clients() {
  exec 9>"$cache/clients/bucket.lock"
  flock 9 # two runs at once would install into one place
  local venv=$cache/clients/bucket-venv want
  want=$(sha256sum <"$here/bucket_requirements.txt")
  if [ "$(cat "$venv/made" 2>/dev/null)" != "$want" ]; then
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/bucket_requirements.txt" >&2
    echo "$want" >"$venv/made"
  fi
  (cd "$here/rclone" && go build -o "$cache/bin/rclone" .)
  gcsfuse=$(HEADSTART_CACHE=$cache "$here/gcsfuse.sh")
  exec 9>&-
}

start_server() {
  local program=${HEADSTART:-}
  if [ -z "$program" ]; then
    program=$work/headstart
    (cd "$here/../.." && go build -o "$program" ./cmd/headstart)
  fi
  "$program" bucket --dir "$work/buckets" --create clients >"$work/url" 2>"$work/server.log" &
  server=$!
  until [ -s "$work/url" ]; do
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
    sleep 0.05
  done
  url=$(head -n 1 "$work/url")
}

say() { echo "$1" | tee -a "$work/lines"; }

# check CLIENT WHAT COMMAND…: one line, and what the command said if it failed
check() {
  local client=$1 what=$2
  shift 2
  if "$@" >"$work/said" 2>&1; then
    say "ok    $client: $what"
  else
    sed 's/^/      /' "$work/said" >&2
    say "FAIL  $client: $what"
  fi
}

make_tree() {
  mkdir -p "$work/tree/sub" "$mnt"
  head -c 20000003 /dev/urandom >"$work/tree/model.safetensors" # above the 16 MiB of one resumable chunk
  head -c 1000 /dev/urandom >"$work/tree/sub/ä b+c%2F.json"
  : >"$work/tree/empty"
}

rclone() {
  env -i PATH="$PATH" HOME="$work" "$cache/bin/rclone" --config= --gcs-anonymous --gcs-endpoint "$url/storage/v1/" \
    --gcs-bucket-policy-only --low-level-retries 2 --retries 1 "$@"
}

# grep reads to the end: with -q it would leave early, and a pipe that breaks is a failure here.
nothing_to_copy() { rclone copy "$work/tree" :gcs:clients/tree -v 2>&1 | grep 'nothing to transfer'; }
copied_back() { rclone copy :gcs:clients/tree "$work/back" "$@" && diff -r "$work/tree" "$work/back"; rm -rf "$work/back"; }
corrupted_noticed() { ! rclone copy --header-download 'x-goog-emulator-instructions: return-corrupted-data' :gcs:clients/tree/model.safetensors "$work/bad"; }
is_empty() { [ -z "$(rclone lsf -R :gcs:clients)" ]; }

check_rclone() {
  check rclone 'copy a folder to the bucket' rclone copy "$work/tree" :gcs:clients/tree
  check rclone 'compare it by MD5' rclone check "$work/tree" :gcs:clients/tree
  check rclone 'compare it byte for byte' rclone check --download "$work/tree" :gcs:clients/tree
  check rclone 'copying again transfers nothing' nothing_to_copy
  check rclone 'copy it back' copied_back
  check rclone 'copy it back in parallel ranges' copied_back --multi-thread-streams 4 --multi-thread-cutoff 1M --multi-thread-chunk-size 1M
  check rclone 'a corrupted download is noticed by the client' corrupted_noticed
  check rclone 'move an object' rclone moveto :gcs:clients/tree/empty :gcs:clients/tree/moved
  check rclone 'delete all' rclone purge :gcs:clients/tree
  check rclone 'nothing is left' is_empty
}

mount_bucket() {
  "$gcsfuse" --foreground --enable-hns=false --anonymous-access --implicit-dirs \
    --custom-endpoint "$url/storage/v1/" clients "$mnt" >"$work/gcsfuse.log" 2>&1 &
  fuse=$!
  until mountpoint -q "$mnt"; do
    kill -0 "$fuse" || { cat "$work/gcsfuse.log"; return 1; }
    sleep 0.05
  done
}
# Each command at the mount has a limit: a client that waits for ever is a failure too.
within() { timeout 30 "$@"; }
same_tree() { within diff -r "$work/tree" "$mnt/tree"; }
same_sum() { [ "$(within sha256sum <"$mnt/tree/model.safetensors")" = "$(sha256sum <"$work/tree/model.safetensors")" ]; }
same_middle() { within cmp -i 7000001 -n 100000 "$work/tree/model.safetensors" "$mnt/tree/model.safetensors"; }
write_one() { within cp "$work/tree/model.safetensors" "$mnt/new" && curl -sf "$url/clients/new" | cmp - "$work/tree/model.safetensors"; }
append() { echo more | within tee -a "$mnt/new" >/dev/null && curl -sf "$url/clients/new" | cmp - <(cat "$work/tree/model.safetensors"; echo more); }
rename() { within mkdir "$mnt/dir" && within mv "$mnt/new" "$mnt/dir/renamed" && curl -sfI "$url/clients/dir/renamed" && ! curl -sfI "$url/clients/new"; }
remove() { within rm -r "$mnt/dir" && ! curl -sfI "$url/clients/dir/renamed"; }

unmount() {
  umount "$mnt" || fusermount3 -u "$mnt" || fusermount -u "$mnt"
  wait "$fuse" || true
  fuse=
}

check_gcsfuse() {
  if ! [ -w /dev/fuse ]; then
    say "skip  gcsfuse: /dev/fuse is not there or not ours to open"
    return
  fi
  rclone copy "$work/tree" :gcs:clients/tree
  check gcsfuse 'mount the bucket' mount_bucket
  mountpoint -q "$mnt" || return 0
  check gcsfuse 'read a tree, equal to the original' same_tree
  check gcsfuse 'sha256 of a file' same_sum
  check gcsfuse 'read from the middle' same_middle
  check gcsfuse 'write a file' write_one
  check gcsfuse 'append to it' append
  check gcsfuse 'make a folder and rename into it' rename
  check gcsfuse 'remove them' remove
  check gcsfuse 'unmount' unmount
  rclone purge :gcs:clients/tree
}

# python PROGRAM SCRIPT: a client that prints its own lines
python() { "$1" "$here/$2" "$url" clients 2>"$work/errors" | tee -a "$work/lines" || cat "$work/errors" >&2; }

check_streamer() {
  if [ -z "$streamer_python" ]; then
    say "skip  Run:ai streamer: no PYTHON that has it was given"
  else
    python "$streamer_python" bucket_streamer.py
  fi
}

# table CLIENT VERSION: what the lines above say of it
table() {
  local ok failed result
  ok=$(grep -c "^ok    $1: " "$work/lines" || true)
  failed=$(grep -c "^FAIL  $1: " "$work/lines" || true)
  result="$ok of $((ok + failed)) checks passed"
  grep -q "^skip  $1: " "$work/lines" && result=skipped
  [ "$ok$failed" != 00 ] || [ "$result" = skipped ] || { result='did not run'; echo "FAIL  $1: did not run" >>"$work/lines"; }
  printf '%-22s %-8s %s\n' "$1" "$2" "$result"
}

install_clients
start_server
make_tree
python "$cache/clients/bucket-venv/bin/python" bucket_client.py
check_rclone
check_gcsfuse
check_streamer
echo
table google-cloud-storage "$(sed -n 's/^google-cloud-storage.*==//p' "$here/bucket_requirements.txt")"
table rclone "$(sed -n 's/.*rclone\/rclone v//p' "$here/rclone/go.mod")"
table gcsfuse "$("$here/gcsfuse.sh" --version)"
table 'Run:ai streamer' "$([ -z "$streamer_python" ] || "$streamer_python" -c 'import importlib.metadata as m; print(m.version("runai-model-streamer"))')"
! grep -q '^FAIL' "$work/lines"
