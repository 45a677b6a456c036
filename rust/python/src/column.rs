//! Columns of questions and answers, read where they are.
//!
//! Strings and integers in an Arrow array, and integers in a NumPy array, are read in place. A
//! sequence of Python strings is copied once into an Arrow array, so that the work after needs no
//! interpreter. Anything else that is hashable is numbered by a dictionary, one look-up a row.

use std::ops::Range;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, GenericStringArray, Int64Array, LargeStringArray, OffsetSizeTrait,
    StringArray, StringViewArray,
};
use arrow_schema::DataType;
use deepconf_core::vote::{Integers, Key, Keys};
use numpy::{PyArrayDescrMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::pyclass::CompareOp;
use pyo3::types::{PyDict, PyInt, PyString};

use crate::convert::{arrow, contiguous};
use crate::error::invalid_type;

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
            let kind = value.get_type();
            invalid_type(format!("{name} is a {kind}: must be a sequence, with None for no answer"))
        };
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
        Ok(Self::Texts(Chunks::new(vec![Texts::Large(texts.finish())])))
    }

    /// The column of an Arrow array that holds strings or integers.
    fn from_arrow(chunks: Vec<ArrayRef>) -> Option<Self> {
        let kind = chunks.first().map_or(DataType::Null, |chunk| chunk.data_type().clone());
        if kind.is_integer() {
            let chunks = chunks.iter().map(integers).collect::<Option<_>>()?;
            return Some(Self::Integers(Chunks::new(chunks), kind.is_unsigned_integer()));
        }
        let texts = chunks.iter().map(|chunk| match chunk.data_type() {
            DataType::Utf8 => Some(Texts::Small(chunk.as_string().clone())),
            DataType::LargeUtf8 => Some(Texts::Large(chunk.as_string().clone())),
            DataType::Utf8View => Some(Texts::View(chunk.as_string_view().clone())),
            DataType::Null => Some(Texts::Small(StringArray::new_null(chunk.len()))),
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
            Self::Objects(objects) => Box::new(Numbered(&objects.numbers)),
        })
    }

    /// The value of a row that has one.
    pub fn value(&self, py: Python<'py>, row: usize) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Texts(chunks) => {
                let (chunk, at) = chunks.find(row);
                chunk.text(at).into_bound_py_any(py)
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
            Self::Objects(Objects { numbers, distinct, .. }) => numbers[row]
                .map_or(py.None(), |at| distinct[at as usize].clone().unbind())
                .into_bound_py_any(py),
        }
    }

    /// The first row without a value.
    pub fn first_missing(&self) -> Option<usize> {
        match self {
            Self::Texts(chunks) => chunks.first_missing(),
            Self::Integers(chunks, _) => chunks.first_missing(),
            Self::Numbers(..) => None,
            Self::Objects(objects) => objects.numbers.iter().position(Option::is_none),
        }
    }
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

/// Integers as int64, in place if they are; uint64 keeps its bits.
fn integers(chunk: &ArrayRef) -> Option<Int64Array> {
    fn cast<T: ArrowPrimitiveType>(
        chunk: &ArrayRef,
        wide: impl Fn(T::Native) -> i64,
    ) -> Int64Array {
        chunk.as_primitive::<T>().unary(wide)
    }
    Some(match chunk.data_type() {
        DataType::Int8 => cast::<Int8Type>(chunk, i64::from),
        DataType::Int16 => cast::<Int16Type>(chunk, i64::from),
        DataType::Int32 => cast::<Int32Type>(chunk, i64::from),
        DataType::Int64 => chunk.as_primitive::<Int64Type>().clone(),
        DataType::UInt8 => cast::<UInt8Type>(chunk, i64::from),
        DataType::UInt16 => cast::<UInt16Type>(chunk, i64::from),
        DataType::UInt32 => cast::<UInt32Type>(chunk, i64::from),
        DataType::UInt64 => cast::<UInt64Type>(chunk, |value| value as i64),
        _ => return None,
    })
}

