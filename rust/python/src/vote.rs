//! Votes on one question.

use deepconf_core::vote::{self as core, Rules};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyTuple};

use crate::convert::{self, Column, Given, maybe, number, truth, whole};
use crate::frame::{made, parts};
use crate::pool::Threads;

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
    /// A vote of the core, with the answer of each ballot in turn.
    pub fn new<'py>(
        py: Python<'py>,
        vote: &core::Vote,
        answers: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
    ) -> PyResult<Self> {
        let (ballots, voters) = (PyDict::new(py), PyDict::new(py));
        let mut winner = None;
        for (ballot, answer) in vote.ballots.iter().zip(answers) {
            let answer = answer?;
            ballots.set_item(&answer, ballot.weight)?;
            voters.set_item(&answer, ballot.voters)?;
            winner.get_or_insert(answer);
        }
        Ok(Self {
            answer: winner.map_or(py.None(), Bound::unbind),
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
        ballots: &Bound<'_, PyAny>,
        voters: &Bound<'_, PyAny>,
        share: &Bound<'_, PyAny>,
        num_voters: &Bound<'_, PyAny>,
        threshold: &Bound<'_, PyAny>,
        fallback: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let dict = |value, name| -> PyResult<Py<PyDict>> {
            Ok(convert::object::<PyDict>(value, name, "a dict")?.clone().unbind())
        };
        Ok(Self {
            answer,
            ballots: dict(ballots, "ballots")?,
            voters: dict(voters, "voters")?,
            share: number(share, "share")?,
            num_voters: whole(num_voters, "num_voters")?,
            threshold: maybe(number)(threshold, "threshold")?,
            fallback: truth(fallback, "fallback")?,
        })
    }

    fn __getnewargs__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        parts(slf, ["answer", "ballots", "voters", "share", "num_voters", "threshold", "fallback"])
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

/// What a vote goes by, as it was given.
pub struct Wanted<'py> {
    weights: Option<PyReadonlyArray1<'py, f64>>,
    keep: f64,
    scores: Option<PyReadonlyArray1<'py, f64>>,
    min_ballots: usize,
}

impl<'py> Wanted<'py> {
    pub fn read(
        weights: Option<&Bound<'py, PyAny>>,
        keep: &Given<'py>,
        scores: Option<&Bound<'py, PyAny>>,
        min_ballots: &Given<'py>,
    ) -> PyResult<Self> {
        Ok(Self {
            weights: weights.map(|weights| convert::doubles(weights, "weights")).transpose()?,
            keep: keep.or(1.0, "keep", number)?,
            scores: scores.map(|scores| convert::doubles(scores, "scores")).transpose()?,
            min_ballots: min_ballots.or(1, "min_ballots", whole)?,
        })
    }

    pub fn rules(&self) -> PyResult<Rules<'_>> {
        Ok(Rules::default()
            .weights(self.weights.as_ref().map(PyReadonlyArray1::as_slice).transpose()?)
            .keep(self.keep)
            .scores(self.scores.as_ref().map(PyReadonlyArray1::as_slice).transpose()?)
            .min_ballots(self.min_ballots))
    }
}

/// The answers as they are given; or where `math` says how they are compared, one name for all that are
/// the same within a question.
pub fn compared<'py>(
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
///     InvalidType: an answer is not hashable; an argument is of a wrong type.
#[pyfunction]
#[pyo3(
    signature = (
        answers, weights=None, keep=Given::default(), scores=None, *, min_ballots=Given::default(),
        math=None,
    ),
    text_signature = "(answers, weights=None, keep=1.0, scores=None, *, min_ballots=1, math=None)",
)]
pub fn vote<'py>(
    answers: &Bound<'py, PyAny>,
    weights: Option<&Bound<'py, PyAny>>,
    keep: Given<'py>,
    scores: Option<&Bound<'py, PyAny>>,
    min_ballots: Given<'py>,
    math: Option<&Bound<'py, PyAny>>,
) -> PyResult<Vote> {
    let py = answers.py();
    let wanted = Wanted::read(weights, &keep, scores, &min_ballots)?;
    let answers = Column::read(&compared(answers, math, None)?, "answers")?;
    let (rules, keys) = (wanted.rules()?, answers.keys()?);
    let vote = Threads::ALL.run(py, keys.rows(), || core::vote_column(&*keys, &rules))?;
    answers.check("answers")?;
    let value = |ballot: &core::Ballot| answers.value(py, ballot.first, "answers");
    Vote::new(py, &vote, vote.ballots.iter().map(value))
}
