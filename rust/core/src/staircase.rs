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
//! number of tokens. Both equal what [`TraceScorer`](crate::group::TraceScorer) says of the same
//! tokens, to the bit: sums are the same integers ([`crate::fixed`]), and a group is kept when its
//! *mean* is below all before, since it is means that are compared with a threshold.
//!
//! ```
//! use deepconf_core::staircase::{self, Low};
//! use deepconf_core::trace::{Settings, score_with_lows};
//!
//! let settings = Settings { window: 2, ..Settings::default() };
//! let mut lows = Vec::new();
//! let scores = score_with_lows(&[9.0_f32, 7.0, 8.0, 4.0, 6.0, 2.0], &settings, &mut lows)?;
//! assert_eq!(lows[..2], [Low { token: 1, group: 8.0 }, Low { token: 2, group: 7.5 }]);
//! assert_eq!(staircase::first_below(&lows, 6.0), Some(4)); // (4 + 6) / 2 is the first below 6
//! assert_eq!(staircase::first_below(&lows, scores.lowest_group), None);
//! assert_eq!(staircase::lowest_after(&lows, 4), Some(6.0)); // of the first four tokens
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** On top of the scores: a look at the lower bound of each block of 64 groups
//! ([`crate::slide`]), and the sums of the blocks that may hold a record, about one in ten of noise
//! and more where confidence declines steadily. Sixteen bytes a step. Of n groups without a trend
//! about ln n are records while they are independent; neighbours share all tokens but one, so a trace
//! of 32,768 tokens has some hundreds.

use crate::fixed;
use crate::simd::Lanes;
use crate::slide::{BLOCK, Groups};
use crate::token::Sample;

/// A group below all before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Low {
    /// The token that completed the group, counted from 0.
    pub token: u64,
    /// Its confidence, in nats.
    pub group: f64,
}

/// The token that completed the first group below `threshold`; `None` where there is none.
///
/// `lows` are the record lows of one trace, in order.
#[must_use]
pub fn first_below(lows: &[Low], threshold: f64) -> Option<u64> {
    lows.get(lows.partition_point(|low| low.group >= threshold)).map(|low| low.token)
}

/// The lowest complete group among the first `tokens` tokens; `None` before there is one.
#[must_use]
pub fn lowest_after(lows: &[Low], tokens: u64) -> Option<f64> {
    let seen = lows.partition_point(|low| low.token < tokens);
    seen.checked_sub(1).map(|last| lows[last].group)
}

/// Appends the record lows of groups of which `lowest` is the lowest sum.
#[inline(always)]
pub(crate) fn of_groups<T: Sample, F: Fn(T) -> f64 + Copy, L: Lanes>(
    groups: &Groups<'_, T, F, L>,
    lowest: i64,
    window: usize,
    lows: &mut Vec<Low>,
) {
    let mut descent = Descent::new(window, lows);
    let mut sums = [0; BLOCK];
    for (block, &low) in groups.lows().iter().enumerate() {
        if i128::from(low) >= descent.sum {
            continue;
        }
        for (at, &sum) in groups.read_in_order(block, &mut sums).iter().enumerate() {
            descent.see(block * BLOCK + at, sum.into());
        }
        if descent.sum <= lowest.into() {
            break;
        }
    }
}

/// The plain way: appends the record lows of quantised tokens, in 128-bit sums.
pub(crate) fn of_quantised(tokens: &[i64], window: usize, lows: &mut Vec<Low>) {
    let mut descent = Descent::new(window, lows);
    let mut sum = 0;
    for (token, &new) in tokens.iter().enumerate() {
        sum += i128::from(new);
        if let Some(group) = (token + 1).checked_sub(window) {
            descent.see(group, sum);
            sum -= i128::from(tokens[group]);
        }
    }
}

/// Where the staircase has got to.
struct Descent<'a> {
    window: usize,
    sum: i128,
    group: f64,
    lows: &'a mut Vec<Low>,
}

impl<'a> Descent<'a> {
    fn new(window: usize, lows: &'a mut Vec<Low>) -> Self {
        Self { window, sum: i128::MAX, group: f64::INFINITY, lows }
    }

    /// The sum of the group that begins at token `start`.
    #[inline(always)]
    fn see(&mut self, start: usize, sum: i128) {
        if sum >= self.sum {
            return;
        }
        self.sum = sum;
        let group = fixed::mean(sum, self.window as u64);
        if group < self.group {
            self.group = group;
            self.lows.push(Low { token: (start + self.window - 1) as u64, group });
        }
    }
}
