//! Filtering and voting: which traces are kept, and which answer wins.
//!
//! A trace votes when it has an answer and its score reaches the threshold: the linearly
//! interpolated percentile 100·(1 − η) of the scores, for keep η. An answer's ballots add up the
//! weights of the traces that gave it; ties go to the answer seen first, in launch order.
//!
//! ```
//! use deepconf_core::vote::{Rules, vote};
//!
//! let answers = [Some("7"), Some("8"), Some("8"), None, Some("7")];
//! let scores = [9.0, 2.0, 3.0, 9.5, 8.0];
//! let majority = vote(&answers, &Rules::default())?;
//! assert_eq!(majority.ballots[0].first, 0); // two votes each: "7" was seen first
//! let top_half = vote(&answers, &Rules::default().keep(0.5).scores(Some(&scores)))?;
//! assert_eq!((top_half.num_voters, top_half.share), (2, 1.0));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Many questions.** [`vote_many`] takes slices, [`vote_columns`] anything that hands out
//! [`Keys`], such as [`Integers`] or an Arrow array in place. Rows are told apart by 16-byte [`Key`]s. A
//! key holds the value itself if that is an integer or a text of up to fifteen bytes; otherwise it is a
//! hash, and rows whose keys agree are compared, so a collision costs time and never a wrong count.
//! Hashes have a seed that each process draws for itself, so that nobody can pick texts that collide.
//! It is the only thing here that is drawn, and no result depends on it: questions come out in the order
//! of their rows, answers in the order seen.
//!
//! **Cost.** Of n rows:
//!
//! | step | what it costs |
//! |---|---|
//! | checks | one read of weights and scores, without a branch |
//! | are questions together? | each row's against that of the row before, without a hash; soon given up if not |
//! | … and do they rise? | a key each if not, in a hash table, so that none comes back |
//! | if so | nothing: each question's traces are read where they stand |
//! | if not | a look into a table of the questions seen before, in a cache if they are few; no hash for integers close together |
//! | … | 32 bytes a row that votes written and read; before, where there is a filter, 12 a row |
//! | … and answers are long | a look into a table of those seen before |
//! | threshold | a quickselect over the question's scores |
//! | … of the rows it keeps | their answers and weights, read where they are; of some questions at once |
//! | count | a hint by six bits of the key says which ballot it was the last time |
//! | … the hint is wrong | a look through the ballots, in a hash table from the seventeenth on |
//!
//! Rows that are not together get the number of their question, in order of first appearance: each thread
//! numbers what it sees, and the first one's numbers are continued with what only others saw. Then they are
//! dealt by number to parts that fit the cache of a core, which sorts its rows there. Where there is a filter,
//! scores are dealt first, for the thresholds alone; then rows are read again in the order they stand in, and
//! those that reach their threshold are dealt with their answers. So nobody looks at the answers of rows that
//! are not kept, or at random places in memory. Texts of more than fifteen bytes, while they are at hand, get
//! the row of an equal one as part of their key, so that they need not be found again to be compared.
//!
//! Parts and questions go in parallel. The traces of a question are always taken in launch order,
//! and by one thread, so that every sum is the same whatever the number of threads.

mod apart;
mod column;
mod count;
mod deal;
mod key;
mod many;
mod number;
mod questions;
mod rows;
mod together;

use std::hash::Hash;

use rows::{Booth, Columns};

pub(crate) use column::optional;
pub use column::{Integers, Keys};
pub use key::Key;
pub use many::{Votes, vote_columns, vote_many};

use crate::error::{Error, Result};
use crate::settings::settings;

settings! {
    /// How a vote is taken.
    #[derive(Clone, Copy, Debug)]
    pub struct Rules<'a> {
        /// One weight a trace, finite and at least 0; `None` counts heads.
        pub weights: Option<&'a [f64]>,
        /// η: the fraction of traces to keep, in (0, 1]. 1 keeps all.
        pub keep: f64,
        /// What `keep` filters on, one a trace; the weights when `None`. NaN marks a trace without
        /// tokens, which never votes when there is a filter.
        pub scores: Option<&'a [f64]>,
        /// With fewer voters left the filter is given up.
        pub min_ballots: usize,
        /// Whether the percentile is taken over traces without an answer too, as the paper has it.
        pub over_all: bool,
    }
}

impl Default for Rules<'_> {
    fn default() -> Self {
        Self { weights: None, keep: 1.0, scores: None, min_ballots: 1, over_all: false }
    }
}

/// What an answer got.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Ballot {
    /// The first voter that gave this answer.
    pub first: usize,
    /// V(a), the sum of the weights.
    pub weight: f64,
    /// How many traces voted for it.
    pub voters: usize,
}

impl Ballot {
    /// A ballot of `voters` votes that weigh `weight` together.
    #[must_use]
    pub fn new(first: usize, weight: f64, voters: usize) -> Self {
        Self { first, weight, voters }
    }
}

/// The outcome of a vote.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Vote {
    /// The heaviest first; ties in the order seen.
    pub ballots: Vec<Ballot>,
    /// V(â) / ΣV: the winner's share; 0 when nobody voted or all weights are 0.
    pub share: f64,
    /// How many traces voted.
    pub num_voters: usize,
    /// The score that had to be reached; `None` without a filter.
    pub threshold: Option<f64>,
    /// Whether the filter left too few voters and was given up.
    pub fallback: bool,
}

