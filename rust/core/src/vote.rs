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
//! let top_half = vote(&answers, &Rules { keep: 0.5, scores: Some(&scores), ..Rules::default() })?;
//! assert_eq!((top_half.num_voters, top_half.share), (2, 1.0));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** One question: O(n) plus a quickselect for the threshold. Many: one hash of each question,
//! a counting sort, then the questions in parallel. Weights are added in launch order within an
//! answer, so the result does not depend on the number of threads.

use std::collections::HashMap;
use std::hash::Hash;

use rayon::prelude::*;

use crate::error::{Error, Place, Result};

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

impl Default for Rules<'_> {
    fn default() -> Self {
        Self { weights: None, keep: 1.0, scores: None, min_ballots: 1, over_all: false }
    }
}

/// What an answer got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ballot {
    /// The first voter that gave this answer.
    pub first: usize,
    /// V(a), the sum of the weights.
    pub weight: f64,
    /// How many traces voted for it.
    pub voters: usize,
}

/// The outcome of a vote.
#[derive(Clone, Debug, PartialEq)]
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

/// Votes on one question: `answers[i]` is what trace i answered, `None` for nothing.
///
/// # Errors
/// [`Error::Length`], [`Error::Weight`], [`Error::Setting`] for `keep`, or when there is a filter and
/// nothing to filter on.
pub fn vote<A: Eq + Hash>(answers: &[Option<A>], rules: &Rules<'_>) -> Result<Vote> {
    rules.check(answers.len())?;
    check_weights(answers, rules.weights)?;
    let rows: Vec<usize> = (0..answers.len()).collect();
    Ok(tally(&rows, answers, rules))
}

/// The result of many votes, one entry a question, in order of first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Votes {
    /// The row where each question was first seen.
    pub question_rows: Vec<usize>,
    /// A row that holds the winning answer, the first that voted for it; `None` when nobody voted.
    pub answer_rows: Vec<Option<usize>>,
    /// V(â) / ΣV.
    pub share: Vec<f64>,
    /// How many traces voted.
    pub num_voters: Vec<i64>,
    /// Whether the filter was given up.
    pub fallback: Vec<bool>,
}

