//! Token confidence and token entropy, from the log-probabilities of the likeliest tokens.
//!
//! Token confidence (equation 2 of the paper) is `C = −(1/k) · Σ log p` over the k most likely
//! tokens. It is *higher* when the model is surer: a peaked distribution pushes the alternatives
//! far down. With k = 1 there are no alternatives and it would be *lower* when the model is surer, so
//! that is refused. Log-probabilities are raw, in nats: before temperature, penalties and masks.
//!
//! ```
//! use deepconf_core::token::{self, Table};
//!
//! let peaked = [-0.01_f32, -6.0, -7.0, -8.0];
//! let flat = [-1.2_f32, -1.3, -1.4, -1.7];
//! let table = Table::new(&[peaked, flat].concat(), 4)?.confidence(None)?;
//! assert_eq!(table, [5.2525, 1.4]);
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Arithmetic.** A row is added in float64, in four lanes (lane j takes columns j, j + 4, …) that
//! are joined as `(0 + 2) + (1 + 3)`, and the mean is rounded to float32 once. Every path (dense
//! tables, vLLM's flat lists, dicts) goes through this one definition.
//!
//! **Cost.** Confidence: one conversion and one addition an entry, and a join of four lanes and four bytes
//! written a row; bound by memory, which rows are fetched from ahead of their turn. Entropy: an exponential
//! an entry, of rows side by side; bound by these. From logits: a maximum and an exponential an entry, in one
//! pass over the row. All in vectors, and at every [`Level`] the same bits.

use crate::error::{Error, Place, Result};
use crate::parallel;
use crate::sample::Sample;
use crate::simd::{FOUR, Level};

mod entropy;
mod logits;
mod rows;
mod series;

use entropy::Entropies;
use logits::Logits;
use rows::{Confidences, clip};

/// The token confidence of one row of log-probabilities, NaN for an empty one.
///
/// Does not look for non-finite values: they come out as a non-finite confidence.
#[inline(always)]
#[must_use]
pub fn confidence<T: Sample>(row: &[T], floor: Option<f64>) -> f32 {
    let floor = floor.unwrap_or(f64::NEG_INFINITY);
    let mut lanes = [0.0_f64; FOUR];
    let (fours, rest) = row.as_chunks::<FOUR>();
    for four in fours {
        for (lane, &l) in lanes.iter_mut().zip(four) {
            *lane += clip(l.wide(), floor);
        }
    }
    for (lane, &l) in lanes.iter_mut().zip(rest) {
        *lane += clip(l.wide(), floor);
    }
    let sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    (-sum / row.len() as f64) as f32
}

/// Log-probabilities of n tokens, k entries each: `[n, k]`, row-major, in nats.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a, T> {
    values: &'a [T],
    k: usize,
    level: Level,
}

/// Threads are given so many entries at a time, and called for where there are more.
const ENTRIES: usize = 1 << 16;

impl<'a, T: Sample> Table<'a, T> {
    /// Cuts `values` into rows of `k`.
    ///
    /// # Errors
    /// [`Error::Setting`] when `k` is 0 or does not divide the number of values.
    pub fn new(values: &'a [T], k: usize) -> Result<Self> {
        if k == 0 {
            return Err(Error::setting("k", k, "a row needs at least one log-probability"));
        }
        if !values.len().is_multiple_of(k) {
            let expected = format!("must divide the {} log-probabilities into rows", values.len());
            return Err(Error::setting("k", k, expected));
        }
        Ok(Self { values, k, level: Level::widest() })
    }

    /// The same table, its kernels run at `level`: slower, for the same answers.
    #[must_use]
    pub fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// The confidence of each token, `[n]`, in nats. `floor` raises smaller entries, −∞ included.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column; [`Error::Setting`] when rows have one entry.
    pub fn confidence(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        self.fresh(|scores| self.confidence_into(floor, scores))
    }

    /// [`confidence`](Self::confidence) into `scores`, `[n]`: memory that was written before spares a page
    /// fault every 1,024 rows.
    ///
    /// # Errors
    /// As [`confidence`](Self::confidence); [`Error::Length`] unless there is a score for each row. After
    /// an error `scores` hold anything.
    pub fn confidence_into(&self, floor: Option<f64>, scores: &mut [f32]) -> Result<()> {
        check_k("k", self.k)?;
        check_floor(floor)?;
        let Self { k, level, .. } = *self;
        let score =
            |values: &[T], scores: &mut [f32]| level.run(Confidences { values, k, floor, scores });
        self.fill(scores, score, |row| self.blame(row, floor))
    }

    /// The entropy of each token, `[n]`, in nats (equation 1), renormalised over the k entries; accurate to
    /// about 10⁻⁷ nats for each nat.
    ///
    /// Over a whole distribution this is the entropy; over the top k it is a proxy that says how
    /// spread the likeliest tokens are among themselves.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column.
    pub fn entropy(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        self.fresh(|scores| self.entropy_into(floor, scores))
    }

    /// [`entropy`](Self::entropy) into `scores`, `[n]`.
    ///
    /// # Errors
    /// As [`entropy`](Self::entropy) and [`confidence_into`](Self::confidence_into).
    pub fn entropy_into(&self, floor: Option<f64>, scores: &mut [f32]) -> Result<()> {
        check_floor(floor)?;
        let Self { k, level, .. } = *self;
        let score =
            |values: &[T], scores: &mut [f32]| level.run(Entropies { values, k, floor, scores });
        self.fill(scores, score, |row| self.blame(row, floor))
    }

