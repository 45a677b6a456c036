//! Columns of questions and answers, read where they are.
//!
//! Strings and integers in an Arrow array, and integers in a NumPy array, are read in place. A
//! sequence of Python strings is copied once into an Arrow array, so that the work after needs no
//! interpreter. Anything else that is hashable is numbered by a dictionary, one look-up a row.

mod chunks;
mod objects;
mod texts;
mod values;

use arrow_array::builder::{LargeBinaryBuilder, LargeStringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, Int64Array, LargeStringArray, StringArray};
use arrow_schema::DataType;
use deepconf_core::vote::{Integers, Keys};
use numpy::{PyArrayDescrMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::pyclass::CompareOp;
use pyo3::types::{PyInt, PyList, PyString};

use self::chunks::{Chunks, integers};
use self::objects::Objects;
use self::texts::Texts;
use self::values::Held;
pub use self::values::Values;
use super::{arrow, contiguous, kind};
use crate::error::{invalid_input, invalid_type};
use crate::pool::Threads;

/// A column of questions or answers: any sequence of hashable values or None, or an Arrow array.
pub enum Column<'py> {
    /// Strings.
    Texts(Chunks<Texts>),
    /// Integers of an Arrow array; the flag says that they are unsigned.
    Integers(Chunks<Int64Array>, bool),
    /// Integers of a NumPy array, and the array that was given.
    Numbers(PyReadonlyArray1<'py, i64>, Bound<'py, PyAny>),
    /// Anything else.
    Objects(Objects<'py>),
}

impl<'py> Column<'py> {
    /// Reads a column. None, and NaN as pandas has it for a missing string, mean no value.
    pub fn read(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Self> {
        if let Some(column) = arrow(value, name)?.and_then(Self::from_arrow) {
            return Ok(column);
        }
        if let Ok(array) = value.cast::<PyUntypedArray>()
            && array.ndim() == 1
            && matches!(array.dtype().kind(), b'i' | b'u')
        {
            return Ok(Self::Numbers(contiguous(array)?, value.clone()));
        }
        let wrong = || {
            let kind = kind(value);
            invalid_type(format!("{name} is a {kind}: must be a sequence, with None for no answer"))
        };
        if value.hasattr("columns").unwrap_or(false) {
            let hint = "vote takes one of its columns, vote_many those of questions and answers; \
                        vote_traces takes a table of traces";
            return Err(invalid_type(format!("{name} is a {}, a table: {hint}", kind(value))));
        }
        if value.is_instance_of::<PyString>() {
            return Err(wrong());
        }
        // What else Arrow has comes as scalars of its own, of which a null is an object too.
        let python = match value.getattr_opt("to_pylist")? {
            Some(to_pylist) => &to_pylist.call0()?,
            None => value,
        };
        // A hint, and not to be believed: a length may be anything.
        let room = value.len().unwrap_or_default().min(1 << 16);
        let mut texts = LargeStringBuilder::with_capacity(room, 8 * room);
        let mut items = python.try_iter().map_err(|_| wrong())?;
        while let Some(item) = items.next().transpose()? {
            if let Ok(text) = item.cast_exact::<PyString>()
                && let Ok(text) = text.to_str()
            {
                texts.append_value(text);
            } else if is_missing(&item) {
                texts.append_null();
            } else {
                let mut objects = Objects::new(value.py());
                for text in &texts.finish() {
                    let text = text.map(|text| PyString::new(value.py(), text).into_any());
                    objects.push(text, name)?;
                }
                objects.push(Some(item), name)?;
                for item in items {
                    objects.push(Some(item?).filter(|item| !is_missing(item)), name)?;
                }
                return Ok(Self::Objects(objects));
            }
        }
        Ok(Self::Texts(Chunks::new(vec![texts.finish().into()])))
    }

    /// The column of an Arrow array that holds strings or integers.
    fn from_arrow(chunks: Vec<ArrayRef>) -> Option<Self> {
        let kind = chunks.first().map_or(DataType::Null, |chunk| chunk.data_type().clone());
        if kind.is_integer() {
            let chunks = chunks.iter().map(integers).collect::<Option<_>>()?;
            return Some(Self::Integers(Chunks::new(chunks), kind.is_unsigned_integer()));
        }
        let texts = chunks.iter().map(|chunk| match chunk.data_type() {
            DataType::Utf8 => Some(Texts::from(chunk.as_string::<i32>().clone())),
            DataType::LargeUtf8 => Some(chunk.as_string::<i64>().clone().into()),
            DataType::Utf8View => Some(chunk.as_string_view().clone().into()),
            DataType::Null => Some(StringArray::new_null(chunk.len()).into()),
            _ => None,
        });
        Some(Self::Texts(Chunks::new(texts.collect::<Option<_>>()?)))
    }

    /// What the core reads; without the interpreter lock, too.
    pub fn keys(&self) -> PyResult<Box<dyn Keys + Sync + '_>> {
        Ok(match self {
            Self::Texts(chunks) => Box::new(chunks),
            Self::Integers(chunks, _) => Box::new(chunks),
            Self::Numbers(array, _) => Box::new(Integers(array.as_slice()?)),
            Self::Objects(objects) => Box::new(objects.keys()),
        })
    }

    /// Checks that all that was read of it lies in its buffers.
    pub fn check(&self, name: &str) -> PyResult<()> {
        match self {
            Self::Texts(chunks) if !chunks.all().iter().all(Texts::are_whole) => Err(
                invalid_input(format!("{name}: not an Arrow array (a text is not in its buffer)")),
            ),
            _ => Ok(()),
        }
    }

    /// The value of a row that has one.
    pub fn value(&self, py: Python<'py>, row: usize, name: &str) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Texts(chunks) => {
                text(chunks, row).ok_or_else(|| torn(row, name))?.into_bound_py_any(py)
            }
            Self::Integers(chunks, unsigned) => {
                let (chunk, at) = chunks.find(row);
                let value = chunk.value(at);
                if *unsigned {
                    (value as u64).into_bound_py_any(py)
                } else {
                    value.into_bound_py_any(py)
                }
            }
            Self::Numbers(_, array) => array.get_item(row),
            Self::Objects(objects) => objects.value(row).into_bound_py_any(py),
        }
    }

    /// The values of rows that have one; `None` where there is no row.
    pub fn values(
        &self,
        py: Python<'py>,
        rows: &[Option<usize>],
        threads: Threads,
        name: &str,
    ) -> PyResult<Values> {
        if let Self::Texts(chunks) = self {
            let pieces = threads.pieces(py, rows, |rows| strings(chunks, rows))?;
            let pieces = pieces.into_iter().map(|piece| piece.map_err(|row| torn(row, name)));
            return Ok(Held::Texts(pieces.collect::<PyResult<_>>()?).into());
        }
        let rows = rows.iter().copied();
        Ok(Values::from(match self {
            Self::Integers(chunks, unsigned) => {
                let values = rows.map(|row| {
                    let (chunk, at) = chunks.find(row?);
                    Some(chunk.value(at))
                });
                Held::Integers(values.collect(), *unsigned)
            }
            _ => {
                let values = rows.map(|row| row.map(|row| self.value(py, row, name)).transpose());
                Held::List(PyList::new(py, values.collect::<PyResult<Vec<_>>>()?)?.unbind())
            }
        }))
    }

    /// The first row without a value.
    pub fn first_missing(&self) -> Option<usize> {
        match self {
            Self::Texts(chunks) => chunks.first_missing(),
            Self::Integers(chunks, _) => chunks.first_missing(),
            Self::Numbers(..) => None,
            Self::Objects(objects) => objects.first_missing(),
        }
    }
}

