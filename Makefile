# `make train` and `make test` need Python 3.11 to 3.13 and nothing else; all they install goes to .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
SYNCED := $(VENV)/$(LOCK)

.PHONY: train test test-slow test-minimum lint types format lock venv
.DEFAULT_GOAL := train

train: venv
	@$(BIN)/python -m src.train $(ARGS)

test: venv lint types
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m slow $(ARGS)

# The oldest versions that pyproject.toml allows, in an environment of their own; types are those of the locked ones.
test-minimum: venv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-minimum
	$(BIN)/uv pip install --quiet --python .venv-minimum/bin/python --resolution lowest-direct \
		-r pyproject.toml --group dev
	.venv-minimum/bin/python -m pytest -m "not slow" \
		--deselect tests/test_documents.py::test_contributing_to_the_letter $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment is up to date when it holds a copy of the lock it was made from, which is written last:
# one that was left half built, or that belongs to an older lock, is made again or brought up to date.
venv:
	@cmp -s $(LOCK) $(SYNCED) || $(MAKE) --no-print-directory bootstrap

.PHONY: bootstrap
bootstrap:
	@test -f $(SYNCED) || rm -rf $(VENV)
	@rm -f $(SYNCED)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@echo "installing the locked packages into $(VENV)"
	@$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python $(LOCK)
	@cp $(LOCK) $(SYNCED)

# Every dependency, for every platform and Python that pyproject.toml allows, with hashes and without addresses.
lock: venv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
		--python-version 3.11 --group dev --upgrade pyproject.toml --output-file $(LOCK)
