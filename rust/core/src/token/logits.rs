//! Token confidence of whole rows of logits.
//!
//! A row is read once from memory, in blocks: the largest of a block, and then the exponentials of what
//! stands below the largest so far, from the cache. Only blocks that hold one of the most likely tokens
//! are looked at again.

use std::cmp::Ordering;

use super::rows::clip;
use super::series::exp;
use crate::sample::{Native, Sample};
use crate::simd::{Lanes, RUN, Work};

/// Logits are looked at in blocks of this many.
const BLOCK: usize = 256;

/// Fills `scores` with the confidences of the rows of `k` logits in `values`, over the `top` most likely
/// tokens; whether all are finite.
pub(super) struct Logits<'a, T> {
    pub values: &'a [T],
    pub k: usize,
    pub top: usize,
    pub floor: Option<f64>,
    pub scores: &'a mut [f32],
}

impl<T: Sample> Work for Logits<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn call(self, _: impl Lanes) -> bool {
        let Self { values, k, top, floor, scores } = self;
        let floor = floor.unwrap_or(f64::NEG_INFINITY);
        let (mut maxima, mut ranked) = (Vec::new(), Vec::new());
        let mut sound = true;
        for (slot, row) in scores.iter_mut().zip(values.chunks_exact(k)) {
            maxima.clear();
            let (highest, mass) = mass(row, &mut maxima);
            let log_mass = mass.ln();
            if !log_mass.is_finite() {
                (*slot, sound) = (f32::NAN, false);
                continue;
            }
            rank(row, &maxima, top, &mut ranked);
            let logprob = |l: &T::Native| (l.wide() - highest.wide()) - log_mass;
            let sum: f64 = ranked[..top].iter().map(|l| clip(logprob(l), floor)).sum();
            *slot = (-sum / top as f64) as f32;
            sound &= slot.is_finite();
        }
        sound
    }
}

/// The largest logit of a row, the sum of exponentials of what the others are below it, and the largest
/// of each block. Where an entry is NaN or +∞, or all are −∞, the sum is NaN or 0.
#[inline(always)]
fn mass<T: Sample>(row: &[T], maxima: &mut Vec<T::Native>) -> (T::Native, f64) {
    let (mut highest, mut mass) = (T::Native::LOWEST, 0.0);
    let (blocks, rest) = row.as_chunks::<BLOCK>();
    for block in blocks {
        maxima.push(largest(block));
        mass = more(block, maxima[maxima.len() - 1], &mut highest, mass);
    }
    if !rest.is_empty() {
        maxima.push(largest(rest));
        mass = more(rest, maxima[maxima.len() - 1], &mut highest, mass);
    }
    (highest, mass)
}

/// The mass with that of a block added; `highest` becomes that of both.
#[inline(always)]
fn more<T: Sample>(block: &[T], largest: T::Native, highest: &mut T::Native, mass: f64) -> f64 {
    let mut mass = mass;
    if largest > *highest {
        mass *= f64::from(highest.above(largest)).exp();
        *highest = largest;
    } else if highest.wide() == f64::NEG_INFINITY {
        // Nothing but masked tokens so far, unless there is a NaN.
        return block.iter().fold(mass, |mass, l| if l.wide().is_nan() { f64::NAN } else { mass });
    }
    mass + exponentials(block, *highest)
}

/// The largest of a block, NaN left out.
#[inline(always)]
fn largest<T: Sample>(block: &[T]) -> T::Native {
    let mut lanes = [T::Native::LOWEST; RUN];
    let (runs, rest) = block.as_chunks::<RUN>();
    for run in runs {
        for (lane, l) in lanes.iter_mut().zip(run) {
            *lane = larger(l.native(), *lane);
        }
    }
    for (lane, l) in lanes.iter_mut().zip(rest) {
        *lane = larger(l.native(), *lane);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = larger(lanes[i + half], lanes[i]);
        }
    }
    lanes[0]
}

#[inline(always)]
fn larger<N: Native>(a: N, b: N) -> N {
    if a > b { a } else { b }
}

/// Σ exp(l − highest) of a block.
#[inline(always)]
fn exponentials<T: Sample>(block: &[T], highest: T::Native) -> f64 {
    let mut lanes = [0.0_f32; RUN];
    let (runs, rest) = block.as_chunks::<RUN>();
    for run in runs {
        for (lane, l) in lanes.iter_mut().zip(run) {
            *lane += exp(l.native().above(highest));
        }
    }
    for (lane, l) in lanes.iter_mut().zip(rest) {
        *lane += exp(l.native().above(highest));
    }
    let mut fours = [0.0; 4];
    for four in lanes.as_chunks::<4>().0 {
        for (sum, &lane) in fours.iter_mut().zip(four) {
            *sum += f64::from(lane);
        }
    }
    (fours[0] + fours[2]) + (fours[1] + fours[3])
}

/// Puts the `top` largest of a row first in `ranked`, in falling order.
#[inline(always)]
fn rank<T: Sample>(row: &[T], maxima: &[T::Native], top: usize, ranked: &mut Vec<T::Native>) {
    let falling = |a: &T::Native, b: &T::Native| b.partial_cmp(a).unwrap_or(Ordering::Equal);
    // As many blocks as there are tokens wanted have one at or above the bound.
    ranked.clear();
    ranked.extend_from_slice(maxima);
    let bound = match top.checked_sub(1).filter(|&place| place < ranked.len()) {
        Some(place) => *ranked.select_nth_unstable_by(place, falling).1,
        None => T::Native::LOWEST,
    };
    ranked.clear();
    for (block, &max) in row.chunks(BLOCK).zip(maxima) {
        if max >= bound {
            ranked.extend(block.iter().map(|l| l.native()).filter(|&l| l >= bound));
        }
    }
    if top < ranked.len() {
        ranked.select_nth_unstable_by(top, falling);
    }
    ranked[..top].sort_unstable_by(falling);
}
