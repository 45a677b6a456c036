//! Votes on questions whose rows stand together: read where they are.

use std::ops::Range;

use hashbrown::HashTable;

use super::Rules;
use super::column::Keys;
use super::key::Key;
use super::many::{Decided, STRETCH, Shared, part_of};
use super::rows::{BATCH, Booth};
use crate::parallel;

/// How many rows are looked at together for one that differs.
const ABREAST: usize = 16;

/// The votes on the questions that start at `starts`, the last of which is the number of rows; some
/// questions at a time.
pub(super) fn decide(starts: &[u32], columns: &Shared<'_>, rules: &Rules<'_>) -> Vec<Vec<Decided>> {
    let mut groups = vec![0];
    for (at, &start) in starts.iter().enumerate() {
        let group = groups[groups.len() - 1];
        if (start - starts[group]) as usize >= BATCH || at == starts.len() - 1 && at > group {
            groups.push(at);
        }
    }
    parallel::map_with(groups.len() - 1, 1, Booth::new, |booth, at| {
        let starts = &starts[groups[at]..=groups[at + 1]];
        let mut decided = Vec::with_capacity(starts.len() - 1);
        booth.tally(starts, columns, rules, |start, outcome, count| {
            decided.push(Decided::new(start, outcome, count));
        });
        decided
    })
}

/// Where each question starts, and the number of rows at the end, if the rows of each question
/// stand together.
pub(super) fn starts(questions: &(dyn Keys + Sync)) -> Option<Vec<u32>> {
    let rows = questions.rows();
    let stretches = parallel::map(rows.div_ceil(STRETCH), |at| {
        Heads::of(questions, part_of(rows, STRETCH, at))
    });
    let stretches = stretches.into_iter().collect::<Option<Vec<_>>>()?;
    let heads = || stretches.iter().flat_map(|stretch| stretch.rows.iter().zip(&stretch.keys));
    // Texts that rise differ, and so do numbers; of others it takes a look.
    let rise = |(left, right): (Key, Key)| right.is_whole() && left.0 < right.0;
    let keys = || heads().map(|(_, &key)| key);
    if !stretches.iter().all(|heads| heads.rise) && !keys().zip(keys().skip(1)).all(rise) {
        let mut seen: HashTable<Key> = HashTable::new();
        for (&row, key) in heads() {
            let key = key.at(row as usize);
            if seen.find(key.spread(), |seen| seen.agrees(key, questions)).is_some() {
                return None;
            }
            seen.insert_unique(key.spread(), key, |key| key.spread());
        }
    }
    Some(heads().map(|(&row, _)| row).chain([rows as u32]).collect())
}

/// The rows of a stretch that differ from the one before.
struct Heads {
    rows: Vec<u32>,
    keys: Vec<Key>,
    /// Whether they are texts, and each is above the one before.
    rise: bool,
}

impl Heads {
    /// `None` if they are many, or a question is missing.
    fn of(questions: &dyn Keys, rows: Range<usize>) -> Option<Self> {
        let (mut heads, mut keys, mut differ) = (Vec::new(), Vec::new(), Vec::new());
        for start in rows.clone().step_by(BATCH) {
            let end = rows.end.min(start + BATCH);
            differ.clear();
            questions.differ(start..end, &mut differ);
            for (abreast, first) in differ.chunks(ABREAST).zip((start as u32..).step_by(ABREAST)) {
                // Mostly none does: look for that first, without a branch.
                if abreast.iter().fold(false, |any, &differs| any | differs) {
                    let rows = (first..).zip(abreast).filter(|(_, differs)| **differs);
                    heads.extend(rows.map(|(row, _)| row));
                }
            }
            if heads.len() > (end - rows.start) / 4 + ABREAST {
                return None;
            }
        }
        questions.pick(&heads, &mut keys);
        let text = |row| questions.text(row);
        let rises = |&row: &u32| match row.checked_sub(1) {
            Some(before) => text(before as usize)
                .zip(text(row as usize))
                .is_some_and(|(left, right)| left < right),
            None => text(0).is_some(),
        };
        let rise = heads.iter().all(rises);
        (!keys.contains(&Key::MISSING)).then_some(Self { rows: heads, keys, rise })
    }
}
