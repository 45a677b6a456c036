//! Arrow arrays of strings, of which no more is believed than that their memory is there.
//!
//! A text is the bytes that its offsets or its view name, if they lie in the buffer; that is looked at
//! whenever it is read, on a copy of the view, so that not even an array that is written to meanwhile leads
//! out of its buffers. Texts are compared by their bytes. Whether they are UTF-8, and views as Arrow wants them,
//! is looked at when one becomes a string: most never do.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::{
    Array, GenericStringArray, LargeStringArray, OffsetSizeTrait, StringArray, StringViewArray,
};
use deepconf_core::vote::Key;

use super::chunks::{Chunk, append};

/// The longest text that stands in its view.
const INLINE: usize = 12;

/// An Arrow array of strings.
pub struct Texts {
    layout: Layout,
    /// Whether a text was asked for that does not lie in its buffer.
    torn: AtomicBool,
}

enum Layout {
    /// Utf8
    Small(StringArray),
    /// LargeUtf8
    Large(LargeStringArray),
    /// Utf8View
    View(StringViewArray),
}

impl From<StringArray> for Texts {
    fn from(array: StringArray) -> Self {
        Self { layout: Layout::Small(array), torn: false.into() }
    }
}

impl From<LargeStringArray> for Texts {
    fn from(array: LargeStringArray) -> Self {
        Self { layout: Layout::Large(array), torn: false.into() }
    }
}

impl From<StringViewArray> for Texts {
    fn from(array: StringViewArray) -> Self {
        Self { layout: Layout::View(array), torn: false.into() }
    }
}

impl Texts {
    /// The text of a row, if it is sound.
    pub fn text(&self, row: usize) -> Option<&str> {
        std::str::from_utf8(self.sound(row)?).ok()
    }

    /// The bytes of a row, if they lie in their buffer and are as their view says.
    pub fn sound(&self, row: usize) -> Option<&[u8]> {
        match &self.layout {
            Layout::Small(array) => by_offsets(array, row),
            Layout::Large(array) => by_offsets(array, row),
            Layout::View(array) => {
                let view = array.views()[row];
                by_view(array, row, view).filter(|text| is_sound(view, text))
            }
        }
    }

    /// Whether all texts that were read lie in their buffers.
    pub fn are_whole(&self) -> bool {
        !self.torn.load(Ordering::Relaxed)
    }

    /// The bytes of a row, to be compared.
    fn bytes(&self, row: usize) -> &[u8] {
        self.whole(match &self.layout {
            Layout::Small(array) => by_offsets(array, row),
            Layout::Large(array) => by_offsets(array, row),
            Layout::View(array) => by_view(array, row, array.views()[row]),
        })
    }

    #[inline]
    fn whole<'a>(&self, text: Option<&'a [u8]>) -> &'a [u8] {
        text.unwrap_or_else(|| {
            self.torn.store(true, Ordering::Relaxed);
            &[]
        })
    }

    fn by_offsets<O: OffsetSizeTrait>(
        &self,
        array: &GenericStringArray<O>,
        rows: impl Iterator<Item = usize>,
        out: &mut Vec<Key>,
    ) {
        let (buffer, ends) = (array.value_data(), array.value_offsets());
        append(array, rows, out, |row, _| {
            Key::text(buffer, ends[row].as_usize()..ends[row + 1].as_usize())
        });
    }
}

#[inline]
fn by_offsets<O: OffsetSizeTrait>(array: &GenericStringArray<O>, row: usize) -> Option<&[u8]> {
    let ends = array.value_offsets();
    array.value_data().get(ends[row].as_usize()..ends[row + 1].as_usize())
}

/// The text of a view that was read at `row`: length and text, or length, first four bytes, buffer and
/// offset.
#[inline]
fn by_view(array: &StringViewArray, row: usize, view: u128) -> Option<&[u8]> {
    let len = view as u32 as usize;
    if len <= INLINE {
        return array.views().inner().get(16 * row + 4..)?.get(..len);
    }
    let [buffer, start] = [64, 96].map(|shift| (view >> shift) as u32 as usize);
    array.data_buffers().get(buffer)?.get(start..)?.get(..len)
}

/// Whether a view says of its text what it should.
fn is_sound(view: u128, text: &[u8]) -> bool {
    if text.len() <= INLINE {
        // Zeros after the text.
        return view >> 32 >> (8 * text.len()) == 0;
    }
    text.starts_with(&((view >> 32) as u32).to_le_bytes())
}

impl Chunk for Texts {
    fn array(&self) -> &dyn Array {
        match &self.layout {
            Layout::Small(array) => array,
            Layout::Large(array) => array,
            Layout::View(array) => array,
        }
    }

    fn keys(&self, rows: impl Iterator<Item = usize>, out: &mut Vec<Key>) {
        match &self.layout {
            Layout::Small(array) => self.by_offsets(array, rows, out),
            Layout::Large(array) => self.by_offsets(array, rows, out),
            Layout::View(array) => append(array, rows, out, |row, valid| {
                let view = array.views()[row];
                let len = view as u32 as usize;
                if len <= INLINE {
                    Key::short(view >> 32, len)
                } else if valid {
                    let text = self.whole(by_view(array, row, view));
                    Key::text(text, 0..text.len())
                } else {
                    Key::MISSING
                }
            }),
        }
    }

    fn same(left: (&Self, usize), right: (&Self, usize)) -> bool {
        left.0.bytes(left.1) == right.0.bytes(right.1)
    }

    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        match &self.layout {
            Layout::View(array) => {
                let views = array.views();
                out.extend(rows.map(|row| {
                    let [before, view] = [views[row - 1], views[row]];
                    // Of one length, with the same beginning: texts of four bytes and less have no more.
                    before != view
                        && (before as u64 != view as u64 || self.bytes(row - 1) != self.bytes(row))
                }));
            }
            _ => out.extend(rows.map(|row| self.bytes(row - 1) != self.bytes(row))),
        }
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        Some(self.bytes(row))
    }
}
