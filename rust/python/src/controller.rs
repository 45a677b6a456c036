//! The controller: events in, actions out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use deepconf_core::controller::{self, Finish};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::convert::{Floats, integers, whole};
use crate::error::{invalid_input, raise};
use crate::policy::Policy;
use crate::trace::TraceScores;
use crate::vote::Vote;

/// What the driver is to do: one of `Launch`, `Stop`, `Abort` and `Answer`.
#[pyclass(frozen, module = "deepconf")]
pub enum Action {
    /// Start these traces, trace i with seed `policy.seed + i`, if there is a seed.
    Launch { traces: Vec<u32> },
    /// Stop this trace: the group that `token` completed fell below the threshold.
    Stop { trace: u32, token: u64 },
    /// Abort these traces: the answer is known.
    Abort { traces: Vec<u32> },
    /// The run is over.
    Answer { outcome: Py<Outcome> },
}

#[pymethods]
impl Action {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(match self {
            Self::Launch { traces } => format!("Action.Launch(traces={traces:?})"),
            Self::Stop { trace, token } => format!("Action.Stop(trace={trace}, token={token})"),
            Self::Abort { traces } => format!("Action.Abort(traces={traces:?})"),
            Self::Answer { outcome } => {
                format!("Action.Answer(outcome={})", outcome.bind(py).repr()?)
            }
        })
    }
}

/// What came of a run.
#[pyclass(frozen, module = "deepconf")]
pub struct Outcome {
    /// The answer that won; None when nobody voted.
    #[pyo3(get)]
    answer: Option<String>,
    /// The vote.
    #[pyo3(get)]
    vote: Py<Vote>,
    /// The traces that voted.
    #[pyo3(get)]
    voters: Vec<u32>,
    /// The threshold in force, nats; None when there was none.
    #[pyo3(get)]
    threshold: Option<f64>,
    /// Why the run ended: "consensus", "certain", "budget", "cancelled" or "engine_died".
    #[pyo3(get)]
    reason: &'static str,
    /// Online: why nothing could have been stopped; None if something could, or if the run was cut
    /// short.
    #[pyo3(get)]
    unarmed: Option<String>,
}

impl Outcome {
    fn new(py: Python<'_>, outcome: &controller::Outcome) -> PyResult<Self> {
        let ballots = &outcome.vote.ballots;
        let answer_of = |ballot: &deepconf_core::vote::Ballot| {
            let place = ballots.iter().position(|other| other.first == ballot.first)?;
            outcome.answers.get(place).map(|answer| PyString::new(py, answer).into_any())
        };
        Ok(Self {
            answer: outcome.answer.clone(),
            vote: Py::new(py, Vote::new(py, &outcome.vote, answer_of)?)?,
            voters: outcome.voters.clone(),
            threshold: outcome.threshold,
            reason: outcome.reason.name(),
            unarmed: outcome.unarmed.clone(),
        })
    }
}

#[pymethods]
impl Outcome {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (vote, reason) = (self.vote.bind(py).repr()?, self.reason);
        Ok(format!("Outcome(reason='{reason}', vote={vote})"))
    }
}

/// The decisions of one run, without I/O.
///
/// A driver launches what it is told to, reports tokens and ends, and obeys the actions it gets back.
///
/// Args:
///     policy: the settings.
///
/// Raises:
///     EventError: an event does not fit the trace's state; nothing is changed.
#[pyclass(frozen, module = "deepconf")]
pub struct Controller(Mutex<controller::Controller>);

impl Controller {
    /// Nothing of Python may be touched while this is held: what is built from it is cloned out of it
    /// first.
    fn lock(&self) -> MutexGuard<'_, controller::Controller> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A trace's number.
fn number(trace: &Bound<'_, PyAny>) -> PyResult<u32> {
    trace.extract().or_else(|_| whole(trace, "trace"))
}

/// Token confidences as float32.
fn single<'py>(confidences: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, f32>> {
    match Floats::one(confidences, "confidences")? {
        Floats::Single(values) => Ok(values),
        Floats::Half(values) => Ok(values.call_method1("astype", ("float32",))?.extract()?),
        Floats::Double(values) => Ok(values.call_method1("astype", ("float32",))?.extract()?),
    }
}

fn finish(finish: &str) -> PyResult<Finish> {
    match finish {
        "finished" => Ok(Finish::End),
        "length" => Ok(Finish::Length),
        "aborted" => Ok(Finish::Aborted),
        _ => Err(invalid_input(format!(
            "finish={finish:?}: must be \"finished\", \"length\" or \"aborted\""
        ))),
    }
}