impl Vote {
    /// The ballots of the answer that won; `None` when nobody voted.
    #[must_use]
    pub fn winner(&self) -> Option<&Ballot> {
        self.ballots.first()
    }
}

/// Votes on one question: `answers[i]` is what trace i answered, `None` for nothing. It all happens on
/// the caller's thread.
///
/// # Errors
/// [`Error::Length`], [`Error::Weight`], [`Error::NotFinite`], [`Error::Setting`] for `keep`, or when there is a filter
/// and nothing to filter on.
pub fn vote<A: Eq + Hash>(answers: &[Option<A>], rules: &Rules<'_>) -> Result<Vote> {
    vote_column(&optional(answers), rules)
}

/// As [`vote`], on a column.
///
/// # Errors
/// As [`vote`].
pub fn vote_column(answers: &dyn Keys, rules: &Rules<'_>) -> Result<Vote> {
    rules.check(answers.rows())?;
    let columns = Columns { answers, weights: rules.weights, scores: rules.filter() };
    if !columns.are_sound(0..answers.rows()) {
        columns.check()?;
    }
    Ok(tally(answers, rules))
}

impl Rules<'_> {
    fn check(&self, len: usize) -> Result<()> {
        check_keep(self.keep)?;
        if u32::try_from(len).is_err() {
            return Err(Error::argument("answers", len, "at most 4,294,967,295 rows at a time"));
        }
        for (name, column) in [("weights", self.weights), ("scores", self.scores)] {
            if let Some(column) = column {
                check_length(name, column.len(), "answers", len)?;
            }
        }
        if self.keep < 1.0 && self.filter().is_none() {
            let expected = "a filter needs scores (or weights) to filter on";
            return Err(Error::setting("keep", self.keep, expected));
        }
        Ok(())
    }

    /// The scores to filter on, if there is a filter.
    fn filter(&self) -> Option<&[f64]> {
        self.scores.or(self.weights).filter(|_| self.keep < 1.0)
    }
}

pub(crate) fn check_keep(keep: f64) -> Result<()> {
    if keep > 0.0 && keep <= 1.0 {
        return Ok(());
    }
    Err(Error::setting("keep", keep, "must be a fraction of the traces, in (0, 1]"))
}

fn check_length(
    left: &'static str,
    left_len: usize,
    right: &'static str,
    right_len: usize,
) -> Result<()> {
    if left_len == right_len {
        return Ok(());
    }
    Err(Error::Length { left, left_len, right, right_len })
}

/// The vote of those whose score reaches a threshold that was set before; of all that have a score
/// when that leaves too few.
pub(crate) fn above<A: Eq + Hash>(
    threshold: Option<f64>,
    scores: &[f64],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) -> Vote {
    let answers = optional(answers);
    let columns = Columns { answers: &answers, weights: rules.weights, scores: Some(scores) };
    let rows: Vec<u32> = (0..scores.len() as u32).collect();
    let mut booth = Booth::new();
    let outcome = booth.above(threshold, &rows, scores, &columns, rules.min_ballots);
    booth.count.vote(&outcome)
}

/// [`vote_column`] by rules that are known to be sound.
pub(crate) fn tally(answers: &dyn Keys, rules: &Rules<'_>) -> Vote {
    let columns = Columns { answers, weights: rules.weights, scores: rules.filter() };
    let mut vote = Vote::default();
    Booth::new().tally(&[0, answers.rows() as u32], &columns, rules, |_, outcome, count| {
        vote = count.vote(outcome);
    });
    vote
}

/// The score that the top `keep` of `scores` reach; NaN entries do not count.
pub(crate) fn top(scores: &mut Vec<f64>, keep: f64) -> Option<f64> {
    scores.retain(|score| !score.is_nan());
    lowest_kept(scores, keep)
}

/// As [`top`], where there is no NaN.
fn lowest_kept(scores: &mut [f64], keep: f64) -> Option<f64> {
    percentile(scores, 100.0 * (1.0 - keep))
}

/// The linearly interpolated percentile `q` in [0, 100], as `numpy.percentile` has it; reorders.
///
/// ```
/// use deepconf_core::vote::percentile;
/// assert_eq!(percentile(&mut [4.0, 1.0, 3.0, 2.0], 50.0), Some(2.5));
/// assert_eq!(percentile(&mut [], 50.0), None);
/// ```
#[must_use]
pub fn percentile(values: &mut [f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let rank = on_a_value((q / 100.0).clamp(0.0, 1.0) * last as f64);
    let (_, &mut low, above) = values.select_nth_unstable_by(rank as usize, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    let (t, step) = (rank.fract(), high - low);
    if step.is_infinite() {
        // Too far apart to be subtracted.
        return Some(low * (1.0 - t) + high * t);
    }
    // From the nearer end, so that the result never leaves [low, high].
    Some(if t >= 0.5 { high - step * (1.0 - t) } else { low + step * t })
}

/// A rank meant to fall on a value: 1 − 0.95 is a hair above 0.05, and a rank that is a hair above
/// its value would make a threshold that drops the trace it stands for.
fn on_a_value(rank: f64) -> f64 {
    if (rank - rank.round()).abs() < 1e-9 { rank.round() } else { rank }
}
