//! Replays of recorded traces.

use deepconf_core::controller::Reason;
use deepconf_core::replay::{self, Ended, Row, Run};
use numpy::{Element, PyArray1, PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::convert::{self, Given, Lists, kind, object, whole};
use crate::error::{invalid_input, invalid_type, raise};
use crate::locked::Locked;
use crate::policy::Policy;
use crate::pool::Threads;

/// Why a replayed run can end, in the order of its codes.
const REASONS: [Reason; 3] = [Reason::Consensus, Reason::Certain, Reason::Budget];

/// Recorded traces, as far as replays need them: see `deepconf.replay.Pool`, which is what to use.
///
/// Args:
///     policies: those that will be replayed, or others that score as they do.
#[pyclass(frozen, module = "deepconf._core")]
pub struct ReplayPool(Locked<replay::Pool>);

/// Questions and answers are numbered from 0, and each number has a place in memory.
const MOST: u32 = 1 << 24;

fn of_core(policies: &Bound<'_, PyAny>) -> PyResult<Vec<deepconf_core::policy::Policy>> {
    let items = policies.try_iter().map_err(|_| {
        invalid_type(format!("policies is a {}: must be a list of them", kind(policies)))
    })?;
    let policy = |(at, item): (usize, PyResult<Bound<'_, PyAny>>)| {
        let (item, name) = (item?, format!("policies[{at}]"));
        Ok(object::<Policy>(&item, &name, "a Policy")?.get().0.clone())
    };
    items.enumerate().map(policy).collect()
}

/// The number of a question or answer.
fn number(name: &str, value: i64) -> PyResult<u32> {
    let number = u32::try_from(value).ok().filter(|&number| number < MOST);
    number.ok_or_else(|| {
        invalid_input(format!("{name} holds {value}: must be from 0 to {}", MOST - 1))
    })
}

#[pymethods]
impl ReplayPool {
    /// Why a run can end: the codes of `run` are places in this.
    #[classattr]
    #[pyo3(name = "REASONS")]
    fn reasons() -> [&'static str; 3] {
        REASONS.map(Reason::name)
    }

    #[new]
    fn new(policies: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(Locked::new(replay::Pool::new(&of_core(policies)?).map_err(raise)?)))
    }

    /// Takes in traces.
    ///
    /// Args:
    ///     questions: int64 `[traces]`, the number of each one's question, from 0.
    ///     traces: int64 `[traces]`, launch order within the question.
    ///     answers: int64 `[traces]`, the number of each one's answer, from 0; -1 for none.
    ///     at_limit: int64 `[traces]`, 1 for a trace cut at the length limit, else 0.
    ///     confidences: an Arrow array of lists of float or double, nats.
    ///
    /// Raises:
    ///     InvalidInput: a confidence is not finite or beyond ±32,768; none of these is then taken in.
    fn add(
        &self,
        questions: &Bound<'_, PyAny>,
        traces: &Bound<'_, PyAny>,
        answers: &Bound<'_, PyAny>,
        at_limit: &Bound<'_, PyAny>,
        confidences: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = confidences.py();
        let questions = convert::integers(questions, "questions")?;
        let traces = convert::integers(traces, "traces")?;
        let answers = convert::integers(answers, "answers")?;
        let at_limit = convert::integers(at_limit, "at_limit")?;
        let columns = [&questions, &traces, &answers, &at_limit];
        let lengths = columns.map(|column| column.len());
        if lengths.iter().any(|&len| len != lengths[0]) {
            return Err(invalid_input(format!("the columns have {lengths:?} entries")));
        }
        let columns = questions.as_slice()?.iter().zip(traces.as_slice()?);
        let endings = answers.as_slice()?.iter().zip(at_limit.as_slice()?);
        let rows = columns.zip(endings).map(|((&question, &trace), (&answer, &limit))| {
            let answer = if answer == -1 { None } else { Some(number("answers", answer)?) };
            let ended = if limit == 0 { Ended::ByItself } else { Ended::AtTheLimit };
            Ok(Row { question: number("questions", question)?, trace, answer, ended })
        });
        let rows = rows.collect::<PyResult<Vec<_>>>()?;
        let Some(chunks) = convert::arrow(confidences, "confidences")? else {
            let kind = kind(confidences);
            return Err(invalid_type(format!("confidences is a {kind}: must be an Arrow array")));
        };
        let lists = convert::lists(&chunks, "confidences")?;
        self.0.with_long(py, |pool| {
            Threads::ALL.spread(|| match &lists {
                Lists::Single(slices) => pool.add(&rows, slices),
                Lists::Double(slices) => pool.add(&rows, slices),
            })
        })
    }

    /// Puts the traces of each question into launch order.
    ///
    /// Raises:
    ///     InvalidInput: two traces of a question have the same number.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.with_long(py, replay::Pool::close).map_err(raise)
    }

    /// How many record lows are kept, 12 bytes each.
    #[getter]
    fn num_lows(&self, py: Python<'_>) -> usize {
        self.0.with_long(py, |pool| pool.num_lows())
    }

    /// Replays each policy on each draw, on all cores.
    ///
    /// Args:
    ///     question: its number.
    ///     policies: what to replay.
    ///     draws: uint32 `[repeats, traces]`: trace i of a run is the `draws[repeat, i]`-th of the
    ///         question in launch order.
    ///     lag: tokens more for each trace stopped or aborted.
    ///     threads: how many to use; None for all cores.
    ///
    /// Returns:
    ///     arrays `[policies * repeats]` by name; `answer` is -1 and `threshold` NaN for none, `reason`
    ///     a place in `REASONS`.
    ///
    /// Raises:
    ///     InvalidInput: a policy's budget is above the length of a draw, or the pool was not read for
    ///         such a policy.
    #[pyo3(
        signature = (question, policies, draws, lag=Given::default(), threads=None),
        text_signature = "($self, question, policies, draws, lag=0, threads=None)",
    )]
    fn run<'py>(
        &self,
        py: Python<'py>,
        question: &Bound<'py, PyAny>,
        policies: &Bound<'py, PyAny>,
        draws: &Bound<'py, PyAny>,
        lag: Given<'py>,
        threads: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let threads = Threads::read(threads)?;
        let (question, lag) = (whole(question, "question")?, lag.or(0, "lag", whole)?);
        let policies = of_core(policies)?;
        let array = convert::array(draws, "draws")?;
        let (&[_, most], b'u') = (array.shape(), array.dtype().kind()) else {
            let (kind, shape) = (array.dtype(), array.shape());
            let expected = "must be uint32 [repeats, traces]";
            return Err(invalid_type(format!("draws is {kind} {shape:?}: {expected}")));
        };
        let draws = convert::contiguous::<u32>(&array)?;
        let draws: Vec<&[u32]> = draws.as_slice()?.chunks_exact(most.max(1)).collect();
        let runs = self.0.with_long(py, |pool| {
            threads.spread(|| pool.run_all(question, &policies, &draws, lag))
        })?;
        let columns = PyDict::new(py);
        columns.set_item("answer", column(py, &runs, |r| r.answer.map_or(-1, i64::from)))?;
        columns.set_item("tokens", column(py, &runs, |r| r.tokens as i64))?;
        columns.set_item("steps", column(py, &runs, |r| r.steps as i64))?;
        columns.set_item("launched", column(py, &runs, |r| r.launched as i32))?;
        columns.set_item("finished", column(py, &runs, |r| r.finished as i32))?;
        columns.set_item("stopped", column(py, &runs, |r| r.stopped as i32))?;
        columns.set_item("aborted", column(py, &runs, |r| r.aborted as i32))?;
        columns.set_item("threshold", column(py, &runs, |r| r.threshold.unwrap_or(f64::NAN)))?;
        columns.set_item("fallback", column(py, &runs, |r| r.fallback))?;
        let code = |run: &Run| REASONS.iter().position(|&reason| reason == run.reason);
        columns.set_item("reason", column(py, &runs, |r| code(r).map_or(-1, |at| at as i8)))?;
        columns.set_item("unarmed", column(py, &runs, |r| r.unarmed))?;
        Ok(columns)
    }
}

fn column<'py, T: Element>(
    py: Python<'py>,
    runs: &[Run],
    of: impl Fn(&Run) -> T,
) -> Bound<'py, PyArray1<T>> {
    PyArray1::from_vec(py, runs.iter().map(of).collect())
}
