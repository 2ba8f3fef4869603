# Every target works on a fresh clone: what it needs is installed first, and skipped when up to date.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Runs a server and leaves none of its processes behind, however make ends.
KEEP := $(BIN)/python -m pipelines.runs.keeper

export MEDSAM_HOME ?= $(CURDIR)/.medsam
export DAGSTER_HOME ?= $(MEDSAM_HOME)/dagster
export DAGSTER_DISABLE_TELEMETRY := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR := false
# Threads that wait by spinning cost more than they save where cores are shared.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup pipeline ablations dev mlflow test test-slow bench lint typecheck rooms format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	# torch first and pinned: a later step would otherwise bring a build for GPUs of several gigabytes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP) ## Create .venv from constraints.txt and the state folder
	@$(BIN)/medsam init

pipeline: setup ## Make the sample data and run full_pipeline in one process
	$(BIN)/medsam sample
	DAGSTER_MODULE_NAME=pipelines.definitions MEDSAM_EXECUTOR=in_process $(BIN)/dagster job execute -j full_pipeline
	$(BIN)/medsam summary

ablations: setup ## Run the ablations after the pipeline and compare them
	DAGSTER_MODULE_NAME=pipelines.definitions MEDSAM_EXECUTOR=in_process $(BIN)/dagster job execute -j ablations
	$(BIN)/medsam summary

dev: setup ## Serve the Dagster page on 127.0.0.1:3000 (PORT=...)
	exec env -u DAGSTER_MODULE_NAME $(KEEP) $(BIN)/dagster dev -w workspace.yaml --port $(or $(PORT),3000)

mlflow: setup ## Serve the MLflow page on 127.0.0.1:5000 (PORT=...)
	exec $(KEEP) $(BIN)/medsam mlflow --port $(or $(PORT),5000)

test: setup ## Run the fast tests, the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term

test-slow: setup ## Run the tests that take minutes
	$(BIN)/pytest -m slow

bench: setup ## Run the benchmarks, one JSON line each
	for file in tests/benchmarks/[a-z]*.py; do $(BIN)/python -m tests.benchmarks.$$(basename $$file .py); done

lint: setup ## Lint and check the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: setup ## Check types
	$(BIN)/mypy

rooms: setup ## Draw docs/rooms.svg from the imports
	$(BIN)/python docs/draw_rooms.py

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches; the state folder stays
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
