//! Columns of Arrow arrays, in pieces.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, Int64Array};
use arrow_schema::DataType;
use deepconf_core::vote::{Key, Keys};

/// Integers as int64, in place if they are; uint64 keeps its bits.
pub fn integers(chunk: &ArrayRef) -> Option<Int64Array> {
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

/// A piece of a column.
pub trait Chunk {
    /// The piece as Arrow has it.
    fn array(&self) -> &dyn Array;

    /// Appends the keys of `rows`.
    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>);

    /// Appends which of `rows` hold another value than the row before; the first of the piece is none of them.
    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>);

    /// Whether two rows hold the same value.
    fn same(left: (&Self, usize), right: (&Self, usize)) -> bool;

    /// The bytes of the value of a row, if it is a text.
    fn text(&self, row: usize) -> Option<&[u8]>;
}

/// Appends the keys of `rows`: `key` of the row and whether it is valid, and of a null nothing.
#[inline]
pub fn append(
    array: &dyn Array,
    rows: impl Iterator<Item = usize>,
    out: &mut Vec<Key>,
    key: impl Fn(usize, bool) -> Key,
) {
    match array.nulls() {
        None => out.extend(rows.map(|row| key(row, true))),
        Some(nulls) => {
            let valid = nulls.inner();
            out.extend(rows.map(|row| {
                let valid = valid.value(row);
                key(row, valid).unless(!valid)
            }));
        }
    }
}

impl Chunk for Int64Array {
    fn array(&self) -> &dyn Array {
        self
    }

    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>) {
        append(self, rows, out, |row, _| Key::integer(self.values()[row] as u64));
    }

    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        let values = self.values();
        out.extend(rows.map(|row| values[row] != values[row - 1]));
    }

    fn same(left: (&Self, usize), right: (&Self, usize)) -> bool {
        left.0.value(left.1) == right.0.value(right.1)
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
    pub fn new(chunks: Vec<C>) -> Self {
        let mut end = 0;
        let ends = chunks.iter().map(|chunk| {
            end += chunk.array().len();
            end
        });
        let starts = [0].into_iter().chain(ends).collect();
        Self { chunks, starts }
    }

    /// The piece that has a row, and the row in it.
    #[inline]
    pub fn find(&self, row: usize) -> (&C, usize) {
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

    /// The pieces.
    pub fn all(&self) -> &[C] {
        &self.chunks
    }

    /// The first row that is null.
    pub fn first_missing(&self) -> Option<usize> {
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
        // Rows that follow each other are mostly of one piece.
        let mut rest = rows;
        while let Some(&first) = rest.first() {
            let (chunk, at) = self.find(first as usize);
            let start = first as usize - at;
            let its = start as u32..(start + chunk.array().len()) as u32;
            let end = rest.iter().position(|row| !its.contains(row)).unwrap_or(rest.len());
            chunk.keys(rest[..end].iter().map(|&row| row as usize - start), out);
            rest = &rest[end..];
        }
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        self.pieces(rows, |chunk, rows| match chunk.array().nulls() {
            None => out.extend(rows.map(|_| true)),
            Some(nulls) => out.extend(rows.map(|row| nulls.is_valid(row))),
        });
    }

    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        let mut row = rows.start;
        self.pieces(rows, |chunk, rows| {
            let at = out.len();
            if rows.start == 0 && !rows.is_empty() {
                out.push(row == 0 || !C::same(self.find(row - 1), (chunk, 0)));
            }
            chunk.differ(rows.start.max(1)..rows.end, out);
            if let Some(nulls) = chunk.array().nulls() {
                out[at..]
                    .iter_mut()
                    .zip(rows.clone())
                    .for_each(|(out, row)| *out |= nulls.is_null(row));
            }
            row += rows.len();
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
