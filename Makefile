# make quickstart   install, train the small default agent, evaluate it, say where to look
# make test         install if needed, run the default tests, one process per core
# make check        lint, format, types, import directions
# make wheel        build dist/*.whl
# make clean        remove what the commands above made, save runs and results
#
# Variables: VENV, PYTHON, TORCH_INDEX and ALLOW_CUDA (see .ci/install), RUNS, QUICKSTART_ARGS, EVAL_ARGS,
# TEST_ARGS, and TEST_JOBS (processes, 0: none of their own).

VENV ?= .venv
RUNS ?= outputs/make-quickstart
QUICKSTART_ARGS ?=
EVAL_ARGS ?=
TEST_ARGS ?=
TEST_JOBS ?= logical

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread per process: the tests' golden numbers and timings are stated for it.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

export PYTHON TORCH_INDEX ALLOW_CUDA

.PHONY: help setup quickstart test check wheel clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	@bash .ci/install $(VENV)
	@touch $@

quickstart: $(STAMP)
	@FLOWMBPO=$(BIN)/flowmbpo RUNS="$(RUNS)" TRAIN_ARGS="$(QUICKSTART_ARGS)" EVAL_ARGS="$(EVAL_ARGS)" \
		bash examples/quickstart.sh

test: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist worksteal $(TEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests/test_imports.py

wheel: $(STAMP)
	$(BIN)/python -m build --no-isolation --wheel

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find flowmbpo flowmbpo_cli tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} +
