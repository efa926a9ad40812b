# `make run` and `make test` need nothing but Python 3.11 or newer: the virtual environment is
# made on first use and brought up to date when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
# Passed on to pip. PyTorch publishes its CPU-only Linux builds on an index of its own
# (https://pytorch.org/get-started): PIP_OPTIONS="--extra-index-url URL" spares the CUDA packages.
PIP_OPTIONS ?=
PYTEST_OPTIONS ?= -n 2 --dist loadgroup
OUT ?= runs/quickstart
RUN_OPTIONS ?=
FUZZ_OPTIONS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS)
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet

# One thread per process: several processes share the cores, and results stay the same.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: run test fuzz lint format types imports docs check clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

run: $(INSTALLED)  ## the quickstart study: five strategies, three seeds, a table and a report
	$(BIN)/fedcompress run simulations/studies/quickstart.toml --out $(OUT) $(RUN_OPTIONS)

test: $(INSTALLED_DEV)  ## every test
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

fuzz: $(INSTALLED_DEV)  ## a million hostile payloads, then some with every index of the kernels checked
	$(BIN)/python tests/fuzz/fuzz.py $(FUZZ_OPTIONS)
	$(BIN)/python tests/fuzz/fuzz.py --cases 200000 --bounds $(FUZZ_OPTIONS)

lint: $(INSTALLED_DEV)  ## ruff, and the imports point down
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED_DEV)  ## let ruff mend what it can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

types: $(INSTALLED_DEV)  ## mypy, strict
	$(BIN)/python -m mypy

docs: $(INSTALLED_DEV)  ## the documentation, into docs/_build/html; a warning is an error
	$(SPHINX) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

check: lint types docs test  ## everything that has to pass

clean:  ## what can be made again; runs/ and the virtual environment stay
	rm -rf docs/_build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fedcompress strategies simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) --version 2>&1`; try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch by its pin first: a newer one pulled in by another package would bring CUDA along.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): some minutes the first time"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) --editable '.[dev]'
	@touch $@