/// The texts of rows that have one, or the first row whose text is no string.
fn strings(chunks: &Chunks<Texts>, rows: &[Option<usize>]) -> Result<LargeStringArray, usize> {
    // All are found before the first is copied, so that they wait for memory together.
    let find = |row| {
        let (chunk, at) = chunks.find(row);
        chunk.sound(at).ok_or(row)
    };
    let found: Vec<_> =
        rows.iter().map(|row| row.map(find).transpose()).collect::<Result<_, _>>()?;
    let bytes = found.iter().flatten().map(|text| text.len()).sum();
    let mut texts = LargeBinaryBuilder::with_capacity(found.len(), bytes);
    found.into_iter().for_each(|text| texts.append_option(text));
    // All at once are UTF-8, or one is not.
    let torn = || rows.iter().flatten().find(|&&row| text(chunks, row).is_none());
    LargeStringArray::try_from_binary(texts.finish())
        .map_err(|_| torn().copied().unwrap_or_default())
}

/// The text of a row, if it is a string.
fn text(chunks: &Chunks<Texts>, row: usize) -> Option<&str> {
    let (chunk, at) = chunks.find(row);
    chunk.text(at)
}

fn torn(row: usize, name: &str) -> PyErr {
    invalid_input(format!(
        "{name}: not an Arrow array (row {row} is no UTF-8, or not as its view says)"
    ))
}

/// None, NaN of any type, pandas' NaT and NA: what does not equal itself, or says so.
fn is_missing(item: &Bound<'_, PyAny>) -> bool {
    if item.is_exact_instance_of::<PyString>() || item.is_exact_instance_of::<PyInt>() {
        return false;
    }
    // A comparison that has no truth value, as that of pandas' NA, is an error.
    let differs = || match item.rich_compare(item, CompareOp::Ne).map(|verdict| verdict.is_truthy())
    {
        Ok(Ok(differs)) => differs,
        Ok(Err(_)) => item.get_type().name().is_ok_and(|name| name == "NAType"),
        Err(_) => false,
    };
    item.is_none() || differs()
}
