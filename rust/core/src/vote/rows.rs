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
    /// The threshold of each question, and where those stand that are kept.
    kept: Vec<(Option<f64>, Range<usize>)>,
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

    /// The votes of questions that stand together one after the other, each from one of `starts` to the next.
    /// Many at once wait for memory together. `each` is told where a question starts.
    pub(super) fn tally<K: Keys + ?Sized>(
        &mut self,
        starts: &[u32],
        columns: &Columns<'_, K>,
        rules: &Rules<'_>,
        mut each: impl FnMut(u32, &Outcome, &mut Count),
    ) {
        let mut standing = std::mem::take(&mut self.standing);
        let Standing { rows, scores, keys, answered, kept } = &mut standing;
        let first = starts[0];
        let all = first as usize..starts[starts.len() - 1] as usize;
        let questions = starts
            .windows(2)
            .map(|ends| (ends[0], (ends[0] - first) as usize..(ends[1] - first) as usize));
        if columns.scores.is_some() {
            rows.clear();
            rows.extend(all.start as u32..all.end as u32);
            scores.clear();
            rank(all, columns, rules.over_all, answered, scores);
            self.kept.clear();
            kept.clear();
            kept.extend(questions.clone().map(|(_, span)| {
                let (rows, scores) = (&rows[span.clone()], &scores[span]);
                let threshold = self.threshold(scores, rules.keep);
                (threshold, self.kept.add(reaches(threshold), rows, scores))
            }));
            self.kept.look(columns.answers);
            for ((start, span), (threshold, kept)) in questions.zip(kept.drain(..)) {
                let (rows, scores) = (&rows[span.clone()], &scores[span]);
                let outcome =
                    self.settle(kept, threshold, rows, scores, columns, rules.min_ballots);
                each(start, &outcome, &mut self.count);
            }
        } else {
            keys.clear();
            columns.answers.keys(all, keys);
            for (start, span) in questions {
                let votes = (start..).zip(&keys[span]).map(|(row, &key)| Cast {
                    key: key.at(row as usize),
                    row,
                    weight: columns.weight(row as usize),
                });
                let outcome = self.count.count(votes, columns.answers);
                each(start, &outcome, &mut self.count);
            }
        }
        self.standing = standing;
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
