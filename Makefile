# `make check` is the whole gate; it makes its own virtual environment in .venv on first use.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
TORCH := torch==2.13.0

# One thread per test process: the suite runs JOBS of them side by side.
export OMP_NUM_THREADS ?= 1

.PHONY: check install lint types imports test format docs vendor clean

check: lint types imports test

install: $(VENV)/.installed

# torch first and pinned, so that no range pulls another build; one that is there is kept.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

test: install
	$(BIN)/python -m pytest -n $(JOBS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reference in docs/reference is generated; tests compare it.
docs: install
	$(BIN)/python -m atom.config.reference
	$(BIN)/python -m atom.server.reference
	$(BIN)/python -m atom.cli.reference

# The dashboard's chart library, from packages pinned by checksum; needs npm. The result is kept in git.
vendor:
	atom/bench/dashboard/vendor/build.sh

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
