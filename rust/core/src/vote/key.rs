//! What tells values apart.

use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use super::column::Keys;

/// Of one seed for the process: nothing depends on it, and nobody can pick values that collide.
#[inline]
fn hasher() -> SeedableRandomState {
    SeedableRandomState::with_seed(0, SharedSeed::global_random())
}

/// What tells the values of a column apart, in 16 bytes.
///
/// The highest bit says that it is a hash, in the lowest 64 bits.
///
/// ```
/// use deepconf_core::vote::Key;
/// let buffer = b"forty-two, or 42";
/// assert_eq!(Key::text(buffer, 14..16), Key::text(b"42", 0..2));
/// assert!(Key::text(buffer, 0..15).is_whole() && !Key::text(buffer, 0..16).is_whole());
/// ```
///
/// Aligned as its halves are, so that beside a weight or a row nothing is padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub struct Key(pub(super) u128);

/// For each length, the bytes of a text that long, and its length where a key has it.
const SHORT: [(u128, u128); 16] = {
    let mut table = [(0, 0); 16];
    let mut len = 0;
    while len < 16 {
        table[len] = ((1 << (8 * len)) - 1, (len as u128) << 120);
        len += 1;
    }
    table
};

impl Key {
    /// The key of a row without a value.
    pub const MISSING: Self = Self(u128::MAX);
    /// Says that the key is a hash.
    const HASHED: u128 = 1 << 127;

    /// The key of an integer; it holds all of it.
    #[must_use]
    pub fn integer(value: u64) -> Self {
        Self(u128::from(value))
    }

    /// The key of any value, by its hash.
    #[must_use]
    pub fn hash(value: impl Hash) -> Self {
        Self(Self::HASHED | u128::from(hasher().hash_one(value)))
    }

    /// The key of a text, the bytes `text` of a buffer; it holds all of up to fifteen bytes.
    ///
    /// # Panics
    /// When `text` does not lie in the buffer.
    #[inline]
    #[must_use]
    pub fn text(buffer: &[u8], text: Range<usize>) -> Self {
        let len = text.len();
        if len > 15 {
            let mut hasher = hasher().build_hasher();
            hasher.write(&buffer[text]);
            return Self(Self::HASHED | u128::from(hasher.finish()));
        }
        match buffer[text.start..].first_chunk() {
            Some(bytes) => Self::short(u128::from_le_bytes(*bytes), len),
            None => {
                let bytes = buffer[text].iter().rev();
                Self::short(bytes.fold(0, |all, &byte| all << 8 | u128::from(byte)), len)
            }
        }
    }

    /// The key of a text of `len` bytes: the lowest of `bytes`.
    ///
    /// # Panics
    /// When `len` is over fifteen.
    #[inline]
    #[must_use]
    pub fn short(bytes: u128, len: usize) -> Self {
        let (mask, length) = SHORT[len];
        Self(bytes & mask | length)
    }

    /// As [`Key::short`], of bytes that are zero beyond the text, which has at most fifteen.
    #[inline]
    #[must_use]
    pub fn padded(bytes: u128, len: u8) -> Self {
        Self(bytes | u128::from(len) << 120)
    }

    /// This key, or [`Key::MISSING`].
    #[inline]
    #[must_use]
    pub fn unless(self, missing: bool) -> Self {
        Self(self.0 | u128::from(missing).wrapping_neg())
    }

    /// Whether the key holds the value itself, so that equal keys are equal values.
    #[inline]
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.0 & Self::HASHED == 0
    }

    /// A key that is a hash, with a row that holds its value; others stay as they are.
    #[inline]
    pub(super) fn at(self, row: usize) -> Self {
        let row = if self.is_whole() { 0 } else { row as u32 };
        Self(self.0 | u128::from(row) << 64)
    }

    /// The row of [`Key::at`].
    #[inline]
    pub(super) fn row(self) -> usize {
        (self.0 >> 64) as u32 as usize
    }

    /// Without its row.
    #[inline]
    fn bare(self) -> u128 {
        if self.is_whole() { self.0 } else { self.0 & !(u128::from(u32::MAX) << 64) }
    }

    /// Whether two keys with rows are of the same value. Of the same row they are, without a look.
    #[inline]
    pub(super) fn agrees(self, other: Self, column: &(impl Keys + ?Sized)) -> bool {
        self == other || self.may_agree(other) && column.same(self.row(), other.row())
    }

    /// Whether both are the same, rows aside: the same value, or the same hash.
    #[inline]
    pub(super) fn is_like(self, other: Self) -> bool {
        self.bare() == other.bare()
    }

    /// Whether both are the same hash.
    #[inline]
    pub(super) fn may_agree(self, other: Self) -> bool {
        !self.is_whole() && self.bare() == other.bare()
    }

    /// Six bits.
    #[inline]
    pub(super) fn hint(self) -> usize {
        let folded = self.bare() as u64 ^ (self.bare() >> 64) as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
    }

    /// A hash, good in every bit.
    #[inline]
    pub(super) fn spread(self) -> u64 {
        hasher().hash_one(self.bare())
    }
}