/// Hashable values, numbered.
pub struct Objects<'py> {
    /// A number for each row, equal for equal values; `None` where there is no value.
    numbers: Vec<Option<u32>>,
    /// The first value that got each number.
    distinct: Vec<Bound<'py, PyAny>>,
    /// The number of each value.
    seen: Bound<'py, PyDict>,
}

impl<'py> Objects<'py> {
    fn new(py: Python<'py>) -> Self {
        Self { numbers: Vec::new(), distinct: Vec::new(), seen: PyDict::new(py) }
    }

    fn push(&mut self, item: Option<Bound<'py, PyAny>>, name: &str) -> PyResult<()> {
        let Some(item) = item else {
            self.numbers.push(None);
            return Ok(());
        };
        let known = self.seen.get_item(&item).map_err(|_| {
            let (position, kind) = (self.numbers.len(), item.get_type());
            invalid_type(format!("{name}[{position}] is a {kind}: must be hashable"))
        })?;
        let number = match known {
            Some(number) => number.extract()?,
            None => {
                let number = self.distinct.len() as u32;
                self.seen.set_item(&item, number)?;
                self.distinct.push(item);
                number
            }
        };
        self.numbers.push(Some(number));
        Ok(())
    }
}

struct Numbered<'a>(&'a [Option<u32>]);

impl Numbered<'_> {
    fn key(number: Option<u32>) -> Key {
        number.map_or(Key::MISSING, |number| Key::integer(number.into()))
    }
}

impl Keys for Numbered<'_> {
    fn rows(&self) -> usize {
        self.0.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        out.extend(self.0[rows].iter().map(|number| Self::key(*number)));
    }

    fn pick(&self, rows: &[u32], out: &mut Vec<Key>) {
        out.extend(rows.iter().map(|&row| Self::key(self.0[row as usize])));
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        out.extend(self.0[rows].iter().map(Option::is_some));
    }

    fn same(&self, _: usize, _: usize) -> bool {
        true
    }
}

/// An Arrow array of strings.
pub enum Texts {
    /// Utf8
    Small(StringArray),
    /// LargeUtf8
    Large(LargeStringArray),
    /// Utf8View
    View(StringViewArray),
}

impl Texts {
    fn text(&self, row: usize) -> &str {
        match self {
            Self::Small(array) => array.value(row),
            Self::Large(array) => array.value(row),
            Self::View(array) => array.value(row),
        }
    }
}

/// A piece of a column.
pub trait Chunk {
    /// The piece as Arrow has it.
    fn array(&self) -> &dyn Array;

    /// Appends the keys of `rows`.
    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>);

    /// Whether two rows hold the same value.
    fn same(left: (&Self, usize), right: (&Self, usize)) -> bool;

    /// The bytes of the value of a row, if it is a text.
    fn text(&self, row: usize) -> Option<&[u8]>;
}

/// Appends the keys of `rows`, `None` for a null.
fn append(
    array: &dyn Array,
    rows: impl Iterator<Item = usize>,
    out: &mut Vec<Key>,
    key: impl Fn(usize) -> Key,
) {
    match array.nulls() {
        None => out.extend(rows.map(key)),
        Some(nulls) => {
            let valid = nulls.inner();
            out.extend(rows.map(|row| key(row).unless(!valid.value(row))));
        }
    }
}

fn append_texts<O: OffsetSizeTrait>(
    array: &GenericStringArray<O>,
    rows: impl Iterator<Item = usize>,
    out: &mut Vec<Key>,
) {
    let (buffer, ends) = (array.value_data(), array.value_offsets());
    append(array, rows, out, |row| {
        Key::text(buffer, ends[row].as_usize()..ends[row + 1].as_usize())
    });
}

