//! The rows of one question, and which of them vote.

use std::ops::Range;

use super::column::Keys;
use super::count::{Cast, Count, Outcome};
use super::key::Key;
use super::{Rules, top};
use crate::error::{Error, Place, Result};

/// How many rows a column is asked for at a time: what is read of them stays in the first cache.
pub(super) const BATCH: usize = 1024;
/// Larger weights could add up to infinity.
pub(super) const MOST_WEIGHT: f64 = 1e290;

/// What is voted on, by rows.
pub(super) struct Columns<'a, K: ?Sized> {
    pub(super) answers: &'a K,
    pub(super) weights: Option<&'a [f64]>,
    /// What is filtered on, if there is a filter.
    pub(super) scores: Option<&'a [f64]>,
}

impl<'a, K: Keys + ?Sized> Columns<'a, K> {
    /// Whether nothing in `rows` has to be looked at: no infinite score, no weight that is out of range.
    pub(super) fn are_sound(&self, rows: Range<usize>) -> bool {
        let part = |column: Option<&'a [f64]>| column.map_or(&[][..], |all| &all[rows.clone()]);
        let apart = self.scores.filter(|_| !self.weights_are_scores());
        none(part(apart), f64::is_infinite) && none(part(self.weights), is_no_weight)
    }

    /// The first score that is infinite; the first weight of an answer that is out of range.
    pub(super) fn check(&self) -> Result<()> {
        let scores = self.scores.unwrap_or_default();
        if let Some(position) = scores.iter().position(|score| score.is_infinite()) {
            return Err(Error::NotFinite {
                argument: if self.weights_are_scores() { "weights" } else { "scores" },
                place: Place::Position(position),
                value: scores[position],
                hint: " (NaN marks a trace without tokens)",
            });
        }
        let weights = self.weights.unwrap_or_default();
        let mut answered = Vec::new();
        for start in (0..weights.len()).step_by(BATCH) {
            let rows = start..weights.len().min(start + BATCH);
            answered.clear();
            self.answers.present(rows.clone(), &mut answered);
            let wrong = |&row: &usize| answered[row - start] && is_no_weight(weights[row]);
            if let Some(position) = rows.clone().find(wrong) {
                return Err(Error::Weight { position, value: weights[position] });
            }
        }
        Ok(())
    }

    fn weights_are_scores(&self) -> bool {
        matches!((self.weights, self.scores), (Some(w), Some(s)) if std::ptr::eq(w, s))
    }

    pub(super) fn weight(&self, row: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[row])
    }
}

/// Whether no value is bad. Counts, without a branch: at the speed of memory.
fn none(values: &[f64], bad: impl Fn(f64) -> bool) -> bool {
    values.iter().fold(0, |count, &value| count + u32::from(bad(value))) == 0
}

fn is_no_weight(weight: f64) -> bool {
    !(0.0..=MOST_WEIGHT).contains(&weight)
}

/// Takes votes, one question after the other; its memory is used again.
pub(super) struct Booth {
    pub(super) count: Count,
    ranked: Vec<f64>,
    kept: Kept,
    /// Of rows that stand together.
    standing: Standing,
}

/// Rows that are kept, of one question after the other.
#[derive(Default)]
struct Kept {
    rows: Vec<u32>,
    scores: Vec<f64>,
    keys: Vec<Key>,
}

#[derive(Default)]
struct Standing {
    rows: Vec<u32>,
    scores: Vec<f64>,
    keys: Vec<Key>,
    answered: Vec<bool>,
}

impl Booth {
    pub(super) fn new() -> Self {
        Self {
            count: Count::new(),
            ranked: Vec::new(),
            kept: Kept::default(),
            standing: Standing::default(),
        }
    }

    /// The vote of rows that stand together.
    pub(super) fn tally<K: Keys + ?Sized>(
        &mut self,
        rows: Range<usize>,
        columns: &Columns<'_, K>,
        rules: &Rules<'_>,
    ) -> Outcome {
        let mut standing = std::mem::take(&mut self.standing);
        let outcome = if columns.scores.is_some() {
            standing.rows.clear();
            standing.rows.extend(rows.start as u32..rows.end as u32);
            standing.scores.clear();
            let Standing { scores, answered, .. } = &mut standing;
            rank(rows, columns, rules.over_all, answered, scores);
            let threshold = self.threshold(&standing.scores, rules.keep);
            self.above(threshold, &standing.rows, &standing.scores, columns, rules.min_ballots)
        } else {
            let keys = &mut standing.keys;
            keys.clear();
            columns.answers.keys(rows.clone(), keys);
            let votes = rows.zip(&*keys).map(|(row, &key)| Cast {
                key: key.at(row),
                row: row as u32,
                weight: columns.weight(row),
            });
            self.count.count(votes, columns.answers)
        };
        self.standing = standing;
        outcome
    }

