# Everything a person needs after `git clone`. Needs make, a POSIX shell and Python 3.11+; not root, no Docker, no Java.
# `make` alone lists the targets.

SHELL = /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMPS = $(VENV)/stamps
# Extra arguments: `make demo ARGS="--kafka host:9092"`, `make test ARGS="-k codec"`.
ARGS ?=
SECONDS ?=

# Hashes are checked, and only built wheels are taken: no compiler is needed and nothing foreign runs at install time.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-input
LOCKED = $(INSTALL) --require-hashes --only-binary :all:
COMPILE = $(STAMPS)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-index-annotation --no-annotate \
	--custom-compile-command "make lock" pyproject.toml
# The folders that are checked; `taskyard/` holds only links to five of them.
SOURCES = schemas producers dispatcher workers compose taskyard/__init__.py tests bench

.PHONY: help run dev demo test simulate fuzz chaos lint format types bench soak figures bench-smoke lock clean

help: ## list the targets
	@echo "make TARGET, with TARGET one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' Makefile | while read -r name what; do printf '  %-12s %s\n' "$$name" "$$what"; done

demo: run ## the main job, live in the terminal: make demo SECONDS=20 ARGS="..."
	@exec $(BIN)/taskyard demo $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

test: dev ## every test; starts the services it needs: make test ARGS="-k codec"
	@$(BIN)/python -m pytest $(ARGS)

simulate: dev ## the real loops on virtual time, faults drawn from seeds: make simulate ARGS="--seeds 10000 --minutes 30"
	@$(BIN)/python -m tests.simulation $(ARGS)

chaos: dev ## every fault on real processes, 20 minutes: make chaos ARGS="--only aof-cut --keep DIR"
	@$(BIN)/python -m tests.fault $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

fuzz: dev ## a million bad inputs to every reader: make fuzz ARGS="--inputs 50000 --seed 7 --target records"
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: dev ## style and formatting
	@echo "==> ruff"
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))

format: dev ## mend what lint can mend by itself
	@$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	@$(BIN)/ruff format $(wildcard $(SOURCES))

types: dev ## the type checker, strict
	@echo "==> pyright"
	@$(BIN)/pyright

bench: dev ## every figure with its baseline, a few hours: make bench ARGS="--only dispatch"
	@$(BIN)/python -m bench $(ARGS)

soak: dev ## half load for half an hour, is memory flat?: make soak ARGS="--minutes 120 --json FILE"
	@$(BIN)/python -m bench.soak $(ARGS)

figures: dev ## pictures of a benchmark's JSON: make figures ARGS="run.json docs/figures/"
	@$(BIN)/python -m bench.plot $(ARGS)

bench-smoke: dev ## a short run of the benchmarks: do they work, not how fast
	@$(BIN)/python -m bench --smoke

lock: $(STAMPS)/python ## choose the newest dependencies again and write requirements/*.txt
	@test -x $(STAMPS)/uv/bin/uv || { $(PYTHON) -m venv $(STAMPS)/uv && $(STAMPS)/uv/bin/pip install --quiet uv; }
	@echo "==> requirements/run.txt"
	@$(COMPILE) --upgrade --extra fast --extra embedded --group build --output-file requirements/run.txt
	@echo "==> requirements/dev.txt"
	@$(COMPILE) --upgrade --extra fast --extra embedded --group build --group test --group lint \
		--constraint requirements/run.txt --output-file requirements/dev.txt

clean: ## remove the environment and everything the tools left behind
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp is newer than what it was made from, so a second start does no work.
# The tree itself is installed last: its build needs what the lock files bring.
.NOTPARALLEL:
run: $(STAMPS)/run $(STAMPS)/tree
dev: $(STAMPS)/dev $(STAMPS)/tree

$(STAMPS)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
		echo "error: no '$(PYTHON)' here. Install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python3"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); Taskyard needs 3.11 or newer. Say where one is: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"; exit 1; } >&2
	@echo "==> $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: $(STAMPS)/python requirements/run.txt
	@echo "==> installing what running needs (requirements/run.txt)"
	@$(LOCKED) --requirement requirements/run.txt
	@touch $@

# All of run.txt is in dev.txt, in the same versions.
$(STAMPS)/dev: $(STAMPS)/python requirements/dev.txt
	@echo "==> installing what testing needs (requirements/dev.txt)"
	@$(LOCKED) --requirement requirements/dev.txt
	@touch $(STAMPS)/run $@

$(STAMPS)/tree: $(STAMPS)/python pyproject.toml
	@echo "==> installing this tree"
	@$(INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@touch $@
