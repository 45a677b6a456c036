//! Scores of one trace.

use deepconf_core::trace;
use pyo3::prelude::*;

use crate::convert::{number, truth, whole};

/// The scores of one trace, in nats; all NaN when it has no tokens.
#[pyclass(frozen, module = "deepconf", eq)]
#[derive(Clone, Copy, PartialEq)]
pub struct TraceScores(pub trace::Scores);

#[pymethods]
impl TraceScores {
    #[new]
    fn new(
        mean: &Bound<'_, PyAny>,
        lowest_group: &Bound<'_, PyAny>,
        bottom_group: &Bound<'_, PyAny>,
        tail: &Bound<'_, PyAny>,
        num_tokens: &Bound<'_, PyAny>,
        short: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        Ok(Self(trace::Scores {
            mean: number(mean, "mean")?,
            lowest_group: number(lowest_group, "lowest_group")?,
            bottom_group: number(bottom_group, "bottom_group")?,
            tail: number(tail, "tail")?,
            num_tokens: whole(num_tokens, "num_tokens")?,
            short: truth(short, "short")?,
        }))
    }

    fn __getnewargs__(&self) -> (f64, f64, f64, f64, u64, bool) {
        let trace::Scores { mean, lowest_group, bottom_group, tail, num_tokens, short } = self.0;
        (mean, lowest_group, bottom_group, tail, num_tokens, short)
    }

    /// Average trace confidence (equation 3).
    #[getter]
    fn mean(&self) -> f64 {
        self.0.mean
    }

    /// Lowest group confidence (equation 6).
    #[getter]
    fn lowest_group(&self) -> f64 {
        self.0.lowest_group
    }

    /// Bottom-q group confidence (equation 5); NaN where it was not kept.
    #[getter]
    fn bottom_group(&self) -> f64 {
        self.0.bottom_group
    }

    /// Tail confidence (equation 7).
    #[getter]
    fn tail(&self) -> f64 {
        self.0.tail
    }

    /// Number of tokens.
    #[getter]
    fn num_tokens(&self) -> u64 {
        self.0.num_tokens
    }

    /// Whether the trace is shorter than the window.
    #[getter]
    fn short(&self) -> bool {
        self.0.short
    }

    fn __repr__(&self) -> String {
        let trace::Scores { mean, lowest_group, bottom_group, tail, num_tokens, short } = self.0;
        let short = if short { "True" } else { "False" };
        format!(
            "TraceScores(mean={mean:.4}, lowest_group={lowest_group:.4}, \
             bottom_group={bottom_group:.4}, tail={tail:.4}, num_tokens={num_tokens}, short={short})"
        )
    }
}
