# make demo        meta-train on digits, compare with tuned baselines; writes runs/demo/
# make test        lint, then the tests
# make test-slow   the slow tests
# make lint        formatting, lint rules, types, and which room may import which
# make docs        the documentation, as a site in site/; any warning fails
# make format      apply formatting and safe fixes
# Every target creates .venv on its first run and reuses it afterwards. PYTHON=python3.12 chooses another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint docs format constraints clean

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks demo

# One thread per worker: small tensors gain nothing from a second one, and two pools would compete.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/mkdocs build --quiet --strict

# Pins what is installed, without the +cpu of local builds; an older Python takes what it can get.
constraints: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+[a-z0-9.]*$$//' -e 's/$$/ ; python_version >= "3.11"/' > constraints.txt

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
