# What you can do here. `make demo` and `make test` set themselves up, in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DATA   ?= synthetic
SEED   ?= 1
NODES  ?= 1000
FAULTS ?= drawn

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench bench-overlay bench-bulk bench-aggregation bench-methods paper simulate soak clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt fmrec_manager/weighted_sum.c
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

setup: $(STAMP)  ## install FMRec and its tools into .venv

demo: $(STAMP)  ## three runs with kill -9 in two of them (DATA=folder for the real parking data, SEED=1)
	@$(BIN)/python scripts/demo.py --data '$(DATA)' --seed '$(SEED)'

# Rooms that only compute share the cores. Then those of real processes, which wait more than they compute and have limits in real time.
# Last aio, whose deadlines are short.
PROCESSES := tests/benchmarks tests/end_to_end tests/real_hosts
test: $(STAMP) lint types  ## every test, the linter and the type checker
	@$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --ignore=tests/aio $(PROCESSES:%=--ignore=%)
	@$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder $(PROCESSES)
	@$(BIN)/python -m pytest tests/aio

lint: $(STAMP)  ## ruff over the whole tree
	@$(BIN)/ruff check .

types: $(STAMP)  ## mypy, strict, over the three packages
	@$(BIN)/mypy

bench: $(STAMP)  ## time and memory of a recovery, beside the floor measured in the same run
	@$(BIN)/python scripts/bench_recovery.py

bench-overlay: $(STAMP)  ## joins, look-ups and multicast of 100 real nodes, then 10 % of them killed, the root among them
	@$(BIN)/python scripts/bench_overlay.py

bench-bulk: $(STAMP)  ## moving records, beside a bare BufferedProtocol; control traffic meanwhile, digests, compression, disks
	@$(BIN)/python scripts/bench_bulk.py

bench-aggregation: $(STAMP)  ## weighted mean, median, trimmed mean, Krum of up to 500 x 1 M values, beside the bandwidth of a copy
	@$(BIN)/python scripts/bench_aggregation.py

bench-methods: $(STAMP)  ## CPU time of a draw by each learning method, its tasks together and one by one, beside a plain gradient
	@$(BIN)/python scripts/bench_methods.py

paper: $(STAMP)  ## the paper's figures and tables again, into docs/paper (DATA=folder for the real parking data)
	@$(BIN)/python scripts/paper.py --data '$(DATA)'

simulate: $(STAMP)  ## the overlay in virtual time, under faults drawn from a seed (SEED=1 NODES=1000 FAULTS=drawn)
	@$(BIN)/python scripts/simulate.py --seed '$(SEED)' --nodes '$(NODES)' --faults '$(FAULTS)'

soak: $(STAMP)  ## half an hour of kills, hangs and partitions on real processes, every promise checked (SEED=1)
	@$(BIN)/python scripts/chaos.py --seconds 1800 --seed '$(SEED)'

clean:  ## remove .venv, runs and caches
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
