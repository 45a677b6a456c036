//! Votes on questions whose rows stand together: read where they are.

use std::ops::Range;

use hashbrown::HashTable;

use super::Rules;
use super::column::Keys;
use super::key::Key;
use super::many::{Decided, STRETCH, Shared, part_of};
use super::rows::{BATCH, Booth};
use crate::parallel;

/// How many keys are compared with the one before them at once.
const ABREAST: usize = 16;

/// The votes on the questions that start at `starts`, the last of which is the number of rows.
pub(super) fn decide(starts: &[u32], columns: &Shared<'_>, rules: &Rules<'_>) -> Vec<Decided> {
    parallel::map_with(starts.len() - 1, ABREAST, Booth::new, |booth, at| {
        let rows = starts[at] as usize..starts[at + 1] as usize;
        let outcome = booth.tally(rows, columns, rules);
        Decided::new(starts[at], &outcome, &booth.count)
    })
}

/// Where each question starts, and the number of rows at the end, if the rows of each question
/// stand together.
pub(super) fn starts(questions: &(dyn Keys + Sync)) -> Option<Vec<u32>> {
    let rows = questions.rows();
    let stretches =
        parallel::map(rows.div_ceil(STRETCH), |at| heads(questions, part_of(rows, STRETCH, at)));
    let heads = stretches.into_iter().collect::<Option<Vec<_>>>()?.concat();
    // Numbers that rise differ; of others it takes a look.
    let rise = |pair: &[(Key, u32)]| pair[1].0.is_whole() && pair[0].0.0 < pair[1].0.0;
    if !heads.windows(2).all(rise) {
        let mut seen: HashTable<u32> = HashTable::with_capacity(heads.len());
        for (at, &(key, _)) in heads.iter().enumerate() {
            let is_it = |&at: &u32| heads[at as usize].0.agrees(key, questions);
            if seen.find(key.spread(), is_it).is_some() {
                return None;
            }
            seen.insert_unique(key.spread(), at as u32, |&at| heads[at as usize].0.spread());
        }
    }
    Some(heads.iter().map(|&(_, row)| row).chain([rows as u32]).collect())
}

/// The rows of `rows` that differ from the one before, and their keys; `None` if those are many, or
/// a question is missing.
fn heads(questions: &dyn Keys, rows: Range<usize>) -> Option<Vec<(Key, u32)>> {
    let (mut heads, mut keys) = (Vec::new(), vec![Key::MISSING]);
    if rows.start > 0 {
        keys.clear();
        questions.keys(rows.start - 1..rows.start, &mut keys);
    }
    for start in rows.clone().step_by(BATCH) {
        // The last of those before stays at the front.
        let last = keys.len() - 1;
        keys.drain(..last);
        questions.keys(start..rows.end.min(start + BATCH), &mut keys);
        for (abreast, first) in keys[1..].chunks(ABREAST).zip((0..).step_by(ABREAST)) {
            // Mostly all are as the one before: look for that first, without a branch.
            let before = keys[first];
            let differ = abreast.iter().fold(0, |all, key| all | (key.0 ^ before.0));
            if differ == 0 && before.is_whole() {
                continue;
            }
            for (at, &key) in (first..).zip(abreast) {
                let row = start + at;
                if key == Key::MISSING {
                    return None;
                }
                if key != keys[at] || !(key.is_whole() || questions.same(row - 1, row)) {
                    heads.push((key.at(row), row as u32));
                }
            }
        }
        if heads.len() > (start + keys.len() - 1 - rows.start) / 4 + ABREAST {
            return None;
        }
    }
    Some(heads)
}
