//! The tokens of a trace that 64-bit sums can hold, and their sums in steps of sixteen.
//!
//! The sum of a step is exact. Between its ends, running sums do not run straight: after r of its
//! tokens they are off the line from end to end by the sum of r deviations from the step's mean.
//! These cancel over the whole step, so with V the sum of their squares, by Cauchy-Schwarz,
//!
//! ```text
//! |off the line| ≤ √(r · (16 − r) / 16 · V) ≤ 2 · √V ≤ bend
//! ```
//!
//! which [`Groups`](super::groups::Groups) take to bound sums that they do not compute.
//!
//! **Why computed bends are wide enough.** With ε = 2⁻²⁴, the unit of rounding of float32, and S the
//! sum of the squares of a step's sixteen values:
//!
//! - V = S − T²/16, T the sum of the values. A square and its way through at most eight additions are
//!   off by a part of 9ε, so S by 9ε · S. T is off by 7ε · Σ|x| ≤ 28ε · √S, so T²/16, in which
//!   |T| ≤ 4 · √S, by 14ε · S, and by 2ε · S for its own roundings. That float64 values are narrowed to
//!   float32 first adds 2ε · S to each. Together less than 30ε · S; [`SLACK`] adds 128ε · S.
//! - The root, the product with 2 and the sum of two bends round by a part of 3ε; the factor is 64ε
//!   above 2. Squares below 2⁻¹²⁶ are lost, but the values of these are below 2⁻⁶³ nats.
//! - The bends are of the values, and sums are of quanta, off by half of one a token. After r tokens
//!   of a step that moves a running sum by r/2 against the line, and the line by as much against it
//!   on the other side: by r · (16 − r) / 16 ≤ 4 quanta. With two steps that is 8, and
//!   [`quanta_above`](crate::fixed::quanta_above) rounds by 16 quanta at the most: 24 of the 64 that it
//!   adds.
//!
//! **Cost.** A token is read once from memory, and fetched ahead of its turn. For the exact sum: a
//! conversion to float64, one rounding addition and one of integers; for the bend: two additions and a
//! multiplication of float32. All are vectors, and no token waits for another. Kept is 3/4 of a byte
//! a token.

use std::ops::Range;

use crate::fixed::{BIAS, FAST_LIMIT, NARROW_LIMIT, Rounding, biased};
use crate::sample::Sample;
use crate::simd::{Lanes, RUN, RUNS};

/// Tokens in a step.
pub(super) const STEP: usize = RUN;

/// Steps that are taken at once.
const CHUNK: usize = RUNS;

/// Tokens in a chunk.
const TOKENS: usize = CHUNK * STEP;

/// How many bytes ahead tokens are fetched from memory.
const AHEAD: usize = 2_048;

/// The sum of a step of zeros, as [`Steps`] hold it.
const NOTHING: i64 = BIAS.wrapping_mul(STEP as i64);

/// Steps whose sums, less than 2⁵⁵ quanta each, fit 64 bits together.
const FITTING: usize = 128;

/// Above the rounding errors of sums of sixteen float32 squares, as a part of these sums.
const SLACK: f32 = 1.0 / (1 << 17) as f32;

/// The tokens of one trace, each within ±2,048 nats, and every group of them within ±2²¹.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a, T, R, L> {
    pub(super) values: &'a [T],
    pub(super) window: usize,
    rounding: R,
    pub(super) lanes: L,
    steps: &'a Steps,
}

/// Some steps: their sums and their bends.
pub(super) type Runs<'a, const N: usize> = (&'a [i64; N], &'a [f32; N]);

