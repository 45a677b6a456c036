//! One trace, token by token.

use deepconf_core::group::{self, StreamSettings};
use pyo3::prelude::*;

use crate::convert::{Floats, Given, maybe, number, whole, with_floats};
use crate::error::raise;
use crate::locked::Locked;
use crate::trace_scores::TraceScores;

/// What a streaming scorer is made with.
pub fn settings(
    window: Option<&Bound<'_, PyAny>>,
    tail: Option<&Bound<'_, PyAny>>,
    bottom: Option<f64>,
    threshold: Option<&Bound<'_, PyAny>>,
) -> PyResult<StreamSettings> {
    let default = StreamSettings::default();
    Ok(StreamSettings {
        window: window.map_or(Ok(default.window), |value| whole(value, "window"))?,
        tail: tail.map_or(Ok(default.tail), |value| whole(value, "tail"))?,
        bottom,
        threshold: threshold.map(|value| number(value, "threshold")).transpose()?,
        decimals: None,
    })
}

/// Follows one trace while it is generated; O(1) a token.
///
/// Args:
///     window: w, tokens in a group.
///     tail: t, tokens in the tail.
///     bottom: q of the bottom-group score. It needs all groups, so the trace is kept (8 bytes a
///         token); None does without it, in O(w) memory.
///     threshold: s, in nats; a complete group below it asks for a stop. None never stops.
///
/// Raises:
///     InvalidInput: a setting is out of range, or a confidence is not finite or beyond ±32,768; the
///         scorer is then unchanged.
///     InvalidType: an argument is of a wrong type.
#[pyclass(frozen, module = "deepconf")]
pub struct TraceScorer(Locked<group::TraceScorer>);

#[pymethods]
impl TraceScorer {
    #[new]
    #[pyo3(
        signature = (window=None, tail=None, bottom=Given::default(), threshold=None),
        text_signature = "(window=None, tail=None, bottom=0.10, threshold=None)",
    )]
    fn new<'py>(
        window: Option<&Bound<'py, PyAny>>,
        tail: Option<&Bound<'py, PyAny>>,
        bottom: Given<'py>,
        threshold: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let bottom = bottom.or(Some(0.10), "bottom", maybe(number))?;
        let settings = settings(window, tail, bottom, threshold)?;
        Ok(Self(Locked::new(group::TraceScorer::new(settings).map_err(raise)?)))
    }

    /// Adds one token's confidence, in nats. True when its group is complete and below the threshold.
    fn push(&self, confidence: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, c) = (confidence.py(), number(confidence, "confidence")?);
        self.0.with(py, |scorer| scorer.push(c)).map_err(raise)
    }

    /// Adds token confidences, `[n]` float32 or float64, nats, up to and including the first that asks
    /// for a stop; returns its index in the array, or None when all were added.
    fn extend(&self, confidences: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let py = confidences.py();
        let floats = Floats::one(confidences, "confidences")?;
        let stop = with_floats!(floats, values => {
            self.0.with_values(py, values.len(), |scorer| scorer.extend(values))
        });
        stop.map_err(raise)
    }

    /// Forgets the trace, for a new one with the same settings.
    fn reset(&self, py: Python<'_>) {
        self.0.with(py, group::TraceScorer::reset);
    }

    /// All scores so far, bit for bit what `deepconf.score` gives for the same tokens.
    fn scores(&self, py: Python<'_>) -> TraceScores {
        TraceScores(self.0.with_long(py, |scorer| scorer.scores()))
    }

    /// Confidence of the group that ends at the last token, nats; NaN before w tokens.
    #[getter]
    fn group(&self, py: Python<'_>) -> f64 {
        self.0.with(py, |scorer| scorer.group()).unwrap_or(f64::NAN)
    }

    /// Lowest group confidence so far, nats; before w tokens the mean of what there is.
    #[getter]
    fn lowest_group(&self, py: Python<'_>) -> f64 {
        self.0.with(py, |scorer| scorer.lowest_group())
    }

    /// Average confidence so far, nats; NaN before the first token.
    #[getter]
    fn mean(&self, py: Python<'_>) -> f64 {
        self.0.with(py, |scorer| scorer.mean())
    }

    /// Tail confidence so far, nats; NaN before the first token.
    #[getter]
    fn tail(&self, py: Python<'_>) -> f64 {
        self.0.with_long(py, |scorer| scorer.tail())
    }

    /// Tokens seen.
    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> u64 {
        self.0.with(py, |scorer| scorer.num_tokens())
    }

    /// s, in nats, or None. May be set at any time, for the tokens to come.
    #[getter]
    fn threshold(&self, py: Python<'_>) -> Option<f64> {
        self.0.with(py, |scorer| scorer.threshold())
    }

    #[setter]
    fn set_threshold(&self, threshold: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, threshold) = (threshold.py(), maybe(number)(threshold, "threshold")?);
        self.0.with(py, |scorer| scorer.set_threshold(threshold)).map_err(raise)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let both = self.0.with(py, |scorer| (scorer.num_tokens(), scorer.lowest_group()));
        let (tokens, lowest) = both;
        format!("<deepconf.TraceScorer: {tokens} tokens, lowest group {lowest:.4}>")
    }
}
