# make demo    record and answer 40 of the tiny reasoner's questions on vLLM, replay policies on them
# make demo-full   the same with all 120
# make train   a tiny reasoner anew: REASONER=tiny-equations (ten minutes of one core) or tiny-reasoner
# make record  256 traces of each of that reasoner's 120 questions, on vLLM, to runs/
# make test    every test, Rust and Python, those on a real vLLM engine included
# make bench   speed, beside this machine's memory, NumPy, polars, the reference package and others
# make lint    formatting, clippy, ruff, mypy, stubtest
# make soak    hours: evaluations on vLLM that are killed, starved and damaged; a thousand questions on one engine
# make fuzz    hostile input: the core's fuzz targets, FUZZ_SECONDS (120) each, and Python's
# make mutants     bugs put into the core, to see whether a test fails: MUTANTS_FILE, MUTANTS_SHARD (1/8)
# make miri        some of the core's tests in an interpreter that sees undefined behaviour
# make test-aarch64    the core's tests on an emulated ARM CPU
# make package     the core as a crate, its tests run from the archive
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
.PHONY: help demo demo-full train record test bench lint soak fuzz mutants miri test-aarch64 package build clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' $(MAKEFILE_LIST)

# Times are those of a virtual machine with two cores.
$(VENV)/.tools: requirements-dev.txt
	@echo "set-up 1 of 3: Python packages, 300 MB, under a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

$(VENV)/.vllm: tools/install_vllm.py | $(VENV)/.tools
	@echo "set-up 3 of 3: vLLM and torch, 3.6 GB, about two minutes"
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
	    "$$((1 + $(DEMO_QUESTIONS) / 30)) minutes"
	$(BIN)/deepconf eval $(TINY)/questions.jsonl --model $(TINY)/model --limit $(DEMO_QUESTIONS) \
	    --policy offline --policy low --out runs/demo.jsonl --record runs/demo.parquet
	@echo "demo 2 of 3: thousands of runs replayed on the recorded traces, seconds"
	$(BIN)/deepconf replay runs/demo.parquet --policy low --policy high
	@echo "demo 3 of 3: what the recorded confidences tell, seconds"
	$(BIN)/deepconf diagnose runs/demo.parquet

demo-full:
	$(MAKE) demo DEMO_QUESTIONS=120

REASONER ?= tiny-equations

train: $(VENV)/.vllm
	$(BIN)/python examples/training/train.py examples/$(REASONER)
	$(BIN)/python examples/training/questions.py check examples/$(REASONER)

record: $(VENV)/.built $(VENV)/.vllm
	$(BIN)/deepconf eval examples/$(REASONER)/questions.jsonl --model examples/$(REASONER)/model \
	    --policy offline --budget 256 --out runs/$(REASONER).jsonl --record runs/$(REASONER).parquet

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
	$(BIN)/python benches/processors.py
	$(BIN)/python benches/engine.py
	$(BIN)/python benches/server.py

CARGO_DENY := $(VENV)/cargo/bin/cargo-deny

lint: $(VENV)/.built $(CARGO_DENY)
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p deepconf-core --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps -p deepconf-core
	$(CARGO_DENY) --locked check bans licenses sources
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest deepconf._core

SOAK_MINUTES ?= 60
SOAK_SEED ?= 0
SOAK_QUESTIONS ?= 1000

soak: $(VENV)/.built $(VENV)/.vllm
	$(BIN)/python tests/chaos.py --minutes $(SOAK_MINUTES) --seed $(SOAK_SEED)
	for scoring in client engine; do \
	    $(BIN)/python tests/endurance.py --questions $(SOAK_QUESTIONS) --scoring $$scoring || exit 1; \
	done

FUZZ_SECONDS ?= 120
FUZZ_EXAMPLES ?= 2000
CARGO_FUZZ := $(VENV)/cargo/bin/cargo-fuzz
CORE := rust/core

fuzz: $(CARGO_FUZZ) $(VENV)/.built
	for seeds in $(CORE)/tests/seeds/*; do \
	    target=$$(basename $$seeds); mkdir -p fuzz/corpus/$$target; \
	    $(CARGO_FUZZ) run -s none $$target fuzz/corpus/$$target $$seeds -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=60; \
	done
	DEEPCONF_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_hostile.py

CARGO_MUTANTS := $(VENV)/cargo/bin/cargo-mutants
MUTANTS_FILE ?=
MUTANTS_SHARD ?=
MUTANTS_FLAGS ?=

# Settings and known survivors: .cargo/mutants.toml. A report goes to target/mutants.out.
mutants: $(CARGO_MUTANTS)
	@mkdir -p target
	$(CARGO_MUTANTS) mutants --package deepconf-core --output target \
	    $(if $(MUTANTS_FILE),--file '$(MUTANTS_FILE)') \
	    $(if $(MUTANTS_SHARD),--shard $(MUTANTS_SHARD)) $(MUTANTS_FLAGS)

# What interprets in minutes. Without rayon, whose queues Miri has its own opinion of.
MIRI_TESTS ?= --test edges --test events --test fuzz --test vectors

miri:
	@cargo +nightly miri --version >/dev/null 2>&1 || { echo "make miri wants nightly Rust with Miri:" \
	    "rustup toolchain install nightly --component miri,rust-src" >&2; exit 1; }
	MIRIFLAGS="-Zmiri-tree-borrows -Zmiri-disable-isolation" \
	    cargo +nightly miri test --locked -p deepconf-core --no-default-features $(MIRI_TESTS)

AARCH64 := aarch64-unknown-linux-gnu

test-aarch64:
	@for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do \
	    command -v $$tool >/dev/null || { echo "make test-aarch64 wants $$tool: on Debian," \
	        "apt install qemu-user gcc-aarch64-linux-gnu" >&2; exit 1; }; \
	done
	@test -d "$$(rustc --print target-libdir --target $(AARCH64))" || { echo "make test-aarch64 wants" \
	    "Rust's standard library for it: rustup target add $(AARCH64)" >&2; exit 1; }
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
	    cargo test --locked -p deepconf-core --target $(AARCH64)

PACKAGE_TESTS ?=

# The archive is unpacked where no other file of the checkout is at hand.
package:
	cargo package --locked -p deepconf-core --no-verify --allow-dirty
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	tar -xzf target/package/deepconf-core-*.crate -C "$$folder" --strip-components=1; \
	CARGO_TARGET_DIR=$(CURDIR)/target CARGO_PROFILE_TEST_OPT_LEVEL=2 \
	    cargo test --locked --manifest-path "$$folder/Cargo.toml" $(PACKAGE_TESTS)

# Built without optimisation, which takes a minute or two once.
$(CARGO_DENY): TOOL := --version 0.20.2 cargo-deny
$(CARGO_FUZZ): TOOL := --version 0.13.2 cargo-fuzz
$(CARGO_MUTANTS): TOOL := --version 27.1.0 cargo-mutants
$(CARGO_DENY) $(CARGO_FUZZ) $(CARGO_MUTANTS):
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	    cargo install --locked --quiet --root $(VENV)/cargo $(TOOL)

clean:
	rm -rf $(VENV) target runs python/deepconf/*.so
