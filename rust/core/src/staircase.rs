//! The record lows of a trace's groups: all that a threshold can ever want to know of it.
//!
//! The first group below s is a record low: no group before it was as low, or that one would have
//! been first. So of all the groups of a trace only those below every one before them matter, a
//! staircase that descends to the lowest group:
//!
//! ```text
//! group confidence  ▔▔╲                      s₁ ┄┄┄┄┄┄ stops here: the first step below s₁
//!                      ▔╲▁▁╱▔╲
//!                              ▔╲            s₂ ┄┄┄┄┄┄ stops here
//!                                ▔▔╲▁▁▁▁▁▁▁▁
//! ```
//!
//! Where any threshold stops the trace is then a binary search, and so is its lowest group after any
//! number of tokens. Both equal what [`TraceScorer`](crate::stream::TraceScorer) says of the same
//! tokens, to the bit: sums are the same integers ([`crate::fixed`]), and a group is kept when its
//! *mean* is below all before, since it is means that are compared with a threshold.
//!
//! ```
//! use deepconf_core::staircase::Staircase;
//! use deepconf_core::trace::{Scorer, Settings};
//!
//! let scorer = Scorer::new(Settings::default().window(2))?;
//! let mut lows = Staircase::default();
//! let scores = scorer.score_with_lows(&[9.0_f32, 7.0, 8.0, 4.0, 6.0, 2.0], &mut lows)?;
//! let steps: Vec<_> = lows.all().steps().collect();
//! assert_eq!(steps, [(1, 8.0), (2, 7.5), (3, 6.0), (4, 5.0), (5, 4.0)]);
//! assert_eq!(lows.all().first_below(6.0), Some(4)); // (4 + 6) / 2 is the first below 6
//! assert_eq!(lows.all().first_below(scores.lowest_group), None);
//! assert_eq!(lows.all().lowest_after(4), Some(6.0)); // of the first four tokens
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** On top of the scores: a look at the lower bound of each block of 64 groups
//! (`trace::groups`), and the sums of the blocks that may hold a record, about one in ten of noise
//! and more where confidence declines steadily. Twelve bytes a step. Of n groups without a trend
//! about ln n are records while they are independent; neighbours share all tokens but one, so a trace
//! of 32,768 tokens has some hundreds; one of 64,000 whose confidence falls all along, thousands.

use std::ops::Range;

use crate::fixed::{self, Rounding};
use crate::sample::Sample;
use crate::simd::Lanes;
use crate::trace::{BLOCK, Groups};

/// The record lows of some traces, one trace after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Staircase {
    /// The token that completed each, counted from 0 in its trace.
    tokens: Vec<u32>,
    /// Their group confidences, in nats.
    groups: Vec<f64>,
}

/// The record lows of one trace.
#[derive(Clone, Copy, Debug)]
pub struct Lows<'a> {
    tokens: &'a [u32],
    groups: &'a [f64],
}

impl Staircase {
    /// How many lows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All, as those of one trace.
    #[must_use]
    pub fn all(&self) -> Lows<'_> {
        self.of(0..self.len())
    }

    /// Some, as those of one trace.
    #[must_use]
    pub fn of(&self, range: Range<usize>) -> Lows<'_> {
        Lows { tokens: &self.tokens[range.clone()], groups: &self.groups[range] }
    }

    /// Adds a group if it is below `least`, the lowest of its trace so far.
    #[inline(always)]
    fn see(&mut self, token: u32, group: f64, least: &mut f64) {
        if group < *least {
            *least = group;
            self.tokens.push(token);
            self.groups.push(group);
        }
    }

    /// Adds the lows of other traces behind these.
    pub fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.groups.append(&mut other.groups);
    }
}

impl Lows<'_> {
    /// The token that completed the first group below `threshold`; `None` where there is none.
    #[must_use]
    pub fn first_below(self, threshold: f64) -> Option<u64> {
        let at = self.groups.partition_point(|&group| group >= threshold);
        self.tokens.get(at).map(|&token| token.into())
    }

    /// The lowest complete group among the first `tokens` tokens; `None` before there is one.
    #[must_use]
    pub fn lowest_after(self, tokens: u64) -> Option<f64> {
        let seen = self.tokens.partition_point(|&token| u64::from(token) < tokens);
        seen.checked_sub(1).map(|last| self.groups[last])
    }

    /// Each step: the token that completed the group, and its confidence in nats.
    pub fn steps(self) -> impl Iterator<Item = (u64, f64)> {
        self.tokens.iter().map(|&token| token.into()).zip(self.groups.iter().copied())
    }
}

/// Appends the record lows of groups of which `lowest` is the lowest sum.
#[inline(always)]
pub(crate) fn of_groups<T: Sample, R: Rounding, L: Lanes>(
    groups: &Groups<'_, T, R, L>,
    lowest: i64,
    lows: &mut Staircase,
) {
    let window = groups.window();
    // Nothing branches on whether a group is a record, which is hard to guess.
    let mut records = [(0_u32, 0_i64); BLOCK];
    let (mut least, mut group) = (i64::MAX, f64::INFINITY);
    for (block, &low) in groups.lows().iter().enumerate() {
        if low >= least {
            continue;
        }
        let sums = groups.read(block);
        if sums.iter().fold(i64::MAX, |low, &sum| low.min(sum)) >= least {
            continue;
        }
        let mut count = 0;
        for n in 0..BLOCK {
            let sum = sums[groups.place(block, n)];
            records[count] = ((block * BLOCK + n + window - 1) as u32, sum);
            count += usize::from(sum < least);
            least = least.min(sum);
        }
        for &(token, sum) in &records[..count] {
            lows.see(token, fixed::mean_narrow(sum, window as u64), &mut group);
        }
        if least <= lowest {
            break;
        }
    }
}

/// The plain way: appends the record lows of quantised tokens, in 128-bit sums.
pub(crate) fn of_quantised(tokens: &[i64], window: usize, lows: &mut Staircase) {
    let (mut sum, mut group) = (0, f64::INFINITY);
    for (token, &new) in tokens.iter().enumerate() {
        sum += i128::from(new);
        if let Some(old) = (token + 1).checked_sub(window) {
            lows.see(token as u32, fixed::mean(sum, window as u64), &mut group);
            sum -= i128::from(tokens[old]);
        }
    }
}
