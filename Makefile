# The commands of this project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test test-all faults check bench bench-check bench-curves lock vendor clean

# uv, this project's installer: the one on PATH, or one of our own in .tools.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
PYTHON ?= $(shell command -v python3)
RUN := .venv/bin
# Where Python may not write it (PYTHONDONTWRITEBYTECODE), every start of a program would compile everything again.
COMPILED := --compile-bytecode

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: .venv/.runtime ## A farm on this computer, a real Blender, 24 frames and a film in ./demo-output
	@scripts/system-packages blender box
	@$(RUN)/renderonline demo --output demo-output

up: .venv/.runtime ## RenderAPI and one HPCServer on this computer; prints the address and the first login
	@scripts/system-packages blender box
	@$(RUN)/renderonline up

test: .venv/.dev ## Every test: unit, contract, integration (SQLite, MariaDB), end to end with a real Blender
	@scripts/system-packages blender test
	$(RUN)/pytest --every-kind -n 6 --dist loadgroup --durations 10

test-all: .venv/.dev ## `make test` with every test on both databases, and with the slow variants of some: nightly
	@scripts/system-packages blender test
	$(RUN)/pytest --every-kind --thorough -n 6 --dist loadgroup --durations 10

faults: .venv/.dev ## 200 faults on each database and 100 on farms without shared files; writes docs/faults-report.md: 40 minutes
	@scripts/system-packages test
	$(RUN)/python -m tests.faults.run --report docs/faults-report.md

check: .venv/.dev ## Style, types, architecture, unit tests: under a minute
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/pytest -q -n 2 tests/unit

bench: .venv/.dev ## The figures of the README
	@scripts/system-packages bench
	$(RUN)/python -m bench

bench-check: .venv/.dev ## Has the farm become slower? Medians of three runs against bench/kept.toml: 3 minutes
	$(RUN)/python -m bench.check

bench-curves: .venv/.dev ## Chunks a second by waiting chunks and by machines, drawn into docs/images: 15 minutes
	$(RUN)/python -m bench.curves

lock: $(UV) ## Write requirements/*.txt anew
	$(UV) pip compile -q --upgrade --universal --generate-hashes --python-version 3.11 pyproject.toml -o requirements/runtime.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 --extra desktop --group dev -c requirements/runtime.txt pyproject.toml -o requirements/dev.txt

vendor: ## Take over the web page's libraries, Lit and uPlot, from the npm registry (needs npm)
	scripts/vendor

clean: ## Remove what make made here (not the data of a farm)
	rm -rf .venv .tools demo-output bench-output screenshots .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.tools/bin/uv:
	@echo "Installing uv into .tools"
	@$(PYTHON) -m venv .tools
	@.tools/bin/python -m pip install -q --disable-pip-version-check uv

.venv/bin/python: | $(UV)
	@$(UV) venv -q --allow-existing --python '>=3.11' .venv

# The development environment holds everything that the runtime needs.
.venv/.runtime: requirements/runtime.txt pyproject.toml | .venv/bin/python
	@if [ ! -e .venv/.dev ]; then \
	  echo "Installing Python packages into .venv"; \
	  VIRTUAL_ENV=.venv $(UV) pip sync -q $(COMPILED) requirements/runtime.txt; \
	  VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps -e .; fi
	@$(RUN)/python -m compileall -q src
	@touch $@

.venv/.dev: requirements/dev.txt pyproject.toml | .venv/bin/python
	@echo "Installing Python packages (with those for tests) into .venv"
	@VIRTUAL_ENV=.venv $(UV) pip sync -q $(COMPILED) requirements/dev.txt
	@VIRTUAL_ENV=.venv $(UV) pip install -q --no-deps -e .
	@$(RUN)/python -m compileall -q src
	@touch $@
