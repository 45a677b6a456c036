//! Token confidences of many rows, four at a time.
//!
//! What the rows of four lanes add up to is joined for four rows at once. The last, partial four of a
//! row is read with entries of the next row behind it, which then count as nothing. Rows are fetched ahead
//! of their turn: reading them as they come left memory idle half of the time for short ones.

use super::confidence;
use crate::sample::{Native, Sample};
use crate::simd::{FOUR, Lanes, Work};

/// How many entries ahead rows are fetched from memory.
const AHEAD: usize = 512;

/// Fills `scores` with the confidences of the rows of `k` in `values`; whether all are finite.
pub(super) struct Confidences<'a, T> {
    pub values: &'a [T],
    pub k: usize,
    pub floor: Option<f64>,
    pub scores: &'a mut [f32],
}

impl<T: Sample> Work for Confidences<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn call(self, lanes: impl Lanes) -> bool {
        match self.k % FOUR {
            0 => self.fill::<0>(lanes),
            1 => self.fill::<1>(lanes),
            2 => self.fill::<2>(lanes),
            _ => self.fill::<3>(lanes),
        }
    }
}

impl<T: Sample> Confidences<'_, T> {
    /// For rows of whole fours and `REST` more.
    #[inline(always)]
    fn fill<const REST: usize>(self, lanes: impl Lanes) -> bool {
        let Self { values, k, floor, scores } = self;
        let floor_or_none = floor.unwrap_or(f64::NEG_INFINITY);
        let whole = k / FOUR * FOUR;
        let beyond = if REST == 0 { 0 } else { FOUR - REST };
        let (fours, _) = scores.as_chunks_mut::<FOUR>();
        let mut done = 0;
        for slots in fours {
            let Some(rows) = values[done * k..].get(..FOUR * k + beyond) else { break };
            if let Some(later) = values.get(done * k + AHEAD..(done + FOUR) * k + AHEAD) {
                lanes.prefetch(later);
            }
            let row = |r: usize| &rows[r * k..][..k + beyond];
            let part = |r: usize| row(r)[..whole].as_chunks::<FOUR>().0;
            let mut sums = [[0.0; FOUR]; FOUR];
            for (((a, b), c), d) in part(0).iter().zip(part(1)).zip(part(2)).zip(part(3)) {
                for (sum, four) in sums.iter_mut().zip([a, b, c, d]) {
                    for (sum, &l) in sum.iter_mut().zip(four) {
                        *sum += clip(l.wide(), floor_or_none);
                    }
                }
            }
            if REST > 0 {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let (four, _) = row(r)[whole..].as_chunks::<FOUR>();
                    for (j, (sum, &l)) in sum.iter_mut().zip(&four[0]).enumerate() {
                        *sum += if j < REST { clip(l.wide(), floor_or_none) } else { 0.0 };
                    }
                }
            }
            for (slot, sum) in slots.iter_mut().zip(lanes.joined(sums)) {
                *slot = (-sum / k as f64) as f32;
            }
            done += FOUR;
        }
        for (slot, row) in scores[done..].iter_mut().zip(values[done * k..].chunks_exact(k)) {
            *slot = confidence(row, floor);
        }
        scores.iter().fold(true, |sound, score| sound & score.is_finite())
    }
}

/// `l`, or the floor where that is above it; NaN stays NaN.
#[inline(always)]
pub(super) fn clip<N: Native>(l: N, floor: N) -> N {
    if l < floor { floor } else { l }
}
