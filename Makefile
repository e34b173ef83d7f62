# Each target sets up its own virtual environment in .venv. Try `make demo`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOCK_BIN := .venv-lock/bin
COMPILE := env -u PIP_FIND_LINKS CUSTOM_COMPILE_COMMAND='make lock' $(LOCK_BIN)/pip-compile --quiet --upgrade \
	--resolver backtracking --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host --no-emit-options pyproject.toml
ARGS ?=

# HASHED=1 installs exactly the files whose hashes are known, as the images and .ci/run do.
ifdef HASHED
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt \
	&& $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[agent,dev]'
endif

.PHONY: help demo test lint bench docs lock clean

help:
	@echo 'make demo    three agents, three databases, writers on all: watch them converge (ARGS="--seconds 20")'
	@echo 'make test    lint, unit tests, simulation, integration tests (ARGS="-k word" goes to pytest)'
	@echo 'make lint    ruff, mypy, import-linter'
	@echo 'make bench   the benchmarks, with the numbers of this machine'
	@echo 'make docs    write docs/configuration.md from the docstrings of the settings'
	@echo 'make lock    renew constraints.txt and requirements-*.txt'
	@echo 'make clean   remove what the targets made'

demo: $(READY)
	@$(BIN)/rsqlite demo $(ARGS)

test: lint
	$(BIN)/pytest tests/unit tests/simulation tests/integration $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)
	$(BIN)/python docs/make_configuration.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL)
	@touch $@

lock:
	@test -x $(LOCK_BIN)/pip-compile || { $(PYTHON) -m venv .venv-lock && $(LOCK_BIN)/pip install --quiet 'pip-tools>=7.5'; }
	$(COMPILE) --no-header --all-extras --all-build-deps --output-file constraints.txt
	for part in agent operator; do \
		$(COMPILE) --generate-hashes --constraint constraints.txt --extra $$part --build-deps-for wheel \
			--output-file requirements-$$part.txt; done
	$(COMPILE) --generate-hashes --constraint constraints.txt --all-extras --all-build-deps \
		--output-file requirements-dev.txt

clean:
	rm -rf .venv .venv-lock dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
