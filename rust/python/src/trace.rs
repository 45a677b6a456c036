//! Scores of recorded traces.

use std::borrow::Cow;

use deepconf_core::token::Sample;
use deepconf_core::trace::{self, Settings};
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyTuple};

use crate::convert::{self, Floats, Lists, with_floats};
use crate::error::{invalid_input, invalid_type, raise};
use crate::frame::made;
use crate::pool;

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
    fn __getitem__(&self, py: Python<'_>, trace: isize) -> PyResult<TraceScores> {
        let len = self.__len__(py) as isize;
        let at = if trace < 0 { trace + len } else { trace };
        if !(0..len).contains(&at) {
            return Err(PyIndexError::new_err(format!("trace {trace} of {len}")));
        }
        // By NumPy's own look-up: a column that was given may have any layout, and may be resized.
        let of = |column: &Py<PyArray1<f64>>| column.bind(py).as_any().get_item(at)?.extract();
        Ok(TraceScores(trace::Scores {
            mean: of(&self.mean)?,
            lowest_group: of(&self.lowest_group)?,
            bottom_group: of(&self.bottom_group)?,
            tail: of(&self.tail)?,
            num_tokens: self.num_tokens.bind(py).as_any().get_item(at)?.extract()?,
            short: self.short.bind(py).as_any().get_item(at)?.is_truthy()?,
        }))
    }

    /// The scores of each trace in turn.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let traces = 0..self.__len__(py) as isize;
        let scores =
            traces.map(|trace| self.__getitem__(py, trace)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, scores)?.try_iter()
    }

    #[new]
    fn new(
        py: Python<'_>,
        mean: Py<PyArray1<f64>>,
        lowest_group: Py<PyArray1<f64>>,
        bottom_group: Py<PyArray1<f64>>,
        tail: Py<PyArray1<f64>>,
        num_tokens: Py<PyArray1<i64>>,
        short: Py<PyArray1<bool>>,
    ) -> PyResult<Self> {
        let columns = [&mean, &lowest_group, &bottom_group, &tail];
        let [mean_len, lowest, bottom, tail_len] = columns.map(|column| column.bind(py).len());
        let others = [lowest, bottom, tail_len, num_tokens.bind(py).len(), short.bind(py).len()];
        if others.iter().any(|&len| len != mean_len) {
            return Err(invalid_input(format!(
                "the columns have {mean_len}, then {others:?} entries: must be one a trace in each"
            )));
        }
        Ok(Self { mean, lowest_group, bottom_group, tail, num_tokens, short })
    }

    fn __getnewargs__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let columns = ["mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short"];
        let columns = columns.map(|name| slf.getattr(name)).into_iter();
        PyTuple::new(slf.py(), columns.collect::<PyResult<Vec<_>>>()?)
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
    fn of(py: Python<'_>, scores: &[trace::Scores]) -> Self {
        let column =
            |of: fn(&trace::Scores) -> f64| PyArray1::from_iter(py, scores.iter().map(of)).unbind();
        Self {
            mean: column(|s| s.mean),
            lowest_group: column(|s| s.lowest_group),
            bottom_group: column(|s| s.bottom_group),
            tail: column(|s| s.tail),
            num_tokens: PyArray1::from_iter(py, scores.iter().map(|s| s.num_tokens as i64))
                .unbind(),
            short: PyArray1::from_iter(py, scores.iter().map(|s| s.short)).unbind(),
        }
    }
}

/// The scores of one trace, in nats; all NaN when it has no tokens.
#[pyclass(frozen, module = "deepconf", eq)]
#[derive(Clone, Copy, PartialEq)]
pub struct TraceScores(pub trace::Scores);

