#!/usr/bin/env bash
# What a learnt order is worth: a reader with an unusual order starts on a node while the model is loading
# over a link of RATE megabytes a second, twice, each time on a new node with an empty cache. After the
# first start `headstart order --push` puts what the node has seen into the bucket.
# Prints for each start the stall and when the weights were all read, and the ideal: size / rate.
#
#   bench/learnt/run.sh HEADSTART [ORDER [MODEL [RATE [HEAD_START]]]]      as root
set -euo pipefail
bin=$(realpath "$1") order=${2:-reverse} model=${3:-gemma-3-1b} rate=${4:-200} head=${5:-3s}
dir=$(mktemp -d /tmp/headstart-learnt-XXXXXX)
pids=()
finish() {
	trap - EXIT
	set +e
	"$bin" unpublish "$dir/m" --socket "$dir/sock" 2>/dev/null
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null; done
	umount -l "$dir/mem" 2>/dev/null
	rm -rf "$dir"
}
trap finish EXIT
mkdir "$dir/mem"
mount -t tmpfs -o huge=always tmpfs "$dir/mem"

# serve FILE ARGS…: start a server and wait for the line on stdout that says where it is.
serve() {
	local out=$1; shift
	"$bin" "$@" >"$out" 2>"$out.log" &
	pids+=($!)
	for _ in $(seq 300); do [ -s "$out" ] && return; sleep 0.1; done
	cat "$out.log" >&2; exit 1
}
serve "$dir/hub" hub --model "$model" --listen 127.0.0.1:0
serve "$dir/bucket" bucket --dir "$dir/mem/bucket" --create models --omit-md5 --listen 127.0.0.1:0
near=$(head -1 "$dir/bucket")
serve "$dir/link" bench link --at 127.0.0.2 --round-trip 1ms --total $((rate * 1000000)) --to "${near#http://}"
export HF_ENDPOINT HEADSTART_BUCKET=gs://models STORAGE_EMULATOR_HOST=$near
HF_ENDPOINT=$(head -1 "$dir/hub")
repo=google/$model-it
"$bin" stage "$repo" --json >"$dir/staged" 2>/dev/null
size=$(grep -o '"bytes":[0-9]*' "$dir/staged" | tail -1 | cut -d: -f2)
echo "$repo, $((size / 1000000)) MB at $rate MB/s: $(awk "BEGIN{printf \"%.1f\", $size/$rate/1e6}") s; the reader: $order, it wants weights after $head"

number() { grep -o "\"$1\":[0-9.]*" "$dir/read" | head -1 | cut -d: -f2; }
start() {
	STORAGE_EMULATOR_HOST=${near/127.0.0.1/127.0.0.2} "$bin" node --cache "$dir/mem/cache" --socket "$dir/sock" --listen 127.0.0.1:0 2>"$dir/node" &
	local node=$!
	pids+=($node)
	until "$bin" publish "$repo" "$dir/m" --socket "$dir/sock" >/dev/null 2>&1; do sleep 0.05; done
	"$bin" replay "$dir/m" --order "$order" --head-start "$head" --json >"$dir/read"
	"$bin" wait "$repo" --socket "$dir/sock" >/dev/null 2>&1
	weights=$(grep -o '"name":"weights","start_s":[0-9.]*,"end_s":[0-9.]*' "$dir/read" | sed 's/.*end_s"://')
	echo "$1: stall $(number stall_s) s, first weights after $(number first_weight_s) s, all read after $weights s"
	grep -o 'msg="load ended".*' "$dir/node" | sed 's/^/    /'
	[ "$2" = push ] && "$bin" order "$repo" --push --socket "$dir/sock" | sed 's/^/    /' | head -6
	"$bin" unpublish "$dir/m" --socket "$dir/sock"
	kill -INT $node && wait $node
	rm -rf "$dir/mem/cache"
}
start "first start " push
start "second start" keep
