//! The fuzz targets on what a fuzzer found once (`seeds/TARGET/*`), and on inputs out of numbers.
#![allow(clippy::unwrap_used)]

mod driver;
mod oracle;
mod quanta;
mod reference;
mod targets;
mod traces;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use targets::{TARGETS, run};

/// How many inputs out of numbers each target gets.
const INPUTS: u64 = if cfg!(miri) { 1 } else { 1_000 };

/// Says which input it was, if it fails.
fn on(name: &str, input: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(name, bytes))) {
        eprintln!("target {name} fails on {input}");
        resume_unwind(panic);
    }
}

fn inputs(name: &str) {
    for seed in 0..INPUTS {
        on(name, &format!("input {seed}"), &traces::bytes(seed));
    }
}

#[test]
fn events() {
    inputs("events");
}

#[test]
fn replays() {
    inputs("replay");
}

#[test]
fn scores() {
    inputs("score");
}

#[test]
fn streams() {
    inputs("stream");
}

#[test]
fn tokens() {
    inputs("token");
}

#[test]
fn votes() {
    inputs("vote");
}

#[test]
fn seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    for (name, _) in TARGETS {
        let files = std::fs::read_dir(folder.join(name)).unwrap();
        let paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!paths.is_empty(), "{name} has no seeds");
        for path in paths {
            on(name, &path.display().to_string(), &std::fs::read(&path).unwrap());
        }
    }
}
