//! Votes on one question, and on columns of many.

use deepconf_core::vote::{self as core, Rules};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyList, PyTuple};

use crate::column::Column;
use crate::convert;
use crate::error::{invalid_input, raise};
use crate::frame::made;
use crate::pool;

/// The outcome of a vote.
#[pyclass(frozen, module = "deepconf")]
pub struct Vote {
    /// The answer that won, as it was given; None when nobody voted.
    #[pyo3(get)]
    answer: Py<PyAny>,
    /// V(a): the summed weight of each answer, the heaviest first, ties in the order seen.
    #[pyo3(get)]
    ballots: Py<PyDict>,
    /// How many traces voted for each answer, in the same order.
    #[pyo3(get)]
    voters: Py<PyDict>,
    /// V(â) / ΣV: the winner's share of all weight; 0.0 when nobody voted.
    #[pyo3(get)]
    share: f64,
    /// How many traces voted.
    #[pyo3(get)]
    num_voters: usize,
    /// The score that had to be reached; None without a filter.
    #[pyo3(get)]
    threshold: Option<f64>,
    /// Whether the filter left too few voters and was given up.
    #[pyo3(get)]
    fallback: bool,
}

impl Vote {
    /// A vote of the core, with the value of each ballot.
    pub fn new<'py>(
        py: Python<'py>,
        vote: &core::Vote,
        answer_of: impl Fn(&core::Ballot) -> Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let (ballots, voters) = (PyDict::new(py), PyDict::new(py));
        for ballot in &vote.ballots {
            let answer = answer_of(ballot);
            ballots.set_item(&answer, ballot.weight)?;
            voters.set_item(&answer, ballot.voters)?;
        }
        Ok(Self {
            answer: match vote.winner().and_then(answer_of) {
                Some(answer) => answer.unbind(),
                None => py.None(),
            },
            ballots: ballots.unbind(),
            voters: voters.unbind(),
            share: vote.share,
            num_voters: vote.num_voters,
            threshold: vote.threshold,
            fallback: vote.fallback,
        })
    }
}

#[pymethods]
impl Vote {
    #[new]
    fn from_parts(
        answer: Py<PyAny>,
        ballots: Py<PyDict>,
        voters: Py<PyDict>,
        share: f64,
        num_voters: usize,
        threshold: Option<f64>,
        fallback: bool,
    ) -> Self {
        Self { answer, ballots, voters, share, num_voters, threshold, fallback }
    }

    fn __getnewargs__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let parts = ["answer", "ballots", "voters", "share", "num_voters", "threshold", "fallback"];
        let parts = parts.map(|name| slf.getattr(name)).into_iter();
        PyTuple::new(slf.py(), parts.collect::<PyResult<Vec<_>>>()?)
    }

    /// The ballots in turn, the heaviest first: named tuples of answer, weight, voters and share.
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyIterator>> {
        made(slf, "rows")?.try_iter()
    }

    /// An Arrow table, a row a ballot: `answer`, `weight`, `voters`, `share`.
    ///
    /// Raises:
    ///     InvalidType: the answers have no common type.
    ///     MissingExtra: pyarrow is not installed.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_arrow")
    }

    /// The same as a data frame of pandas.
    ///
    /// Raises:
    ///     MissingExtra: pandas is not installed.
    fn to_pandas<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_pandas")
    }

    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "html")
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Self { share, num_voters, fallback, .. } = self;
        let answer = self.answer.bind(py).repr()?;
        let fallback = if *fallback { ", fallback=True" } else { "" };
        Ok(format!("Vote(answer={answer}, share={share:.4}, num_voters={num_voters}{fallback})"))
    }
}