#[pymethods]
impl TraceScores {
    #[new]
    fn new(
        mean: f64,
        lowest_group: f64,
        bottom_group: f64,
        tail: f64,
        num_tokens: u64,
        short: bool,
    ) -> Self {
        Self(trace::Scores { mean, lowest_group, bottom_group, tail, num_tokens, short })
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

/// Scores recorded traces: average, lowest group, bottom-q group and tail confidence.
///
/// Args:
///     traces: token confidences, nats, float32, float64 or float16, as one of
///         a list of 1-D arrays;
///         a tuple `(values, offsets)`: trace i is `values[offsets[i]:offsets[i + 1]]`;
///         a 2-D array `[traces, tokens]`;
///         any Arrow array of lists of float or double (pyarrow, polars, ...), where a null is a trace
///         without tokens. Contiguous arrays are not copied.
///     window: w, tokens in a group; 2048 by default.
///     tail: t, tokens in the tail; 2048 by default.
///     bottom: q, the fraction of the groups in the bottom-group score.
///     decimals: rounds confidences and lowest groups as the authors' code does (with 3).
///     threads: how many to use; None for all cores. The result does not depend on it.
///
/// Returns:
///     `Scores` with one entry a trace.
///
/// Raises:
///     InvalidInput: a value is not finite or beyond ±32,768 (trace and position are named), offsets
///         fall or leave the values, a setting is out of range.
///     InvalidType: a wrong dtype, or something that is no traces at all.
#[pyfunction]
#[pyo3(signature = (traces, *, window=None, tail=None, bottom=0.10, decimals=None, threads=None))]
pub fn score(
    traces: &Bound<'_, PyAny>,
    window: Option<&Bound<'_, PyAny>>,
    tail: Option<&Bound<'_, PyAny>>,
    bottom: f64,
    decimals: Option<&Bound<'_, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<Scores> {
    let py = traces.py();
    let default = Settings::default();
    let settings = Settings {
        window: window.map_or(Ok(default.window), |value| convert::whole(value, "window"))?,
        tail: tail.map_or(Ok(default.tail), |value| convert::whole(value, "tail"))?,
        bottom,
        decimals: decimals.map(|value| convert::whole(value, "decimals")).transpose()?,
    };
    let threads = threads.map(|value| convert::whole(value, "threads")).transpose()?;
    let scores = if let Ok(pair) = traces.cast::<PyTuple>() {
        let (values, offsets) =
            pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().map_err(|_| {
                let entries = pair.len();
                invalid_input(format!(
                    "traces is a tuple of {entries}: must be (values, offsets), or a list of arrays"
                ))
            })?;
        let offsets = convert::integers(&offsets, "offsets")?;
        let offsets = offsets.as_slice()?;
        with_floats!(Floats::one(&values, "values")?, values => ragged(py, values, offsets, &settings, threads))
    } else if let Some(chunks) = convert::arrow(traces, "traces")? {
        match convert::lists(&chunks, "traces")? {
            Lists::Single(slices) => slices_of(py, &slices, &settings, threads),
            Lists::Double(slices) => slices_of(py, &slices, &settings, threads),
        }
    } else if traces.hasattr("__array_interface__")?
        && traces.getattr("ndim")?.extract::<usize>()? == 2
    {
        table(py, traces, &settings, threads)
    } else {
        list(py, traces, &settings, threads)
    }?;
    Ok(Scores::of(py, &scores))
}

type Scored = PyResult<Vec<trace::Scores>>;

fn ragged<T: Sample>(
    py: Python<'_>,
    values: &[T],
    offsets: &[i64],
    settings: &Settings,
    threads: Option<usize>,
) -> Scored {
    pool::run(py, threads, || trace::score_many(values, offsets, settings))?.map_err(raise)
}

fn slices_of<T: Sample>(
    py: Python<'_>,
    slices: &[&[T]],
    settings: &Settings,
    threads: Option<usize>,
) -> Scored {
    pool::run(py, threads, || trace::score_slices(slices, settings))?.map_err(raise)
}

fn table(
    py: Python<'_>,
    traces: &Bound<'_, PyAny>,
    settings: &Settings,
    threads: Option<usize>,
) -> Scored {
    let array = convert::array(traces, "traces")?;
    let &[rows, columns] = array.shape() else { unreachable!("the caller saw two dimensions") };
    let ends: Vec<i64> = (0..=rows).map(|row| (row * columns) as i64).collect();
    with_floats!(Floats::flat(&array, "traces")?, values => ragged(py, values, &ends, settings, threads))
}

fn list(
    py: Python<'_>,
    traces: &Bound<'_, PyAny>,
    settings: &Settings,
    threads: Option<usize>,
) -> Scored {
    let mut arrays = Vec::new();
    let items = traces.try_iter().map_err(|_| {
        let kind = traces.get_type();
        let error = invalid_type(format!(
            "traces is a {kind}: must be a list of 1-D arrays, (values, offsets), a 2-D array or an \
             Arrow list array"
        ));
        told(traces, traces, error)
    })?;
    for (trace, item) in items.enumerate() {
        let item = item?;
        let array = convert::array(&item, "token confidences").map_err(|error| {
            let message = format!("trace {trace}, {}", error.value(py));
            told(traces, &item, PyErr::from_type(error.get_type(py), message))
        })?;
        if array.ndim() != 1 {
            let hint = if array.ndim() == 0 { " (for a single trace, pass [trace])" } else { "" };
            let error = invalid_input(format!(
                "trace {trace} has shape {:?}: must be a one-dimensional array of token \
                 confidences{hint}",
                array.shape()
            ));
            return Err(told(traces, &item, error));
        }
        let numbers = Floats::flat(&array, "it").map_err(|_| {
            invalid_type(format!(
                "trace {trace} has dtype {}: must be float32, float64 or float16, in nats",
                array.dtype()
            ))
        })?;
        arrays.push(numbers);
    }
    macro_rules! of_one_type {
        ($($float:ident),+) => {
            $(if arrays.iter().all(|array| matches!(array, Floats::$float(_))) {
                let slices = arrays.iter().filter_map(|array| match array {
                    Floats::$float(array) => Some(array.as_slice()),
                    _ => None,
                });
                let slices = slices.collect::<Result<Vec<_>, _>>()?;
                return slices_of(py, &slices, settings, threads);
            })+
        };
    }
    of_one_type!(Single, Half, Double);
    // Mixed: what is shorter widens exactly.
    let wide: Vec<Cow<'_, [f64]>> = arrays
        .iter()
        .map(|array| match array {
            Floats::Half(a) => Ok(a.as_slice()?.iter().map(|&c| c.wide()).collect()),
            Floats::Single(a) => Ok(a.as_slice()?.iter().map(|&c| c.wide()).collect()),
            Floats::Double(a) => Ok(Cow::Borrowed(a.as_slice()?)),
        })
        .collect::<PyResult<_>>()?;
    let slices: Vec<&[f64]> = wide.iter().map(AsRef::as_ref).collect();
    slices_of(py, &slices, settings, threads)
}

/// An error that says what to call instead, where these are no confidences but outputs, or a file.
fn told(traces: &Bound<'_, PyAny>, item: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let hint = traces.py().import("deepconf._hints");
    let hint = hint.and_then(|hints| hints.call_method1("instead_of_score", (traces, item)));
    match hint.and_then(|hint| hint.extract::<Option<String>>()) {
        Ok(Some(hint)) => invalid_type(hint),
        _ => error,
    }
}
