# `make demo` and `make test` work on a machine with nothing but Python 3.11 and make.

# The first of these that runs and is new enough; looked for only when it is needed.
PYTHONS := python3.11 python3.12 python3.13 python3
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON = $(shell for python in $(PYTHONS); do \
	$$python -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.stamp
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format docs lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv from requirements.lock; does nothing when it is up to date

$(STAMP): requirements.lock pyproject.toml tools/environment.py
	@python="$(PYTHON)"; test -n "$$python" || \
		{ echo "setup: Python 3.11 or newer is needed, and none was found" >&2; exit 1; }; \
	$$python tools/environment.py setup

demo: setup  ## Tune four optimizers on real data and print which is best (a few minutes)
	$(BIN)/tuner study start studies/digits.toml --replace

test: style  ## Check everything and run the tests (about 5 minutes)
	@$(MAKE) --no-print-directory --jobs=2 types default-tests

test-all: style  ## The same with the slow tests
	@$(MAKE) --no-print-directory --jobs=2 types all-tests

check: style types  ## Lint, format, types and the house rules
	$(PYTEST) tests/test_house.py

# mypy takes one core for half a minute, so the tests do not wait for it; the house rules are among
# the tests.
.PHONY: style types default-tests all-tests
style: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

default-tests: setup
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow"

all-tests: setup
	$(PYTEST) -n $(WORKERS) --dist worksteal

format: setup  ## Let ruff fix and format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup  ## Write the generated parts of the documentation anew
	$(BIN)/python -m optimizers.stubs
	$(BIN)/python tools/optimizers_page.py
	$(BIN)/python tools/tree.py

lock:  ## Pin every dependency anew from the ranges in pyproject.toml
	@$(PYTHON) tools/environment.py lock

clean:  ## Remove the environment and every cache; results under .tuner/ stay
	rm -rf .venv .venv.lock build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
