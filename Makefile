# `make demo` and `make test` set up what they need in .venv, once, and run.
# They need Python 3.11 or later and a package index; no GPU.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := $(CURDIR)/.venv/bin
# The stamp's name holds what it stands for: another pyproject.toml or constraints.txt is another stamp.
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

MODELS_BIN := $(CURDIR)/.venv-models/bin
MODELS_READY := .venv-models/.ready

# Print a command as a user would type it, then run it.
show = printf '\n$$ %s\n' "$(1)" && PATH="$(BIN):$$PATH" $(1)

.PHONY: help demo test test-slow test-faults soak strace mutation lint bench bench-overhead models schema setup clean

help:
	@echo "make demo    calibrate and train a model on real digits, from its config files"
	@echo "make test    lint, types and the whole test suite"
	@echo "make test-slow    what takes too long for that: a million cases, every kind of edit"
	@echo "make test-faults  kill and starve runs at their system calls (strace), and compare bytes"
	@echo "make soak         kill and resume runs at random instants for SECONDS=7200"
	@echo "make mutation     how many edits of a config are reported, and where"
	@echo "make lint    ruff and mypy alone"
	@echo "make bench   the measurements of benchmarks/"
	@echo "make bench-overhead   what a step of training or calibration costs over float, compiled too"
	@echo "make models  prepare the models of torchvision, timm and transformers, and their trainers"
	@echo "make schema  write schemas/quantcfg.schema.json and the compiled schema anew"
	@echo "make clean   remove what the targets made, .venv too"

# One thread, unless told otherwise: models this small gain nothing from more, whose waiting for each other takes the
# time when the machine has other work; and sums keep their order whatever the number of cores.
demo test: export OMP_NUM_THREADS ?= 1

demo: $(READY)
	@rm -rf runs/digits-w8a8 runs/digits-w4a4 runs/digits-wide runs/digits-wide.onnx
	@$(call show,quantcfg validate configs/digits_w8a8.yaml)
	@$(call show,quantcfg plan examples/digits/model.py configs/digits_w8a8.yaml)
	@$(call show,quantcfg calib examples/digits/model.py configs/digits_w8a8.yaml -o runs/digits-w8a8)
	@$(call show,quantcfg qat examples/digits/model.py configs/digits_w4a4.yaml -o runs/digits-w4a4)
	@$(call show,quantcfg eval examples/digits/model.py runs/digits-w4a4)
	@$(call show,quantcfg calib examples/digits/wide.py configs/digits_wide.yaml -o runs/digits-wide)
	@$(call show,quantcfg export examples/digits/wide.py runs/digits-wide --check)

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --ignore tests/faults

test-faults: $(READY) strace
	$(BIN)/python -m pytest -m slow tests/faults

soak: SECONDS ?= 7200
soak: $(READY)
	$(BIN)/python -m tests.faults.soak $(SECONDS)

strace:
	@command -v strace >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "installing strace" && apt-get install --quiet --yes strace >/dev/null; } \
		|| { echo "this needs strace: install it with the package manager of the system"; exit 1; }

mutation: $(READY)
	$(BIN)/python -m tests.config.mutation

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

bench-overhead: $(READY)
	$(BIN)/python -m benchmarks.overhead

# The architectures have an environment of their own beside .venv, whose packages they see: their own wish for
# another torch is not heard (--no-deps).
models: $(MODELS_READY)
	$(MODELS_BIN)/python -m pytest tests/models
	$(MODELS_BIN)/python -m benchmarks.models

$(MODELS_READY): $(READY) tests/models/requirements.txt
	@test -x $(MODELS_BIN)/python || $(BIN)/python -m venv .venv-models
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$($(MODELS_BIN)/python -c 'import site; print(site.getsitepackages()[0])')/beside.pth"
	@echo "installing into .venv-models"
	@$(MODELS_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--constraint constraints.txt --requirement tests/models/requirements.txt
	@touch $@

schema: $(READY)
	$(BIN)/python -m quantcfg.config.compile
	$(BIN)/quantcfg schema > schemas/quantcfg.schema.json

setup: $(READY)

$(READY):
	@test -n "$(PYTHON)" || { echo "quantcfg needs Python 3.11 or later: make PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv"
	@$(PIP) torch
	@$(PIP) --editable ".[dev,demo,export,tensorboard]"
	@rm -f .venv/.ready-*
	@touch $@

clean:
	rm -rf .venv .venv-models runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
