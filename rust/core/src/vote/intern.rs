//! Long texts that were seen before.

use super::column::Keys;
use super::key::Key;

/// Values that were seen, each with one of its rows: rows of the same value get the same key, and are
/// then compared no more.
///
/// A table with open addressing, at most half full. Where it does not fit a cache, a look into it
/// waits for memory: so keys are looked up several at a time, and wait together.
pub(super) struct Interner {
    slots: Vec<Slot>,
    values: usize,
}

/// A value, with its text where that fits: all in one line of the cache.
#[derive(Clone)]
#[repr(align(64))]
struct Slot {
    /// Whole where the slot is free.
    key: Key,
    len: u8,
    text: [u8; INLINE],
}

const INLINE: usize = 47;

/// How many keys are looked up at a time.
const TOGETHER: usize = 16;

impl Slot {
    const FREE: Self = Self { key: Key::FREE, len: 0, text: [0; INLINE] };

    /// Whether this is the value of `key`, whose text is that one, if it fits.
    #[inline]
    fn is(&self, key: Key, text: Option<&[u8]>, column: &(impl Keys + ?Sized)) -> bool {
        self.key.may_agree(key)
            && match text {
                Some(text) => &self.text[..self.len.into()] == text,
                None => column.same(self.key.row(), key.row()),
            }
    }
}

impl Interner {
    /// At most so many values: more would be more than the caches hold.
    const MOST: usize = 1 << 17;

    pub(super) fn new() -> Self {
        Self { slots: vec![Slot::FREE; 2 * TOGETHER], values: 0 }
    }

    /// Gives each key that is a hash a row of its value: the same for the same value.
    ///
    /// The keys are those of the rows from `first` on.
    pub(super) fn settle(&mut self, keys: &mut [Key], first: usize, column: &(impl Keys + ?Sized)) {
        for (keys, first) in keys.chunks_mut(TOGETHER).zip((first..).step_by(TOGETHER)) {
            // Reads a slot for each, and nothing waits for it yet.
            let mut likely = [false; TOGETHER];
            for (likely, key) in likely.iter_mut().zip(&*keys) {
                *likely = self.slots[self.home(*key)].key.may_agree(*key);
            }
            for ((key, likely), row) in keys.iter_mut().zip(likely).zip(first..) {
                if !key.is_whole() && *key != Key::MISSING {
                    *key = self.settled(key.at(row), likely, column);
                }
            }
        }
    }

    #[inline]
    fn home(&self, key: Key) -> usize {
        key.low() as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn settled(&mut self, key: Key, likely: bool, column: &(impl Keys + ?Sized)) -> Key {
        let text = column.text(key.row()).filter(|text| text.len() <= INLINE);
        let home = &self.slots[self.home(key)];
        if likely && home.is(key, text, column) { home.key } else { self.search(key, text, column) }
    }

    fn search(&mut self, key: Key, text: Option<&[u8]>, column: &(impl Keys + ?Sized)) -> Key {
        let at = self.probe(key, |slot| slot.is(key, text, column));
        if !self.slots[at].key.is_whole() {
            return self.slots[at].key;
        }
        if self.values < Self::MOST {
            let text = text.unwrap_or_default();
            let slot = &mut self.slots[at];
            (slot.key, slot.len) = (key, text.len() as u8);
            slot.text[..text.len()].copy_from_slice(text);
            self.values += 1;
            if 2 * self.values > self.slots.len() {
                self.grow();
            }
        }
        key
    }

    /// The first slot from home on that is the one wanted, or free.
    fn probe(&self, key: Key, wanted: impl Fn(&Slot) -> bool) -> usize {
        let mut at = self.home(key);
        while !self.slots[at].key.is_whole() && !wanted(&self.slots[at]) {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    #[cold]
    fn grow(&mut self) {
        let twice = vec![Slot::FREE; 2 * self.slots.len()];
        for slot in std::mem::replace(&mut self.slots, twice) {
            if !slot.key.is_whole() {
                let at = self.probe(slot.key, |_| false);
                self.slots[at] = slot;
            }
        }
    }
}
