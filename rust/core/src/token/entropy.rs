//! Token entropies, sixteen rows side by side.
//!
//! Short rows are transposed first, so that each lane has a row of its own and nothing is added up
//! across lanes. Of a long row each lane takes every sixteenth entry, and the lanes are joined at its end.

use super::rows::clip;
use super::series::{exp, ln};
use crate::sample::Sample;
use crate::simd::{Lanes, RUN, Work};

/// Rows of more entries are no longer transposed, which would leave the first-level cache.
const LONG: usize = 256;

/// Below any log-probability, and finite: adds nothing to mass and moment.
const ABSENT: f64 = f64::MIN;

/// Fills `scores` with the entropies of the rows of `k` in `values`; whether all are finite.
pub(super) struct Entropies<'a, T> {
    pub values: &'a [T],
    pub k: usize,
    pub floor: Option<f64>,
    pub scores: &'a mut [f32],
}

impl<T: Sample> Work for Entropies<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn call(self, _: impl Lanes) -> bool {
        let Self { values, k, floor, scores } = self;
        let floor = floor.unwrap_or(f64::NEG_INFINITY);
        if k > LONG {
            for (slot, row) in scores.iter_mut().zip(values.chunks_exact(k)) {
                let (columns, rest) = row.as_chunks::<RUN>();
                *slot = Spread::of(columns, rest, floor).joined();
            }
        } else {
            let mut columns = vec![[T::default(); RUN]; k];
            for (slots, rows) in scores.chunks_mut(RUN).zip(values.chunks(RUN * k)) {
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    for (column, &l) in columns.iter_mut().zip(row) {
                        column[lane] = l;
                    }
                }
                let entropies = Spread::of(&columns, &[], floor).entropies();
                slots.copy_from_slice(&entropies[..slots.len()]);
            }
        }
        scores.iter().fold(true, |sound, score| sound & score.is_finite())
    }
}

/// What the entropy of each lane follows from: with q = e^(l − top), H = ln Σq − Σ q·(l − top) / Σq.
struct Spread {
    /// The largest.
    top: [f64; RUN],
    /// Σq.
    mass: [f64; RUN],
    /// Σ q·(l − top). A masked entry makes 0·(−∞), a NaN.
    moment: [f64; RUN],
}

impl Spread {
    #[inline(always)]
    fn of<T: Sample>(columns: &[[T; RUN]], rest: &[T], floor: f64) -> Self {
        let mut last = [ABSENT; RUN];
        for (last, l) in last.iter_mut().zip(rest) {
            *last = clip(l.wide(), floor);
        }
        let mut top = last;
        for column in columns {
            for (top, l) in top.iter_mut().zip(column) {
                let l = clip(l.wide(), floor);
                *top = if l > *top { l } else { *top };
            }
        }
        let mut spread = Self { top, mass: [0.0; RUN], moment: [0.0; RUN] };
        for column in columns {
            spread.add(column.map(|l| clip(l.wide(), floor)));
        }
        if !rest.is_empty() {
            spread.add(last);
        }
        spread
    }

    #[inline(always)]
    fn add(&mut self, logs: [f64; RUN]) {
        let below: [f64; RUN] = std::array::from_fn(|i| logs[i] - self.top[i]);
        for ((mass, moment), below) in self.mass.iter_mut().zip(&mut self.moment).zip(below) {
            let q = f64::from(exp(below as f32));
            *mass += q;
            *moment += q * below;
        }
    }

    #[inline(always)]
    fn entropies(&self) -> [f32; RUN] {
        std::array::from_fn(|i| (ln(self.mass[i]) - self.moment[i] / self.mass[i]) as f32)
    }

    /// The entropy of all lanes together.
    fn joined(&self) -> f32 {
        let top = self.top.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut mass, mut moment) = (0.0, 0.0);
        for i in 0..RUN {
            let below = self.top[i] - top;
            let part = below.exp();
            mass += part * self.mass[i];
            moment += part * (self.moment[i] + self.mass[i] * below);
        }
        (mass.ln() - moment / mass) as f32
    }
}