    fn threshold(&mut self, scores: &[f64], keep: f64) -> Option<f64> {
        self.ranked.clear();
        self.ranked.extend_from_slice(scores);
        top(&mut self.ranked, keep)
    }

    /// The vote of those whose score reaches the threshold; all that have one when that leaves too few.
    pub(super) fn above<K: Keys + ?Sized>(
        &mut self,
        threshold: Option<f64>,
        rows: &[u32],
        scores: &[f64],
        columns: &Columns<'_, K>,
        min_ballots: usize,
    ) -> Outcome {
        self.kept.clear();
        let kept = self.kept.add(reaches(threshold), rows, scores);
        self.kept.look(columns.answers);
        self.settle(kept, threshold, rows, scores, columns, min_ballots)
    }

    /// The vote of those that are kept; of all that have a score when these are too few.
    fn settle<K: Keys + ?Sized>(
        &mut self,
        kept: Range<usize>,
        threshold: Option<f64>,
        rows: &[u32],
        scores: &[f64],
        columns: &Columns<'_, K>,
        min_ballots: usize,
    ) -> Outcome {
        let filtered = self.cast(kept, columns);
        if filtered.num_voters >= min_ballots {
            return Outcome { threshold, ..filtered };
        }
        let all = self.kept.add(|score| !score.is_nan(), rows, scores);
        self.kept.look(columns.answers);
        Outcome { threshold, fallback: true, ..self.cast(all, columns) }
    }

    /// The vote of rows that are kept.
    fn cast<K: Keys + ?Sized>(&mut self, kept: Range<usize>, columns: &Columns<'_, K>) -> Outcome {
        let Kept { rows, scores, keys } = &self.kept;
        let voters = rows[kept.clone()].iter().zip(&scores[kept.clone()]).zip(&keys[kept]);
        let same = columns.weights_are_scores();
        let votes = voters.map(|((&row, &score), &key)| Cast {
            key: key.at(row as usize),
            row,
            weight: if same { score } else { columns.weight(row as usize) },
        });
        self.count.count(votes, columns.answers)
    }
}

/// Whether a score reaches the threshold.
fn reaches(threshold: Option<f64>) -> impl Fn(f64) -> bool {
    move |score| threshold.is_some_and(|s| score >= s)
}

impl Kept {
    fn clear(&mut self) {
        self.rows.clear();
        self.scores.clear();
        self.keys.clear();
    }

    /// Adds those that are kept, nothing of which is looked at yet; where they stand.
    fn add(&mut self, kept: impl Fn(f64) -> bool, rows: &[u32], scores: &[f64]) -> Range<usize> {
        let start = self.rows.len();
        self.rows.resize(start + rows.len(), 0);
        self.scores.resize(start + rows.len(), 0.0);
        // Who is kept is hard to guess, so nothing branches on it.
        let mut end = start;
        for (&row, &score) in rows.iter().zip(scores) {
            (self.rows[end], self.scores[end]) = (row, score);
            end += usize::from(kept(score));
        }
        self.rows.truncate(end);
        self.scores.truncate(end);
        start..end
    }

    /// Looks at the answers of those that were added since.
    fn look(&mut self, answers: &(impl Keys + ?Sized)) {
        answers.pick(&self.rows[self.keys.len()..], &mut self.keys);
    }
}

/// Appends the scores of `rows`, NaN for one that does not count in a ranking: it has no answer.
fn rank<K: Keys + ?Sized>(
    rows: Range<usize>,
    columns: &Columns<'_, K>,
    over_all: bool,
    answered: &mut Vec<bool>,
    out: &mut Vec<f64>,
) {
    let scores = &columns.scores.unwrap_or_default()[rows.clone()];
    if over_all {
        out.extend_from_slice(scores);
        return;
    }
    answered.clear();
    columns.answers.present(rows, answered);
    let ranked = scores.iter().zip(&*answered);
    out.extend(ranked.map(|(&score, &answered)| if answered { score } else { f64::NAN }));
}
