//! The controller: events in, actions out.

use deepconf_core::controller::{self, Finish};
use deepconf_core::{Result, policy};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::action::Action;
use crate::convert::{Floats, integers, maybe, object, text, whole};
use crate::error::{invalid_input, raise};
use crate::locked::Locked;
use crate::outcome::Outcome;
use crate::policy::Policy;
use crate::trace_scores::TraceScores;

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
pub struct Controller {
    policy: policy::Policy,
    controller: Locked<controller::Controller>,
}

impl Controller {
    /// What the core says of the run; O(traces).
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut controller::Controller) -> R + Send,
    ) -> R {
        self.controller.with_values(py, self.policy.budget as usize, work)
    }

    /// An event, and what to do then.
    fn event(
        &self,
        py: Python<'_>,
        event: impl FnOnce(&mut controller::Controller) -> Result<Vec<controller::Action>> + Send,
    ) -> PyResult<Vec<Action>> {
        let actions = self.with(py, event).map_err(raise)?;
        actions.into_iter().map(|action| Action::new(py, action)).collect()
    }
}

/// A trace's number.
fn number(trace: &Bound<'_, PyAny>) -> PyResult<u32> {
    whole(trace, "trace")
}

fn finish(finish: &Bound<'_, PyAny>) -> PyResult<Finish> {
    match text(finish, "finish")?.as_str() {
        "finished" => Ok(Finish::End),
        "length" => Ok(Finish::Length),
        "aborted" => Ok(Finish::Aborted),
        finish => Err(invalid_input(format!(
            "finish={finish:?}: must be \"finished\", \"length\" or \"aborted\""
        ))),
    }
}

#[pymethods]
impl Controller {
    #[new]
    fn new(policy: &Bound<'_, PyAny>) -> PyResult<Self> {
        let policy = object::<Policy>(policy, "policy", "a Policy")?.get().0.clone();
        let controller = controller::Controller::new(policy.clone()).map_err(raise)?;
        Ok(Self { policy, controller: Locked::new(controller) })
    }

    /// Begins the run: the first traces to launch.
    fn start(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        self.event(py, controller::Controller::start)
    }

    /// The trace is being generated.
    fn launched(&self, trace: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, trace) = (trace.py(), number(trace)?);
        self.controller.with(py, |run| run.launched(trace)).map_err(raise)
    }

    /// The trace broke off and is generated anew, under its own number: what was told of it is void.
    ///
    /// Only of one that runs, or is being aborted.
    fn relaunched(&self, trace: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, trace) = (trace.py(), number(trace)?);
        self.controller.with(py, |run| run.relaunched(trace)).map_err(raise)
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
        let confidences = Floats::one(confidences, "confidences")?;
        let single = confidences.single()?;
        let new = single.as_slice()?;
        let stop = self.controller.with_values(py, new.len(), |run| run.tokens(trace, new));
        stop.map_err(raise)?.map(|stop| Action::new(py, stop)).transpose()
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
        let number = |(place, &trace): (usize, &i64)| {
            u32::try_from(trace).map_err(|_| {
                invalid_input(format!("traces[{place}]={trace}: must be the number of a trace"))
            })
        };
        let traces = traces.as_slice()?.iter().enumerate().map(number);
        let traces = traces.collect::<PyResult<Vec<_>>>()?;
        let confidences = Floats::one(confidences, "confidences")?.single()?;
        let new = confidences.as_slice()?;
        let stepped = self.controller.with_values(py, new.len(), |run| run.step(&traces, new));
        let stepped = stepped.map_err(raise)?;
        let lost = PyDict::new(py);
        for (trace, error) in stepped.errors {
            lost.set_item(trace, raise(error))?;
        }
        let stops = stepped.stops.into_iter().map(|stop| Action::new(py, stop));
        Ok((stops.collect::<PyResult<_>>()?, lost))
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
        scores: &Bound<'_, PyAny>,
        num_tokens: Option<&Bound<'_, PyAny>>,
        stop_token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Action>> {
        let trace = number(trace)?;
        let scores = object::<TraceScores>(scores, "scores", "a TraceScores")?.get().0;
        let tokens = num_tokens.map(|value| whole(value, "num_tokens")).transpose()?;
        let stop = stop_token.map(|value| whole(value, "stop_token")).transpose()?;
        let tokens = tokens.unwrap_or(scores.num_tokens);
        let stop = self.controller.with(py, |run| run.scored(trace, scores, tokens, stop));
        stop.map_err(raise)?.map(|stop| Action::new(py, stop)).transpose()
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
        finish: &Bound<'_, PyAny>,
        answer: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Action>> {
        let (trace, finish) = (number(trace)?, self::finish(finish)?);
        let answer = answer.map(|answer| text(answer, "answer")).transpose()?;
        self.event(py, |run| run.finished(trace, finish, answer.as_deref()))
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
        finish: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Action>> {
        let (trace, finish) = (number(trace)?, self::finish(finish)?);
        self.event(py, |run| run.ended(trace, finish))
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
        answer: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Action>> {
        let (trace, answer) = (number(trace)?, maybe(text)(answer, "answer")?);
        self.event(py, |run| run.answered(trace, answer.as_deref()))
    }

    /// A trace was lost to an error: it never votes and is not replaced.
    fn failed(&self, py: Python<'_>, trace: &Bound<'_, PyAny>) -> PyResult<Vec<Action>> {
        let trace = number(trace)?;
        self.event(py, |run| run.failed(trace))
    }

    /// Ends the run now, with the vote of what has ended; nothing after the answer.
    fn cancel(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        self.event(py, |run| Ok(run.cancel()))
    }

    /// Nothing can be generated any more: ends the run as `cancel` does, for another reason.
    fn engine_died(&self, py: Python<'_>) -> PyResult<Vec<Action>> {
        self.event(py, |run| Ok(run.engine_died()))
    }

    /// A trace's status: "launching", "running", "stopping", "aborting", "finished", "length",
    /// "stopped", "aborted" or "failed"; None before it is to be launched.
    fn status(&self, trace: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
        let (py, trace) = (trace.py(), number(trace)?);
        Ok(self.controller.with(py, |run| run.status(trace)).map(controller::Status::name))
    }

    /// A trace's scores up to the token that asked for a stop; None before it is to be launched. The
    /// bottom-group score is NaN unless the policy votes by it.
    fn scores(&self, trace: &Bound<'_, PyAny>) -> PyResult<Option<TraceScores>> {
        let (py, trace) = (trace.py(), number(trace)?);
        Ok(self.controller.with_long(py, |run| run.scores(trace)).map(TraceScores))
    }

    /// What came of the run; None until it is over.
    #[getter]
    fn outcome(&self, py: Python<'_>) -> PyResult<Option<Outcome>> {
        let outcome = self.with(py, |run| run.outcome().cloned());
        outcome.map(|outcome| Outcome::new(py, &outcome)).transpose()
    }

    /// The policy.
    #[getter]
    fn policy(&self) -> Policy {
        self.policy.clone().into()
    }

    /// s, in nats, once the warmup is over.
    #[getter]
    fn threshold(&self, py: Python<'_>) -> Option<f64> {
        self.controller.with(py, |run| run.threshold())
    }

    /// Tokens of all traces so far, those after a stop or abort included.
    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> u64 {
        self.controller.with(py, |run| run.num_tokens())
    }

    fn __str__(&self, py: Python<'_>) -> String {
        self.with(py, |run| run.state()).to_string()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<deepconf.Controller {}>", self.__str__(py))
    }
}
