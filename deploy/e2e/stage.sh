#!/usr/bin/env bash
# The Job of deploy/stage on a real Kubernetes: an embedded Hub and bucket on this machine, an image that
# is packed here, and three stories: a run that completes though its pod is killed in the middle, and goes
# on where it was; a gated model without a token, which fails at once with the reason in the pod's status;
# a run that finds nothing to do.
#
#   KUBECONFIG=… HOST=… LOAD=… deploy/e2e/stage.sh BINARY
#
#   HOST   this machine's address as pods see it
#   LOAD   the command that brings an image archive to the node, for example
#          "kind load image-archive" or "ctr -n k8s.io images import"
set -euo pipefail
cd "$(dirname "$0")/../.."
BINARY=$(realpath "${1:?usage: stage.sh BINARY (static: CGO_ENABLED=0 go build -o headstart ./cmd/headstart)}")
: "${HOST:?this machine, as pods see it}" "${LOAD:?the command that brings an image archive to the node}"
W=$(mktemp -d) NS=headstart-e2e PIDS=()
clean() {
	kubectl delete namespace $NS --ignore-not-found --wait=false > /dev/null || true
	for p in "${PIDS[@]}"; do kill "$p" 2> /dev/null || true; done
	wait 2> /dev/null || true
	rm -rf "$W"
}
trap clean EXIT
say() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; kubectl -n $NS get jobs,pods -o wide >&2 || true; exit 1; }
until_true() { # until_true SECONDS COMMAND...
	local n=$(($1 * 4)); shift
	for _ in $(seq $n); do "$@" > /dev/null 2>&1 && return 0; sleep 0.25; done
	fail "not within time: $*"
}
pods() { kubectl -n $NS get pods -l "batch.kubernetes.io/job-name=headstart-stage-$1" -o "jsonpath=$2"; }
parts() { [ "$(grep -ls '/part-' "$W"/buckets/models/objects/*.json | wc -l)" -ge "$1" ]; }
metrics() { kubectl get --raw "/api/v1/namespaces/$NS/pods/$1:9096/proxy/metrics" | grep -E '^headstart_stage_(received_bytes|stored_bytes|chunks|files)_total'; }

say "an image of $(basename "$BINARY"), without a container engine"
cp "$BINARY" "$W/headstart"
go run ./deploy/e2e/image "$W/headstart" localhost/headstart:e2e "$W/image.tar"
$LOAD "$W/image.tar"

say "a Hub (40 MB/s) and a bucket at $HOST"
"$BINARY" hub --listen "$HOST:18080" --rate 40000000 --model gemma-3-270m --model gemma-3-1b --gated google/gemma-3-1b-it > "$W/hub.log" 2>&1 & PIDS+=($!)
"$BINARY" bucket --listen "$HOST:18081" --dir "$W/buckets" --create models > "$W/bucket.log" 2>&1 & PIDS+=($!)
until_true 60 curl -s "http://$HOST:18080/api/models/google/gemma-3-270m-it"

say "the Jobs"
mkdir "$W/e2e" && cp -r deploy "$W/e2e/" && sed -i "s/THIS-MACHINE:/$HOST:/" "$W/e2e/deploy/e2e/stage/local/kustomization.yaml"
kubectl apply -k "$W/e2e/deploy/e2e/stage"

say "gated, no token: the Job fails at its first pod, and the pod says why"
kubectl -n $NS wait --for=condition=Failed job/headstart-stage-gated --timeout=120s
kubectl -n $NS get job headstart-stage-gated -o jsonpath='{range .status.conditions[*]}{.type}: {.reason}: {.message}{"\n"}{end}'
pods gated '{range .items[*]}{.metadata.name}: exit {.status.containerStatuses[0].state.terminated.exitCode}: {.status.containerStatuses[0].state.terminated.message}{"\n"}{end}'
[ "$(pods gated '{.items[*].status.containerStatuses[0].state.terminated.exitCode}')" = 3 ] || fail "not one pod with code 3"
pods gated '{.items[*].status.containerStatuses[0].state.terminated.message}' | grep -q 'accept the licence' || fail "no reason"

say "open: kill the pod when some parts are in the bucket"
until_true 120 parts 2
FIRST=$(pods open '{.items[0].metadata.name}')
metrics "$FIRST" || fail "no metrics while it runs"
kubectl -n $NS logs "$FIRST" | tail -3
kubectl -n $NS delete pod "$FIRST" --wait=false
kubectl -n $NS wait --for=condition=Complete job/headstart-stage-open --timeout=300s
SECOND=$(pods open '{.items[-1].metadata.name}')
[ "$SECOND" != "$FIRST" ] || fail "it was not killed in the middle"
kubectl -n $NS logs "$SECOND"
kubectl -n $NS logs "$SECOND" | grep -q 'were there from an earlier run' || fail "it began anew"

say "again: nothing to do"
kubectl -n $NS delete job headstart-stage-open > /dev/null
kubectl apply -k "$W/e2e/deploy/e2e/stage" > /dev/null
kubectl -n $NS wait --for=condition=Complete job/headstart-stage-open --timeout=120s
kubectl -n $NS logs job/headstart-stage-open | tee "$W/again.log"
grep -q 'nothing to do' "$W/again.log" || fail "it did something"
HEADSTART_BUCKET=gs://models STORAGE_EMULATOR_HOST="http://$HOST:18081" "$BINARY" ls
say "passed"