/// The outcome of many votes, one entry a question.
#[pyclass(frozen, module = "deepconf")]
pub struct Votes {
    /// The questions, in order of first appearance.
    #[pyo3(get)]
    questions: Py<PyList>,
    /// The answer that won each; None where nobody voted.
    #[pyo3(get)]
    answers: Py<PyList>,
    /// The winner's share, float64 `[questions]`.
    #[pyo3(get)]
    share: Py<PyArray1<f64>>,
    /// How many traces voted, int64 `[questions]`.
    #[pyo3(get)]
    num_voters: Py<PyArray1<i64>>,
    /// Whether the filter was given up, bool `[questions]`.
    #[pyo3(get)]
    fallback: Py<PyArray1<bool>>,
}

#[pymethods]
impl Votes {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.questions.bind(py).as_any().len().unwrap_or_default()
    }

    /// The questions in turn: named tuples of question_id, answer, share, num_voters and fallback.
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyIterator>> {
        made(slf, "rows")?.try_iter()
    }

    /// An Arrow table, a row a question: `question_id`, `answer`, `share`, `num_voters`, `fallback`.
    ///
    /// Raises:
    ///     InvalidType: the questions, or the answers, have no common type.
    ///     MissingExtra: pyarrow is not installed.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_arrow")
    }

    /// The same as a data frame of pandas.
    ///
    /// Raises:
    ///     MissingExtra: pandas is not installed.
    fn to_pandas<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_pandas")
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "text")
    }

    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "html")
    }
}

type Doubles<'py> = Option<PyReadonlyArray1<'py, f64>>;

fn column<'py>(value: Option<&Bound<'py, PyAny>>, name: &str) -> PyResult<Doubles<'py>> {
    value.map(|value| convert::doubles(value, name)).transpose()
}

/// The answers as they are given; or where `math` says how they are compared, one name for all that are
/// the same within a question.
fn compared<'py>(
    answers: &Bound<'py, PyAny>,
    math: Option<&Bound<'py, PyAny>>,
    questions: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let Some(math) = math else { return Ok(answers.clone()) };
    answers.py().import("deepconf.answers")?.call_method1("named", (answers, math, questions))
}

/// Filters and votes on one question.
///
/// A trace votes when it has an answer and its score reaches the linearly interpolated percentile
/// 100·(1 − keep) of the answered traces' scores. The answer with the most weight wins, ties the one
/// seen first.
///
/// Args:
///     answers: `[traces]`, in launch order: hashable values, None where a trace has no answer. Also an
///         Arrow array of strings.
///     weights: `[traces]` float, between 0 and 1e290 for every trace with an answer; None for a
///         majority vote.
///     keep: η in (0, 1], the fraction of traces to keep; 1 keeps all.
///     scores: `[traces]` float, what `keep` filters on; the weights when None. NaN for a trace
///         without tokens.
///     min_ballots: with fewer voters left the filter is given up, and `fallback` says so.
///     math: None counts equal values as one answer. Else answers are strings and those that are the same
///         share a ballot, as in `DeepThink`, which has "auto"; see `answers.AnswerBook`.
///
/// Returns:
///     `Vote`.
///
/// Raises:
///     InvalidInput: lengths differ, a weight is negative or not finite (its place is named), `keep` is
///         out of range or has nothing to filter on.
///     InvalidType: an answer is not hashable.
#[pyfunction]
#[pyo3(
    signature = (answers, weights=None, keep=1.0, scores=None, *, min_ballots=None, math=None),
    text_signature = "(answers, weights=None, keep=1.0, scores=None, *, min_ballots=1, math=None)",
)]
pub fn vote<'py>(
    answers: &Bound<'py, PyAny>,
    weights: Option<&Bound<'py, PyAny>>,
    keep: f64,
    scores: Option<&Bound<'py, PyAny>>,
    min_ballots: Option<&Bound<'py, PyAny>>,
    math: Option<&Bound<'py, PyAny>>,
) -> PyResult<Vote> {
    let py = answers.py();
    let min_ballots = min_ballots.map_or(Ok(1), |value| convert::whole(value, "min_ballots"))?;
    let answers = Column::read(&compared(answers, math, None)?, "answers")?;
    let (weights, scores) = (column(weights, "weights")?, column(scores, "scores")?);
    let rules = Rules {
        weights: weights.as_ref().map(|w| w.as_slice()).transpose()?,
        keep,
        scores: scores.as_ref().map(|s| s.as_slice()).transpose()?,
        min_ballots,
        over_all: false,
    };
    let keys = answers.keys()?;
    let work = || core::vote_column(&*keys, &rules);
    // Many rows are checked in parallel, which needs a pool of this process; few are not worth one.
    let vote = if keys.rows() > core::CHUNK { pool::run(py, None, work)? } else { work() };
    let vote = vote.map_err(raise)?;
    Vote::new(py, &vote, |ballot| answers.value(py, ballot.first).ok())
}

