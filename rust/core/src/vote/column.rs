//! Where values come from: columns of questions and of answers.

use std::hash::Hash;
use std::ops::Range;

use super::key::Key;

/// A column of questions or of answers.
pub trait Keys {
    /// How many rows it has.
    fn rows(&self) -> usize;

    /// Appends a key for each of `rows`. Equal values have equal keys.
    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>);

    /// Appends a key for each of these rows, in any order.
    fn pick(&self, rows: &[u32], out: &mut Vec<Key>) {
        rows.iter().for_each(|&row| self.keys(row as usize..row as usize + 1, out));
    }

    /// Appends whether each of `rows` has a value.
    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        let mut keys = Vec::with_capacity(rows.len());
        self.keys(rows, &mut keys);
        out.extend(keys.iter().map(|&key| key != Key::MISSING));
    }

    /// Appends which of `rows` hold another value than the row before, or none; the first row of all does.
    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        let before = rows.start.saturating_sub(1);
        let mut keys = Vec::with_capacity(rows.len() + 1);
        self.keys(before..rows.end, &mut keys);
        if rows.start == 0 && !rows.is_empty() {
            out.push(true);
        }
        out.extend(keys.windows(2).zip(before..).map(|(pair, row)| {
            let same = || pair[1].is_whole() || self.same(row, row + 1);
            pair[0] != pair[1] || pair[1] == Key::MISSING || !same()
        }));
    }

    /// Whether two rows whose keys are equal, but not whole, hold the same value.
    fn same(&self, left: usize, right: usize) -> bool;

    /// The bytes of the value of a row, where it has one and that is a text.
    fn text(&self, _row: usize) -> Option<&[u8]> {
        None
    }
}

/// A column of integers in memory, none of them missing: told apart without a hash.
///
/// ```
/// use deepconf_core::vote::{Integers, Rules, vote_columns};
/// let votes = vote_columns(&Integers(&[7, 8, 7]), &Integers(&[1, 2, 1]), &Rules::default())?;
/// assert_eq!((votes.question_rows, votes.num_voters), (vec![0, 1], vec![2, 1]));
/// # Ok::<(), deepconf_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Integers<'a>(pub &'a [i64]);

impl Keys for Integers<'_> {
    fn rows(&self) -> usize {
        self.0.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        out.extend(self.0[rows].iter().map(|&number| Key::integer(number as u64)));
    }

    fn pick(&self, rows: &[u32], out: &mut Vec<Key>) {
        out.extend(rows.iter().map(|&row| Key::integer(self.0[row as usize] as u64)));
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        out.resize(out.len() + rows.len(), true);
    }

    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        out.extend(rows.map(|row| row == 0 || self.0[row] != self.0[row - 1]));
    }

    fn same(&self, left: usize, right: usize) -> bool {
        self.0[left] == self.0[right]
    }
}

/// A column of values in memory, each of which may be missing.
pub(crate) struct Slice<'a, T, F> {
    pub(super) values: &'a [T],
    pub(super) get: F,
}

impl<T, K: Eq + Hash, F: Fn(&T) -> Option<&K>> Keys for Slice<'_, T, F> {
    fn rows(&self) -> usize {
        self.values.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        let values = self.values[rows].iter().map(&self.get);
        out.extend(values.map(|value| value.map_or(Key::MISSING, Key::hash)));
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        out.extend(self.values[rows].iter().map(|value| (self.get)(value).is_some()));
    }

    fn differ(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        let value = |row: usize| (self.get)(&self.values[row]);
        out.extend(
            rows.map(|row| row == 0 || value(row).is_none() || value(row) != value(row - 1)),
        );
    }

    fn same(&self, left: usize, right: usize) -> bool {
        (self.get)(&self.values[left]) == (self.get)(&self.values[right])
    }
}

pub(super) fn present<Q>(question: &Q) -> Option<&Q> {
    Some(question)
}

/// A column of answers of which some are missing.
pub(crate) fn optional<A: Eq + Hash>(
    values: &[Option<A>],
) -> Slice<'_, Option<A>, impl Fn(&Option<A>) -> Option<&A>> {
    Slice { values, get: Option::as_ref }
}