fn action(py: Python<'_>, action: controller::Action) -> PyResult<Action> {
    Ok(match action {
        controller::Action::Launch(traces) => Action::Launch { traces },
        controller::Action::Stop { trace, token } => Action::Stop { trace, token },
        controller::Action::Abort(traces) => Action::Abort { traces },
        controller::Action::Answer(outcome) => {
            Action::Answer { outcome: Py::new(py, Outcome::new(py, &outcome)?)? }
        }
    })
}

fn actions(
    py: Python<'_>,
    actions: deepconf_core::Result<Vec<controller::Action>>,
) -> PyResult<Vec<Action>> {
    actions.map_err(raise)?.into_iter().map(|one| action(py, one)).collect()
}

#[pymethods]
impl Controller {
    #[new]
    fn new(policy: &Policy) -> PyResult<Self> {
        Ok(Self(Mutex::new(controller::Controller::new(policy.0.clone()).map_err(raise)?)))
    }

    /// Begins the run: the first traces to launch.
    fn start(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        let started = self.lock().start();
        actions(py, started)
    }

    /// The trace is being generated.
    fn launched(&self, trace: &Bound<'_, PyAny>) -> PyResult<()> {
        let trace = number(trace)?;
        let launched = self.lock().launched(trace);
        launched.map_err(raise)
    }

    /// New tokens of a trace were scored.
    ///
    /// Args:
    ///     trace: its number.
    ///     confidences: float32 `[n_new]`, nats.
    ///
    /// Returns:
    ///     `Action.Stop` when a group fell below the threshold, else None.
    fn tokens(
        &self,
        py: Python<'_>,
        trace: &Bound<'_, PyAny>,
        confidences: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Action>> {
        let trace = number(trace)?;
        let confidences = single(confidences)?;
        let new = confidences.as_slice()?;
        let stop = self.lock().tokens(trace, new);
        stop.map_err(raise)?.map(|stop| action(py, stop)).transpose()
    }

    /// New tokens of many traces were scored: the same as a `tokens` for each trace, in one call.
    ///
    /// What is wrong with one trace, such as a NaN, costs no other: none of its tokens that stand
    /// together there is added, and none that follows in this step.
    ///
    /// Args:
    ///     traces: integers `[n]`, the trace of each token. A trace's own are in order, and those that
    ///         stand together are one event.
    ///     confidences: float32 `[n]`, nats.
    ///
    /// Returns:
    ///     An `Action.Stop` for each trace of which a group fell below the threshold; and, by trace, the
    ///     exceptions that `tokens` would have raised.
    ///
    /// Raises:
    ///     InvalidInput: there are not as many of each.
    fn step<'py>(
        &self,
        py: Python<'py>,
        traces: &Bound<'py, PyAny>,
        confidences: &Bound<'py, PyAny>,
    ) -> PyResult<(Vec<Action>, Bound<'py, PyDict>)> {
        let traces = integers(traces, "traces")?;
        let numbers = traces.as_slice()?.iter().map(|&trace| {
            u32::try_from(trace).map_err(|_| {
                invalid_input(format!("traces holds {trace}: out of range, or negative"))
            })
        });
        let numbers = numbers.collect::<PyResult<Vec<_>>>()?;
        let confidences = single(confidences)?;
        let new = confidences.as_slice()?;
        let stepped = self.lock().step(&numbers, new);
        let controller::Stepped { stops, errors } = stepped.map_err(raise)?;
        let lost = PyDict::new(py);
        for (trace, error) in errors {
            lost.set_item(trace, raise(error))?;
        }
        Ok((stops.into_iter().map(|stop| action(py, stop)).collect::<PyResult<_>>()?, lost))
    }

