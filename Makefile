# Every target below builds .venv from nothing if it has to; later calls find it and start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# More threads than cores slow a small model down; set it to your number of cores for a large one.
export OMP_NUM_THREADS ?= 2
# waiting threads sleep: busy ones make a shared computer many times slower
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help install demo test docs docs-full lint bench clean

help:
	@echo "make demo       a small run from start to end; figures and tables in demo-output/"
	@echo "make test       the test suite"
	@echo "make docs       the documentation, in docs/_build/html"
	@echo "make docs-full  the same, executing every notebook"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks"
	@echo "make clean      remove what the targets wrote, except $(VENV)"

install: $(STAMP)

# The stamp goes first and comes last, so that an interrupted installation is done again. The environment is kept where
# it works: a change of pyproject.toml then costs an update and not a new download.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@# Dependency groups need pip 25.1.
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m scgde.demo --out demo-output

# two at a time on one thread each, a file of tests staying with one process
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

docs-full: $(STAMP)
	SCGDE_DOCS_EXECUTE=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf demo-output docs/_build docs/generated docs/tutorials dist build htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
