//! Votes on questions whose rows stand anywhere: dealt to parts by the number of their question.

use std::ops::Range;

use super::Rules;
use super::column::Keys;
use super::count::Cast;
use super::key::Key;
use super::many::{Decided, STRETCH, Shared, part_of};
use super::number::Numbers;
use super::rows::{BATCH, Booth, rank};
use crate::parallel;

/// How many rows a part should have, so that they stay in a core's own cache.
const PART: usize = 1 << 14;
/// More parts than this are more places than a processor likes to write to in turn.
const MOST_PARTS: usize = 1 << 10;

/// A row on its way to its question, with what is known of it.
#[derive(Clone, Copy)]
struct Dealt<T> {
    question: u32,
    row: u32,
    with: T,
}

/// A share of the rows, by the numbers of their questions.
struct Numbered {
    /// The number of each row's question, in order of first appearance in the share.
    rows: Vec<u32>,
    /// What number of all each of those has.
    of_all: Vec<u32>,
}

/// The votes on all questions, in order of first appearance.
pub(super) fn decide(
    questions: &(dyn Keys + Sync),
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Vec<Decided> {
    if columns.scores.is_some() {
        // With its score alone: of those that are not kept, nothing else is asked for.
        let read = || {
            let mut answered = Vec::new();
            move |rows: Range<usize>, out: &mut Vec<f64>| {
                rank(rows, columns, rules.over_all, &mut answered, out);
            }
        };
        return by_parts(questions, f64::NAN, read, |booth, gathered| {
            booth.top_of_each(gathered.questions(), columns, rules)
        });
    }
    let read = || {
        let (mut keys, mut answers) = (Vec::new(), Answers::new());
        move |rows: Range<usize>, out: &mut Vec<(Key, f64)>| {
            keys.clear();
            columns.answers.keys(rows.clone(), &mut keys);
            answers.settle(&mut keys, rows.start, columns.answers);
            out.extend(rows.zip(&keys).map(|(row, &key)| (key, columns.weight(row))));
        }
    };
    by_parts(questions, (Key::MISSING, 0.0), read, |booth, gathered| {
        let votes = gathered.questions().map(|(rows, votes)| {
            let cast = rows.iter().zip(votes);
            let cast = cast.map(|(&row, &(key, weight))| Cast { key, row, weight });
            let outcome = booth.count.count(cast, columns.answers);
            Decided::new(rows[0], &outcome, &booth.count)
        });
        votes.collect()
    })
}

/// Answers whose keys are hashes, and a row of each.
struct Answers {
    seen: Numbers,
    hashes: Vec<Key>,
    numbers: Vec<u32>,
}

impl Answers {
    /// At most so many: more would be more than the caches hold.
    const MOST: usize = 1 << 17;

    fn new() -> Self {
        Self { seen: Numbers::new(), hashes: Vec::new(), numbers: Vec::new() }
    }

    /// Gives each key that is a hash a row of its value: the same for the same value, so that they are
    /// compared no more. The keys are those of the rows from `first` on.
    fn settle(&mut self, keys: &mut [Key], first: usize, answers: &(impl Keys + ?Sized)) {
        keys.iter_mut().zip(first..).for_each(|(key, row)| *key = key.at(row));
        if self.seen.keys().len() > Self::MOST {
            return;
        }
        let hashed = |key: &Key| !key.is_whole() && *key != Key::MISSING;
        self.hashes.clear();
        self.hashes.extend(keys.iter().copied().filter(hashed));
        self.numbers.clear();
        self.seen.number(&self.hashes, answers, &mut self.numbers);
        let settled = self.numbers.iter().map(|&number| self.seen.keys()[number as usize]);
        keys.iter_mut().filter(|key| hashed(key)).zip(settled).for_each(|(key, one)| *key = one);
    }
}

/// Deals all rows with what `read` says of them; then `vote` on the questions of each part.
fn by_parts<T: Copy + Send + Sync, R: FnMut(Range<usize>, &mut Vec<T>)>(
    questions: &(dyn Keys + Sync),
    blank: T,
    read: impl Fn() -> R + Send + Sync,
    vote: impl Fn(&mut Booth, &Gathered<T>) -> Vec<Decided> + Send + Sync,
) -> Vec<Decided> {
    let rows = questions.rows();
    let share = rows.div_ceil(parallel::threads()).max(STRETCH);
    let (numbers, count) = numbers(questions, rows, share);
    // Of how many questions a part is: a power of two, as the logarithm.
    let parts = (rows / PART).clamp(1, MOST_PARTS);
    let size = count.div_ceil(parts).next_power_of_two().trailing_zeros();
    let parts = count.div_ceil(1 << size);
    let dealt: Vec<Vec<Vec<Dealt<T>>>> = parallel::map(numbers.len(), |at| {
        deal(&numbers[at], part_of(rows, share, at), (parts, size), read())
    });
    drop(numbers);
    let scratch = || (Booth::new(), Gathered::new());
    let decided = parallel::map_with(parts, 1, scratch, |(booth, gathered), part| {
        let dealt = || dealt.iter().flat_map(|share| &share[part]);
        let first = part << size;
        gathered.gather(dealt, first as u32..count.min(first + (1 << size)) as u32, blank);
        vote(booth, gathered)
    });
    decided.concat()
}

/// The numbers of all rows' questions, share by share, and how many questions there are.
fn numbers(questions: &(dyn Keys + Sync), rows: usize, share: usize) -> (Vec<Numbered>, usize) {
    let mut shares = parallel::map(rows.div_ceil(share), |at| {
        let rows = part_of(rows, share, at);
        let (mut seen, mut keys) = (Numbers::new(), Vec::new());
        let mut numbers = Vec::with_capacity(rows.len());
        for start in rows.clone().step_by(BATCH) {
            keys.clear();
            questions.keys(start..rows.end.min(start + BATCH), &mut keys);
            keys.iter_mut().zip(start..).for_each(|(key, row)| *key = key.at(row));
            seen.number(&keys, questions, &mut numbers);
        }
        (numbers, seen)
    })
    .into_iter();
    let Some((numbers, mut all)) = shares.next() else { return (Vec::new(), 0) };
    let of_all = (0..all.keys().len() as u32).collect();
    let mut numbered = vec![Numbered { rows: numbers, of_all }];
    for (numbers, seen) in shares {
        let mut of_all = Vec::with_capacity(seen.keys().len());
        all.number(seen.keys(), questions, &mut of_all);
        numbered.push(Numbered { rows: numbers, of_all });
    }
    let count = all.keys().len();
    (numbered, count)
}

/// Puts rows into parts by the number of their question.
fn deal<T: Copy>(
    numbered: &Numbered,
    rows: Range<usize>,
    (parts, size): (usize, u32),
    mut read: impl FnMut(Range<usize>, &mut Vec<T>),
) -> Vec<Vec<Dealt<T>>> {
    // A little more than the average, as parts differ.
    let room = rows.len() / parts.max(1);
    let mut dealt: Vec<Vec<Dealt<T>>> =
        (0..parts).map(|_| Vec::with_capacity(room + room / 8)).collect();
    let mut all = Vec::new();
    for (start, numbers) in rows.clone().step_by(BATCH).zip(numbered.rows.chunks(BATCH)) {
        all.clear();
        read(start..start + numbers.len(), &mut all);
        for ((row, &number), &with) in (start..).zip(numbers).zip(&all) {
            if number != Numbers::NONE {
                let question = numbered.of_all[number as usize];
                dealt[(question >> size) as usize].push(Dealt { question, row: row as u32, with });
            }
        }
    }
    dealt
}

/// The rows of a part, those of each question together and in launch order.
struct Gathered<T> {
    rows: Vec<u32>,
    with: Vec<T>,
    /// Where the rows of each question end.
    ends: Vec<usize>,
}

impl<T: Copy> Gathered<T> {
    fn new() -> Self {
        Self { rows: Vec::new(), with: Vec::new(), ends: Vec::new() }
    }

    /// Takes the rows of the questions of these numbers.
    fn gather<'a, I: Iterator<Item = &'a Dealt<T>>>(
        &mut self,
        dealt: impl Fn() -> I,
        questions: Range<u32>,
        blank: T,
    ) where
        T: 'a,
    {
        let Self { rows, with, ends } = self;
        ends.clear();
        ends.resize(questions.len(), 0);
        dealt().for_each(|dealt| ends[(dealt.question - questions.start) as usize] += 1);
        // Where each question starts; filled up to where the next one does.
        let mut end = 0;
        for size in ends.iter_mut() {
            end += *size;
            *size = end - *size;
        }
        rows.resize(end, 0);
        with.resize(end, blank);
        dealt().for_each(|dealt| {
            let place = &mut ends[(dealt.question - questions.start) as usize];
            (rows[*place], with[*place]) = (dealt.row, dealt.with);
            *place += 1;
        });
    }

    /// The rows of each question, and what is known of them.
    fn questions(&self) -> impl Iterator<Item = (&[u32], &[T])> + Clone {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let spans = starts.zip(&self.ends).map(|(start, &end)| start..end);
        spans.map(|span| (&self.rows[span.clone()], &self.with[span]))
    }
}
