PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo check docs test test-all torture bench lint clean
demo: .venv/installed
	$(BIN)/segray demo

check: .venv/tested docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# The site, in site/index.html. It needs no network, and a link that leads nowhere fails.
docs: .venv/tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: check
	$(BIN)/python -m pytest -m "not long and not torture"

# With clusters, jobs, deployments, every architecture at every size, and some rounds of torture.
test-all: check
	$(BIN)/python -m pytest -m "not torture"

torture: .venv/tested
	$(BIN)/python -m pytest -m torture --rounds 40

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segray needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs,test]'
	if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3.35.0; fi
	@touch $@

bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks

lint: .venv/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build site *.egg-info
