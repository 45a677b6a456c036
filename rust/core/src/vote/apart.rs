//! Votes on questions whose rows stand anywhere.

use std::ops::Range;

use super::column::Keys;
use super::count::{Cast, Count};
use super::deal::{Deal, deal};
use super::key::Key;
use super::many::{Decided, Shared};
use super::number::Numbers;
use super::questions::Questions;
use super::{Rules, lowest_kept};

/// The votes on all questions, in order of first appearance.
pub(super) fn decide(
    questions: &(dyn Keys + Sync),
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Vec<Vec<Decided>> {
    let questions = Questions::number(questions);
    let Some(scores) = columns.scores else {
        return vote(&questions, columns, |_, _| true);
    };
    let reaching = |thresholds: &[f64]| {
        vote(&questions, columns, |row, question| {
            thresholds.get(question as usize).is_some_and(|&threshold| scores[row] >= threshold)
        })
    };
    let mut thresholds = thresholds(&questions, columns, rules);
    let mut decided = reaching(&thresholds);
    // Where too few are left, all that have a score vote.
    let mut again = false;
    for (decided, threshold) in decided.iter_mut().flatten().zip(&mut thresholds) {
        decided.fallback = decided.num_voters < rules.min_ballots;
        again |= decided.fallback && !threshold.is_nan();
        *threshold = if decided.fallback { f64::NEG_INFINITY } else { f64::NAN };
    }
    if again {
        let all = reaching(&thresholds);
        for (decided, all) in decided.iter_mut().flatten().zip(all.into_iter().flatten()) {
            if decided.fallback {
                *decided = Decided { fallback: true, ..all };
            }
        }
    }
    decided
}

/// The threshold of each question; NaN where nothing is ranked.
fn thresholds(questions: &Questions, columns: &Shared<'_>, rules: &Rules<'_>) -> Vec<f64> {
    let scores = columns.scores.unwrap_or_default();
    let ranks = || Ranks { columns, scores, over_all: rules.over_all };
    let threshold =
        |(): &mut (), _, scores: &mut [f64]| lowest_kept(scores, rules.keep).unwrap_or(f64::NAN);
    deal(questions, ranks, || (), threshold).concat()
}

/// Scores that count in the ranking of their question.
struct Ranks<'a> {
    columns: &'a Shared<'a>,
    scores: &'a [f64],
    over_all: bool,
}

impl Deal for Ranks<'_> {
    type Row = f64;

    fn wanted(&mut self, rows: Range<usize>, _: &[u32], out: &mut Vec<bool>) {
        if self.over_all {
            out.resize(rows.len(), true);
        } else {
            self.columns.answers.present(rows.clone(), out);
        }
        out.iter_mut().zip(&self.scores[rows]).for_each(|(out, score)| *out &= !score.is_nan());
    }

    fn read(&mut self, rows: &[u32], out: &mut Vec<f64>) {
        out.extend(rows.iter().map(|&row| self.scores[row as usize]));
    }
}

/// The votes of the rows that are kept, by their question.
fn vote(
    questions: &Questions,
    columns: &Shared<'_>,
    is_kept: impl Fn(usize, u32) -> bool + Sync,
) -> Vec<Vec<Decided>> {
    let is_kept = &is_kept;
    let kept = || Kept { columns, is_kept, keys: Vec::new(), answers: Answers::new() };
    deal(questions, kept, Count::new, |count, question, votes: &mut [Cast]| {
        let outcome = count.count(votes.iter().copied(), columns.answers);
        Decided::new(questions.firsts()[question], &outcome, count)
    })
}

/// The votes of rows that are kept.
struct Kept<'a, F> {
    columns: &'a Shared<'a>,
    is_kept: F,
    keys: Vec<Key>,
    answers: Answers,
}

impl<F: Fn(usize, u32) -> bool> Deal for Kept<'_, F> {
    type Row = Cast;

    fn wanted(&mut self, rows: Range<usize>, questions: &[u32], out: &mut Vec<bool>) {
        out.extend(rows.zip(questions).map(|(row, &question)| (self.is_kept)(row, question)));
    }

    fn read(&mut self, rows: &[u32], out: &mut Vec<Cast>) {
        self.keys.clear();
        self.columns.answers.pick(rows, &mut self.keys);
        self.answers.settle(&mut self.keys, rows, self.columns.answers);
        let weight = |row| self.columns.weight(row as usize);
        let cast = rows.iter().zip(&self.keys);
        out.extend(cast.map(|(&row, &key)| Cast { key, row, weight: weight(row) }));
    }
}

/// Answers whose keys are hashes, and a row of each.
struct Answers {
    seen: Numbers,
    hashes: Vec<Key>,
    numbers: Vec<u32>,
}

impl Answers {
    /// At most so many: more would be more than the caches hold.
    const MOST: usize = 1 << 17;

    fn new() -> Self {
        Self { seen: Numbers::new(), hashes: Vec::new(), numbers: Vec::new() }
    }

    /// Gives each key of these rows that is a hash a row of its value: the same for the same value, so
    /// that they are compared no more.
    fn settle(&mut self, keys: &mut [Key], rows: &[u32], answers: &(impl Keys + ?Sized)) {
        keys.iter_mut().zip(rows).for_each(|(key, &row)| *key = key.at(row as usize));
        if self.seen.keys().len() > Self::MOST {
            return;
        }
        let hashed = |key: &Key| !key.is_whole() && *key != Key::MISSING;
        self.hashes.clear();
        self.hashes.extend(keys.iter().copied().filter(hashed));
        self.numbers.clear();
        self.seen.number(&self.hashes, answers, &mut self.numbers);
        let settled = self.numbers.iter().map(|&number| self.seen.keys()[number as usize]);
        keys.iter_mut().filter(|key| hashed(key)).zip(settled).for_each(|(key, one)| *key = one);
    }
}
