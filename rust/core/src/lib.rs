//! Deep Think with Confidence (arXiv 2508.15260): the pure engine.
//!
//! A language model answers one question many times. Each token's top-k log-probabilities say
//! how sure the model was; a sliding window turns that into a local confidence; traces that
//! collapse are left out of the vote, or stopped while they are being generated.
//!
//! | module | what it answers |
//! |---|---|
//! | [`token`] | how sure was the model at this token? |
//! | [`group`] | how sure is it over the last `w` tokens, and should the trace stop? (streaming) |
//! | [`trace`] | how sure was it over the whole trace? (recorded traces, in parallel) |
//! | [`staircase`] | where would any threshold have stopped it? |
//! | [`bottom`] | the mean of the lowest tenth of the groups |
//! | [`vote`] | which traces are kept, and which answer wins? |
//! | [`policy`] | every setting, and the presets |
//! | [`controller`] | what to launch, stop and abort next, and what the answer is |
//! | [`replay`] | what would a policy have done with these traces, and what would it have cost? |
//! | [`fixed`] | the arithmetic that makes all paths agree bit for bit |
//!
//! Nothing here does I/O, reads a clock or draws a random number.
//!
//! ```
//! use deepconf_core::{trace::{self, Settings}, vote::{self, Rules}};
//!
//! let settings = Settings { window: 2, ..Settings::default() };
//! let sure = trace::score(&[9.0_f32, 8.0, 9.0], &settings)?;
//! let shaky = trace::score(&[9.0_f32, 2.0, 3.0], &settings)?;
//! assert_eq!((sure.lowest_group, shaky.lowest_group), (8.5, 2.5));
//!
//! let scores = [sure.lowest_group, shaky.lowest_group];
//! let rules = Rules { weights: Some(&scores), ..Rules::default() };
//! let vote = vote::vote(&[Some("42"), Some("41")], &rules)?;
//! assert_eq!(vote.winner().map(|ballot| ballot.first), Some(0)); // trace 0, so "42"
//! # Ok::<(), deepconf_core::Error>(())
//! ```

pub mod bottom;
pub mod controller;
mod error;
pub mod fixed;
pub mod group;
mod parallel;
pub mod policy;
pub mod replay;
mod simd;
mod slide;
pub mod staircase;
mod steps;
pub mod token;
pub mod trace;
pub mod vote;

pub use error::{Error, Result};
pub use parallel::alone;
