//! Votes on many questions, by columns.

use deepconf_core::vote as core;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyTuple};

use crate::convert::{Column, Given, Values, check_lengths, exactly, object};
use crate::error::invalid_input;
use crate::frame::{made, parts};
use crate::pool::Threads;
use crate::vote::{Wanted, compared};

/// The outcome of many votes, one entry a question.
#[pyclass(frozen, module = "deepconf")]
pub struct Votes {
    questions: Values,
    answers: Values,
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
    #[new]
    fn from_parts(
        questions: &Bound<'_, PyAny>,
        answers: &Bound<'_, PyAny>,
        share: &Bound<'_, PyAny>,
        num_voters: &Bound<'_, PyAny>,
        fallback: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let columns = [questions, answers, share, num_voters, fallback];
        let list = |value, name| -> PyResult<Values> {
            Ok(object::<PyList>(value, name, "a list")?.clone().unbind().into())
        };
        let votes = Self {
            questions: list(questions, "questions")?,
            answers: list(answers, "answers")?,
            share: exactly(share, "share")?,
            num_voters: exactly(num_voters, "num_voters")?,
            fallback: exactly(fallback, "fallback")?,
        };
        check_lengths(&columns, "question")?;
        Ok(votes)
    }

    fn __getnewargs__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        parts(slf, ["questions", "answers", "share", "num_voters", "fallback"])
    }

    /// The questions, in order of first appearance.
    #[getter]
    fn questions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.questions.list(py)
    }

    /// The answer that won each; None where nobody voted.
    #[getter]
    fn answers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.answers.list(py)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.share.bind(py).as_any().len()
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
        questions, answers, weights=None, keep=Given::default(), scores=None, *,
        min_ballots=Given::default(), math=None, threads=None,
    ),
    text_signature = "(questions, answers, weights=None, keep=1.0, scores=None, *, min_ballots=1, math=None, threads=None)",
)]
#[allow(clippy::too_many_arguments)] // One for each of Python's.
pub fn vote_many<'py>(
    questions: &Bound<'py, PyAny>,
    answers: &Bound<'py, PyAny>,
    weights: Option<&Bound<'py, PyAny>>,
    keep: Given<'py>,
    scores: Option<&Bound<'py, PyAny>>,
    min_ballots: Given<'py>,
    math: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Votes> {
    let py = questions.py();
    let threads = Threads::read(threads)?;
    let wanted = Wanted::read(weights, &keep, scores, &min_ballots)?;
    let answers = &compared(answers, math, Some(questions))?;
    let questions = Column::read(questions, "questions")?;
    if let Some(row) = questions.first_missing() {
        return Err(invalid_input(format!("questions[{row}] is None: every row needs a question")));
    }
    let answers = Column::read(answers, "answers")?;
    let (rules, question_keys, answer_keys) = (wanted.rules()?, questions.keys()?, answers.keys()?);
    let work = || core::vote_columns(&*question_keys, &*answer_keys, &rules);
    let votes = threads.run(py, question_keys.rows(), work)?;
    questions.check("questions")?;
    answers.check("answers")?;
    let question_rows: Vec<_> = votes.question_rows.into_iter().map(Some).collect();
    Ok(Votes {
        questions: questions.values(py, &question_rows, threads, "questions")?,
        answers: answers.values(py, &votes.answer_rows, threads, "answers")?,
        share: PyArray1::from_vec(py, votes.share).unbind(),
        num_voters: PyArray1::from_iter(py, votes.num_voters.iter().map(|&n| n as i64)).unbind(),
        fallback: PyArray1::from_vec(py, votes.fallback).unbind(),
    })
}