    /// What a trace that is scored elsewhere has come to, in place of its `tokens`: by an engine that
    /// scores for itself, or from a recording. Once, before it ends, is enough.
    ///
    /// Args:
    ///     trace: its number.
    ///     scores: its `TraceScores`, nats, so far or of the whole trace; up to the stop, if there was
    ///         one. A score that the policy weighs or ranks by and that is NaN takes the trace's vote.
    ///     num_tokens: all that were generated, scored or not; None for those scored.
    ///     stop_token: the token that completed the first group below the threshold, counted from 0.
    ///
    /// Returns:
    ///     `Action.Stop` with a stop token, else None.
    ///
    /// Raises:
    ///     InvalidInput: the numbers cannot be: fewer tokens than before or than were scored, a stop
    ///         beyond them or without a threshold, a score that is infinite or out of range.
    #[pyo3(signature = (trace, scores, *, num_tokens=None, stop_token=None))]
    fn scored(
        &self,
        py: Python<'_>,
        trace: &Bound<'_, PyAny>,
        scores: PyRef<'_, TraceScores>,
        num_tokens: Option<&Bound<'_, PyAny>>,
        stop_token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Action>> {
        let trace = number(trace)?;
        let tokens = num_tokens.map(|value| whole(value, "num_tokens")).transpose()?;
        let stop = stop_token.map(|value| whole(value, "stop_token")).transpose()?;
        let tokens = tokens.unwrap_or(scores.0.num_tokens);
        let stop = self.lock().scored(trace, scores.0, tokens, stop);
        stop.map_err(raise)?.map(|stop| action(py, stop)).transpose()
    }

    /// A trace ended, and its answer is known: `ended` and `answered` in one event.
    ///
    /// Args:
    ///     trace: its number.
    ///     finish: "finished" (by itself), "length" (cut) or "aborted" (as it was asked to).
    ///     answer: what it says, one string for all that are equivalent; None for nothing.
    #[pyo3(signature = (trace, finish, answer=None))]
    fn finished(
        &self,
        py: Python<'_>,
        trace: &Bound<'_, PyAny>,
        finish: &str,
        answer: Option<&str>,
    ) -> PyResult<Vec<Action>> {
        let (trace, finish) = (number(trace)?, self::finish(finish)?);
        let finished = self.lock().finished(trace, finish, answer);
        actions(py, finished)
    }

    /// A trace ended, and its answer is not known yet. Its place is free and its scores are final; it
    /// counts against the leading answer, and the run does not end for its budget, until `answered`.
    ///
    /// Args:
    ///     trace: its number.
    ///     finish: "finished" (by itself), "length" (cut) or "aborted" (as it was asked to).
    fn ended(
        &self,
        py: Python<'_>,
        trace: &Bound<'_, PyAny>,
        finish: &str,
    ) -> PyResult<Vec<Action>> {
        let (trace, finish) = (number(trace)?, self::finish(finish)?);
        let ended = self.lock().ended(trace, finish);
        actions(py, ended)
    }

    /// What a trace that ended answers is known now. Of a run that was cancelled, or whose engine died,
    /// `outcome` then gives the vote counted anew.
    ///
    /// Args:
    ///     trace: its number.
    ///     answer: what it says, one string for all that are equivalent; None for nothing.
    fn answered(
        &self,
        py: Python<'_>,
        trace: &Bound<'_, PyAny>,
        answer: Option<&str>,
    ) -> PyResult<Vec<Action>> {
        let trace = number(trace)?;
        let answered = self.lock().answered(trace, answer);
        actions(py, answered)
    }

    /// A trace was lost to an error: it never votes and is not replaced.
    fn failed(&self, py: Python<'_>, trace: &Bound<'_, PyAny>) -> PyResult<Vec<Action>> {
        let trace = number(trace)?;
        let failed = self.lock().failed(trace);
        actions(py, failed)
    }

    /// Ends the run now, with the vote of what has ended; nothing after the answer.
    fn cancel(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        let cancelled = self.lock().cancel();
        actions(py, Ok(cancelled))
    }

    /// Nothing can be generated any more: ends the run as `cancel` does, for another reason.
    fn engine_died(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        let died = self.lock().engine_died();
        actions(py, Ok(died))
    }

    /// A trace's status: "launching", "running", "stopping", "aborting", "finished", "length",
    /// "stopped", "aborted" or "failed"; None before it is to be launched.
    fn status(&self, trace: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
        let trace = number(trace)?;
        Ok(self.lock().status(trace).map(controller::Status::name))
    }

    /// A trace's scores up to the token that asked for a stop; None before it is to be launched. The
    /// bottom-group score is NaN unless the policy votes by it.
    fn scores(&self, trace: &Bound<'_, PyAny>) -> PyResult<Option<TraceScores>> {
        let trace = number(trace)?;
        Ok(self.lock().scores(trace).map(TraceScores))
    }

    /// What came of the run; None until it is over.
    #[getter]
    fn outcome(&self, py: Python<'_>) -> PyResult<Option<Outcome>> {
        let outcome = self.lock().outcome().cloned();
        outcome.map(|outcome| Outcome::new(py, &outcome)).transpose()
    }

    /// The policy.
    #[getter]
    fn policy(&self) -> Policy {
        Policy(self.lock().policy().clone())
    }

    /// s, in nats, once the warmup is over.
    #[getter]
    fn threshold(&self) -> Option<f64> {
        self.lock().threshold()
    }

    /// Tokens of all traces so far, those after a stop or abort included.
    #[getter]
    fn num_tokens(&self) -> u64 {
        self.lock().num_tokens()
    }

    fn __str__(&self) -> String {
        self.lock().state().to_string()
    }

    fn __repr__(&self) -> String {
        format!("<deepconf.Controller {}>", self.lock().state())
    }
}
