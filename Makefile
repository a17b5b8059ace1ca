# `make app` and `make test` work on a fresh machine with Python 3.11 or newer; a second call is quick.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test quick docs docs-serve audit

app: .venv/app.stamp
	$(BIN)/streamlit run app.py

test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n auto --dist loadgroup $(SELECT)

# Without the tests that take two seconds or more with what they share, such as a browser.
quick: SELECT = -m 'not slow'
quick: test

# The documentation, into site/; a broken link or a warning ends it.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Known vulnerabilities in installed packages; needs network access.
audit: .venv/app.stamp
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

.venv/app.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdad needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test.stamp: .venv/app.stamp
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv/docs.stamp: .venv/app.stamp
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@
