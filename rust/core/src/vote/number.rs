//! Values by number.

use super::column::Keys;
use super::key::Key;

/// Values that were seen, numbered in the order seen.
///
/// A table of numbers with open addressing, at most half full; keys, and texts that are not long, lie
/// beside it by number. Where that does not fit a cache, to look a value up is to wait for memory: so many
/// are looked up at a time, and wait together.
pub(super) struct Numbers {
    near: Near,
    /// The number of a value, at the place that its hash says or after it.
    slots: Vec<u32>,
    /// The key of each value, with a row.
    keys: Vec<Key>,
    /// The text of each of the first values, unless its key holds it.
    texts: Vec<Text>,
}

/// Integers that lie close together, as those that count questions do: each has a slot of its own, which is
/// found without a hash.
#[derive(Default)]
struct Near {
    first: u64,
    slots: Vec<u32>,
}

impl Near {
    /// Room for integers like these, and a little beyond, unless that takes more than so many slots.
    fn new(sample: &[Key], most: usize) -> Self {
        let integers = || sample.iter().filter_map(|key| u64::try_from(key.0).ok());
        let (Some(least), Some(greatest)) = (integers().min(), integers().max()) else {
            return Self::default();
        };
        let beyond = (greatest - least) / 8;
        let first = least.saturating_sub(beyond);
        let slots = (greatest - first).saturating_add(beyond).saturating_add(1);
        let slots = usize::try_from(slots).ok().filter(|&slots| slots <= most);
        Self { first, slots: vec![FREE; slots.unwrap_or_default()] }
    }

    #[inline]
    fn slot(&mut self, key: Key) -> Option<&mut u32> {
        let at = key.0.wrapping_sub(self.first.into());
        self.slots.get_mut(usize::try_from(at).ok()?)
    }
}

/// A text, where it is short enough.
#[derive(Clone, Copy)]
struct Text {
    /// More than fits if it is longer.
    len: u8,
    bytes: [u8; INLINE],
}

const INLINE: usize = 47;

/// How many values are looked up at a time.
const TOGETHER: usize = 64;

/// So many values have their texts beside them: more would be more than the caches hold.
const MOST_TEXTS: usize = 1 << 17;

const FREE: u32 = u32::MAX;

impl Text {
    const NONE: Self = Self { len: u8::MAX, bytes: [0; INLINE] };

    fn new(text: Option<&[u8]>) -> Self {
        let Some(text) = text.filter(|text| text.len() <= INLINE) else { return Self::NONE };
        let mut bytes = [0; INLINE];
        bytes[..text.len()].copy_from_slice(text);
        Self { len: text.len() as u8, bytes }
    }

    /// Whether it is this text; `None` if it is not known.
    #[inline]
    fn is(&self, text: &[u8]) -> Option<bool> {
        let mine = self.bytes.get(..self.len.into())?;
        Some(mine.len() == text.len() && are_same(mine, text))
    }
}

/// Whether texts of the same length are the same.
#[inline]
fn are_same(left: &[u8], right: &[u8]) -> bool {
    // Those of 16 to 32 bytes overlap.
    left.first_chunk::<16>() == right.first_chunk()
        && left.last_chunk::<16>() == right.last_chunk()
        && (16..=32).contains(&left.len())
        || left == right
}

impl Numbers {
    /// The number of what is missing.
    pub(super) const NONE: u32 = u32::MAX;

    pub(super) fn new() -> Self {
        let (near, slots) = (Near::default(), vec![FREE; 2 * TOGETHER]);
        Self { near, slots, keys: Vec::new(), texts: Vec::new() }
    }

    /// As [`Numbers::new`], of so many rows like these.
    pub(super) fn of(sample: &[Key], rows: usize) -> Self {
        Self { near: Near::new(sample, rows), ..Self::new() }
    }

    /// The key of each value, by number.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Appends the number of each key; those that are hashes have a row.
    pub(super) fn number(
        &mut self,
        keys: &[Key],
        column: &(impl Keys + ?Sized),
        out: &mut Vec<u32>,
    ) {
        if !self.near.slots.is_empty() {
            out.extend(keys.iter().map(|&key| self.near_number(key, column)));
            return;
        }
        let (mut hashes, mut likely, mut agree) = ([0; TOGETHER], [0; TOGETHER], [false; TOGETHER]);
        for keys in keys.chunks(TOGETHER) {
            // A slot for each, then a key for each: nothing branches on them yet.
            for ((hash, likely), key) in hashes.iter_mut().zip(&mut likely).zip(keys) {
                *hash = key.spread();
                *likely = self.slots[*hash as usize & (self.slots.len() - 1)];
            }
            for ((agree, &likely), &key) in agree.iter_mut().zip(&likely).zip(keys) {
                *agree = self.keys.get(likely as usize).is_some_and(|seen| seen.is_like(key));
            }
            let looked_up = keys.iter().zip(hashes).zip(likely).zip(agree);
            out.extend(looked_up.map(|(((&key, hash), likely), agree)| {
                if agree && (key.is_whole() || self.is(likely, key, column)) {
                    likely
                } else if key == Key::MISSING {
                    Self::NONE
                } else {
                    self.search(key, hash, column)
                }
            }));
        }
    }

    #[inline]
    fn near_number(&mut self, key: Key, column: &(impl Keys + ?Sized)) -> u32 {
        let Some(slot) = self.near.slot(key) else {
            return if key == Key::MISSING {
                Self::NONE
            } else {
                self.search(key, key.spread(), column)
            };
        };
        if *slot == FREE {
            *slot = self.keys.len() as u32;
            self.keys.push(key);
        }
        *slot
    }

    /// Whether value `at`, whose key is like this one and a hash, is that of this one.
    #[inline]
    fn is(&self, at: u32, key: Key, column: &(impl Keys + ?Sized)) -> bool {
        let known = self.texts.get(at as usize).zip(column.text(key.row()));
        known
            .and_then(|(seen, text)| seen.is(text))
            .unwrap_or_else(|| column.same(self.keys[at as usize].row(), key.row()))
    }

    fn search(&mut self, key: Key, hash: u64, column: &(impl Keys + ?Sized)) -> u32 {
        let mut slot = hash as usize & (self.slots.len() - 1);
        while self.slots[slot] != FREE {
            let at = self.slots[slot];
            if self.keys[at as usize].is_like(key) && (key.is_whole() || self.is(at, key, column)) {
                return at;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        let at = self.keys.len() as u32;
        self.slots[slot] = at;
        self.keys.push(key);
        if !key.is_whole() && self.keys.len() <= MOST_TEXTS {
            self.texts.resize(at as usize, Text::NONE);
            self.texts.push(Text::new(column.text(key.row())));
        }
        if 2 * self.keys.len() > self.slots.len() {
            self.grow();
        }
        at
    }

    #[cold]
    fn grow(&mut self) {
        let mask = 4 * self.slots.len() - 1;
        self.slots = vec![FREE; mask + 1];
        for (key, at) in self.keys.iter().zip(0..) {
            let mut slot = key.spread() as usize & mask;
            while self.slots[slot] != FREE {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = at;
        }
    }
}
