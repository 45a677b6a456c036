//! The fuzz targets, each a function of bytes: what the crate says is held against an oracle.
//!
//! `cargo test` runs them on the seeds and on inputs out of numbers (`fuzz.rs`), `make fuzz` on what a
//! fuzzer finds.

use arbitrary::{Result, Unstructured};

mod events;
mod replay;
mod score;
mod stream;
mod token;
mod vote;

/// A target; an input that is too short is no failure.
type Target = fn(&mut Unstructured) -> Result<()>;

/// Every target by its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("events", events::run),
    ("replay", replay::run),
    ("score", score::run),
    ("stream", stream::run),
    ("token", token::run),
    ("vote", vote::run),
];

/// Runs the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let _ = target(&mut Unstructured::new(bytes));
}
