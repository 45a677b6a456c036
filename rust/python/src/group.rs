//! Streaming scorers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use deepconf_core::Error;
use deepconf_core::stream;
use deepconf_core::trace::{Scorer, Settings};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::convert::{self, Floats, with_floats};
use crate::error::raise;
use crate::trace::TraceScores;

fn scorer(
    window: Option<&Bound<'_, PyAny>>,
    tail: Option<&Bound<'_, PyAny>>,
    bottom: Option<f64>,
) -> PyResult<Scorer> {
    let default = Settings::default();
    let settings = default
        .window(window.map_or(Ok(default.window), |value| convert::whole(value, "window"))?)
        .tail(tail.map_or(Ok(default.tail), |value| convert::whole(value, "tail"))?)
        .bottom(bottom);
    Scorer::new(settings).map_err(raise)
}

/// Slots as the core has them.
fn slots(ids: &[i64], count: usize) -> Result<Vec<usize>, Error> {
    let slot = |&id: &i64| {
        let expected = format!("there are {count} slots, counted from 0");
        let blame = |_| Error::Setting { name: "slot_ids", value: id.to_string(), expected };
        usize::try_from(id).map_err(blame)
    };
    ids.iter().map(slot).collect()
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
#[pyclass(frozen, module = "deepconf")]
pub struct TraceScorer(Mutex<stream::TraceScorer>);

impl TraceScorer {
    fn lock(&self) -> MutexGuard<'_, stream::TraceScorer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl TraceScorer {
    #[new]
    #[pyo3(
        signature = (window=None, tail=None, bottom=Some(0.10), threshold=None),
        text_signature = "(window=None, tail=None, bottom=0.10, threshold=None)",
    )]
    fn new(
        window: Option<&Bound<'_, PyAny>>,
        tail: Option<&Bound<'_, PyAny>>,
        bottom: Option<f64>,
        threshold: Option<f64>,
    ) -> PyResult<Self> {
        let trace = scorer(window, tail, bottom)?.stream(threshold).map_err(raise)?;
        Ok(Self(Mutex::new(trace)))
    }

    /// Adds one token's confidence, in nats. True when its group is complete and below the threshold.
    fn push(&self, confidence: f64) -> PyResult<bool> {
        self.lock().push(confidence).map_err(raise)
    }

    /// Adds token confidences, `[n]` float32 or float64, nats, up to and including the first that asks
    /// for a stop; returns its index in the array, or None when all were added.
    fn extend(&self, py: Python<'_>, confidences: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let floats = Floats::one(confidences, "confidences")?;
        with_floats!(floats, values => py.detach(|| self.lock().extend(values))).map_err(raise)
    }

    /// Forgets the trace, for a new one with the same settings.
    fn reset(&self) {
        self.lock().reset();
    }

    /// All scores so far, bit for bit what `deepconf.score` gives for the same tokens.
    fn scores(&self) -> TraceScores {
        TraceScores(self.lock().scores())
    }

    /// Confidence of the group that ends at the last token, nats; NaN before w tokens.
    #[getter]
    fn group(&self) -> f64 {
        self.lock().group().unwrap_or(f64::NAN)
    }

    /// Lowest group confidence so far, nats; before w tokens the mean of what there is.
    #[getter]
    fn lowest_group(&self) -> f64 {
        self.lock().lowest_group()
    }

    /// Average confidence so far, nats; NaN before the first token.
    #[getter]
    fn mean(&self) -> f64 {
        self.lock().mean()
    }

    /// Tail confidence so far, nats; NaN before the first token.
    #[getter]
    fn tail(&self) -> f64 {
        self.lock().tail()
    }

    /// Tokens seen.
    #[getter]
    fn num_tokens(&self) -> u64 {
        self.lock().num_tokens()
    }

    /// s, in nats, or None. May be set at any time, for the tokens to come.
    #[getter]
    fn threshold(&self) -> Option<f64> {
        self.lock().threshold()
    }

    #[setter]
    fn set_threshold(&self, threshold: Option<f64>) -> PyResult<()> {
        self.lock().set_threshold(threshold).map_err(raise)
    }

    fn __repr__(&self) -> String {
        let scorer = self.lock();
        let (tokens, lowest) = (scorer.num_tokens(), scorer.lowest_group());
        format!("<deepconf.TraceScorer: {tokens} tokens, lowest group {lowest:.4}>")
    }
}

