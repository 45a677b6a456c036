# make demo    answer the tiny reasoner's questions with DeepConf on vLLM, and print the table
# make test    every test, Rust and Python, those on a real vLLM engine included
# make bench   speed, beside this machine's memory, NumPy, polars, the reference package and others
# make lint    formatting, clippy, ruff, mypy, stubtest
# make clean   remove what was built
#
# Each installs what it needs into .venv. Wanted: Python 3.10 or later, a Rust toolchain, GNU make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUST   := $(shell find rust benches -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
TINY   := examples/tiny-reasoner

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-python bench lint build clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' $(MAKEFILE_LIST)

$(VENV)/.tools: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

$(VENV)/.vllm: tools/install_vllm.py | $(VENV)/.tools
	$(BIN)/python tools/install_vllm.py
	@touch $@

$(VENV)/.built: $(VENV)/.tools pyproject.toml $(RUST)
	$(BIN)/maturin develop --release --quiet
	@touch $@

build: $(VENV)/.built

demo: $(VENV)/.built $(VENV)/.vllm
	$(BIN)/deepconf eval $(TINY)/questions.jsonl --model $(TINY)/model \
	    --policy low --policy high --policy offline --out runs/demo.jsonl

test: $(VENV)/.built $(VENV)/.vllm
	@mkdir -p target
	cargo test --locked -p deepconf-core -p deepconf-bench 2>&1 | tee target/test-rust.log
	$(BIN)/python -m pytest 2>&1 | tee target/test-python.log
	@$(BIN)/python tools/count_tests.py target/test-rust.log target/test-python.log

$(VENV)/.bench: benches/requirements.txt | $(VENV)/.vllm
	$(BIN)/python -m pip install --quiet --requirement benches/requirements.txt
	@touch $@

bench: $(VENV)/.built $(VENV)/.bench
	cargo run --locked --release -p deepconf-bench
	$(BIN)/python benches/peers.py
	$(BIN)/python benches/votes.py --runs 3
	$(BIN)/python benches/parquet.py
	$(BIN)/python benches/engine.py

lint: $(VENV)/.built
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps -p deepconf-core
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest deepconf._core

clean:
	rm -rf $(VENV) target runs python/deepconf/*.so
