# make demo    record and answer 40 of the tiny reasoner's questions on vLLM, replay policies on them
# make demo-full   the same with all 120
# make test    every test, Rust and Python, those on a real vLLM engine included
# make bench   speed, beside this machine's memory, NumPy, polars, the reference package and others
# make lint    formatting, clippy, ruff, mypy, stubtest
# make soak    an hour of chaos: evaluations on vLLM that are killed, starved and damaged
# make fuzz    hostile input: the core's fuzz targets, FUZZ_SECONDS (120) each, and Python's
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
.PHONY: help demo demo-full test bench lint soak fuzz build clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' $(MAKEFILE_LIST)

# Times are those of a virtual machine with two cores.
$(VENV)/.tools: requirements-dev.txt
	@echo "set-up 1 of 3: Python packages, 300 MB, about half a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

$(VENV)/.vllm: tools/install_vllm.py | $(VENV)/.tools
	@echo "set-up 3 of 3: vLLM and torch, 3.6 GB, about three minutes"
	@$(BIN)/python tools/install_vllm.py
	@touch $@

$(VENV)/.built: $(VENV)/.tools pyproject.toml $(RUST)
	@echo "set-up 2 of 3: compiling the core, about two minutes"
	@$(BIN)/maturin develop --release > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

build: $(VENV)/.built

DEMO_QUESTIONS ?= 40

demo: $(VENV)/.built $(VENV)/.vllm
	@echo "demo 1 of 3: $(DEMO_QUESTIONS) questions under two policies on vLLM, about" \
	    "$$((2 + $(DEMO_QUESTIONS) / 20)) minutes"
	$(BIN)/deepconf eval $(TINY)/questions.jsonl --model $(TINY)/model --limit $(DEMO_QUESTIONS) \
	    --policy offline --policy low --out runs/demo.jsonl --record runs/demo.parquet
	@echo "demo 2 of 3: thousands of runs replayed on the recorded traces, seconds"
	$(BIN)/deepconf replay runs/demo.parquet --policy low --policy high
	@echo "demo 3 of 3: what the recorded confidences tell, seconds"
	$(BIN)/deepconf diagnose runs/demo.parquet

demo-full:
	$(MAKE) demo DEMO_QUESTIONS=120

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
	$(BIN)/python benches/replay.py
	$(BIN)/python benches/engine.py

# Built without optimisation, which takes a minute and a half once.
CARGO_DENY := $(VENV)/cargo/bin/cargo-deny

lint: $(VENV)/.built $(CARGO_DENY)
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps -p deepconf-core
	$(CARGO_DENY) --locked check bans licenses sources
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest deepconf._core

SOAK_MINUTES ?= 60
SOAK_SEED ?= 0

soak: $(VENV)/.built $(VENV)/.vllm
	$(BIN)/python tests/chaos.py --minutes $(SOAK_MINUTES) --seed $(SOAK_SEED)

FUZZ_SECONDS ?= 120
FUZZ_EXAMPLES ?= 2000
CARGO_FUZZ := $(VENV)/cargo/bin/cargo-fuzz

$(CARGO_FUZZ):
	cargo install --locked --quiet --root $(VENV)/cargo --version 0.13.2 cargo-fuzz

fuzz: $(CARGO_FUZZ) $(VENV)/.built
	for target in score stream vote; do \
	    $(CARGO_FUZZ) run -s none $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=60; \
	done
	DEEPCONF_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_hostile.py

$(CARGO_DENY):
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	    cargo install --locked --quiet --root $(VENV)/cargo --version 0.20.2 cargo-deny

clean:
	rm -rf $(VENV) target runs python/deepconf/*.so