/// Filters and votes on many questions at once, by columns: row i is one trace.
///
/// Rows may come in any order; those of one question are in launch order.
///
/// Args:
///     questions: `[rows]` hashable values or an Arrow array of strings, without None.
///     answers: `[rows]`, as in `vote`.
///     weights: `[rows]` float, as in `vote`.
///     keep: as in `vote`, within each question.
///     scores: `[rows]` float, as in `vote`.
///     min_ballots: as in `vote`.
///     math: as in `vote`, within each question.
///     threads: how many to use; None for all cores. The result does not depend on it.
///
/// Returns:
///     `Votes`, in order of each question's first appearance.
///
/// Raises:
///     InvalidInput, InvalidType: as `vote`, naming the row.
#[pyfunction]
#[pyo3(
    signature = (
        questions, answers, weights=None, keep=1.0, scores=None, *, min_ballots=None, math=None,
        threads=None,
    ),
    text_signature = "(questions, answers, weights=None, keep=1.0, scores=None, *, min_ballots=1, math=None, threads=None)",
)]
#[allow(clippy::too_many_arguments)] // One for each of Python's.
pub fn vote_many<'py>(
    questions: &Bound<'py, PyAny>,
    answers: &Bound<'py, PyAny>,
    weights: Option<&Bound<'py, PyAny>>,
    keep: f64,
    scores: Option<&Bound<'py, PyAny>>,
    min_ballots: Option<&Bound<'py, PyAny>>,
    math: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Votes> {
    let py = questions.py();
    let min_ballots = min_ballots.map_or(Ok(1), |value| convert::whole(value, "min_ballots"))?;
    let threads = threads.map(|value| convert::whole(value, "threads")).transpose()?;
    let answers = &compared(answers, math, Some(questions))?;
    let questions = Column::read(questions, "questions")?;
    if let Some(row) = questions.first_missing() {
        return Err(invalid_input(format!("questions[{row}] is None: every row needs a question")));
    }
    let answers = Column::read(answers, "answers")?;
    let (weights, scores) = (column(weights, "weights")?, column(scores, "scores")?);
    let rules = Rules {
        weights: weights.as_ref().map(|w| w.as_slice()).transpose()?,
        keep,
        scores: scores.as_ref().map(|s| s.as_slice()).transpose()?,
        min_ballots,
        over_all: false,
    };
    let (question_keys, answer_keys) = (questions.keys()?, answers.keys()?);
    let vote = || core::vote_columns(&*question_keys, &*answer_keys, &rules);
    let votes = pool::run(py, threads, vote)?.map_err(raise)?;
    let values = votes.question_rows.iter().map(|&row| questions.value(py, row));
    let winner = |row: &Option<usize>| row.map(|row| answers.value(py, row)).transpose();
    let winners = votes.answer_rows.iter().map(winner);
    Ok(Votes {
        questions: PyList::new(py, values.collect::<PyResult<Vec<_>>>()?)?.unbind(),
        answers: PyList::new(py, winners.collect::<PyResult<Vec<_>>>()?)?.unbind(),
        share: PyArray1::from_vec(py, votes.share).unbind(),
        num_voters: PyArray1::from_vec(py, votes.num_voters).unbind(),
        fallback: PyArray1::from_vec(py, votes.fallback).unbind(),
    })
}
