# Everything a checkout needs, on a bare machine with Python 3.11 or newer: `make demo`, `make check`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# The first pip that knows --group is 25.1.
PIP ?= pip==25.3
# Only the extras whose code exists.
EXTRAS ?= lightning,keras,hydra,data,encrypt
DEMO ?= examples/demo.py

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup

.PHONY: setup demo check test test-long faults wheel clean

setup: $(STAMP)

# The editable install copies the search-path plug-in, so that file counts as a setting.
$(STAMP): pyproject.toml constraints.txt pybrush/_hydra_searchpath/pybrush_searchpath.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]' --group dev
	touch $@

demo: setup
	$(BIN)/python $(DEMO)

check: setup
	@BIN=$(BIN) .ci/check

test: setup
	@BIN=$(BIN) .ci/check tests

test-long: setup
	@BIN=$(BIN) .ci/check long

# Every fault at every instant, and more seeds; `make check` runs a sample of it.
faults: setup
	$(BIN)/python -m pytest -n 2 -m 'long or not long' --timeout=3600 tests/faults

wheel: setup
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) dist build .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
