# make demo | test | lint | clean: each sets up what it needs in $(VENV), once.

PYTHON ?= python3
VENV ?= .venv
# Another build of torch: make TORCH='torch==2.12.0' test
TORCH ?= torch==2.13.0

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/iadd-fast demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks

.PHONY: $(VENV)
$(VENV): $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
