# make venv    .venv with Flame in it
# make run     start an embedded cluster, run flmping in it, show its sessions, stop it
# make test    everything CI runs
# make test-torch  tensors of torch as objects; installs torch, some gigabytes, into .venv-torch
# make bench   Flame against Ray, Dask and ProcessPoolExecutor
# make bench-data  objects of 100 MB and of 1 KB: Flame, Ray, Dask, and what the machine itself allows
# make bench-runner  calls of a Python function in each of the plain ways
# make bench-sandbox  sandboxes from creation to first output, calls in them, tasks through each shim
# make bench-scheduler  passes of the scheduler against the size of the cluster, and how well tenants share
# make lint    only the static checks of `make test`
# make format  rewrite the sources in the project's format

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The newest of the usual names that is Python 3.11 or later; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$p"; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
INSTALLED := $(VENV)/.stamp-installed
DEVELOPED := $(VENV)/.stamp-dev
FOREIGN := .venv-foreign/.stamp-installed
PYTEST_ARGS ?=

.PHONY: help venv run test test-torch bench bench-data bench-runner bench-sandbox bench-scheduler lint format proto dev foreign clean

help:
	@sed -n 's/^# make/make/p' Makefile

venv: $(INSTALLED)
dev: $(DEVELOPED)
foreign: $(FOREIGN)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found; name one with make PYTHON=/path/to/python" >&2; exit 1; }
	@rm -f $(INSTALLED) $(DEVELOPED)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) can't make virtual environments; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

$(INSTALLED): pyproject.toml src/flame/_version.py | $(BIN)/python
	@echo "installing flame-engine into $(VENV)"
	@$(PIP) --editable ".[certs,speed,cache,packages]"
	@touch $@

$(DEVELOPED): pyproject.toml $(INSTALLED)
	@echo "installing the development tools into $(VENV)"
	@$(PIP) --editable ".[certs,speed,cache,packages,dev]"
	@touch $@

# The unmodified client of the reference system, in an environment of its own: conformance tests run it as a process.
$(FOREIGN):
	@echo "installing flamepy 0.6.0 into .venv-foreign"
	@test -x .venv-foreign/bin/python || $(PYTHON) -m venv .venv-foreign
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-foreign/bin/python -m pip install --quiet "flamepy==0.6.0" numpy pandas
	@touch $@

run: $(INSTALLED)
	@BIN=$(BIN) sh tools/run_demo.sh

proto: $(DEVELOPED)
	@$(BIN)/python tools/generate_proto.py

lint: $(DEVELOPED)
	$(BIN)/python tools/generate_proto.py --check
	$(BIN)/python tools/draw_lifecycles.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

format: $(DEVELOPED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(DEVELOPED) $(FOREIGN) lint
	@sh tools/install_runtimes.sh
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	@test -n "$(PYTEST_ARGS)" || BIN=$(BIN) sh tools/test_newer_python.sh

test-torch: $(BIN)/python
	@test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-torch/bin/python -m pip install --quiet --editable ".[cache]" \
		torch pandas polars pytest pytest-asyncio pytest-timeout
	.venv-torch/bin/python -m pytest tests/torch_tensors.py

bench: $(DEVELOPED)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.limits

bench-data: $(DEVELOPED)
	$(BIN)/python -m benchmarks.data

bench-runner: $(DEVELOPED)
	$(BIN)/python -m benchmarks.runner --save

bench-scheduler: $(DEVELOPED)
	$(BIN)/python -m benchmarks.scheduler

bench-sandbox: $(DEVELOPED)
	$(BIN)/python -m benchmarks.sandbox

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .ruff_cache .hypothesis
