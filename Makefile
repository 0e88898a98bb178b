# Every command of the project.  `make` alone lists them.
# All of them run in .venv, which the first one that needs it makes; nothing is installed elsewhere.

PYTHON ?= python3
ARGS ?=
N ?= 1000
# What is fuzzed, and for how many seconds.
TARGET ?= core
S ?= 600
# Tests at a time; they wait more than they compute.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet

.PHONY: help demo test check bench crash protections fuzz fmt clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/demo.stamp  ## train 8 runs at once, log them through the daemon, draw their curves
	@$(PY) examples/digits_sweep.py

test: $(VENV)/dev.stamp $(VENV)/mle-logging.stamp  ## run the tests; ARGS="tests/unit -x" for some of them
	@$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/dev.stamp  ## format, lint, strict types, import arrows
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/dev.stamp  ## measure, and write docs/performance.md: 20 minutes; ARGS=update_cost for one benchmark
	@$(PY) -m benchmarks --page $(ARGS)

crash: $(VENV)/dev.stamp  ## run all crash tests, the long ones too, then a session of N=1000 kills
	@$(PY) -m pytest tests/crash -m "long or not long" $(ARGS)
	@$(PY) -m tests.crash.kill_session $(N)

protections: $(VENV)/dev.stamp  ## switch off one protection after another: a test must notice each
	@$(PY) -m tests.protections

fuzz: $(VENV)/dev.stamp  ## let a coverage-guided fuzzer look for bytes that do harm; TARGET=core S=600
	@$(PIP) install --group fuzz
	@$(PY) -m tests.fuzz $(TARGET) -max_total_time=$(S)

fmt: $(VENV)/dev.stamp  ## format and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv, builds and caches; exp/ stays
	rm -rf $(VENV) build dist *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ------------------------------------------------------------------------------
# A stamp says that an installation was completed; a later change of pyproject.toml repeats it.
# The package is installed in place (-e), so both kinds of installation can share one .venv.
$(VENV)/venv.stamp:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'  # the first with --group
	@touch $@

$(VENV)/demo.stamp: $(VENV)/venv.stamp pyproject.toml
	@echo "installing mle-daemon and what the demo needs"
	@$(PIP) install -e '.[demo]'
	@touch $@

# The other side of the compatibility tests, which are skipped where it cannot be had.
$(VENV)/mle-logging.stamp: $(VENV)/dev.stamp tests/compat/upstream.py
	@echo "installing mle-logging, in an environment of its own"
	@$(PY) tests/compat/upstream.py && touch $@ || true

$(VENV)/dev.stamp: $(VENV)/venv.stamp pyproject.toml
	@echo "installing mle-daemon and the development tools"
	@$(PIP) install -e . --group dev
	@touch $@
