//! Deep Think with Confidence (arXiv 2508.15260): the pure engine.
//!
//! A language model answers one question many times. Each token's top-k log-probabilities say
//! how sure the model was; a sliding window turns that into a local confidence; traces that
//! collapse are left out of the vote, or stopped while they are being generated.
//!
//! | module | what it answers |
//! |---|---|
//! | [`token`] | how sure was the model at this token? |
//! | [`stream`] | how sure is it over the last `w` tokens, and should the trace stop? (streaming) |
//! | [`trace`] | how sure was it over the whole trace? (recorded traces, in parallel) |
//! | [`staircase`] | where would any threshold have stopped it? |
//! | [`vote`] | which traces are kept, and which answer wins? |
//! | [`policy`] | every setting, and the presets |
//! | [`controller`] | what to launch, stop and abort next, and what the answer is |
//! | [`replay`] | what would a policy have done with these traces, and what would it have cost? |
//! | [`fixed`] | the arithmetic that makes all paths agree bit for bit |
//!
//! Nothing here does I/O or reads a clock, and no result depends on a number that was drawn. (The seed of
//! a hash is.) What works on many things does so on the threads of rayon's current pool, and says so: the
//! feature `rayon`, without which it works on the caller's. Confidences and scores are in nats, higher
//! where the model was surer; a trace is `[n]` of them, `f32`, `f64` or `f16`.
//!
//! ```
//! use deepconf_core::{trace::{Scorer, Settings}, vote::{self, Rules}};
//!
//! let scorer = Scorer::new(Settings::default().window(2))?;
//! let sure = scorer.score(&[9.0_f32, 8.0, 9.0])?;
//! let shaky = scorer.score(&[9.0_f32, 2.0, 3.0])?;
//! assert_eq!((sure.lowest_group, shaky.lowest_group), (8.5, 2.5));
//!
//! let scores = [sure.lowest_group, shaky.lowest_group];
//! let rules = Rules::default().weights(Some(&scores));
//! let vote = vote::vote(&[Some("42"), Some("41")], &rules)?;
//! assert_eq!(vote.winner().map(|ballot| ballot.first), Some(0)); // trace 0, so "42"
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! # While traces are generated
//!
//! A [`TraceScorer`](stream::TraceScorer) takes tokens as they come and says when to stop; a
//! [`Controller`](controller::Controller) runs the whole protocol, warmup, threshold, stops, early end
//! and vote, for whoever launches the traces.
//!
//! ```
//! use deepconf_core::trace::{Scorer, Settings};
//!
//! let mut scorer = Scorer::new(Settings::default().window(3))?.stream(Some(4.0))?;
//! assert_eq!(scorer.extend(&[6.0_f32, 5.0, 5.0, 4.0, 2.0, 1.0])?, Some(4)); // (5 + 4 + 2) / 3 < 4
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! # What holds
//!
//! - **Equal bits.** Confidences become whole multiples of 2⁻⁴⁰ nats, and sums of integers are the same
//!   in any order: streaming, batch, replay, every instruction set and any number of threads agree.
//! - **Errors, not panics.** An [`Error`] names the argument, the value, its place, and what would be
//!   right; nothing is half done when one is returned.
//! - **No `unsafe`.** AVX2 and what else the CPU has are chosen at run time, by `pulp`.
//!
//! # Features
//!
//! `rayon` (default): functions on many traces, rows or questions work on the threads of rayon's current
//! pool. Without it they work on the caller's, with the same results.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod controller;
mod error;
pub mod fixed;
mod parallel;
pub mod policy;
pub mod replay;
mod sample;
mod settings;
mod simd;
pub mod staircase;
pub mod stream;
pub mod token;
pub mod trace;
pub mod vote;

pub use error::{Error, Result};
pub use parallel::alone;
pub use sample::Sample;
pub use simd::Level;
