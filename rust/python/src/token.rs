//! Token confidence and entropy from tables of log-probabilities.

use deepconf_core::Sample;
use deepconf_core::token::Table;
use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::convert::{self, Floats, Given, number, whole, with_floats};
use crate::error::{invalid_input, raise};
use crate::pool::Threads;

/// Token confidence (equation 2): `−(1/k)·Σ log p` over the k most likely tokens. Higher is surer.
///
/// Args:
///     logprobs: `[n, k]` float32, float64 or float16; raw log-probabilities in nats. Exactly the k most
///         likely tokens of each position: leave out the sampled token where it is not among them.
///     logprob_floor: raises smaller entries to this, -inf included (masked tokens); None refuses -inf.
///     threads: how many to use, up to as many as there are cores; None for all.
///
/// Returns:
///     float32 `[n]`, nats.
///
/// Raises:
///     InvalidInput: not a table, k < 2, or an entry is not finite (its row and column are named).
///     InvalidType: not floating-point numbers, or another argument of a wrong type.
#[pyfunction]
#[pyo3(signature = (logprobs, *, logprob_floor=None, threads=None))]
pub fn token_confidence<'py>(
    logprobs: &Bound<'py, PyAny>,
    logprob_floor: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    map(logprobs, "logprobs", threads, Of::Confidence, logprob_floor)
}

/// Token entropy (equation 1): `−Σ p·ln p`, renormalised over the entries given.
///
/// Over a whole distribution it is the entropy. Over the top k it is a proxy: how spread the likeliest
/// tokens are among themselves.
///
/// Args:
///     logprobs: `[n, k]` float32, float64 or float16; log-probabilities in nats.
///     logprob_floor: raises smaller entries to this, -inf included; None refuses -inf.
///     threads: how many to use, up to as many as there are cores; None for all.
///
/// Returns:
///     float32 `[n]`, nats.
///
/// Raises:
///     InvalidInput: not a table, or an entry is not finite (its row and column are named).
///     InvalidType: not floating-point numbers, or another argument of a wrong type.
#[pyfunction]
#[pyo3(signature = (logprobs, *, logprob_floor=None, threads=None))]
pub fn token_entropy<'py>(
    logprobs: &Bound<'py, PyAny>,
    logprob_floor: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    map(logprobs, "logprobs", threads, Of::Entropy, logprob_floor)
}

/// Token confidence (equation 2) from whole rows of logits, without storing their log-softmax.
///
/// Args:
///     logits: `[n, vocabulary]` float32, float64 or float16, before temperature and penalties. -inf is a
///         token that cannot come.
///     k: how many of the most likely tokens count, at least 2.
///     logprob_floor: raises smaller log-probabilities to this; needed where fewer than k tokens are
///         possible.
///     threads: how many to use, up to as many as there are cores; None for all.
///
/// Returns:
///     float32 `[n]`, nats; the sum of exponentials is accurate to about 1e-7.
///
/// Raises:
///     InvalidInput: not a table, k is out of range, or an entry is NaN or +inf (its row and column are
///         named).
///     InvalidType: not floating-point numbers, or another argument of a wrong type.
#[pyfunction]
#[pyo3(signature = (logits, k=Given::default(), *, logprob_floor=None, threads=None), text_signature = "(logits, k=20, *, logprob_floor=None, threads=None)")]
pub fn logits_confidence<'py>(
    logits: &Bound<'py, PyAny>,
    k: Given<'py>,
    logprob_floor: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    map(logits, "logits", threads, Of::Logits(k.or(20, "k", whole)?), logprob_floor)
}

#[derive(Clone, Copy)]
enum Of {
    Confidence,
    Entropy,
    /// From logits, over so many of the most likely.
    Logits(usize),
}

fn map<'py>(
    table: &Bound<'py, PyAny>,
    name: &str,
    threads: Option<&Bound<'_, PyAny>>,
    of: Of,
    floor: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let py = table.py();
    let threads = Threads::read(threads)?;
    let floor = floor.map(|value| number(value, "logprob_floor")).transpose()?;
    let array = convert::array(table, name)?;
    let &[_, k] = array.shape() else {
        return Err(invalid_input(format!(
            "{name} has shape {:?} and dtype {}: must be [n_tokens, k], every row with as many entries",
            array.shape(),
            array.dtype()
        )));
    };
    let floats = Floats::flat(&array, name)?;
    with_floats!(floats, values => rows(py, values, k, threads, of, floor))
}

/// Into memory of NumPy's, which comes in huge pages where there is much of it.
fn rows<'py, T: Sample>(
    py: Python<'py>,
    values: &[T],
    k: usize,
    threads: Threads,
    of: Of,
    floor: Option<f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let table = Table::new(values, k).map_err(raise)?;
    let array = PyArray1::zeros(py, values.len() / k, false);
    let mut writable = array.readwrite();
    let scores = writable.as_slice_mut()?;
    threads.run(py, values.len(), || match of {
        Of::Confidence => table.confidence_into(floor, scores),
        Of::Entropy => table.entropy_into(floor, scores),
        Of::Logits(top) => table.logits_confidence_into(top, floor, scores),
    })?;
    drop(writable);
    Ok(array)
}
