//! Rows that stand anywhere, dealt to their questions.
//!
//! Each stretch of rows is sorted by part, some questions each; then the rows of each part by question. Both
//! fit the cache of a core, so that nothing is written to a random place in memory.

use std::ops::Range;

use super::many::{STRETCH, part_of};
use super::questions::Questions;
use super::rows::BATCH;
use crate::parallel;

/// How many rows a part should have, so that they stay in a core's own cache.
const PART: usize = 1 << 14;
/// Of more parts than this a stretch has but a few rows each.
const MOST_PARTS: usize = 1 << 10;

/// What is dealt.
pub(super) trait Deal {
    /// What is known of a row.
    type Row: Copy + Default + Send + Sync;

    /// Appends which of these rows are dealt; those of no question are not, whatever it says.
    fn wanted(&mut self, rows: Range<usize>, questions: &[u32], out: &mut Vec<bool>);

    /// Appends what is known of these rows.
    fn read(&mut self, rows: &[u32], out: &mut Vec<Self::Row>);
}

/// Deals the rows of all questions. Then `each` looks at every question in turn, and its rows in order; the
/// results are by part.
pub(super) fn deal<D: Deal, S, U: Send>(
    questions: &Questions,
    dealer: impl Fn() -> D + Send + Sync,
    scratch: impl Fn() -> S + Send + Sync,
    each: impl Fn(&mut S, usize, &mut [D::Row]) -> U + Send + Sync,
) -> Vec<Vec<U>> {
    let (rows, count) = (questions.rows(), questions.firsts().len());
    // Of how many questions a part is: a power of two, as the logarithm.
    let parts = (rows / PART).clamp(1, MOST_PARTS);
    let size = count.div_ceil(parts).next_power_of_two().trailing_zeros();
    let parts = count.div_ceil(1 << size);
    let dealer = || (dealer(), Picked::default(), Vec::new());
    let stretches = rows.div_ceil(STRETCH);
    // What a dealer has learned is lost with it.
    let least = stretches.div_ceil(2 * parallel::threads());
    let stretches = parallel::map_with(stretches, least, dealer, |(dealer, picked, known), at| {
        picked.pick(questions, part_of(rows, STRETCH, at), dealer);
        Stretch::sorted(picked, dealer, known, (parts, size))
    });
    let scratch = || (scratch(), Part::default());
    parallel::map_with(parts, 1, scratch, |(scratch, gathered), part| {
        let first = part << size;
        gathered.ends.resize(count.min(first + (1 << size)) - first, 0);
        gathered.gather(|| stretches.iter().flat_map(|stretch| stretch.part(part)), first);
        let Part { rows, ends } = gathered;
        let mut start = 0;
        let each = |(question, &end): (usize, &u32)| {
            let span = std::mem::replace(&mut start, end as usize)..end as usize;
            each(scratch, question, &mut rows[span])
        };
        (first..).zip(&*ends).map(each).collect()
    })
}

/// The rows of a stretch that are dealt.
#[derive(Default)]
struct Picked {
    rows: Vec<u32>,
    questions: Vec<u32>,
    wanted: Vec<bool>,
    numbers: Vec<u32>,
}

impl Picked {
    fn pick(&mut self, questions: &Questions, rows: Range<usize>, dealer: &mut impl Deal) {
        self.rows.resize(rows.len(), 0);
        self.questions.resize(rows.len(), 0);
        let mut end = 0;
        for start in rows.clone().step_by(BATCH) {
            let rows = start..rows.end.min(start + BATCH);
            self.numbers.clear();
            questions.of(rows.clone(), &mut self.numbers);
            self.wanted.clear();
            dealer.wanted(rows.clone(), &self.numbers, &mut self.wanted);
            // Which are wanted is hard to guess, so nothing branches on it.
            for ((row, &question), &wanted) in rows.zip(&self.numbers).zip(&self.wanted) {
                (self.rows[end], self.questions[end]) = (row as u32, question);
                end += usize::from(wanted & (question != Questions::NONE));
            }
        }
        self.rows.truncate(end);
        self.questions.truncate(end);
    }
}

/// What is known of a row, on its way to its question.
#[derive(Clone, Copy, Default)]
#[repr(Rust, packed(4))]
struct Dealt<T: Copy> {
    question: u32,
    with: T,
}

/// What is dealt of a stretch, sorted by part.
struct Stretch<T: Copy> {
    dealt: Vec<Dealt<T>>,
    /// Where each part ends.
    ends: Vec<u32>,
}

impl<T: Copy + Default> Stretch<T> {
    fn sorted(
        picked: &Picked,
        dealer: &mut impl Deal<Row = T>,
        known: &mut Vec<T>,
        (parts, size): (usize, u32),
    ) -> Self {
        let mut ends = vec![0; parts];
        let mut dealt = vec![Dealt::default(); picked.rows.len()];
        count(&mut ends, picked.questions.iter().map(|question| question >> size));
        for (rows, questions) in picked.rows.chunks(BATCH).zip(picked.questions.chunks(BATCH)) {
            known.clear();
            dealer.read(rows, known);
            for (&question, &with) in questions.iter().zip(&*known) {
                dealt[next(&mut ends, question >> size)] = Dealt { question, with };
            }
        }
        Self { dealt, ends }
    }

    fn part(&self, part: usize) -> &[Dealt<T>] {
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.dealt[start as usize..self.ends[part] as usize]
    }
}

/// The rows of a part, those of each question together and in order.
#[derive(Default)]
struct Part<T> {
    rows: Vec<T>,
    /// Where the rows of each question end.
    ends: Vec<u32>,
}

impl<T: Copy + Default> Part<T> {
    fn gather<'a, I: Iterator<Item = &'a Dealt<T>>>(&mut self, dealt: impl Fn() -> I, first: usize)
    where
        T: 'a,
    {
        let Self { rows, ends } = self;
        let question = |dealt: &Dealt<T>| dealt.question - first as u32;
        rows.resize(count(ends, dealt().map(question)), T::default());
        for dealt in dealt() {
            rows[next(ends, question(dealt))] = dealt.with;
        }
    }
}

/// Where each of these values starts once they are sorted, and how many there are.
fn count(starts: &mut [u32], values: impl Iterator<Item = u32>) -> usize {
    starts.fill(0);
    values.for_each(|value| starts[value as usize] += 1);
    let mut end = 0;
    for start in starts {
        end += *start;
        *start = end - *start;
    }
    end as usize
}

/// The next place of a value. When all have theirs, what started where a value does ends there.
#[inline]
fn next(starts: &mut [u32], value: u32) -> usize {
    let place = &mut starts[value as usize];
    *place += 1;
    *place as usize - 1
}