/// Follows many traces, one decode step of the whole batch a call.
///
/// Args:
///     slots: how many traces can be followed at once, 1,048,576 at the most.
///     window: w, tokens in a group.
///     tail: t, tokens in the tail.
///     threshold: s, in nats, for all slots; None never stops.
///
/// Raises:
///     InvalidInput: as for `TraceScorer`; a slot that does not exist. Nothing is added then.
#[pyclass(frozen, module = "deepconf")]
pub struct BatchScorer(Mutex<stream::BatchScorer>);

impl BatchScorer {
    fn lock(&self) -> MutexGuard<'_, stream::BatchScorer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl BatchScorer {
    #[new]
    #[pyo3(signature = (slots, *, window=None, tail=None, threshold=None))]
    fn new(
        slots: &Bound<'_, PyAny>,
        window: Option<&Bound<'_, PyAny>>,
        tail: Option<&Bound<'_, PyAny>>,
        threshold: Option<f64>,
    ) -> PyResult<Self> {
        let slots: u32 = convert::whole(slots, "slots")?;
        let scorer = scorer(window, tail, None)?;
        Ok(Self(Mutex::new(scorer.batch(slots as usize, threshold).map_err(raise)?)))
    }

    /// Adds one token to each slot named.
    ///
    /// Args:
    ///     slot_ids: `[m]` integers in `[0, slots)`.
    ///     confidences: `[m]` float32 or float64, nats.
    ///
    /// Returns:
    ///     `[m]` bool: which of them should stop.
    fn step<'py>(
        &self,
        py: Python<'py>,
        slot_ids: &Bound<'py, PyAny>,
        confidences: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let slot_ids = convert::integers(slot_ids, "slot_ids")?;
        let slot_ids = &slots(slot_ids.as_slice()?, self.lock().num_slots()).map_err(raise)?;
        let mut stop = vec![false; slot_ids.len()];
        let floats = Floats::one(confidences, "confidences")?;
        with_floats!(floats, values => self.lock().step(slot_ids, values, &mut stop))
            .map_err(raise)?;
        Ok(stop.into_pyarray(py))
    }

    /// Empties the slots named, `[m]` integers, for new traces.
    fn reset(&self, slot_ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let slot_ids = convert::integers(slot_ids, "slot_ids")?;
        let slot_ids = slots(slot_ids.as_slice()?, self.__len__()).map_err(raise)?;
        self.lock().reset(&slot_ids).map_err(raise)
    }

    /// Sets s for every slot, in nats, for the tokens to come; None never stops.
    fn set_threshold(&self, threshold: Option<f64>) -> PyResult<()> {
        self.lock().set_threshold(threshold).map_err(raise)
    }

    /// Confidence of each slot's latest complete group, float64 `[slots]`, nats; NaN before w tokens.
    #[getter]
    fn group(&self, py: Python<'_>) -> Py<PyArray1<f64>> {
        PyArray1::from_iter(py, self.lock().groups().map(|group| group.unwrap_or(f64::NAN)))
            .unbind()
    }

    /// Lowest group confidence of each slot, float64 `[slots]`, nats.
    #[getter]
    fn lowest_group(&self, py: Python<'_>) -> Py<PyArray1<f64>> {
        PyArray1::from_iter(py, self.lock().lowest_groups()).unbind()
    }

    /// Tokens seen by each slot, int64 `[slots]`.
    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> Py<PyArray1<i64>> {
        PyArray1::from_iter(py, self.lock().num_tokens().map(|n| n as i64)).unbind()
    }

    fn __len__(&self) -> usize {
        self.lock().num_slots()
    }

    fn __repr__(&self) -> String {
        format!("<deepconf.BatchScorer of {} slots>", self.__len__())
    }
}
