//! What Python makes of results: data frames, and how they show themselves.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// What a function of `deepconf._frames` makes of a result.
pub fn made<'py>(result: &Bound<'py, PyAny>, function: &str) -> PyResult<Bound<'py, PyAny>> {
    result.py().import("deepconf._frames")?.call_method1(function, (result,))
}

/// The attributes of a result by name, in the order in which its class takes them.
pub fn parts<'py, const N: usize>(
    result: &Bound<'py, PyAny>,
    names: [&str; N],
) -> PyResult<Bound<'py, PyTuple>> {
    let parts = names.map(|name| result.getattr(name)).into_iter();
    PyTuple::new(result.py(), parts.collect::<PyResult<Vec<_>>>()?)
}
