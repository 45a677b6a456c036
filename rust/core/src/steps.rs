//! A trace in steps of sixteen tokens: what each adds up to, and how unevenly.
//!
//! The sum of a step is exact. Between its ends, running sums do not run straight: after r of its
//! tokens they are off the line from end to end by the sum of r deviations from the step's mean.
//! These cancel over the whole step, so with V the sum of their squares, by Cauchy-Schwarz,
//!
//! ```text
//! |off the line| ≤ √(r · (16 − r) / 16 · V) ≤ 2 · √V = bend
//! ```
//!
//! which [`crate::slide`] takes to bound sums that it does not compute.
//!
//! **Cost.** A token is read once from memory, and fetched ahead of its turn. For the exact sum: a
//! conversion to float64, one rounding addition and one of integers; for the bend: two additions and a
//! multiplication of float32. All are vectors, and no token waits for another. Kept is 3/4 of a byte
//! a token.

use std::ops::Range;

use crate::fixed::{BIAS, biased};
use crate::sample::Sample;
use crate::simd::{Lanes, RUN, RUNS};

/// Tokens in a step.
pub(crate) const STEP: usize = RUN;

/// Steps that are taken at once.
const CHUNK: usize = RUNS;

const TOKENS: usize = CHUNK * STEP;

/// How many bytes ahead tokens are fetched from memory.
const AHEAD: usize = 2_048;

/// The sum of a step of zeros, as [`Steps`] hold it.
const NOTHING: i64 = BIAS.wrapping_mul(STEP as i64);

/// Above the rounding errors of sums of sixteen float32 squares, as a part of these sums.
const SLACK: f32 = 1.0 / (1 << 17) as f32;

/// The steps of one trace; the memory is used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// In quanta, with the bias of [`biased`] for each token.
    sums: Vec<[i64; CHUNK]>,
    /// In nats.
    bends: Vec<[f32; CHUNK]>,
}

impl Steps {
    /// Takes `values`, `[n]`, through `door` in steps; the last one filled up with zeros. Returns a
    /// bound of their magnitude; where that is too large for [`biased`], all else is void.
    #[inline(always)]
    pub(crate) fn take<T: Sample>(
        &mut self,
        values: &[T],
        door: impl Fn(T) -> f64 + Copy,
        lanes: impl Lanes,
    ) -> f64 {
        let (chunks, rest) = values.as_chunks::<TOKENS>();
        // A chunk for the rest, and one that reaches beyond the last group.
        let needed = chunks.len() + 2;
        if self.sums.len() < needed {
            self.sums.resize(needed, [0; CHUNK]);
            self.bends.resize(needed, [0.0; CHUNK]);
        }
        let mut largest = [0; CHUNK];
        let steps = self.sums.iter_mut().zip(&mut self.bends);
        let ahead = AHEAD / size_of::<[T; TOKENS]>();
        for (at, (tokens, (sums, bends))) in chunks.iter().zip(steps).enumerate() {
            if let Some(later) = chunks.get(at + ahead) {
                lanes.prefetch(later);
            }
            (*sums, *bends) = chunk(tokens, door, lanes, &mut largest);
        }
        let mut padded = [T::default(); TOKENS];
        padded[..rest.len()].copy_from_slice(rest);
        let at = chunks.len();
        (self.sums[at], self.bends[at]) = chunk(&padded, door, lanes, &mut largest);
        (self.sums[at + 1], self.bends[at + 1]) = ([NOTHING; CHUNK], [0.0; CHUNK]);
        let square = f32::from_bits(largest.into_iter().fold(0, u32::max));
        f64::from(square * (1.0 + SLACK)).sqrt()
    }

    /// The steps from one on, `N` at a time: their sums in quanta, with a bias that cancels in
    /// differences, and their bends in nats. After the last token come some more, of zeros.
    #[inline(always)]
    pub(crate) fn runs<const N: usize>(
        &self,
        from: usize,
    ) -> impl Iterator<Item = (&[i64; N], &[f32; N])> {
        let (sums, _) = self.sums.as_flattened()[from..].as_chunks();
        let (bends, _) = self.bends.as_flattened()[from..].as_chunks();
        sums.iter().zip(bends)
    }

    /// The sum of a range of the tokens `values` that were taken, in quanta.
    #[inline(always)]
    pub(crate) fn sum<T: Sample>(
        &self,
        values: &[T],
        tokens: Range<usize>,
        door: impl Fn(T) -> f64,
    ) -> i128 {
        let whole = tokens.start.div_ceil(STEP)..tokens.end / STEP;
        let single = |tokens: Range<usize>| {
            let tokens = values[tokens].iter().map(|&c| biased(door(c)).wrapping_sub(BIAS));
            tokens.fold(0, i64::wrapping_add)
        };
        if whole.start > whole.end {
            return single(tokens).into();
        }
        let mut sum = i128::from(single(tokens.start..whole.start * STEP))
            + i128::from(single(whole.end * STEP..tokens.end));
        // So many steps fit 64 bits.
        for sums in self.sums.as_flattened()[whole].chunks(TOKENS) {
            let part =
                sums.iter().fold(0_i64, |part, sum| part.wrapping_add(sum.wrapping_sub(NOTHING)));
            sum += i128::from(part);
        }
        sum
    }
}

/// A chunk of steps; `largest` are the bits of the largest sums of squares, NaN and infinity on top.
#[inline(always)]
fn chunk<T: Sample>(
    tokens: &[T; TOKENS],
    door: impl Fn(T) -> f64,
    lanes: impl Lanes,
    largest: &mut [u32; CHUNK],
) -> ([i64; CHUNK], [f32; CHUNK]) {
    let mut quanta = [[0; STEP]; CHUNK];
    let mut singles = [[0.0; STEP]; CHUNK];
    for (i, quantum) in quanta.as_flattened_mut().iter_mut().enumerate() {
        *quantum = biased(door(tokens[i]));
    }
    for (i, single) in singles.as_flattened_mut().iter_mut().enumerate() {
        *single = door(tokens[i]) as f32;
    }
    let (totals, squares) = lanes.moments(&singles);
    let mut bends = [0.0; CHUNK];
    for i in 0..CHUNK {
        let spread = squares[i] * (1.0 + SLACK) - totals[i] * totals[i] / STEP as f32;
        bends[i] = (2.0 + SLACK) * spread.max(0.0).sqrt();
        largest[i] = largest[i].max(squares[i].to_bits());
    }
    (lanes.sums(&quanta), bends)
}
