//! Log-probabilities as vLLM returns them, straight to token confidences.

use deepconf_core::Error;
use deepconf_core::token::{check_floor, confidence};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::{invalid_input, invalid_type, raise};

fn checked<'py>(
    py: Python<'py>,
    rows: impl Iterator<Item = PyResult<f32>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let confidences = rows.collect::<PyResult<Vec<f32>>>()?;
    if let Some(row) = confidences.iter().position(|c| !c.is_finite()) {
        let value = confidences[row];
        return Err(invalid_input(format!(
            "logprobs at position {row} are not finite (their mean is {}): where a server reports \
             masked tokens as -inf, set logprob_floor",
            -value
        )));
    }
    Ok(confidences.into_pyarray(py))
}

/// Token confidences of vLLM's flat log-probabilities.
///
/// Args:
///     logprobs: n rows of `stride` floats, nats: the sampled token, then the k most likely.
///     stride: entries a row, at least k + 1.
///     k: how many of the most likely tokens count.
///     sampled_ranks: None for the mean over the top k. Else the sampled tokens' ranks, counted from
///         1: where one is beyond k, its log-probability counts too.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
#[pyfunction]
#[pyo3(signature = (logprobs, stride, k, sampled_ranks=None, floor=None))]
pub fn flat_confidences<'py>(
    logprobs: &Bound<'py, PyList>,
    stride: usize,
    k: usize,
    sampled_ranks: Option<Vec<Option<u32>>>,
    floor: Option<f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    check_floor(floor).map_err(raise)?;
    if k == 0 || stride <= k || !logprobs.len().is_multiple_of(stride) {
        let len = logprobs.len();
        return Err(invalid_input(format!(
            "{len} logprobs in rows of stride={stride} with k={k}: the rows must be whole, and hold \
             the sampled token and k others"
        )));
    }
    let n = logprobs.len() / stride;
    if let Some(ranks) = sampled_ranks.as_ref().filter(|ranks| ranks.len() != n) {
        let (left_len, right_len) = (ranks.len(), n);
        let (left, right) = ("sampled_ranks", "logprobs (rows)");
        return Err(raise(Error::Length { left, left_len, right, right_len }));
    }
    let values = logprobs.iter().map(|item| item.extract::<f64>()).collect::<PyResult<Vec<_>>>()?;
    let mut with_sampled = vec![0.0; k + 1];
    let rows = values.chunks_exact(stride).enumerate().map(|(i, row)| {
        let rank = sampled_ranks.as_ref().and_then(|ranks| ranks[i]);
        if rank.is_none_or(|rank| rank as usize <= k) {
            return Ok(confidence(&row[1..=k], floor));
        }
        // The least likely last, as in the sorted dict form.
        with_sampled[..k].copy_from_slice(&row[1..=k]);
        with_sampled[k] = row[0];
        Ok(confidence(&with_sampled, floor))
    });
    checked(logprobs.py(), rows)
}

/// Token confidences of vLLM's dict log-probabilities.
///
/// Args:
///     rows: n dicts from token id to an object with a `logprob`, nats.
///     k: how many of the most likely tokens count; None for the shortest row's length.
///     returned: whether to take every entry instead.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
#[pyfunction]
#[pyo3(signature = (rows, k=None, returned=false, floor=None))]
pub fn dict_confidences<'py>(
    rows: &Bound<'py, PyList>,
    k: Option<usize>,
    returned: bool,
    floor: Option<f64>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    check_floor(floor).map_err(raise)?;
    let py = rows.py();
    let logprob = pyo3::intern!(py, "logprob");
    let mut table: Vec<f64> = Vec::new();
    let mut ends = vec![0];
    for (position, row) in rows.iter().enumerate() {
        let wrong = |what: String| {
            invalid_type(format!(
                "logprobs at position {position}: {what}; must be a dict from token id to Logprob"
            ))
        };
        let row = row.cast::<PyDict>().map_err(|_| wrong(row.get_type().to_string()))?;
        for entry in row.values() {
            let value = entry.getattr(logprob).and_then(|value| value.extract::<f64>());
            table.push(value.map_err(|_| wrong(format!("an entry is a {}", entry.get_type())))?);
        }
        ends.push(table.len());
    }
    let shortest = ends.windows(2).map(|end| end[1] - end[0]).min().unwrap_or(1);
    let k = k.unwrap_or(shortest);
    if k == 0 || shortest < k {
        let position = ends.windows(2).position(|end| end[1] - end[0] == shortest);
        return Err(invalid_input(format!(
            "logprobs at position {} has {shortest} entries: at least k={} are needed",
            position.unwrap_or_default(),
            k.max(1)
        )));
    }
    let confidences = ends.windows(2).map(|end| {
        let row = &mut table[end[0]..end[1]];
        // Most likely first; NaN sorts to the front and shows up in the mean.
        row.sort_by(|a, b| b.total_cmp(a));
        Ok(confidence(if returned { row } else { &row[..k] }, floor))
    });
    let confidences: Vec<PyResult<f32>> = confidences.collect();
    checked(py, confidences.into_iter())
}
