# One command per job, the same on a desk and in CI. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.NOTPARALLEL:
.PHONY: help demo test lint docs bench compare soak clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: $(VENV)/.ase  ## build, release and read the small samples in tests/data
	@BIN=$(BIN) sh examples/demo.sh

test: $(VENV)/.test  ## run the tests, two files at a time; ARGS="-k name" picks some
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: $(VENV)/.lint  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(VENV)/.docs  ## regenerate the generated tables and build the pages into site/
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(VENV)/.bench  ## measure speed on generated data; ARGS="--frames 10000" for a quick one
	@$(BIN)/python benchmarks/bench.py $(ARGS)

compare: $(VENV)/.bench  ## hold trajmill against a pipeline with an object per frame; needs PostgreSQL and MariaDB
	@$(BIN)/python benchmarks/compare.py $(ARGS)

soak: $(VENV)/.bench  ## build a million frames while processes are killed; ARGS="--frames 20000" for a quick one
	@$(BIN)/python benchmarks/soak.py $(ARGS)

clean:  ## remove everything that these commands made
	rm -rf $(VENV) demo site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp per group of dependencies: a newer pyproject.toml installs it again. -qq hides pip's hints, not its errors.
# The constraint holds torch at one version, so that what is on the machine or in pip's cache will do.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "installing trajmill[$*] into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints/torch.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trajmill needs Python 3.11 or newer: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
