//! Votes on questions whose rows stand anywhere: dealt to parts by the hash of their question.

use std::ops::Range;

use hashbrown::HashTable;

use super::Rules;
use super::column::Keys;
use super::count::Cast;
use super::intern::Interner;
use super::key::Key;
use super::many::{Decided, STRETCH, Shared, part_of};
use super::rows::{BATCH, Booth, rank};
use crate::parallel;

/// How many rows a part should have, so that they stay in a core's own cache.
const PART: usize = 1 << 14;
/// More parts than this are more places than a processor likes to write to in turn.
const MOST_PARTS: usize = 1 << 10;
/// How many rows are handed to a part at a time.
const HAND: usize = 8;
/// How many tags are remembered with the number of their question.
const HINTS: usize = 1 << 12;

/// A row on its way to its question, with what is known of it.
#[derive(Clone, Copy)]
struct Dealt<T> {
    question: Key,
    row: u32,
    /// A hash of the question.
    tag: u32,
    with: T,
}

/// The votes on all questions, in order of first appearance.
pub(super) fn decide(
    questions: &(dyn Keys + Sync),
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Vec<Decided> {
    let mut decided = if columns.scores.is_some() {
        // With its score alone: of those that are not kept, nothing else is asked for.
        let read = || {
            let mut answered = Vec::new();
            move |rows: Range<usize>, out: &mut Vec<f64>| {
                rank(rows, columns, rules.over_all, &mut answered, out);
            }
        };
        by_parts(questions, f64::NAN, read, |booth, rows, scores| {
            let outcome = booth.top(rows, scores, columns, rules);
            Decided::new(rows[0], &outcome, &booth.count)
        })
    } else {
        let read = || {
            let (mut keys, mut interner) = (Vec::new(), Interner::new());
            move |rows: Range<usize>, out: &mut Vec<(Key, f64)>| {
                keys.clear();
                columns.answers.keys(rows.clone(), &mut keys);
                interner.settle(&mut keys, rows.start, columns.answers);
                out.extend(rows.zip(&keys).map(|(row, &key)| (key, columns.weight(row))));
            }
        };
        by_parts(questions, (Key::MISSING, 0.0), read, |booth, rows, votes| {
            let votes = rows.iter().zip(votes);
            let votes = votes.map(|(&row, &(key, weight))| Cast { key, row, weight });
            let outcome = booth.count.count(votes, columns.answers);
            Decided::new(rows[0], &outcome, &booth.count)
        })
    };
    // Stable, for it makes use of the order that parts have already.
    decided.sort_by_key(|decided| decided.question);
    decided
}

/// Deals all rows with what `read` says of them; then `vote` on the rows of each question.
fn by_parts<T: Copy + Send + Sync, R: FnMut(Range<usize>, &mut Vec<T>)>(
    questions: &(dyn Keys + Sync),
    blank: T,
    read: impl Fn() -> R + Send + Sync,
    vote: impl Fn(&mut Booth, &[u32], &[T]) -> Decided + Send + Sync,
) -> Vec<Decided> {
    let rows = questions.rows();
    let parts = (rows / PART).next_power_of_two().min(MOST_PARTS);
    let share = rows.div_ceil(2 * parallel::threads()).max(STRETCH);
    let dealt: Vec<Vec<Vec<Dealt<T>>>> = parallel::map(rows.div_ceil(share), |at| {
        deal(questions, part_of(rows, share, at), parts, blank, read())
    });
    let scratch = || (Booth::new(), Gathered::new());
    let decided = parallel::map_with(parts, 1, scratch, |(booth, gathered), part| {
        let dealt = || dealt.iter().flat_map(|share| &share[part]);
        gathered.gather(dealt, questions, blank);
        let starts = [0].into_iter().chain(gathered.ends.iter().copied());
        let spans = starts.zip(&gathered.ends).map(|(start, &end)| start..end);
        let votes = spans.map(|of| vote(booth, &gathered.rows[of.clone()], &gathered.with[of]));
        votes.collect::<Vec<_>>()
    });
    decided.concat()
}

/// Puts rows into parts by their question.
fn deal<T: Copy>(
    questions: &dyn Keys,
    rows: Range<usize>,
    parts: usize,
    blank: T,
    mut read: impl FnMut(Range<usize>, &mut Vec<T>),
) -> Vec<Vec<Dealt<T>>> {
    // A little more than the average, as parts differ.
    let room = rows.len() / parts;
    let mut dealt: Vec<Vec<Dealt<T>>> =
        (0..parts).map(|_| Vec::with_capacity(room + room / 8 + HAND)).collect();
    // Rows are handed over several at a time: a few long writes to memory, not many short ones.
    let blank = Dealt { question: Key::MISSING, row: 0, tag: 0, with: blank };
    let mut hands = vec![([blank; HAND], 0); parts];
    let (mut keys, mut all, mut interner) = (Vec::new(), Vec::new(), Interner::new());
    for start in rows.clone().step_by(BATCH) {
        let batch = start..rows.end.min(start + BATCH);
        keys.clear();
        all.clear();
        questions.keys(batch.clone(), &mut keys);
        interner.settle(&mut keys, start, questions);
        read(batch.clone(), &mut all);
        for ((row, &question), &with) in batch.zip(&keys).zip(&all) {
            if question == Key::MISSING {
                continue;
            }
            // The high bits choose the part, the low ones tell questions apart there.
            let hash = question.spread();
            let part = ((u128::from(hash) * parts as u128) >> 64) as usize;
            let (hand, count) = &mut hands[part];
            hand[*count] = Dealt { question, row: row as u32, tag: hash as u32, with };
            *count += 1;
            if *count == HAND {
                dealt[part].extend_from_slice(hand);
                *count = 0;
            }
        }
    }
    for (dealt, (hand, count)) in dealt.iter_mut().zip(hands) {
        dealt.extend_from_slice(&hand[..count]);
    }
    dealt
}

/// The rows of a part, those of each question together and in launch order.
struct Gathered<T> {
    rows: Vec<u32>,
    with: Vec<T>,
    /// Where the rows of each question end.
    ends: Vec<usize>,
    /// The question of each row that was dealt.
    numbers: Vec<u32>,
    /// Where a tag was found last: where to look first.
    hints: Vec<u32>,
}

impl<T: Copy> Gathered<T> {
    fn new() -> Self {
        let hints = vec![0; HINTS];
        Self { rows: Vec::new(), with: Vec::new(), ends: Vec::new(), numbers: Vec::new(), hints }
    }

    fn gather<'a, I: Iterator<Item = &'a Dealt<T>>>(
        &mut self,
        dealt: impl Fn() -> I,
        questions: &dyn Keys,
        blank: T,
    ) where
        T: 'a,
    {
        let mut index: HashTable<(u32, u32)> = HashTable::new();
        let mut keys: Vec<Key> = Vec::new();
        let Self { rows, with, ends, numbers, hints } = self;
        ends.clear();
        numbers.clear();
        let hash = |tag: u32| u64::from(tag) << 32 | u64::from(tag);
        for &Dealt { question, tag, .. } in dealt() {
            let is_its =
                |at: u32| keys.get(at as usize).is_some_and(|key| key.agrees(question, questions));
            let hint = &mut hints[tag as usize % HINTS];
            if !is_its(*hint) {
                *hint = match index.find(hash(tag), |&(at, _)| is_its(at)) {
                    Some(&(at, _)) => at,
                    None => {
                        let at = keys.len() as u32;
                        index.insert_unique(hash(tag), (at, tag), |&(_, tag)| hash(tag));
                        keys.push(question);
                        ends.push(0);
                        at
                    }
                };
            }
            let number = *hint as usize;
            // With the row that the next one most likely has.
            keys[number] = question;
            ends[number] += 1;
            numbers.push(number as u32);
        }
        // Where each question starts; filled up to where the next one does.
        let mut end = 0;
        for size in ends.iter_mut() {
            end += *size;
            *size = end - *size;
        }
        rows.resize(numbers.len(), 0);
        with.resize(numbers.len(), blank);
        for (dealt, &number) in dealt().zip(&*numbers) {
            let place = &mut ends[number as usize];
            (rows[*place], with[*place]) = (dealt.row, dealt.with);
            *place += 1;
        }
    }
}
