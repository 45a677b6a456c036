//! Votes on many questions at once.

use std::hash::Hash;
use std::ops::Range;

use super::column::{Keys, Slice, optional, present};
use super::count::{Count, Outcome};
use super::rows::Columns;
use super::{Rules, apart, check_length, together};
use crate::error::Result;
use crate::parallel;

/// How many rows a thread looks through at a time.
pub(super) const STRETCH: usize = 1 << 15;

/// The result of many votes, one entry a question, in order of first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Votes {
    /// The row where each question was first seen.
    pub question_rows: Vec<usize>,
    /// A row that holds the winning answer, the first that voted for it; `None` when nobody voted.
    pub answer_rows: Vec<Option<usize>>,
    /// V(â) / ΣV.
    pub share: Vec<f64>,
    /// How many traces voted.
    pub num_voters: Vec<usize>,
    /// Whether the filter was given up.
    pub fallback: Vec<bool>,
}

/// Votes on many questions at once, in parallel: row i is a trace of `questions[i]` that answered
/// `answers[i]`.
///
/// Rows may come in any order; the rows of a question are in launch order.
///
/// # Errors
/// As [`vote`](super::vote()), naming the row.
pub fn vote_many<Q, A>(questions: &[Q], answers: &[Option<A>], rules: &Rules<'_>) -> Result<Votes>
where
    Q: Eq + Hash + Sync,
    A: Eq + Hash + Sync,
{
    vote_columns(&Slice { values: questions, get: present }, &optional(answers), rules)
}

/// As [`vote_many`], on columns. A row without a question counts for none.
///
/// # Errors
/// As [`vote_many`].
pub fn vote_columns(
    questions: &(dyn Keys + Sync),
    answers: &(dyn Keys + Sync),
    rules: &Rules<'_>,
) -> Result<Votes> {
    let rows = answers.rows();
    check_length("answers", rows, "questions", questions.rows())?;
    rules.check(rows)?;
    let columns = Columns { answers, weights: rules.weights, scores: rules.filter() };
    let stretches =
        parallel::map(rows.div_ceil(STRETCH), |at| columns.are_sound(part_of(rows, STRETCH, at)));
    if stretches.contains(&false) {
        columns.check()?;
    }
    let decided = match together::starts(questions) {
        Some(starts) => together::decide(&starts, &columns, rules),
        None => apart::decide(questions, &columns, rules),
    };
    Ok(Votes {
        question_rows: column(&decided, |d| d.question as usize),
        answer_rows: column(&decided, |d| d.answer),
        share: column(&decided, |d| d.share),
        num_voters: column(&decided, |d| d.num_voters),
        fallback: column(&decided, |d| d.fallback),
    })
}

fn column<T>(decided: &[Vec<Decided>], get: impl Fn(&Decided) -> T) -> Vec<T> {
    let mut all = Vec::with_capacity(decided.iter().map(Vec::len).sum());
    decided.iter().for_each(|part| all.extend(part.iter().map(&get)));
    all
}

/// The winner of one question of many.
#[derive(Clone)]
pub(super) struct Decided {
    /// Its first row.
    pub(super) question: u32,
    pub(super) num_voters: usize,
    pub(super) answer: Option<usize>,
    pub(super) share: f64,
    pub(super) fallback: bool,
}

impl Decided {
    /// What was just counted.
    pub(super) fn new(question: u32, outcome: &Outcome, count: &Count) -> Self {
        let winner = count.winner();
        Self {
            question,
            num_voters: outcome.num_voters,
            answer: winner.map(|ballot| ballot.first),
            share: outcome.share(winner),
            fallback: outcome.fallback,
        }
    }
}

/// Columns that threads share.
pub(super) type Shared<'a> = Columns<'a, dyn Keys + Sync + 'a>;

/// The rows of part `at` of `rows`, cut every `size`.
pub(super) fn part_of(rows: usize, size: usize, at: usize) -> Range<usize> {
    at * size..rows.min((at + 1) * size)
}
