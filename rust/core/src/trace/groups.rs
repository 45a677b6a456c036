//! The sums of all groups of a trace: bounds of each block, and each sum where one is asked for.
//!
//! A group is a window of w tokens; the next one has lost a token and won another. Sixteen groups on,
//! it has lost a step and won a step:
//!
//! ```text
//! S[i+16] = S[i] + (q[i+w] + … + q[i+w+15]) − (q[i] + … + q[i+15])
//! ```
//!
//! which costs two additions for sixteen groups, once the sums of steps are there
//! ([`tokens`](super::tokens)). In between, the sums stay within the bends of the two steps of the line
//! from S[i] to S[i+16]. So a block of 64 groups has bounds without a look at its groups, and
//! [`select`](super::select) sees from these which few blocks it needs; [`Groups::read`] computes those,
//! by adding the changes q[i+w] − q[i] one after the other, in four lanes, one for each step of the
//! block.
//!
//! The order of additions is not that of streaming, but sums are integers ([`crate::fixed`]), so the
//! result is the same to the last bit.
//!
//! **Cost.** Where w is a whole number of steps, the steps of the tokens that leave and of those that
//! enter are the same ones; else the trace is taken in steps twice. A sum that is read costs two
//! conversions, two rounding additions, three of integers, and its share in a transposition.

use super::tokens::{STEP, Steps, Tokens};
use crate::fixed::{Rounding, quanta_above};
use crate::sample::Sample;
use crate::simd::Lanes;

/// Steps in a block.
const STEPS: usize = 4;

/// Groups in a block.
pub(crate) const BLOCK: usize = STEPS * STEP;

/// What [`Groups`] are kept in, used again for the next trace.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    entering: Steps,
    /// S at the start of each step.
    starts: Vec<[i64; STEPS]>,
    lows: Vec<i64>,
    highs: Vec<i64>,
}

/// The groups of one trace, and of each block of them two bounds: `lows[b]` ≤ every sum of block b ≤
/// `highs[b]`.
pub(crate) struct Groups<'a, T, R, L> {
    tokens: Tokens<'a, T, R, L>,
    starts: &'a [[i64; STEPS]],
    lows: &'a [i64],
    highs: &'a [i64],
}

impl<'a, T: Sample, R: Rounding, L: Lanes> Groups<'a, T, R, L> {
    /// Of tokens that are a window at least.
    #[inline(always)]
    pub(super) fn new(tokens: Tokens<'a, T, R, L>, memory: &'a mut Bounds) -> Self {
        let Bounds { entering, starts, lows, highs } = memory;
        let mut sum = tokens.sum(0..tokens.window) as i64;
        let blocks = (tokens.len() - tokens.window + 1).div_ceil(BLOCK);
        starts.resize(blocks, [0; STEPS]);
        lows.resize(blocks, 0);
        highs.resize(blocks, 0);
        let bounds = lows.iter_mut().zip(highs.iter_mut());
        let changes = tokens.leaving_and_entering::<STEPS>(entering);
        for ((at, (low, high)), ((lost, a), (won, b))) in starts.iter_mut().zip(bounds).zip(changes)
        {
            let mut bend = 0.0;
            let (mut least, mut most) = (sum, sum);
            // Not read again from where they are stored, for which the CPU would wait.
            for i in 0..STEPS {
                at[i] = sum;
                sum = sum.wrapping_add(won[i].wrapping_sub(lost[i]));
                (least, most) = (least.min(sum), most.max(sum));
                let both = a[i] + b[i];
                bend = if bend < both { both } else { bend };
            }
            let bend = quanta_above(bend.into());
            (*low, *high) = (least - bend, most + bend);
        }
        Self { tokens, starts, lows, highs }
    }

    /// The sums of a block, in quanta: [`place`](Self::place) says in which order. Where the last has
    /// fewer than [`BLOCK`], the rest is `i64::MAX`.
    #[inline(always)]
    pub(crate) fn read(&self, block: usize) -> [i64; BLOCK] {
        let Tokens { values, window, lanes, .. } = self.tokens;
        let start = block * BLOCK;
        let leaving = &values[start..];
        let entering = &values[start + window..];
        let change = |won, lost| self.tokens.quanta(won).wrapping_sub(self.tokens.quanta(lost));
        let sums = if let (Some(leaving), Some(entering)) =
            (leaving.first_chunk::<BLOCK>(), entering.first_chunk::<BLOCK>())
        {
            let mut changes = [[0; STEP]; STEPS];
            for (i, at) in changes.as_flattened_mut().iter_mut().enumerate() {
                *at = change(entering[i], leaving[i]);
            }
            let mut sums = [0; BLOCK];
            sums.copy_from_slice(lanes.running(self.starts[block], &changes).as_flattened());
            sums
        } else {
            let mut sums = [i64::MAX; BLOCK];
            let mut sum = self.starts[block][0];
            sums[0] = sum;
            for ((at, &won), &lost) in sums[1..].iter_mut().zip(entering).zip(leaving) {
                sum = sum.wrapping_add(change(won, lost));
                *at = sum;
            }
            sums
        };
        debug_assert!(
            sums.iter().all(|&sum| {
                sum == i64::MAX || (self.lows[block]..=self.highs[block]).contains(&sum)
            }),
            "block {block}: {} to {} do not bound {sums:?}",
            self.lows[block],
            self.highs[block],
        );
        sums
    }

    /// Where in what [`read`](Self::read) gives of a block its n-th group is.
    #[inline(always)]
    pub(crate) fn place(&self, block: usize, n: usize) -> usize {
        let is_whole = (block + 1) * BLOCK + self.tokens.window <= self.tokens.len();
        if is_whole { n % STEP * STEPS + n / STEP } else { n }
    }

    /// How many groups there are.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.tokens.len() - self.tokens.window + 1
    }

    /// The instructions there are.
    #[inline(always)]
    pub(super) fn lanes(&self) -> L {
        self.tokens.lanes
    }

    /// Tokens in a group.
    #[inline(always)]
    pub(crate) fn window(&self) -> usize {
        self.tokens.window
    }

    /// Every sixteenth sum, from the first one on.
    #[inline(always)]
    pub(super) fn starts(&self) -> &[i64] {
        &self.starts.as_flattened()[..self.len().div_ceil(STEP)]
    }

    /// For each block of [`BLOCK`] groups, the last of which may have fewer, a bound that none of its
    /// sums is below.
    #[inline(always)]
    pub(crate) fn lows(&self) -> &[i64] {
        self.lows
    }

    /// For each block, a bound that none of its sums is above.
    #[inline(always)]
    pub(super) fn highs(&self) -> &[i64] {
        self.highs
    }
}
