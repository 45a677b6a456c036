//! Token entropies, sixteen rows side by side.
//!
//! Short rows are transposed first, so that each lane has a row of its own and nothing is added up
//! across lanes. Of a long row each lane takes every sixteenth entry, and the lanes are joined at its end.

use super::rows::clip;
use super::series::{exp, ln};
use crate::sample::{Native, Sample};
use crate::simd::{Lanes, RUN, Work};

/// Rows of more entries are no longer transposed, which would leave the first-level cache.
const LONG: usize = 256;

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
        let floor = self.floor.unwrap_or(f64::NEG_INFINITY);
        match T::Native::exactly(floor) {
            Some(floor) => self.fill(
                #[inline(always)]
                |l| clip(l.native(), floor),
            ),
            None => self.fill(
                #[inline(always)]
                |l| clip(l.wide(), floor),
            ),
        }
    }
}

impl<T: Sample> Entropies<'_, T> {
    /// From what `clipped` makes of each entry.
    #[inline(always)]
    fn fill<N: Native>(self, clipped: impl Fn(T) -> N) -> bool {
        let Self { values, k, scores, .. } = self;
        if k > LONG {
            for (slot, row) in scores.iter_mut().zip(values.chunks_exact(k)) {
                let (columns, rest) = row.as_chunks::<RUN>();
                let mut last = [N::MIN; RUN];
                for (last, &l) in last.iter_mut().zip(rest) {
                    *last = clipped(l);
                }
                let last = if rest.is_empty() { &[][..] } else { &[last] };
                let columns = columns.iter().map(|column| column.map(&clipped));
                *slot = Spread::of(columns.chain(last.iter().copied())).joined();
            }
        } else {
            let mut columns = vec![[N::MIN; RUN]; k];
            for (slots, rows) in scores.chunks_mut(RUN).zip(values.chunks(RUN * k)) {
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    for (column, &l) in columns.iter_mut().zip(row) {
                        column[lane] = clipped(l);
                    }
                }
                let entropies = Spread::of(columns.iter().copied()).entropies();
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
    /// A missing entry of a lane that has others is the least finite number, which adds nothing.
    #[inline(always)]
    fn of<N: Native>(columns: impl Iterator<Item = [N; RUN]> + Clone) -> Self {
        let mut top = [N::MIN; RUN];
        for column in columns.clone() {
            for (top, l) in top.iter_mut().zip(column) {
                *top = if l > *top { l } else { *top };
            }
        }
        let (mut mass, mut moment) = ([0.0; RUN], [0.0; RUN]);
        for column in columns {
            // In a loop of their own, with as many lanes as float32 has.
            let mut parts = [0.0; RUN];
            for i in 0..RUN {
                parts[i] = exp(column[i].above(top[i]));
            }
            for i in 0..RUN {
                let q = f64::from(parts[i]);
                mass[i] += q;
                moment[i] += q * (column[i].wide() - top[i].wide());
            }
        }
        Self { top: top.map(N::wide), mass, moment }
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
