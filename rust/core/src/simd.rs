//! The vector instructions that the CPU has, picked at run time.
//!
//! The kernels are plain loops over fixed-size arrays, which the compiler turns into vector code.
//! [`Level::run`] compiles them once for the baseline, once for AVX2 and once for AVX-512 (on other
//! processors the baseline has what there is, such as NEON), and `pulp` picks among them safely. So
//! a wheel built for the baseline runs as fast as a native build.
//!
//! What the compiler makes slow code of is written with instructions here, [`Lanes`], and once more
//! as a plain loop for where these are missing.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

use crate::error::{Error, Result};

#[cfg(target_arch = "x86_64")]
mod avx2;

/// A set of vector instructions that this CPU has.
///
/// Everything runs at the [widest](Level::widest) one unless it is told another, and gives the same
/// bits at each.
///
/// ```
/// use deepconf_core::{Level, token::Table};
///
/// for level in Level::available() {
///     println!("{level}"); // baseline, and on x86-64 avx2 and avx512, where the CPU has them
///     assert_eq!(Table::new(&[-1.0_f32, -3.0], 2)?.at(level).confidence(None)?, [2.0]);
/// }
/// # Ok::<(), deepconf_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Level(Set);

/// `pulp`'s proofs that the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
enum Set {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2(V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(V4),
}

impl Level {
    /// The fastest one.
    #[must_use]
    pub fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(v4) = V4::try_new() {
                return Self(Set::Avx512(v4));
            }
            if let Some(v3) = V3::try_new() {
                return Self(Set::Avx2(v3));
            }
        }
        Self(Set::Baseline)
    }

    /// Those of this CPU, the slowest first: what every one has, and what more there is.
    pub fn available() -> impl Iterator<Item = Self> {
        let sets = [
            Some(Set::Baseline),
            #[cfg(target_arch = "x86_64")]
            V3::try_new().map(Set::Avx2),
            #[cfg(target_arch = "x86_64")]
            V4::try_new().map(Set::Avx512),
        ];
        sets.into_iter().flatten().map(Self)
    }

    /// This one, but AVX2 for AVX-512: for what gains nothing by wider vectors.
    pub(crate) fn at_most_avx2(self) -> Self {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(v4) => Self(Set::Avx2(*v4)),
            _ => self,
        }
    }

    /// Runs `work` with these instructions.
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Set::Baseline => work.call(Plain),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(v3) => v3.vectorize(At(work, v3)),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(v4) => v4.vectorize(At(work, *v4)),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::available().find(|level| level.to_string() == name).ok_or_else(|| {
            let names: Vec<String> = Self::available().map(|level| level.to_string()).collect();
            Error::setting("level", name, format!("this CPU has {}", names.join(", ")))
        })
    }
}

/// Numbers in a run.
pub(crate) const RUN: usize = 16;

/// Runs that [`Lanes`] adds up at once.
pub(crate) const RUNS: usize = 8;

/// Lanes of 64 bits: those that a token confidence is added in.
pub(crate) const FOUR: usize = 4;

/// Work to be compiled for several instruction sets: its `call` and what that calls must be
/// `#[inline(always)]`. (A closure is compiled once, for the baseline.)
pub(crate) trait Work {
    type Output;

    fn call(self, lanes: impl Lanes) -> Self::Output;
}

/// What has instructions of its own, sums within vectors above all.
pub(crate) trait Lanes: Copy {
    /// What each run adds up to, wrapping.
    fn sums(self, runs: &[[i64; RUN]; RUNS]) -> [i64; RUNS];

    /// What each run and its squares add up to, the order of additions left open.
    fn moments(self, runs: &[[f32; RUN]; RUNS]) -> ([f32; RUNS], [f32; RUNS]);

    /// What the lanes of each row add up to, as (0 + 2) + (1 + 3).
    fn joined(self, rows: [[f64; FOUR]; FOUR]) -> [f64; FOUR];

    /// Four running sums side by side: row i holds where each stands after i of its changes.
    fn running(self, starts: [i64; 4], changes: &[[i64; RUN]; 4]) -> [[i64; 4]; RUN];

    /// Puts those of four numbers that are within the range first in `room`, in their order, and anything
    /// after them; how many they are.
    fn within(self, numbers: [i64; FOUR], range: Range<i64>, room: &mut [i64; FOUR]) -> usize;

    /// Starts to bring values into the first-level cache, which will be read soon.
    fn prefetch<T>(self, values: &[T]);
}

/// Loops only.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    #[inline(always)]
    fn sums(self, runs: &[[i64; RUN]; RUNS]) -> [i64; RUNS] {
        let mut sums = [0; RUNS];
        for (sum, run) in sums.iter_mut().zip(runs) {
            *sum = run.iter().fold(0, |sum: i64, &q| sum.wrapping_add(q));
        }
        sums
    }

    #[inline(always)]
    fn moments(self, runs: &[[f32; RUN]; RUNS]) -> ([f32; RUNS], [f32; RUNS]) {
        let (mut totals, mut squares) = ([0.0; RUNS], [0.0; RUNS]);
        for (i, run) in runs.iter().enumerate() {
            let (mut total, mut square) = ([0.0_f32; 4], [0.0_f32; 4]);
            for four in run.as_chunks::<4>().0 {
                for lane in 0..4 {
                    total[lane] += four[lane];
                    square[lane] += four[lane] * four[lane];
                }
            }
            totals[i] = (total[0] + total[2]) + (total[1] + total[3]);
            squares[i] = (square[0] + square[2]) + (square[1] + square[3]);
        }
        (totals, squares)
    }

    #[inline(always)]
    fn joined(self, rows: [[f64; FOUR]; FOUR]) -> [f64; FOUR] {
        rows.map(|[a, b, c, d]| (a + c) + (b + d))
    }

    #[inline(always)]
    fn running(self, mut sums: [i64; 4], changes: &[[i64; RUN]; 4]) -> [[i64; 4]; RUN] {
        let mut rows = [[0; 4]; RUN];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = sums;
            for (sum, changes) in sums.iter_mut().zip(changes) {
                *sum = sum.wrapping_add(changes[i]);
            }
        }
        rows
    }

    #[inline(always)]
    fn within(self, numbers: [i64; FOUR], range: Range<i64>, room: &mut [i64; FOUR]) -> usize {
        let span = range.end.wrapping_sub(range.start) as u64;
        let mut count = 0;
        for number in numbers {
            // Each is written, and the next one over it where it is not within. The mask takes nothing away.
            room[count % FOUR] = number;
            count += usize::from((number.wrapping_sub(range.start) as u64) < span);
        }
        count
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T]) {}
}

/// Work with its lanes, as `pulp` compiles it.
#[cfg(target_arch = "x86_64")]
struct At<W, L>(W, L);

#[cfg(target_arch = "x86_64")]
impl<W: Work, L: Lanes> pulp::NullaryFnOnce for At<W, L> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.0.call(self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        let names: Vec<String> = Level::available().map(|level| level.to_string()).collect();
        assert_eq!(names[0], "baseline");
        assert_eq!(names.last(), Some(&Level::widest().to_string()));
        for name in &names {
            assert_eq!(name.parse::<Level>().map(|level| level.to_string()).as_ref(), Ok(name));
        }
        let message = "avx".parse::<Level>().map(|_| ()).unwrap_err().to_string();
        assert!(message.starts_with("level=avx: this CPU has baseline"), "{message}");
    }
}
