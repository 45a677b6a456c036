//! The sums of all groups of a trace: bounds of each block, and each sum where one is asked for.
//!
//! A group is a window of w tokens; the next one has lost a token and won another. Sixteen groups on,
//! it has lost a step and won a step:
//!
//! ```text
//! S[i+16] = S[i] + (q[i+w] + … + q[i+w+15]) − (q[i] + … + q[i+15])
//! ```
//!
//! which costs two additions for sixteen groups, once the sums of steps are there ([`crate::steps`]).
//! In between, the sums stay within the bends of the two steps of the line from S[i] to S[i+16]. So
//! a block of 64 groups has bounds without a look at its groups, and [`crate::bottom`] sees from
//! these which few blocks it needs; [`Groups::read`] computes those, by adding the changes
//! q[i+w] − q[i] one after the other, in four lanes, one for each step of the block.
//!
//! The order of additions is not that of streaming, but sums are integers ([`crate::fixed`]), so the
//! result is the same to the last bit.
//!
//! **Cost.** Where w is a whole number of steps, the steps of the tokens that leave and of those that
//! enter are the same ones; else the trace is taken in steps twice. A sum that is read costs two
//! conversions, two rounding additions, three of integers, and its share in a transposition.

use crate::fixed::{biased, quanta_above};
use crate::sample::Sample;
use crate::simd::Lanes;
use crate::steps::{STEP, Steps};

/// Steps in a block.
const STEPS: usize = 4;

/// Groups in a block.
pub(crate) const BLOCK: usize = STEPS * STEP;

/// What [`Groups`] are kept in, used again for the next trace.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    entering: Steps,
    /// S at the start of each step.
    starts: Vec<[i64; STEPS]>,
    lows: Vec<i64>,
    highs: Vec<i64>,
}

/// The groups of one trace.
pub(crate) struct Groups<'a, T, F, L> {
    values: &'a [T],
    window: usize,
    len: usize,
    door: F,
    lanes: L,
    starts: &'a [[i64; STEPS]],
    lows: &'a [i64],
    highs: &'a [i64],
}

impl<'a, T: Sample, F: Fn(T) -> f64 + Copy, L: Lanes> Groups<'a, T, F, L> {
    /// Of `values`, `[n]`, n ≥ `window`, taken through `door` in `steps`.
    #[inline(always)]
    pub(crate) fn new(
        values: &'a [T],
        window: usize,
        door: F,
        steps: &'a Steps,
        memory: &'a mut Memory,
        lanes: L,
    ) -> Self {
        let Memory { entering, starts, lows, highs } = memory;
        let len = values.len() - window + 1;
        let mut sum = steps.sum(values, 0..window, door) as i64;
        let (entering, offset) = if window.is_multiple_of(STEP) {
            (steps, window / STEP)
        } else {
            entering.take(&values[window..], door, lanes);
            (&*entering, 0)
        };
        let count = len.div_ceil(BLOCK);
        starts.resize(count, [0; STEPS]);
        lows.resize(count, 0);
        highs.resize(count, 0);
        let bounds = lows.iter_mut().zip(highs.iter_mut());
        let changes = entering.runs::<STEPS>(offset).zip(steps.runs::<STEPS>(0));
        for ((at, (low, high)), ((won, a), (lost, b))) in starts.iter_mut().zip(bounds).zip(changes)
        {
            let change = |i: usize| won[i].wrapping_sub(lost[i]);
            *at = [sum; STEPS];
            for i in 1..STEPS {
                at[i] = at[i - 1].wrapping_add(change(i - 1));
            }
            sum = at[STEPS - 1].wrapping_add(change(STEPS - 1));
            let bend = (0..STEPS).map(|i| a[i] + b[i]).fold(0.0, |x, y| if x < y { y } else { x });
            let bend = quanta_above(bend.into());
            *low = at.iter().fold(sum, |low, &at| low.min(at)) - bend;
            *high = at.iter().fold(sum, |high, &at| high.max(at)) + bend;
        }
        Self { values, window, len, door, lanes, starts, lows, highs }
    }

    /// The sums of a block, in quanta, in any order; the last may have fewer than [`BLOCK`].
    #[inline(always)]
    pub(crate) fn read<'b>(&self, block: usize, sums: &'b mut [i64; BLOCK]) -> &'b [i64] {
        let quanta = |c: T| biased((self.door)(c));
        let start = block * BLOCK;
        let leaving = &self.values[start..];
        let entering = &self.values[start + self.window..];
        let (Some(leaving), Some(entering)) =
            (leaving.first_chunk::<BLOCK>(), entering.first_chunk::<BLOCK>())
        else {
            let mut sum = self.starts[block][0];
            sums[0] = sum;
            for ((at, &entering), &leaving) in sums[1..].iter_mut().zip(entering).zip(leaving) {
                sum = sum.wrapping_add(quanta(entering).wrapping_sub(quanta(leaving)));
                *at = sum;
            }
            return &sums[..self.len - start];
        };
        let mut changes = [[0; STEP]; STEPS];
        for (i, change) in changes.as_flattened_mut().iter_mut().enumerate() {
            *change = quanta(entering[i]).wrapping_sub(quanta(leaving[i]));
        }
        sums.copy_from_slice(self.lanes.running(self.starts[block], &changes).as_flattened());
        sums
    }

    /// Where in what [`read`](Self::read) gives of a block its n-th group is.
    #[inline(always)]
    pub(crate) fn place(&self, block: usize, n: usize) -> usize {
        if self.is_whole(block) { n % STEP * STEPS + n / STEP } else { n }
    }

    /// Whether a block has a successor, so that its steps are whole.
    #[inline(always)]
    fn is_whole(&self, block: usize) -> bool {
        (block + 1) * BLOCK + self.window <= self.values.len()
    }

    /// How many groups there are.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// For each block of [`BLOCK`] groups, the last of which may have fewer, a bound that none of its
    /// sums is below.
    #[inline(always)]
    pub(crate) fn lows(&self) -> &[i64] {
        self.lows
    }

    /// For each block, a bound that none of its sums is above.
    #[inline(always)]
    pub(crate) fn highs(&self) -> &[i64] {
        self.highs
    }
}
