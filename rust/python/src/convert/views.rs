//! String views that are seen to be sound at the speed of memory.

use std::ops::Deref;

use arrow_array::ArrayRef;
use arrow_array::cast::AsArray;

/// The longest text that stands in its view.
const INLINE: usize = 12;

/// For each length, the bits that may be set in a view of ASCII; of one that is longer, all.
const ALLOWED: [u128; INLINE + 2] = {
    let mut table = [u128::MAX; INLINE + 2];
    let mut len = 0;
    while len <= INLINE {
        let text = 0x7f7f_7f7f_7f7f_7f7f_7f7f_7f7f_u128 & ((1 << (8 * len)) - 1);
        table[len] = text << 32 | u32::MAX as u128;
        len += 1;
    }
    table
};

/// Whether an array holds string views that are all well-formed and ASCII, which is soon seen. If not,
/// it may be sound all the same.
pub fn are_plain(array: &ArrayRef) -> bool {
    let Some(array) = array.as_string_view_opt() else { return false };
    let (mut wrong, mut sound) = (0, true);
    for &view in array.views() {
        // Nothing branches on the length of what stands in the view itself.
        wrong |= view & !ALLOWED[(view as u32 as usize).min(INLINE + 1)];
        if view as u32 as usize > INLINE {
            sound &= is_plain(view, array.data_buffers());
        }
    }
    wrong == 0 && sound
}

/// As [`are_plain`], of a view of a text in a buffer: length, first four bytes, buffer and offset.
fn is_plain(view: u128, buffers: &[impl Deref<Target = [u8]>]) -> bool {
    let [len, first, buffer, start] = [0, 32, 64, 96].map(|shift| (view >> shift) as u32);
    let buffer = buffers.get(buffer as usize);
    let text = buffer.and_then(|buffer| buffer.get(start as usize..)?.get(..len as usize));
    text.is_some_and(|text| text.is_ascii() && text.starts_with(&first.to_le_bytes()))
}
