# `make` lists the targets. Every target except clean first sets up the environment if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help demo compare test lint docs bench clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+): .*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(INSTALLED)  ## draw the synthetic data, train camera-aware ICE on it and evaluate
	$(BIN)/python tools/train_net.py --config-file configs/ice_demo.yml

compare: $(INSTALLED)  ## train every method with three seeds on the synthetic data; prints a table and draws a chart
	$(BIN)/fastreid-ice compare

# Three processes on two cores: many tests wait, for other processes and for the browser.
test: $(INSTALLED)  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_INSTALLED)  ## build the site into site/: runs the notebook, checks the links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED)  ## time one reclustering of a dataset of Market-1501's size
	$(BIN)/fastreid-ice bench recluster

clean:  ## remove the environment, the site and the caches
	rm -rf $(VENV) site build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation starts again.
$(INSTALLED): requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.10 to 3.13 is needed, $(PYTHON) is not: try make PYTHON=python3.12"; exit 1; }
	@echo "Installing the environment into $(VENV) (about 7 GB, a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps fastreid==1.4.0
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
	@echo "Installed."

$(DOCS_INSTALLED): docs/requirements.txt $(INSTALLED)
	@echo "Installing what builds the site into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@
