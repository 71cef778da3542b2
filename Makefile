# make demo | test | lint | bench | clean: each sets up what it needs in $(VENV), once.

PYTHON ?= python3
VENV ?= .venv
# Another build of torch: make TORCH='torch==2.12.0' test
TORCH ?= torch==2.13.0

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(BIN)/iadd-fast demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)
	mkdir -p .benchmarks
	$(BIN)/python -m pytest bench -o python_files='bench_*.py' --benchmark-only \
		--benchmark-json=.benchmarks/results.json
	$(BIN)/python bench/tables.py --from .benchmarks/results.json
	$(BIN)/python bench/bench_unroll.py --memory

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks

.PHONY: $(VENV)
$(VENV): $(INSTALLED)

KERNEL_SOURCES = $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

$(INSTALLED): pyproject.toml setup.py $(KERNEL_SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)' 'setuptools>=77' 'ninja>=1.11'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	$(BIN)/iadd-fast doctor
	touch $@