    /// The confidence of each token, `[n]`, in nats, from whole rows of logits, `[n, vocabulary]`.
    ///
    /// The log-softmax is never stored. The maximum is subtracted as exactly as the type of float has it,
    /// and the relative error of the sum of exponentials is about 10⁻⁷. −∞ is a token that cannot come;
    /// among the `top` most likely it needs a `floor`, as for [`confidence`](Self::confidence).
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column; [`Error::Setting`] when `top` is not in 2..=k.
    pub fn logits_confidence(&self, top: usize, floor: Option<f64>) -> Result<Vec<f32>> {
        self.fresh(|scores| self.logits_confidence_into(top, floor, scores))
    }

    /// [`logits_confidence`](Self::logits_confidence) into `scores`, `[n]`.
    ///
    /// # Errors
    /// As [`logits_confidence`](Self::logits_confidence) and [`confidence_into`](Self::confidence_into).
    pub fn logits_confidence_into(
        &self,
        top: usize,
        floor: Option<f64>,
        scores: &mut [f32],
    ) -> Result<()> {
        check_k("k", top)?;
        if top > self.k {
            let expected = format!("must be between 2 and the {} logits of a row", self.k);
            return Err(Error::setting("k", top, expected));
        }
        check_floor(floor)?;
        let Self { k, level, .. } = *self;
        let score =
            |values: &[T], scores: &mut [f32]| level.run(Logits { values, k, top, floor, scores });
        self.fill(scores, score, |row| self.blame_logits(row, floor))
    }

    /// What `into` makes of new memory.
    fn fresh(&self, into: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Vec<f32>> {
        let mut scores = vec![0.0; self.values.len() / self.k];
        into(&mut scores)?;
        Ok(scores)
    }

    /// A score a row, from `score`, which is given some rows at a time and tells whether all of theirs are
    /// finite; in parallel where there are many. The first row whose is not gets the `blame`.
    fn fill(
        &self,
        scores: &mut [f32],
        score: impl Fn(&[T], &mut [f32]) -> bool + Sync,
        blame: impl FnOnce(usize) -> Error,
    ) -> Result<()> {
        let (n, rows) = (self.values.len() / self.k, (ENTRIES / self.k).max(1));
        if scores.len() != n {
            return Err(Error::Length {
                left: "scores",
                left_len: scores.len(),
                right: "rows",
                right_len: n,
            });
        }
        let sound = parallel::fill(scores, rows, |at, scores| {
            score(&self.values[at * rows * self.k..][..scores.len() * self.k], scores)
        });
        if sound {
            return Ok(());
        }
        Err(blame(scores.iter().position(|score| !score.is_finite()).unwrap_or_default()))
    }

    /// Why this row of log-probabilities has no finite score, as an error.
    #[cold]
    fn blame(&self, row: usize, floor: Option<f64>) -> Error {
        let bad = |l: f64| !(l.is_finite() || floor.is_some() && l == f64::NEG_INFINITY);
        match self.row(row).iter().position(|l| bad(l.wide())) {
            Some(column) => self.not_finite(
                "logprobs",
                (row, column),
                "; where a server reports masked tokens as -inf, set logprob_floor",
            ),
            None => self.huge("logprobs", row, "must be in nats, from a softmax"),
        }
    }

    /// Why this row of logits has no finite score, as an error.
    #[cold]
    fn blame_logits(&self, row: usize, floor: Option<f64>) -> Error {
        let wide = || self.row(row).iter().map(|l| l.wide());
        if let Some(column) = wide().position(|l| l.is_nan() || l == f64::INFINITY) {
            return self.not_finite("logits", (row, column), "");
        }
        let masked = wide().position(|l| l == f64::NEG_INFINITY);
        match masked {
            Some(column) if wide().all(|l| l == f64::NEG_INFINITY) => {
                self.not_finite("logits", (row, column), "; some token must be possible")
            }
            Some(column) if floor.is_none() => {
                let hint =
                    "; where fewer than k tokens are possible, set logprob_floor or a smaller k";
                self.not_finite("logits", (row, column), hint)
            }
            _ => self.huge("logits", row, "must be in nats, no further apart than float32 goes"),
        }
    }

    fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.k..][..self.k]
    }

    fn not_finite(
        &self,
        argument: &'static str,
        (row, column): (usize, usize),
        hint: &'static str,
    ) -> Error {
        let place = Place::Cell { row, column };
        Error::NotFinite { argument, place, value: self.row(row)[column].wide(), hint }
    }

    /// Finite entries whose score is beyond float32: names the largest.
    fn huge(&self, argument: &'static str, row: usize, expected: &str) -> Error {
        let sizes = self.row(row).iter().map(|l| l.wide()).enumerate();
        let finite = sizes.filter(|(_, l)| l.is_finite());
        let (column, value) =
            finite.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap_or_default();
        let place = Place::Cell { row, column };
        Error::setting(argument, format_args!("{value:e} at {place}"), expected)
    }
}

/// Why one log-probability a token is no confidence.
pub const ONE_IS_TOO_FEW: &str = "must be at least 2: minus the log-probability of the likeliest \
    token alone is lowest where the model is surest, so it would rank traces the wrong way round; \
    ask for 20, as the paper does";

/// Checks how many of the most likely tokens make a token confidence; `name` is what it is called.
///
/// # Errors
/// [`Error::Setting`] when there are fewer than two.
pub fn check_k(name: &'static str, k: usize) -> Result<()> {
    if k < 2 { Err(Error::setting(name, k, ONE_IS_TOO_FEW)) } else { Ok(()) }
}

/// Checks a floor for log-probabilities.
///
/// # Errors
/// [`Error::Setting`] unless it is a finite negative number.
pub fn check_floor(floor: Option<f64>) -> Result<()> {
    match floor {
        Some(floor) if !(floor.is_finite() && floor < 0.0) => Err(Error::setting(
            "logprob_floor",
            floor,
            "must be a finite negative number of nats, such as -100.0",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