impl<'a, T: Sample, R: Rounding, L: Lanes> Tokens<'a, T, R, L> {
    /// Takes `values`, `[n]`, in steps; `None` where one or a group is too large, or not finite.
    #[inline(always)]
    pub(super) fn read(
        values: &'a [T],
        window: usize,
        rounding: R,
        lanes: L,
        steps: &'a mut Steps,
    ) -> Option<Self> {
        let fits = |largest: f64| {
            largest < FAST_LIMIT && largest * (values.len().min(window) as f64) < NARROW_LIMIT
        };
        // The bound costs nothing, and may be four times too large.
        if !fits(steps.take(values, rounding, lanes)) && !fits(largest(values, rounding)) {
            return None;
        }
        Some(Self { values, window, rounding, lanes, steps })
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// A token in quanta, with the bias of [`biased`].
    #[inline(always)]
    pub(super) fn quanta(&self, token: T) -> i64 {
        biased(self.rounding.round(token.wide()))
    }

    /// What a range of them adds up to, in quanta.
    #[inline(always)]
    pub(super) fn sum(&self, range: Range<usize>) -> i128 {
        let whole = range.start.div_ceil(STEP)..range.end / STEP;
        let single = |range: Range<usize>| {
            let quanta = self.values[range].iter().map(|&c| self.quanta(c).wrapping_sub(BIAS));
            i128::from(quanta.fold(0, i64::wrapping_add))
        };
        if whole.start > whole.end {
            return single(range);
        }
        let ends = single(range.start..whole.start * STEP) + single(whole.end * STEP..range.end);
        let parts = self.steps.sums.as_flattened()[whole].chunks(FITTING);
        let part = |sums: &[i64]| {
            let quanta = sums.iter().map(|sum| sum.wrapping_sub(NOTHING));
            i128::from(quanta.fold(0, i64::wrapping_add))
        };
        ends + parts.map(part).sum::<i128>()
    }

    /// The steps of the tokens that leave the groups one after another, and of those that enter:
    /// `N` at a time, sums in quanta, with a bias that cancels in differences, and bends in nats.
    /// After the last token come some more, of zeros. `memory` is for where the window is no whole
    /// number of steps.
    #[inline(always)]
    pub(super) fn leaving_and_entering<'b, const N: usize>(
        &self,
        memory: &'b mut Steps,
    ) -> impl Iterator<Item = (Runs<'b, N>, Runs<'b, N>)>
    where
        'a: 'b,
    {
        let (entering, offset) = if self.window.is_multiple_of(STEP) {
            (self.steps, self.window / STEP)
        } else {
            memory.take(&self.values[self.window..], self.rounding, self.lanes);
            (&*memory, 0)
        };
        self.steps.runs(0).zip(entering.runs(offset))
    }
}

/// The largest magnitude, NaN above all.
#[inline(always)]
fn largest<T: Sample>(values: &[T], rounding: impl Rounding) -> f64 {
    let bits = values.iter().map(|c| rounding.round(c.wide()).abs().to_bits());
    f64::from_bits(bits.fold(0, u64::max))
}

/// The steps of one trace; the memory is used again for the next.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// In quanta, with the bias of [`biased`] for each token.
    sums: Vec<[i64; CHUNK]>,
    /// In nats.
    bends: Vec<[f32; CHUNK]>,
}

impl Steps {
    /// Takes `values`, `[n]`, in steps; the last one filled up with zeros. Returns a bound of their
    /// magnitude; where that is too large for [`biased`], all else is void.
    #[inline(always)]
    fn take<T: Sample>(&mut self, values: &[T], rounding: impl Rounding, lanes: impl Lanes) -> f64 {
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
            (*sums, *bends) = chunk(tokens, rounding, lanes, &mut largest);
        }
        let mut padded = [T::default(); TOKENS];
        padded[..rest.len()].copy_from_slice(rest);
        let at = chunks.len();
        (self.sums[at], self.bends[at]) = chunk(&padded, rounding, lanes, &mut largest);
        (self.sums[at + 1], self.bends[at + 1]) = ([NOTHING; CHUNK], [0.0; CHUNK]);
        let square = f32::from_bits(largest.into_iter().fold(0, u32::max));
        f64::from(square * (1.0 + SLACK)).sqrt()
    }

    /// The steps from one on, `N` at a time.
    #[inline(always)]
    fn runs<const N: usize>(&self, from: usize) -> impl Iterator<Item = Runs<'_, N>> {
        let (sums, _) = self.sums.as_flattened()[from..].as_chunks();
        let (bends, _) = self.bends.as_flattened()[from..].as_chunks();
        sums.iter().zip(bends)
    }
}

/// A chunk of steps; `largest` are the bits of the largest sums of squares, NaN and infinity on top.
#[inline(always)]
fn chunk<T: Sample>(
    tokens: &[T; TOKENS],
    rounding: impl Rounding,
    lanes: impl Lanes,
    largest: &mut [u32; CHUNK],
) -> ([i64; CHUNK], [f32; CHUNK]) {
    let mut quanta = [[0; STEP]; CHUNK];
    let mut singles = [[0.0; STEP]; CHUNK];
    for (i, quantum) in quanta.as_flattened_mut().iter_mut().enumerate() {
        *quantum = biased(rounding.round(tokens[i].wide()));
    }
    for (i, single) in singles.as_flattened_mut().iter_mut().enumerate() {
        *single = rounding.round(tokens[i].wide()) as f32;
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
