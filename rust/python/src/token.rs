//! Token confidence and entropy from tables of log-probabilities.

use deepconf_core::token::{Sample, Table};
use numpy::{IntoPyArray, PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::convert::{self, Floats};
use crate::error::{invalid_input, raise};
use crate::pool;

/// Token confidence (equation 2): `−(1/k)·Σ log p` over the k most likely tokens. Higher is surer.
///
/// Args:
///     logprobs: `[n, k]` float32, float64 or float16; raw log-probabilities in nats. Exactly the k most
///         likely tokens of each position: leave out the sampled token where it is not among them.
///     logprob_floor: raises smaller entries to this, -inf included (masked tokens); None refuses -inf.
///     threads: how many to use; None for all cores.
///
/// Returns:
///     float32 `[n]`, nats.
///
/// Raises:
///     InvalidInput: not a table, or an entry is not finite (its row and column are named).
///     InvalidType: not floating-point numbers.
#[pyfunction]
#[pyo3(signature = (logprobs, *, logprob_floor=None, threads=None))]
pub fn token_confidence<'py>(
    logprobs: &Bound<'py, PyAny>,
    logprob_floor: Option<f64>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    map(logprobs, threads, Of::Confidence, logprob_floor)
}

/// Token entropy (equation 1): `−Σ p·ln p`, renormalised over the entries given.
///
/// Over a whole distribution it is the entropy. Over the top k it is a proxy: how spread the likeliest
/// tokens are among themselves.
///
/// Args:
///     logprobs: `[n, k]` float32, float64 or float16; log-probabilities in nats.
///     logprob_floor: raises smaller entries to this, -inf included; None refuses -inf.
///     threads: how many to use; None for all cores.
///
/// Returns:
///     float32 `[n]`, nats.
///
/// Raises:
///     InvalidInput: not a table, or an entry is not finite (its row and column are named).
///     InvalidType: not floating-point numbers.
#[pyfunction]
#[pyo3(signature = (logprobs, *, logprob_floor=None, threads=None))]
pub fn token_entropy<'py>(
    logprobs: &Bound<'py, PyAny>,
    logprob_floor: Option<f64>,
    threads: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    map(logprobs, threads, Of::Entropy, logprob_floor)
}

#[derive(Clone, Copy)]
enum Of {
    Confidence,
    Entropy,
}

fn map<'py>(
    logprobs: &Bound<'py, PyAny>,
    threads: Option<&Bound<'py, PyAny>>,
    of: Of,
    floor: Option<f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let py = logprobs.py();
    let threads = threads.map(|value| convert::whole(value, "threads")).transpose()?;
    let array = convert::array(logprobs, "logprobs")?;
    let &[_, k] = array.shape() else {
        return Err(invalid_input(format!(
            "logprobs has shape {:?} and dtype {}: must be [n_tokens, k], every row with as many entries",
            array.shape(),
            array.dtype()
        )));
    };
    let scores = match Floats::flat(&array, "logprobs")? {
        Floats::Single(values) => rows(py, values.as_slice()?, k, threads, of, floor),
        Floats::Double(values) => rows(py, values.as_slice()?, k, threads, of, floor),
    }?;
    Ok(scores.into_pyarray(py))
}

fn rows<T: Sample>(
    py: Python<'_>,
    values: &[T],
    k: usize,
    threads: Option<usize>,
    of: Of,
    floor: Option<f64>,
) -> PyResult<Vec<f32>> {
    let table = Table::new(values, k).map_err(raise)?;
    let work = || match of {
        Of::Confidence => table.confidence(floor),
        Of::Entropy => table.entropy(floor),
    };
    pool::run(py, threads, work)?.map_err(raise)
}
