# selectit-dagster: set-up, the embedded default experiment, tests, benchmarks.
#
#   make run     set-up, then the whole chain on the embedded default; again: nothing twice
#   make ui      Dagster's and MLflow's web pages on this machine
#   make test    set-up, then the test suite
#   make bench   the benchmarks; figures and machine go to performance/results/
#
# PYTHON chooses the interpreter (3.11 to 3.13). TORCH chooses another torch, for instance
# one built for your GPU that is already in a wheel folder: make run TORCH=./torch-....whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= experiments/default.yaml
HOME_FLAG := $(if $(SELECTIT_HOME),--home $(SELECTIT_HOME),)

.DEFAULT_GOAL := help
.PHONY: help setup dev deployment run ui test test-slow test-browser test-deployment soak lint bench demo-data demo-models lock clean pictures

help:
	@sed -n '1,10s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "selectit-dagster needs Python 3.11, 3.12 or 3.13; this is %d.%d. Name one with make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: asked for by another package it would come with several
# gigabytes of CUDA libraries on machines that have no GPU
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

run: setup
	@$(BIN)/selectit run $(EXPERIMENT) $(HOME_FLAG)

ui: setup
	@$(BIN)/selectit ui $(EXPERIMENT) $(HOME_FLAG)

test: dev
	$(BIN)/python -m pytest

test-slow: dev
	$(BIN)/python -m pytest -m slow

test-browser: dev
	$(BIN)/python -m pytest -m browser

# PostgreSQL's server comes from the distribution: apt-get install postgresql
deployment: dev requirements-postgres.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-postgres.lock kubernetes-validate==1.37.0

test-deployment: deployment
	$(BIN)/python -m pytest -m deployment

# MINUTES=120 for the long one; the report goes to performance/results/soak.json
soak: deployment
	$(BIN)/python scripts/soak.py --minutes $(or $(MINUTES),30)

# the README's pictures, from the home that `make run` filled
pictures: dev
	SELECTIT_BROWSER_HOME=$(abspath .selectit) SELECTIT_PICTURES=docs/images \
	  $(BIN)/python -m pytest -m browser

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: dev
	$(BIN)/python -m performance

demo-data: setup
	$(BIN)/python -m selectit_dagster.miniature.build

demo-models: setup
	$(BIN)/python -m selectit_dagster.miniature.pretrain --out selectit_dagster/miniature/models

lock:
	$(PYTHON) scripts/lock.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
