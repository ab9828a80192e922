# `make train` and `make test` do all the set-up: a virtual environment of their own with pinned versions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test slow lint types docs format clean

help:  ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamp is newer than what it was made from, so a change of the dependencies installs them again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as $(PYTHON), got $$($(PYTHON) --version). Run: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

train: $(VENV)/.installed  ## train the built-in default: local DP, masks, audit trail
	$(BIN)/privopt train $(ARGS)

test: $(VENV)/.installed  ## all fast tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(ARGS)

slow: $(VENV)/.installed  ## the slow suites
	$(BIN)/python -m pytest -q -n 2 -m slow $(ARGS)

lint: $(VENV)/.installed  ## ruff and codespell
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell privopt secagg dp tests docs benchmarks README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md

types: $(VENV)/.installed  ## mypy --strict
	$(BIN)/mypy

docs: $(VENV)/.installed  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.installed  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
