//! Traces of Arrow arrays, each a slice.

use std::fmt::Display;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3_arrow::input::AnyArray;

use crate::error::{invalid_input, invalid_type};

/// The chunks of an Arrow array, if `value` speaks the PyCapsule interface.
///
/// What a producer says of nulls, offsets and UTF-8 is checked, O(bytes); what string views say, where they
/// are read. How long its buffers are the interface does not say: a producer that lies about that is
/// trusted with memory.
pub fn arrow(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Option<Vec<ArrayRef>>> {
    // To look for what lists and arrays do not have takes as long as to score a short trace.
    if value.is_instance_of::<PyList>()
        || value.cast::<PyUntypedArray>().is_ok()
        || !(value.hasattr("__arrow_c_array__")? || value.hasattr("__arrow_c_stream__")?)
    {
        return Ok(None);
    }
    let wrong =
        |error: &dyn Display| invalid_input(format!("{name}: not an Arrow array ({error})"));
    let any = value.extract::<AnyArray>().map_err(|error| wrong(&error))?;
    let nulls = any.field().is_ok_and(|field| *field.data_type() == DataType::Null);
    let (chunks, _) = match any.into_chunked_array() {
        Ok(chunked) => chunked.into_inner(),
        // polars gives nulls of no type a buffer, and is read as any other sequence then.
        Err(_) if nulls => return Ok(None),
        Err(error) => return Err(wrong(&PyErr::from(error))),
    };
    // Of an empty slice nothing is read, and its offsets may stand anywhere.
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        // The import believes what it is told.
        let data = chunk.to_data();
        let checked = match chunk.data_type() {
            DataType::Utf8View => data.validate().and_then(|()| data.validate_nulls()),
            _ => data.validate_full(),
        };
        checked.map_err(|error| wrong(&error))?;
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
