# headstart: `make` lists the targets.

SHELL := bash
GO ?= go
# Tools and virtual environments that the targets install for themselves.
CACHE ?= $(CURDIR)/.cache
BIN := $(CACHE)/bin/headstart
export HEADSTART_CACHE := $(CACHE)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help
.PHONY: help build demo demo-vllm bench-stage bench-load test test-go test-clients test-vllm test-kube lint clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | while IFS=$$'\t' read -r t d; do printf '  make %-14s %s\n' "$$t" "$$d"; done

build: ## Build .cache/bin/headstart
	@$(GO) build -o $(BIN) ./cmd/headstart

demo: build ## The main job on this machine: Hub, bucket, node and reader, every byte verified (MODEL=gemma-3-1b for another)
	@$(BIN) demo $(if $(MODEL),--model $(MODEL))

demo-vllm: build ## The same with a real vLLM on the CPU at the end of the road (installs 7 GB the first time)
	@bench/vllm/install.sh $(CACHE)/vllm
	@$(BIN) demo --vllm $(CACHE)/vllm $(if $(MODEL),--model $(MODEL))

bench-stage: build ## Staging beside hf download + rclone and beside a bare loop: the figures of the README (BENCH=flags; installs the two)
	@hf=$$(bench/clients/venv.sh) && (cd bench/clients/rclone && $(GO) build -o $(CACHE)/bin/rclone .) && \
		$(BIN) bench stage --hf "$$hf/hf" --rclone $(CACHE)/bin/rclone $(if $(MODEL),--model $(MODEL)) $(BENCH)

bench-load: build ## A node beside gcsfuse, rclone, transfermanager, curl and, after demo-vllm, Run:ai's streamer: the figures and the chart of the README (BENCH=flags; needs root)
	@gcsfuse=$$(bench/clients/gcsfuse.sh) && (cd bench/clients/rclone && $(GO) build -o $(CACHE)/bin/rclone .) && \
		(cd bench/clients/manager && $(GO) build -o $(CACHE)/bin/manager .) && \
		$(BIN) bench load --gcsfuse "$$gcsfuse" --rclone $(CACHE)/bin/rclone --manager $(CACHE)/bin/manager \
			$(if $(wildcard $(CACHE)/vllm/bin/python),--python $(CACHE)/vllm/bin/python --vllm $(CACHE)/vllm) $(if $(MODEL),--model $(MODEL)) $(BENCH)

test: lint test-go test-clients ## Everything but vLLM: lint, Go tests with the race detector, foreign clients

test-go: ## The Go tests with the race detector
	$(GO) test -race -timeout 20m ./...

test-clients: build ## Foreign clients against the embedded Hub and bucket (installs them the first time)
	@HEADSTART=$(BIN) bench/clients/run.sh

test-vllm: build ## What needs torch: transformers, Run:ai's streamer, a real vLLM (installs 7 GB the first time)
	@bench/vllm/install.sh $(CACHE)/vllm
	HEADSTART_PYTHON=$(CACHE)/vllm/bin/python $(GO) test -count=1 ./stager/hub/gemma
	@HEADSTART=$(BIN) bench/clients/transformers.sh $(CACHE)/vllm/bin/python
	@HEADSTART=$(BIN) bench/clients/bucket.sh $(CACHE)/vllm/bin/python
	@HEADSTART=$(BIN) bench/clients/layout.sh $(CACHE)/vllm/bin/python
	@$(MAKE) --no-print-directory demo-vllm

test-kube: ## deploy/stage on a Kubernetes that you have: KUBECONFIG, HOST and LOAD as deploy/e2e/stage.sh says
	@CGO_ENABLED=0 $(GO) build -o $(CACHE)/bin/static/headstart ./cmd/headstart
	@deploy/e2e/stage.sh $(CACHE)/bin/static/headstart

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

clean: ## Remove what the targets built and installed
	rm -rf $(CACHE)
