//! Scores of many traces.

use deepconf_core::trace;
use numpy::{Element, PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyTuple};

use crate::convert::{check_lengths, exactly, whole};
use crate::frame::{made, parts};
use crate::trace_scores::TraceScores;

/// The scores of many traces, an array each. A trace without tokens has NaN everywhere.
#[pyclass(frozen, module = "deepconf")]
pub struct Scores {
    /// Average trace confidence, float64 `[traces]`, nats.
    #[pyo3(get)]
    mean: Py<PyArray1<f64>>,
    /// Lowest group confidence, float64 `[traces]`, nats.
    #[pyo3(get)]
    lowest_group: Py<PyArray1<f64>>,
    /// Bottom-q group confidence, float64 `[traces]`, nats.
    #[pyo3(get)]
    bottom_group: Py<PyArray1<f64>>,
    /// Tail confidence, float64 `[traces]`, nats.
    #[pyo3(get)]
    tail: Py<PyArray1<f64>>,
    /// Number of tokens, int64 `[traces]`.
    #[pyo3(get)]
    num_tokens: Py<PyArray1<i64>>,
    /// Whether the trace is shorter than the window, bool `[traces]`.
    #[pyo3(get)]
    short: Py<PyArray1<bool>>,
}

#[pymethods]
impl Scores {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.mean.bind(py).len()
    }

    /// The scores of one trace.
    fn __getitem__(&self, trace: &Bound<'_, PyAny>) -> PyResult<TraceScores> {
        let (py, number) = (trace.py(), whole::<i128>(trace, "trace")?);
        let len = self.__len__(py) as i128;
        let at = if number < 0 { number + len } else { number };
        if !(0..len).contains(&at) {
            return Err(PyIndexError::new_err(format!("trace {number} of {len}")));
        }
        self.at(py, at as usize)
    }

    /// The scores of each trace in turn.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let scores = (0..self.__len__(py)).map(|trace| self.at(py, trace));
        PyList::new(py, scores.collect::<PyResult<Vec<_>>>()?)?.try_iter()
    }

    #[new]
    fn new(
        mean: &Bound<'_, PyAny>,
        lowest_group: &Bound<'_, PyAny>,
        bottom_group: &Bound<'_, PyAny>,
        tail: &Bound<'_, PyAny>,
        num_tokens: &Bound<'_, PyAny>,
        short: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let columns = [mean, lowest_group, bottom_group, tail, num_tokens, short];
        let scores = Self {
            mean: exactly(mean, "mean")?,
            lowest_group: exactly(lowest_group, "lowest_group")?,
            bottom_group: exactly(bottom_group, "bottom_group")?,
            tail: exactly(tail, "tail")?,
            num_tokens: exactly(num_tokens, "num_tokens")?,
            short: exactly(short, "short")?,
        };
        check_lengths(&columns, "trace")?;
        Ok(scores)
    }

    fn __getnewargs__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        parts(slf, ["mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short"])
    }

    /// An Arrow table, a row a trace, with the attributes as columns.
    ///
    /// Raises:
    ///     MissingExtra: pyarrow is not installed.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_arrow")
    }

    /// The same as a data frame of pandas.
    ///
    /// Raises:
    ///     MissingExtra: pandas is not installed.
    fn to_pandas<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "to_pandas")
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "text")
    }

    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        made(slf, "html")
    }
}

impl Scores {
    fn at(&self, py: Python<'_>, trace: usize) -> PyResult<TraceScores> {
        // By NumPy's own look-up: a column that was given may have any layout, and may be resized.
        let of = |column: &Py<PyArray1<f64>>| column.bind(py).as_any().get_item(trace)?.extract();
        let mut scores = trace::Scores::NOTHING;
        scores.mean = of(&self.mean)?;
        scores.lowest_group = of(&self.lowest_group)?;
        scores.bottom_group = of(&self.bottom_group)?;
        scores.tail = of(&self.tail)?;
        scores.num_tokens = self.num_tokens.bind(py).as_any().get_item(trace)?.extract()?;
        scores.short = self.short.bind(py).as_any().get_item(trace)?.is_truthy()?;
        Ok(TraceScores(scores))
    }

    /// Scores of the core, a column each.
    pub fn of(py: Python<'_>, scores: &[trace::Scores]) -> Self {
        Self {
            mean: column(py, scores, |s| s.mean),
            lowest_group: column(py, scores, |s| s.lowest_group),
            bottom_group: column(py, scores, |s| s.bottom_group),
            tail: column(py, scores, |s| s.tail),
            num_tokens: column(py, scores, |s| s.num_tokens as i64),
            short: column(py, scores, |s| s.short),
        }
    }
}

/// Copied once, into memory of NumPy's own: that is one object, where an array around ours is two.
fn column<T: Copy + Element>(
    py: Python<'_>,
    scores: &[trace::Scores],
    of: impl Fn(&trace::Scores) -> T,
) -> Py<PyArray1<T>> {
    let column: Vec<T> = scores.iter().map(of).collect();
    PyArray1::from_slice(py, &column).unbind()
}