impl Chunk for Texts {
    fn array(&self) -> &dyn Array {
        match self {
            Self::Small(array) => array,
            Self::Large(array) => array,
            Self::View(array) => array,
        }
    }

    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>) {
        match self {
            Self::Small(array) => append_texts(array, rows, out),
            Self::Large(array) => append_texts(array, rows, out),
            Self::View(array) => append(array, rows, out, |row| {
                let view = array.views()[row];
                let len = view as u32;
                // Up to twelve bytes stand in the view itself, after the length, and zeros after
                // them.
                if len <= 12 {
                    Key::padded(view >> 32, len as u8)
                } else if array.is_valid(row) {
                    Key::text(array.value(row).as_bytes(), 0..len as usize)
                } else {
                    Key::MISSING
                }
            }),
        }
    }

    fn same(left: (&Self, usize), right: (&Self, usize)) -> bool {
        left.0.text(left.1) == right.0.text(right.1)
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        Some(Self::text(self, row).as_bytes())
    }
}

impl Chunk for Int64Array {
    fn array(&self) -> &dyn Array {
        self
    }

    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>) {
        append(self, rows, out, |row| Key::integer(self.values()[row] as u64));
    }

    fn same(_: (&Self, usize), _: (&Self, usize)) -> bool {
        true
    }

    fn text(&self, _: usize) -> Option<&[u8]> {
        None
    }
}

/// A column in pieces.
pub struct Chunks<C> {
    chunks: Vec<C>,
    /// Where each piece starts, and the number of rows.
    starts: Vec<usize>,
}

impl<C: Chunk> Chunks<C> {
    fn new(chunks: Vec<C>) -> Self {
        let mut end = 0;
        let ends = chunks.iter().map(|chunk| {
            end += chunk.array().len();
            end
        });
        let starts = [0].into_iter().chain(ends).collect();
        Self { chunks, starts }
    }

    /// The piece that has a row, and the row in it.
    fn find(&self, row: usize) -> (&C, usize) {
        let at = match self.chunks.len() {
            1 => 0,
            _ => self.starts.partition_point(|&start| start <= row) - 1,
        };
        (&self.chunks[at], row - self.starts[at])
    }

    /// The pieces that `rows` are of, each with its own rows.
    fn pieces(&self, rows: Range<usize>, mut f: impl FnMut(&C, Range<usize>)) {
        let first = self.starts.partition_point(|&start| start <= rows.start).saturating_sub(1);
        for (chunk, ends) in self.chunks.iter().zip(self.starts.windows(2)).skip(first) {
            if ends[0] >= rows.end {
                break;
            }
            let part = rows.start.max(ends[0])..rows.end.min(ends[1]);
            f(chunk, part.start - ends[0]..part.end - ends[0]);
        }
    }

    fn first_missing(&self) -> Option<usize> {
        self.chunks.iter().zip(&self.starts).find_map(|(chunk, start)| {
            let nulls = chunk.array().nulls()?;
            (0..nulls.len()).find(|&row| nulls.is_null(row)).map(|row| start + row)
        })
    }
}

impl<C: Chunk> Keys for &Chunks<C> {
    fn rows(&self) -> usize {
        self.starts[self.chunks.len()]
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        self.pieces(rows, |chunk, rows| chunk.keys(rows, out));
    }

    fn pick(&self, rows: &[u32], out: &mut Vec<Key>) {
        if let [chunk] = &self.chunks[..] {
            return chunk.keys(rows.iter().map(|&row| row as usize), out);
        }
        for &row in rows {
            let (chunk, at) = self.find(row as usize);
            chunk.keys(at..at + 1, out);
        }
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        self.pieces(rows, |chunk, rows| match chunk.array().nulls() {
            None => out.extend(rows.map(|_| true)),
            Some(nulls) => out.extend(rows.map(|row| nulls.is_valid(row))),
        });
    }

    fn same(&self, left: usize, right: usize) -> bool {
        C::same(self.find(left), self.find(right))
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        let (chunk, row) = self.find(row);
        Chunk::text(chunk, row)
    }
}
