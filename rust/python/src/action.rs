//! What a controller asks of its driver.

use deepconf_core::controller;
use pyo3::prelude::*;

use crate::outcome::Outcome;

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

impl Action {
    /// An action of the core.
    pub fn new(py: Python<'_>, action: controller::Action) -> PyResult<Self> {
        Ok(match action {
            controller::Action::Launch(traces) => Self::Launch { traces },
            controller::Action::Stop { trace, token } => Self::Stop { trace, token },
            controller::Action::Abort(traces) => Self::Abort { traces },
            controller::Action::Answer(outcome) => {
                Self::Answer { outcome: Py::new(py, Outcome::new(py, &outcome)?)? }
            }
        })
    }
}
