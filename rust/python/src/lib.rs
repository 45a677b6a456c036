//! Python bindings of `deepconf-core`: conversions and errors, no logic.
//!
//! One file a concept, named as in the core. Arrays come in zero-copy where they are contiguous; work
//! longer than some microseconds runs without the interpreter lock.

mod column;
mod controller;
mod convert;
mod error;
mod group;
mod logprobs;
mod policy;
mod pool;
mod replay;
mod token;
mod trace;
mod vote;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::controller::{Action, Controller, Outcome};
    #[pymodule_export]
    use super::group::{BatchScorer, TraceScorer};
    #[pymodule_export]
    use super::logprobs::{
        dict_confidences, flat_confidences, openai_confidences, row_confidences,
    };
    #[pymodule_export]
    use super::policy::Policy;
    #[pymodule_export]
    use super::replay::ReplayPool;
    #[pymodule_export]
    use super::token::{logits_confidence, token_confidence, token_entropy};
    #[pymodule_export]
    use super::trace::{Scores, TraceScores, score};
    #[pymodule_export]
    use super::vote::{Vote, Votes, vote, vote_many};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
