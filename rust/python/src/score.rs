//! Scores of recorded traces.

use std::borrow::Cow;

use deepconf_core::trace::{self, Scorer, Settings};
use deepconf_core::{Error, Sample};
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::convert::{self, Floats, Given, Lists, kind, number, whole, with_floats};
use crate::error::{invalid_input, invalid_type, raise};
use crate::pool::Threads;
use crate::scores::Scores;

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
///     threads: how many to use, up to as many as there are cores; None for all. The result does not
///         depend on it, and short work is done by the calling thread whatever it says.
///
/// Returns:
///     `Scores` with one entry a trace.
///
/// Raises:
///     InvalidInput: a value is not finite or beyond ±32,768 (trace and position are named), offsets
///         fall or leave the values, a setting is out of range.
///     InvalidType: a wrong dtype, something that is no traces at all, or another argument of a wrong
///         type.
///
/// Arrays are read where they are, without the interpreter lock. Where another thread writes to one
/// meanwhile, the scores are of whatever mixture was read, or InvalidInput is raised.
#[pyfunction]
#[pyo3(
    signature = (
        traces, *, window=None, tail=None, bottom=Given::default(), decimals=None, threads=None,
    ),
    text_signature = "(traces, *, window=None, tail=None, bottom=0.10, decimals=None, threads=None)",
)]
pub fn score<'py>(
    traces: &Bound<'py, PyAny>,
    window: Option<&Bound<'py, PyAny>>,
    tail: Option<&Bound<'py, PyAny>>,
    bottom: Given<'py>,
    decimals: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Scores> {
    let default = Settings::default();
    let settings = default
        .window(window.map_or(Ok(default.window), |value| whole(value, "window"))?)
        .tail(tail.map_or(Ok(default.tail), |value| whole(value, "tail"))?)
        .bottom(bottom.or(0.10, "bottom", number)?)
        .decimals(decimals.map(|value| whole(value, "decimals")).transpose()?);
    let scorer = Scorer::new(settings).map_err(raise)?;
    let call = Call { py: traces.py(), scorer, threads: Threads::read(threads)? };
    let scores = if traces.is_instance_of::<PyList>() {
        call.list(traces)
    } else if let Ok(pair) = traces.cast::<PyTuple>() {
        call.pair(pair)
    } else if let Some(chunks) = convert::arrow(traces, "traces")? {
        match convert::lists(&chunks, "traces").map_err(|error| told(traces, traces, error))? {
            Lists::Single(slices) => call.slices(&slices),
            Lists::Double(slices) => call.slices(&slices),
        }
    } else if traces.hasattr("__array_interface__")?
        && traces.getattr("ndim")?.extract::<usize>()? == 2
    {
        call.table(traces)
    } else {
        call.list(traces)
    }?;
    Ok(Scores::of(call.py, &scores))
}

/// Offsets as the core has them.
fn ends(offsets: &[i64]) -> Result<Vec<usize>, Error> {
    let end = |(position, &value): (usize, &i64)| {
        let expected = || match position.checked_sub(1).map(|before| offsets[before]) {
            None => "the first offset must be at least 0".into(),
            Some(before) => format!("offsets must not fall, and {before} stands before it"),
        };
        let blame = |_| Error::Offsets { position, value, expected: expected() };
        usize::try_from(value).map_err(blame)
    };
    offsets.iter().enumerate().map(end).collect()
}

/// How a call scores.
struct Call<'py> {
    py: Python<'py>,
    scorer: Scorer,
    threads: Threads,
}

type Scored = PyResult<Vec<trace::Scores>>;

impl Call<'_> {
    fn slices<T: Sample>(&self, slices: &[&[T]]) -> Scored {
        let values = slices.len() + slices.iter().map(|slice| slice.len()).sum::<usize>();
        let scorer = &self.scorer;
        self.threads.run(self.py, values, || scorer.score_slices(slices))
    }

    fn cut<T: Sample>(&self, values: &[T], offsets: &[usize]) -> Scored {
        let scorer = &self.scorer;
        let work = || scorer.score_many(values, offsets);
        self.threads.run(self.py, values.len() + offsets.len(), work)
    }

    /// `(values, offsets)`.
    fn pair(&self, pair: &Bound<'_, PyTuple>) -> Scored {
        let Ok((values, offsets)) = pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
            let entries = pair.len();
            return Err(invalid_input(format!(
                "traces is a tuple of {entries}: must be (values, offsets), or a list of arrays"
            )));
        };
        let offsets = convert::integers(&offsets, "offsets")?;
        let offsets = ends(offsets.as_slice()?).map_err(raise)?;
        with_floats!(Floats::one(&values, "values")?, values => self.cut(values, &offsets))
    }

    /// A row a trace.
    fn table(&self, traces: &Bound<'_, PyAny>) -> Scored {
        let array = convert::array(traces, "traces")?;
        let &[rows, columns] = array.shape() else {
            return Err(invalid_input(format!("traces has shape {:?}", array.shape())));
        };
        let ends: Vec<usize> = (0..=rows).map(|row| row * columns).collect();
        with_floats!(Floats::flat(&array, "traces")?, values => self.cut(values, &ends))
    }

    /// An array a trace.
    fn list(&self, traces: &Bound<'_, PyAny>) -> Scored {
        let py = self.py;
        let mut arrays = Vec::new();
        let items = traces.try_iter().map_err(|_| {
            let kind = kind(traces);
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
                let hint =
                    if array.ndim() == 0 { " (for a single trace, pass [trace])" } else { "" };
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
                    return self.slices(&slices);
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
        self.slices(&slices)
    }
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
