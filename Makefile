# Every target makes the virtual environment it needs: only Python >= 3.11, make and a package index are assumed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test slow check clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## three recipes on real digits at equal seconds: a table and a report
	$(BIN)/python examples/demo.py --out runs/demo

test: $(READY)  ## the first tier of tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: $(READY)  ## the second tier of tests
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## lint, format, complexity, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

clean:  ## remove the environment and every run
	rm -rf $(VENV) runs
