//! The questions of rows that stand anywhere, by number.

use std::ops::Range;

use super::column::Keys;
use super::many::{STRETCH, part_of};
use super::number::Numbers;
use super::rows::BATCH;
use crate::parallel;

/// So many rows say how far the questions are from each other, if they are integers.
const SAMPLE: usize = 1024;

/// All rows, by the numbers of their questions, which are in order of first appearance.
pub(super) struct Questions {
    rows: usize,
    /// How many rows a share has: whole stretches.
    share: usize,
    /// What each thread numbered, and what number of all each of its numbers has; the first's are those.
    shares: Vec<(Vec<u32>, Vec<u32>)>,
    firsts: Vec<u32>,
}

impl Questions {
    /// The number of a row without a question.
    pub(super) const NONE: u32 = Numbers::NONE;

    pub(super) fn number(questions: &(dyn Keys + Sync)) -> Self {
        let rows = questions.rows();
        let share = rows.div_ceil(parallel::threads()).max(1).next_multiple_of(STRETCH);
        let (mut sample, every) = (Vec::new(), rows / SAMPLE + 1);
        questions.pick(&(0..rows as u32).step_by(every).collect::<Vec<_>>(), &mut sample);
        let mut seen = parallel::map(rows.div_ceil(share), |at| {
            let rows = part_of(rows, share, at);
            let (mut seen, mut keys) = (Numbers::of(&sample, rows.len()), Vec::new());
            let (mut numbers, mut firsts) = (Vec::with_capacity(rows.len()), Vec::new());
            for start in rows.clone().step_by(BATCH) {
                keys.clear();
                questions.keys(start..rows.end.min(start + BATCH), &mut keys);
                keys.iter_mut().zip(start..).for_each(|(key, row)| *key = key.at(row));
                seen.number(&keys, questions, &mut numbers);
                add_new(&mut firsts, &numbers[start - rows.start..], start as u32..);
            }
            (seen, firsts, numbers)
        })
        .into_iter();
        let (mut all, mut firsts, numbers) =
            seen.next().unwrap_or_else(|| (Numbers::new(), Vec::new(), Vec::new()));
        let mut shares = vec![(numbers, Vec::new())];
        for (seen, rows, numbers) in seen {
            let mut of_all = Vec::with_capacity(rows.len());
            all.number(seen.keys(), questions, &mut of_all);
            add_new(&mut firsts, &of_all, rows.into_iter());
            shares.push((numbers, of_all));
        }
        Self { rows, share, shares, firsts }
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The first row of each question.
    pub(super) fn firsts(&self) -> &[u32] {
        &self.firsts
    }

    /// Appends the numbers of the questions of `rows`, which are of one stretch.
    pub(super) fn of(&self, rows: Range<usize>, out: &mut Vec<u32>) {
        let at = rows.start / self.share;
        let (numbers, of_all) = &self.shares[at];
        let numbers = &numbers[rows.start - at * self.share..][..rows.len()];
        if at == 0 {
            return out.extend_from_slice(numbers);
        }
        let of_all = |&number: &u32| of_all.get(number as usize).copied();
        out.extend(numbers.iter().map(|number| of_all(number).unwrap_or(Self::NONE)));
    }
}

/// Adds the rows of those numbers that are new.
fn add_new(firsts: &mut Vec<u32>, numbers: &[u32], rows: impl Iterator<Item = u32>) {
    for (&number, row) in numbers.iter().zip(rows) {
        if number as usize == firsts.len() {
            firsts.push(row);
        }
    }
}
