# make demo    train on real data with several peers, print the comparison, write out/demo/
# make test    everything the tests need, RabbitMQ included, then the whole suite
# make test-brokers   only the tests that need a real RabbitMQ; `make test` runs them, too
# make lint    the checks of the code alone
# make bench   measurements as JSON in out/bench.json
# make bench-flower   a round of masked-average beside one of Flower's SecAgg+, which gets an environment of its own
# make fuzz    hostile input for every decoder under atheris; the figures in out/fuzz/summary.json
# make release-once   100,000 random schedules of masked-average against a lying relay; `make test` runs 2,000
# make soak    trials of real processes over RabbitMQ, with random faults, for SOAK_S seconds; its last line is a summary
# make soak-memory   memory and open files of five peers through 500 rounds
# make simulation   100,000 random trials of whole peers on a virtual clock: deaths, full disks, a lying relay; `make test` runs 2,000; its last line is a summary
# make clean   removes what these made, the environments too
#
# PYTHON=python3.12     another interpreter, 3.11 or newer
# PIP_ARGS="..."        more arguments for pip. On Linux the package index serves torch with CUDA (several GB); an index of
#                       CPU builds is passed as PIP_ARGS="--extra-index-url URL". See https://pytorch.org/get-started.
# DEMO_ARGS="..."       more arguments for `ppdl-mq demo`, for instance DEMO_ARGS="--peers 5 --activation gelu"
# PYTEST_ARGS="..."     more arguments for pytest, for instance PYTEST_ARGS="-k schedule"
# BENCH_ARGS="..."      more arguments for the benchmark, for instance BENCH_ARGS="--only masked"
# SCHEDULES=100000      of `make release-once`
# SOAK_S=1800           seconds of `make soak`; SOAK_SEED=N repeats a run of it
# SOAK_ROUNDS=500       of `make soak-memory`
# SEEDS=100000          of `make simulation`; SIMULATION_FIRST=N begins with that seed
# FUZZ_S=60             seconds of `make fuzz` for each target
# FUZZ_TARGETS="..."    only these of its targets, for instance FUZZ_TARGETS="header canonical"

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PIP_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SCHEDULES ?= 100000
SOAK_S ?= 1800
SOAK_ROUNDS ?= 500
SEEDS ?= 100000
FUZZ_S ?= 60
FUZZ_TARGETS ?=

DEMO_ENV := .venv-demo
TEST_ENV := .venv-test
FUZZ_ENV := .venv-fuzz
INSTALLED_FROM := pyproject.toml constraints.txt scripts/make-venv

.DEFAULT_GOAL := help
.PHONY: help demo test test-brokers lint bench bench-flower release-once simulation soak soak-memory fuzz clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(DEMO_ENV)/installed
	@mkdir -p out/demo
	@$(DEMO_ENV)/bin/ppdl-mq demo --out out/demo $(DEMO_ARGS)

test: $(TEST_ENV)/installed
	@scripts/install-rabbitmq || [ "$${CI:-}" != true ]  # elsewhere than in CI its tests skip
	@scripts/lint $(TEST_ENV)
	@$(TEST_ENV)/bin/python -m pytest -n 2 --dist loadgroup --max-worker-restart 0 $(PYTEST_ARGS)

test-brokers: $(TEST_ENV)/installed
	@scripts/install-rabbitmq || [ "$${CI:-}" != true ]
	@$(TEST_ENV)/bin/python -m pytest -n 2 --dist loadgroup --max-worker-restart 0 -m rabbitmq $(PYTEST_ARGS)

lint: $(TEST_ENV)/installed
	@scripts/lint $(TEST_ENV)

bench: $(TEST_ENV)/installed
	@mkdir -p out
	@$(TEST_ENV)/bin/ppdl-mq bench $(BENCH_ARGS) > out/bench.json
	@echo "bench: out/bench.json"

bench-flower: $(TEST_ENV)/installed
	@scripts/install-rabbitmq
	@mkdir -p out
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" $(TEST_ENV)/bin/python benchmarks/against_flower.py $(BENCH_ARGS) > out/bench-flower.json
	@echo "bench-flower: out/bench-flower.json"

release-once: $(TEST_ENV)/installed
	@RELEASE_ONCE_SCHEDULES=$(SCHEDULES) $(TEST_ENV)/bin/python -m pytest -q -n auto tests/protocol/test_release_once.py

soak: $(TEST_ENV)/installed
	@scripts/install-rabbitmq
	@$(TEST_ENV)/bin/python -m tests.chaos.soak $(SOAK_S)

soak-memory: $(TEST_ENV)/installed
	@scripts/install-rabbitmq
	@$(TEST_ENV)/bin/python -m tests.chaos.memory $(SOAK_ROUNDS)

simulation: $(TEST_ENV)/installed
	@$(TEST_ENV)/bin/python -m tests.simulation.many $(SEEDS)

fuzz: $(FUZZ_ENV)/installed
	@$(FUZZ_ENV)/bin/python -m fuzz.run $(FUZZ_S) $(FUZZ_TARGETS)

# Environments. They are made anew when what they were installed from has changed.
$(DEMO_ENV)/installed: $(INSTALLED_FROM)
	@PYTHON="$(PYTHON)" scripts/make-venv $(DEMO_ENV) demo $(PIP_ARGS)

$(TEST_ENV)/installed: $(INSTALLED_FROM)
	@PYTHON="$(PYTHON)" scripts/make-venv $(TEST_ENV) dev $(PIP_ARGS)

$(FUZZ_ENV)/installed: $(INSTALLED_FROM)
	@PYTHON="$(PYTHON)" scripts/make-venv $(FUZZ_ENV) fuzz $(PIP_ARGS)

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) $(FUZZ_ENV) .venv-flower out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
