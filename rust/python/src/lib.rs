//! Python bindings of `deepconf-core`: conversions and errors, no logic.
//!
//! One file a class, with the function that makes it. What comes in is read in `convert`; what threads
//! share is in a `Locked`; work longer than some microseconds runs without the interpreter, on the
//! threads of `pool` if it is long.

mod action;
mod batch_scorer;
mod controller;
mod convert;
mod error;
mod frame;
mod locked;
mod logprobs;
mod outcome;
mod policy;
mod pool;
mod replay;
mod score;
mod scores;
mod token;
mod trace_scorer;
mod trace_scores;
mod vote;
mod votes;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::action::Action;
    #[pymodule_export]
    use super::batch_scorer::BatchScorer;
    #[pymodule_export]
    use super::controller::Controller;
    #[pymodule_export]
    use super::logprobs::{
        dict_confidences, flat_confidences, openai_confidences, row_confidences,
    };
    #[pymodule_export]
    use super::outcome::Outcome;
    #[pymodule_export]
    use super::policy::Policy;
    #[pymodule_export]
    use super::replay::ReplayPool;
    #[pymodule_export]
    use super::score::score;
    #[pymodule_export]
    use super::scores::Scores;
    #[pymodule_export]
    use super::token::{logits_confidence, token_confidence, token_entropy};
    #[pymodule_export]
    use super::trace_scorer::TraceScorer;
    #[pymodule_export]
    use super::trace_scores::TraceScores;
    #[pymodule_export]
    use super::vote::{Vote, vote};
    #[pymodule_export]
    use super::votes::{Votes, vote_many};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::pool::watch_forks(module.py())?;
        module.add("CONFIDENCE_LIMIT", deepconf_core::fixed::LIMIT)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
