//! What came of a run.

use deepconf_core::controller;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::vote::Vote;

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
    /// An outcome of the core.
    pub fn new(py: Python<'_>, outcome: &controller::Outcome) -> PyResult<Self> {
        let answers = outcome.answers.iter().map(|answer| Ok(PyString::new(py, answer).into_any()));
        Ok(Self {
            answer: outcome.answer.clone(),
            vote: Py::new(py, Vote::new(py, &outcome.vote, answers)?)?,
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
