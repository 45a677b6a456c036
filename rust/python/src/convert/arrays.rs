//! NumPy arrays, and what NumPy makes one of.

use half::f16;
use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyUntypedArray,
    PyUntypedArrayMethods, dtype,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::kind;
use crate::error::{invalid_input, invalid_type};

/// A contiguous array of floats.
pub enum Floats<'py> {
    /// float16
    Half(PyReadonlyArray1<'py, f16>),
    /// float32
    Single(PyReadonlyArray1<'py, f32>),
    /// float64
    Double(PyReadonlyArray1<'py, f64>),
}

/// `value` as a NumPy array, which shares its memory where possible.
pub fn array<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = value.cast::<PyUntypedArray>() {
        // What a masked array hides is in its memory all the same.
        if !value.get_type().is(value.py().get_type::<PyUntypedArray>()) && value.hasattr("mask")? {
            let hint = "use .compressed() or .filled(...)";
            return Err(invalid_type(format!("{name} is a masked array, which has gaps: {hint}")));
        }
        return Ok(array.clone());
    }
    let array = as_array(value, name)?;
    // A list of whole numbers is an array of integers to NumPy, though nobody chose that type.
    if array.dtype().kind() == b'i' && !value.hasattr("dtype")? {
        return Ok(array.call_method1("astype", ("float64",))?.cast_into()?);
    }
    Ok(array)
}

/// What NumPy makes of `value`.
fn as_array<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let array = ASARRAY.import(value.py(), "numpy", "asarray")?.call1((value,));
    let array = array
        .map_err(|error| invalid_input(format!("{name}: NumPy makes no array of it ({error})")))?;
    Ok(array.cast_into()?)
}

/// [`array`], of one dimension.
fn column<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = array(value, name)?;
    if array.ndim() == 1 {
        return Ok(array);
    }
    let shape = array.shape();
    Err(invalid_input(format!("{name} has shape {shape:?}: must be one-dimensional")))
}

/// `value` as a contiguous, aligned array of type `T` and one dimension; copied only if it is not one
/// yet.
pub fn contiguous<'py, T: Element>(
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<PyReadonlyArray1<'py, T>> {
    let py = array.py();
    if let Ok(column) = array.cast::<PyArray1<T>>()
        && column.is_contiguous()
        && column.is_aligned()
    {
        return Ok(column.try_readonly()?);
    }
    static REQUIRE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let require = REQUIRE.import(py, "numpy", "require")?;
    // One dimension even for tables: rows one after the other.
    let flat = require.call1((array, dtype::<T>(py), ("C", "A")))?;
    flat.call_method1("reshape", (-1,))?.extract()
}

impl<'py> Floats<'py> {
    /// A float array of any shape, flattened row-major.
    pub fn flat(array: &Bound<'py, PyUntypedArray>, name: &str) -> PyResult<Self> {
        match (array.dtype().kind(), array.dtype().itemsize()) {
            (b'f', 2) => Ok(Self::Half(contiguous(array)?)),
            (b'f', 4) => Ok(Self::Single(contiguous(array)?)),
            (b'f', 8) => Ok(Self::Double(contiguous(array)?)),
            // An empty list is float64 to NumPy; an empty array of anything holds no wrong value.
            _ if array.len() == 0 => Ok(Self::Double(contiguous(array)?)),
            _ => Err(invalid_type(format!(
                "{name} has dtype {}: must be float32, float64 or float16, in nats",
                array.dtype()
            ))),
        }
    }

    /// A one-dimensional float array.
    pub fn one(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        Self::flat(&column(value, name)?, name)
    }

    /// As float32; rounded to nearest if they are not.
    pub fn single(self) -> PyResult<PyReadonlyArray1<'py, f32>> {
        match self {
            Self::Single(values) => Ok(values),
            Self::Half(values) => contiguous(values.as_untyped()),
            Self::Double(values) => contiguous(values.as_untyped()),
        }
    }
}

/// The same work on a slice of whatever float `$floats` holds.
macro_rules! with_floats {
    ($floats:expr, $values:ident => $work:expr) => {
        match $floats {
            $crate::convert::Floats::Half(array) => {
                let $values = array.as_slice()?;
                $work
            }
            $crate::convert::Floats::Single(array) => {
                let $values = array.as_slice()?;
                $work
            }
            $crate::convert::Floats::Double(array) => {
                let $values = array.as_slice()?;
                $work
            }
        }
    };
}
pub(crate) use with_floats;

/// A column of float64; anything numeric is converted.
pub fn doubles<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<PyReadonlyArray1<'py, f64>> {
    let array = column(value, name)?;
    if array.len() > 0 && !matches!(array.dtype().kind(), b'f' | b'i' | b'u' | b'b') {
        let kind = array.dtype();
        return Err(invalid_type(format!("{name} has dtype {kind}: must be numbers")));
    }
    contiguous(&array)
}

/// A column of int64; floats are not integers here.
pub fn integers<'py>(
    value: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<PyReadonlyArray1<'py, i64>> {
    let array: Bound<'py, PyUntypedArray> = match value.cast::<PyUntypedArray>() {
        Ok(array) => array.clone(),
        Err(_) => as_array(value, name)?,
    };
    let kind = array.dtype().kind();
    if array.ndim() != 1 || !(matches!(kind, b'i' | b'u') || array.len() == 0) {
        return Err(invalid_type(format!(
            "{name} has dtype {} and shape {:?}: must be one-dimensional integers",
            array.dtype(),
            array.shape()
        )));
    }
    contiguous(&array)
}

/// An array of one dimension that has this very type already.
pub fn exactly<T: Element>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Py<PyArray1<T>>> {
    let array = value.cast::<PyArray1<T>>().map_err(|_| {
        let (kind, wanted) = (kind(value), dtype::<T>(value.py()));
        invalid_type(format!("{name} is a {kind}: must be an array of {wanted} and one dimension"))
    })?;
    Ok(array.clone().unbind())
}

/// Checks that columns are of one length, one entry a `thing`.
pub fn check_lengths(columns: &[&Bound<'_, PyAny>], thing: &str) -> PyResult<()> {
    let lengths = columns.iter().map(|column| column.len()).collect::<PyResult<Vec<_>>>()?;
    if lengths.iter().all(|&len| len == lengths[0]) {
        return Ok(());
    }
    Err(invalid_input(format!(
        "the columns have {lengths:?} entries: must be one a {thing} in each"
    )))
}
