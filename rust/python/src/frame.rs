//! What Python makes of results: data frames, and how they show themselves.

use pyo3::prelude::*;

/// What a function of `deepconf._frames` makes of a result.
pub fn made<'py>(result: &Bound<'py, PyAny>, function: &str) -> PyResult<Bound<'py, PyAny>> {
    result.py().import("deepconf._frames")?.call_method1(function, (result,))
}