/// Votes on many questions at once: row i is a trace of `questions[i]` that answered `answers[i]`.
///
/// Rows may come in any order; the rows of a question are in launch order.
///
/// # Errors
/// As [`vote`], naming the row.
pub fn vote_many<Q, A>(questions: &[Q], answers: &[Option<A>], rules: &Rules<'_>) -> Result<Votes>
where
    Q: Eq + Hash + Sync,
    A: Eq + Hash + Sync,
{
    check_length("answers", answers.len(), "questions", questions.len())?;
    rules.check(answers.len())?;
    check_weights(answers, rules.weights)?;
    let groups = Groups::by(questions);
    let tallies: Vec<Vote> =
        (0..groups.len()).into_par_iter().map(|g| tally(groups.rows(g), answers, rules)).collect();
    Ok(Votes {
        question_rows: (0..groups.len()).map(|g| groups.rows(g)[0]).collect(),
        answer_rows: tallies.iter().map(|vote| vote.winner().map(|b| b.first)).collect(),
        share: tallies.iter().map(|vote| vote.share).collect(),
        num_voters: tallies.iter().map(|vote| vote.num_voters as i64).collect(),
        fallback: tallies.iter().map(|vote| vote.fallback).collect(),
    })
}

/// Numbers the distinct keys in order of appearance: each row's number, and the row where each number
/// first stands.
#[must_use]
pub fn intern<K: Eq + Hash>(keys: &[Option<K>]) -> (Vec<Option<u32>>, Vec<usize>) {
    let mut seen: HashMap<&K, u32> = HashMap::new();
    let mut firsts = Vec::new();
    let ids = keys
        .iter()
        .enumerate()
        .map(|(row, key)| {
            key.as_ref().map(|key| {
                *seen.entry(key).or_insert_with(|| {
                    firsts.push(row);
                    firsts.len() as u32 - 1
                })
            })
        })
        .collect();
    (ids, firsts)
}

impl Rules<'_> {
    fn check(&self, len: usize) -> Result<()> {
        check_keep(self.keep)?;
        for (name, column) in [("weights", self.weights), ("scores", self.scores)] {
            if let Some(column) = column {
                check_length(name, column.len(), "answers", len)?;
            }
        }
        if self.keep == 1.0 {
            return Ok(());
        }
        let Some(scores) = self.filter() else {
            let expected = "a filter needs scores (or weights) to filter on";
            return Err(Error::setting("keep", self.keep, expected));
        };
        match scores.iter().position(|score| score.is_infinite()) {
            Some(position) => Err(Error::NotFinite {
                argument: if self.scores.is_some() { "scores" } else { "weights" },
                place: Place::Position(position),
                value: scores[position],
                hint: " (NaN marks a trace without tokens)",
            }),
            None => Ok(()),
        }
    }

    fn filter(&self) -> Option<&[f64]> {
        self.scores.or(self.weights)
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

fn check_weights<A>(answers: &[Option<A>], weights: Option<&[f64]>) -> Result<()> {
    let Some(weights) = weights else { return Ok(()) };
    let bad = |&(answer, &weight): &(&Option<A>, &f64)| {
        answer.is_some() && !(weight.is_finite() && weight >= 0.0)
    };
    match answers.iter().zip(weights).position(|pair| bad(&pair)) {
        Some(position) => Err(Error::Weight { position, value: weights[position] }),
        None => Ok(()),
    }
}

pub(crate) fn tally<A: Eq + Hash>(
    rows: &[usize],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) -> Vote {
    let filter = rules.filter().filter(|_| rules.keep < 1.0);
    let Some(scores) = filter else { return count(rows, answers, rules.weights, |_| true) };
    let ranked = |&row: &usize| rules.over_all || answers[row].is_some();
    let mut ranked: Vec<f64> = rows.iter().copied().filter(ranked).map(|row| scores[row]).collect();
    let threshold = top(&mut ranked, rules.keep);
    above(threshold, scores, rows, answers, rules)
}

/// The vote of those whose score reaches the threshold; of all that have one when that leaves too few.
pub(crate) fn above<A: Eq + Hash>(
    threshold: Option<f64>,
    scores: &[f64],
    rows: &[usize],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) -> Vote {
    let kept = |row: usize| threshold.is_some_and(|s| scores[row] >= s);
    let filtered = count(rows, answers, rules.weights, kept);
    let fallback = filtered.num_voters < rules.min_ballots;
    let scored = |row: usize| !scores[row].is_nan();
    let vote = if fallback { count(rows, answers, rules.weights, scored) } else { filtered };
    Vote { threshold, fallback, ..vote }
}

/// The score that the top `keep` of `scores` reach; NaN entries do not count.
pub(crate) fn top(scores: &mut Vec<f64>, keep: f64) -> Option<f64> {
    scores.retain(|score| !score.is_nan());
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
    // From the nearer end, so that the result never leaves [low, high].
    Some(if t >= 0.5 { high - step * (1.0 - t) } else { low + step * t })
}

/// A rank meant to fall on a value: 1 − 0.95 is a hair above 0.05, and a rank that is a hair above
/// its value would make a threshold that drops the trace it stands for.
fn on_a_value(rank: f64) -> f64 {
    if (rank - rank.round()).abs() < 1e-9 { rank.round() } else { rank }
}

fn count<A: Eq + Hash>(
    rows: &[usize],
    answers: &[Option<A>],
    weights: Option<&[f64]>,
    kept: impl Fn(usize) -> bool,
) -> Vote {
    let mut index: HashMap<&A, usize> = HashMap::new();
    let mut ballots: Vec<Ballot> = Vec::new();
    for &row in rows {
        let Some(answer) = answers[row].as_ref().filter(|_| kept(row)) else { continue };
        let at = *index.entry(answer).or_insert_with(|| {
            ballots.push(Ballot { first: row, weight: 0.0, voters: 0 });
            ballots.len() - 1
        });
        ballots[at].weight += weights.map_or(1.0, |weights| weights[row]);
        ballots[at].voters += 1;
    }
    let total: f64 = ballots.iter().map(|ballot| ballot.weight).sum();
    let num_voters = ballots.iter().map(|ballot| ballot.voters).sum();
    // Stable: equal weights stay in the order seen.
    ballots.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let share = match ballots.first() {
        Some(winner) if total > 0.0 => winner.weight / total,
        _ => 0.0,
    };
    Vote { ballots, share, num_voters, threshold: None, fallback: false }
}

/// Rows put together by question, questions in order of first appearance.
struct Groups {
    rows: Vec<usize>,
    starts: Vec<usize>,
}

impl Groups {
    fn by<Q: Eq + Hash>(questions: &[Q]) -> Self {
        let mut index: HashMap<&Q, usize> = HashMap::new();
        let mut sizes: Vec<usize> = Vec::new();
        let group_of: Vec<usize> = questions
            .iter()
            .map(|question| {
                let group = *index.entry(question).or_insert_with(|| {
                    sizes.push(0);
                    sizes.len() - 1
                });
                sizes[group] += 1;
                group
            })
            .collect();
        let mut starts = vec![0];
        starts.extend(sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        let mut next = starts.clone();
        let mut rows = vec![0; questions.len()];
        for (row, group) in group_of.into_iter().enumerate() {
            rows[next[group]] = row;
            next[group] += 1;
        }
        Self { rows, starts }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn rows(&self, group: usize) -> &[usize] {
        &self.rows[self.starts[group]..self.starts[group + 1]]
    }
}
