//! Python values as slices, with errors that say which argument is wrong and how.

use std::fmt::Display;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use half::f16;
use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyUntypedArray,
    PyUntypedArrayMethods, dtype,
};
use pyo3::prelude::*;
use pyo3::types::PyInt;
use pyo3_arrow::input::AnyArray;

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
    let array = value.py().import("numpy")?.call_method1("asarray", (value,));
    let array = array
        .map_err(|error| invalid_input(format!("{name}: NumPy makes no array of it ({error})")))?;
    Ok(array.cast_into()?)
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
    let numpy = py.import("numpy")?;
    // One dimension even for tables: rows one after the other.
    let flat = numpy.call_method1("require", (array, dtype::<T>(py), ("C", "A")))?;
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
        let array = array(value, name)?;
        if array.ndim() != 1 {
            let shape = array.shape();
            return Err(invalid_input(format!(
                "{name} has shape {shape:?}: must be one-dimensional"
            )));
        }
        Self::flat(&array, name)
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
    let array = array(value, name)?;
    if array.ndim() != 1 {
        let shape = array.shape();
        return Err(invalid_input(format!("{name} has shape {shape:?}: must be one-dimensional")));
    }
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

/// A whole number that fits `T`.
pub fn whole<T: TryFrom<i128>>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<T> {
    let py = value.py();
    let index = py.import("operator")?.call_method1("index", (value,)).map_err(|_| {
        let kind = value.get_type();
        invalid_type(format!("{name}={value} is a {kind}: must be a whole number"))
    })?;
    let fits = index.cast::<PyInt>()?.extract::<i128>().ok().and_then(|i| T::try_from(i).ok());
    fits.ok_or_else(|| invalid_input(format!("{name}={value}: out of range, or negative")))
}

/// A number.
pub fn number(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    value.extract().map_err(|_| {
        invalid_type(format!("{name}={value} is a {}: must be a number", value.get_type()))
    })
}

/// `Some` of what `read` makes of it, unless it is Python's None.
pub fn optional<'py, T>(
    value: &Bound<'py, PyAny>,
    name: &str,
    read: impl FnOnce(&Bound<'py, PyAny>, &str) -> PyResult<T>,
) -> PyResult<Option<T>> {
    if value.is_none() { Ok(None) } else { read(value, name).map(Some) }
}

/// The chunks of an Arrow array, if `value` speaks the PyCapsule interface.
pub fn arrow(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Option<Vec<ArrayRef>>> {
    if !(value.hasattr("__arrow_c_array__")? || value.hasattr("__arrow_c_stream__")?) {
        return Ok(None);
    }
    let wrong =
        |error: &dyn Display| invalid_input(format!("{name}: not an Arrow array ({error})"));
    let chunked = value.extract::<AnyArray>().and_then(|any| Ok(any.into_chunked_array()?));
    let (chunks, _) = chunked.map_err(|error| wrong(&error))?.into_inner();
    // Of an empty slice nothing is read, and its offsets may stand anywhere.
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        // The import believes what it is told: here offsets, views and UTF-8 are looked at.
        chunk.to_data().validate_full().map_err(|error| wrong(&error))?;
    }
    Ok(Some(chunks))
}

/// The traces of an Arrow list array: a slice each, empty for a null.
pub enum Lists<'a> {
    /// float32
    Single(Vec<&'a [f32]>),
    /// float64
    Double(Vec<&'a [f64]>),
}

/// Cuts list arrays into traces.
pub fn lists<'a>(chunks: &'a [ArrayRef], name: &str) -> PyResult<Lists<'a>> {
    let double = |chunk: &ArrayRef| match chunk.data_type() {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            match item.data_type() {
                DataType::Float32 => Some(false),
                DataType::Float64 => Some(true),
                _ => None,
            }
        }
        _ => None,
    };
    let wrong = |chunk: &ArrayRef| {
        let kind = chunk.data_type();
        invalid_type(format!(
            "{name} is an Arrow array of {kind}: must be a list of float or double"
        ))
    };
    let Some(first) = chunks.first() else { return Ok(Lists::Double(Vec::new())) };
    if double(first).ok_or_else(|| wrong(first))? {
        let mut slices = Vec::new();
        for chunk in chunks {
            cut(chunk, name, |values| values.as_primitive::<Float64Type>().values(), &mut slices)?;
        }
        Ok(Lists::Double(slices))
    } else {
        let mut slices = Vec::new();
        for chunk in chunks {
            cut(chunk, name, |values| values.as_primitive::<Float32Type>().values(), &mut slices)?;
        }
        Ok(Lists::Single(slices))
    }
}

fn cut<'a, T>(
    chunk: &'a ArrayRef,
    name: &str,
    values_of: impl Fn(&'a ArrayRef) -> &'a [T],
    slices: &mut Vec<&'a [T]>,
) -> PyResult<()> {
    let (values, ends): (&ArrayRef, Vec<(usize, usize)>) = match chunk.data_type() {
        DataType::List(_) => {
            let list = chunk.as_list::<i32>();
            let ends = list.offsets().windows(2).map(|e| (e[0] as usize, e[1] as usize)).collect();
            (list.values(), ends)
        }
        DataType::LargeList(_) => {
            let list = chunk.as_list::<i64>();
            let ends = list.offsets().windows(2).map(|e| (e[0] as usize, e[1] as usize)).collect();
            (list.values(), ends)
        }
        _ => {
            let list = chunk.as_fixed_size_list();
            let size = list.value_length() as usize;
            (list.values(), (0..list.len()).map(|i| (i * size, (i + 1) * size)).collect())
        }
    };
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
    let numbers = values_of(values);
    for (row, &(start, end)) in ends.iter().enumerate() {
        if chunk.is_null(row) {
            slices.push(&[]);
            continue;
        }
        if let Some(nulls) = nulls
            && let Some(position) = (start..end).position(|i| nulls.is_null(i))
        {
            return Err(invalid_input(format!(
                "{name} holds a null at trace {}, position {position}: every value must be a number",
                slices.len()
            )));
        }
        slices.push(&numbers[start..end]);
    }
    Ok(())
}
