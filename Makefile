# Every target does its own set-up: a fresh machine needs Python 3.11+, make and pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check bench clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)          ## audit scikit-learn's digits with planted label errors, then breast cancer as it is
	$(BIN)/proponent demo

check: $(STAMP)         ## format, lint, types, import contracts
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check             ## the checks, then all tests and doctests
	$(BIN)/pytest -n 2

.venv-peers/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

bench: $(STAMP) .venv-peers/.installed  ## speed and accuracy, beside the peers in an environment of their own
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt cleanlab==2.9.0
	PROPONENT_PEERS=.venv-peers/bin/python $(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
