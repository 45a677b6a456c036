//! Many traces, one decode step of the whole batch at a time.

use deepconf_core::{Error, stream};
use numpy::{Element, IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::convert::{Floats, integers, maybe, number, whole, with_floats};
use crate::error::raise;
use crate::locked::Locked;
use crate::trace_scorer::{scorer, threshold};

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
pub struct BatchScorer {
    slots: usize,
    scorer: Locked<stream::BatchScorer>,
}

impl BatchScorer {
    /// A number of each slot.
    fn column<'py, T: Element>(
        &self,
        py: Python<'py>,
        of: impl FnOnce(&stream::BatchScorer) -> Vec<T> + Send,
    ) -> Bound<'py, PyArray1<T>> {
        self.scorer.with_values(py, self.slots, |scorer| of(scorer)).into_pyarray(py)
    }

    /// Slots as the core has them.
    fn slots(&self, ids: &[i64]) -> PyResult<Vec<usize>> {
        let blame = |id: i64| {
            let expected = format!("there are {} slots, counted from 0", self.slots);
            raise(Error::Argument { name: "slot_ids", value: id.to_string(), expected })
        };
        ids.iter().map(|&id| usize::try_from(id).map_err(|_| blame(id))).collect()
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
        threshold: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let slots = whole(slots, "slots")?;
        let scorer = scorer(window, tail, None)?;
        let scorer = scorer.batch(slots, self::threshold(threshold)?).map_err(raise)?;
        Ok(Self { slots, scorer: Locked::new(scorer) })
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
        slot_ids: &Bound<'py, PyAny>,
        confidences: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let py = slot_ids.py();
        let slot_ids = integers(slot_ids, "slot_ids")?;
        let slot_ids = &self.slots(slot_ids.as_slice()?)?;
        let mut stop = vec![false; slot_ids.len()];
        let floats = Floats::one(confidences, "confidences")?;
        let stepped = with_floats!(floats, values => {
            let step = |scorer: &mut stream::BatchScorer| scorer.step(slot_ids, values, &mut stop);
            self.scorer.with_values(py, slot_ids.len(), step)
        });
        stepped.map_err(raise)?;
        Ok(stop.into_pyarray(py))
    }

    /// Empties the slots named, `[m]` integers, for new traces.
    fn reset(&self, slot_ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slot_ids.py();
        let slot_ids = integers(slot_ids, "slot_ids")?;
        let slot_ids = &self.slots(slot_ids.as_slice()?)?;
        let reset = |scorer: &mut stream::BatchScorer| scorer.reset(slot_ids);
        self.scorer.with_values(py, slot_ids.len(), reset).map_err(raise)
    }

    /// Sets s, in nats, for the tokens to come; None never stops.
    ///
    /// Args:
    ///     threshold: s, finite.
    ///     slot_ids: the slots it is for, `[m]` integers; None for all. It outlasts a `reset`.
    #[pyo3(signature = (threshold, slot_ids=None))]
    fn set_threshold(
        &self,
        threshold: &Bound<'_, PyAny>,
        slot_ids: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (py, threshold) = (threshold.py(), maybe(number)(threshold, "threshold")?);
        let Some(slot_ids) = slot_ids else {
            return self.scorer.with(py, |scorer| scorer.set_threshold(threshold)).map_err(raise);
        };
        let slot_ids = integers(slot_ids, "slot_ids")?;
        let slot_ids = &self.slots(slot_ids.as_slice()?)?;
        let set = |scorer: &mut stream::BatchScorer| scorer.set_threshold_of(slot_ids, threshold);
        self.scorer.with_values(py, slot_ids.len(), set).map_err(raise)
    }

    /// Confidence of each slot's latest complete group, float64 `[slots]`, nats; NaN before w tokens.
    #[getter]
    fn group<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        let groups = |scorer: &stream::BatchScorer| {
            scorer.groups().map(|group| group.unwrap_or(f64::NAN)).collect()
        };
        self.column(py, groups)
    }

    /// Lowest group confidence of each slot, float64 `[slots]`, nats.
    #[getter]
    fn lowest_group<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.column(py, |scorer| scorer.lowest_groups().collect())
    }

    /// Tokens seen by each slot, int64 `[slots]`.
    #[getter]
    fn num_tokens<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        self.column(py, |scorer| scorer.num_tokens().map(|n| n as i64).collect())
    }

    fn __len__(&self) -> usize {
        self.slots
    }

    fn __repr__(&self) -> String {
        format!("<deepconf.BatchScorer of {} slots>", self.slots)
    }
}
