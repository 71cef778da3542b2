# make demo | test | lint | bench | clean: each sets up what it needs in $(VENV), once.
# make release: sdist, wheel, bill of materials and checksums, in $(DIST).
# make requirements: pins anew what CI and a release install (UPGRADE=--upgrade: the newest).

PYTHON ?= python3
VENV ?= .venv
# Another build of torch: make TORCH='torch==2.12.0' test
TORCH ?= torch==2.13.0
# As CI installs it, exact versions by their hashes: make LOCKED=requirements/ci.txt test
LOCKED ?=
DIST ?= dist
# The environments of a release: its tools, and the package as a user installs it.
TOOLS ?= build/tools
RUNTIME ?= build/runtime

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint bench clean release requirements

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
ifeq ($(LOCKED),)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)' 'setuptools>=77' 'ninja>=1.11'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCKED)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endif
	$(BIN)/iadd-fast doctor
	touch $@

$(TOOLS): requirements/tools.txt
	$(PYTHON) -m venv --clear $@
	$@/bin/python -m pip install --quiet --require-hashes -r requirements/tools.txt
	touch $@

$(RUNTIME): $(TOOLS) requirements/runtime.txt
	$(PYTHON) -m venv --clear --without-pip $@
	$(TOOLS)/bin/python -m pip --python $@ install --quiet --no-compile --require-hashes \
		--report $@/pip-hashed.json -r requirements/runtime.txt
	$(TOOLS)/bin/python -m pip --python $@ install --quiet --no-compile \
		--report $@/pip-torch.json '$(TORCH)'
	touch $@

# The date in the archives: that of the commit, so that a tree gives the same bytes twice.
release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
release: $(TOOLS) $(RUNTIME)
	rm -f $(DIST)/iadd_fast-* $(DIST)/SHA256SUMS
	$(TOOLS)/bin/python requirements/release.py --runtime $(RUNTIME) --out $(DIST)

COMPILE = cd requirements && $(abspath $(TOOLS))/bin/uv pip compile --quiet --config-file uv.toml
COMPILE += $(UPGRADE)

requirements: $(TOOLS)
	$(COMPILE) --extra dev ../pyproject.toml ci.in -o ci.txt
	$(COMPILE) ../pyproject.toml -c ci.txt -o runtime.txt
	$(COMPILE) tools.in -c ci.txt -o tools.txt
	for name in ci runtime tools; do \
		cat requirements/head.txt requirements/$$name.txt > requirements/$$name.new && \
		mv requirements/$$name.new requirements/$$name.txt || exit 1; done
