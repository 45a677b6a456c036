//! Token entropies, sixteen rows side by side.
//!
//! Short rows are transposed first, so that each lane has a row of its own and nothing is added up
//! across lanes. Of a long row each lane takes every sixteenth entry, and the lanes are joined at its end.

use super::series::{exp, ln};
use crate::sample::{Native, Sample};
use crate::simd::{Lanes, RUN, Work};

/// Rows of more entries are no longer transposed, which would leave the first-level cache.
const LONG: usize = 256;

/// So many nats below the top, a probability adds nothing.
const NOTHING: f32 = -87.0;

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
        let floor = T::Native::nearest(floor.unwrap_or(f64::NEG_INFINITY));
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
struct Spread<N> {
    /// The largest.
    top: [N; RUN],
    /// The smallest. −∞, a masked entry, is refused.
    low: [N; RUN],
    /// Σq.
    mass: [f64; RUN],
    /// Σ q·(l − top).
    moment: [f64; RUN],
}

impl<N: Native> Spread<N> {
    #[inline(always)]
    fn of<T: Sample<Native = N>>(columns: &[[T; RUN]], rest: &[T], floor: N) -> Self {
        let mut last = [N::LOWEST; RUN];
        for (last, l) in last.iter_mut().zip(rest) {
            *last = raised(l.native(), floor);
        }
        let mut low = last;
        low[rest.len()..].fill(N::HIGHEST);
        let mut spread = Self { top: last, low, mass: [0.0; RUN], moment: [0.0; RUN] };
        for column in columns {
            for ((top, low), l) in spread.top.iter_mut().zip(&mut spread.low).zip(column) {
                let l = raised(l.native(), floor);
                *top = if l > *top { l } else { *top };
                *low = if l < *low { l } else { *low };
            }
        }
        for column in columns {
            spread.add(column.map(|l| raised(l.native(), floor)));
        }
        if !rest.is_empty() {
            spread.add(last);
        }
        spread
    }

    #[inline(always)]
    fn add(&mut self, logs: [N; RUN]) {
        let below: [f32; RUN] = std::array::from_fn(|i| logs[i].above(self.top[i]));
        for ((mass, moment), below) in self.mass.iter_mut().zip(&mut self.moment).zip(below) {
            let below = if below < NOTHING { NOTHING } else { below };
            let q = exp(below);
            *mass += f64::from(q);
            *moment += f64::from(q * below);
        }
    }

    #[inline(always)]
    fn entropies(&self) -> [f32; RUN] {
        std::array::from_fn(|i| {
            let entropy = (ln(self.mass[i]) - self.moment[i] / self.mass[i]) as f32;
            if self.low[i] > N::LOWEST { entropy } else { f32::NAN }
        })
    }

    /// The entropy of all lanes together.
    fn joined(&self) -> f32 {
        if self.low.contains(&N::LOWEST) {
            return f32::NAN;
        }
        let top = self.top.iter().map(|top| top.wide()).fold(f64::NEG_INFINITY, f64::max);
        let (mut mass, mut moment) = (0.0, 0.0);
        for i in 0..RUN {
            let below = self.top[i].wide() - top;
            let part = below.exp();
            mass += part * self.mass[i];
            moment += part * (self.moment[i] + self.mass[i] * below);
        }
        (mass.ln() - moment / mass) as f32
    }
}

/// `l`, or the floor where that is above it; NaN stays NaN.
#[inline(always)]
fn raised<N: Native>(l: N, floor: N) -> N {
    if l < floor { floor } else { l }
}
