# `make train`, `make test` and `make bench` do all the set-up: a virtual environment with pinned versions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test slow bench lint types docs format clean

help:  ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as $(PYTHON), got $$($(PYTHON) --version). Run: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One environment, filled as far as a target needs: training takes no test framework. A stamp is newer than what
# it was made from, so a change of the dependencies installs them again.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --config-settings editable_mode=compat --editable

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[run]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch $(VENV)/.run $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[bench]'
	@touch $(VENV)/.run $@

train: $(VENV)/.run  ## train the built-in default: local DP, masks, audit trail
	$(BIN)/privopt train $(ARGS)

test: $(VENV)/.dev  ## all fast tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(ARGS)

slow: $(VENV)/.dev  ## the slow suites
	$(BIN)/python -m pytest -q -n 2 -m slow $(ARGS)

bench: $(VENV)/.bench  ## speed and memory against named baselines (ARGS="optimizer --only flat")
	$(BIN)/python -m benchmarks $(or $(ARGS),optimizer)

lint: $(VENV)/.dev  ## ruff and codespell
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell privopt secagg dp tests docs benchmarks README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

docs: $(VENV)/.dev  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
