//! Votes on many questions at once.

use std::hash::Hash;
use std::ops::Range;

use hashbrown::HashTable;
use rayon::prelude::*;

use super::booth::{BLOCK, Booth, Columns, FEW, Trace};
use super::key::{Key, Keys, Slice, optional, present};
use super::seen::Seen;
use super::{CHUNK, Rules, check_length};
use crate::error::Result;

/// How many rows a part should have, so that they stay in a core's own cache.
const PART: usize = 1 << 14;
/// More parts than this are more places than a processor likes to write to in turn.
const MOST_PARTS: usize = 1 << 10;
/// How many rows are handed to a part at a time.
const HAND: usize = 8;

/// The result of many votes, one entry a question, in order of first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Votes {
    /// The row where each question was first seen.
    pub question_rows: Vec<usize>,
    /// A row that holds the winning answer, the first that voted for it; `None` when nobody voted.
    pub answer_rows: Vec<Option<usize>>,
    /// V(â) / ΣV.
    pub share: Vec<f64>,
    /// How many traces voted.
    pub num_voters: Vec<i64>,
    /// Whether the filter was given up.
    pub fallback: Vec<bool>,
}

/// Votes on many questions at once: row i is a trace of `questions[i]` that answered `answers[i]`.
///
/// Rows may come in any order; the rows of a question are in launch order.
///
/// # Errors
/// As [`vote`](super::vote()), naming the row.
pub fn vote_many<Q, A>(questions: &[Q], answers: &[Option<A>], rules: &Rules<'_>) -> Result<Votes>
where
    Q: Eq + Hash + Sync,
    A: Eq + Hash + Sync,
{
    vote_columns(&Slice { values: questions, get: present }, &optional(answers), rules)
}

/// As [`vote_many`], on columns. A row without a question counts for none.
///
/// # Errors
/// As [`vote_many`].
pub fn vote_columns(
    questions: &(dyn Keys + Sync),
    answers: &(dyn Keys + Sync),
    rules: &Rules<'_>,
) -> Result<Votes> {
    check_length("answers", answers.rows(), "questions", questions.rows())?;
    rules.check(answers.rows())?;
    let columns = Columns { answers, weights: rules.weights, scores: rules.filter() };
    (0..answers.rows().div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| columns.check_weights(part_of(answers.rows(), CHUNK, chunk)))
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)?;
    let decided = match (runs(questions), columns.values()) {
        (Some(starts), 1) => decide_runs::<1>(&starts, &columns, rules),
        (Some(starts), _) => decide_runs::<2>(&starts, &columns, rules),
        (None, 1) => decide_parts::<1>(questions, &columns, rules),
        (None, _) => decide_parts::<2>(questions, &columns, rules),
    };
    Ok(Votes {
        question_rows: decided.iter().map(|d| d.question as usize).collect(),
        answer_rows: decided.iter().map(|d| d.answer).collect(),
        share: decided.iter().map(|d| d.share).collect(),
        num_voters: decided.iter().map(|d| d.num_voters as i64).collect(),
        fallback: decided.iter().map(|d| d.fallback).collect(),
    })
}

/// The winner of one question of many.
struct Decided {
    question: u32,
    num_voters: u32,
    answer: Option<usize>,
    share: f64,
    fallback: bool,
}

type Shared<'a> = Columns<'a, dyn Keys + Sync + 'a>;

fn decide<const N: usize>(
    booth: &mut Booth,
    question: u32,
    traces: &[Trace<N>],
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Decided {
    let outcome = booth.tally(traces, columns.answers, rules);
    let winner = booth.winner();
    Decided {
        question,
        num_voters: outcome.num_voters as u32,
        answer: winner.map(|ballot| ballot.first),
        share: outcome.share(winner),
        fallback: outcome.fallback,
    }
}

/// The rows of chunk `at` of `rows`, cut every `size`.
fn part_of(rows: usize, size: usize, at: usize) -> Range<usize> {
    at * size..rows.min((at + 1) * size)
}

/// Where each question starts, and the number of rows at the end, if the rows of each question
/// stand together.
fn runs(questions: &(dyn Keys + Sync)) -> Option<Vec<u32>> {
    let rows = questions.rows();
    let chunks = (0..rows.div_ceil(CHUNK)).into_par_iter();
    let chunks: Option<Vec<Vec<(Key, u32)>>> =
        chunks.map(|chunk| heads(questions, part_of(rows, CHUNK, chunk))).collect();
    let heads = chunks?.concat();
    let mut seen: HashTable<u32> = HashTable::with_capacity(heads.len());
    for (at, &(key, _)) in heads.iter().enumerate() {
        let is_it = |&at: &u32| heads[at as usize].0.agrees(key, questions);
        if seen.find(key.spread(), is_it).is_some() {
            return None;
        }
        seen.insert_unique(key.spread(), at as u32, |&at| heads[at as usize].0.spread());
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
    for start in rows.clone().step_by(BLOCK) {
        // The last of the block before stays at the front.
        let last = keys.len() - 1;
        keys.drain(..last);
        questions.keys(start..rows.end.min(start + BLOCK), &mut keys);
        for (few, first) in keys[1..].chunks(FEW).zip((0..).step_by(FEW)) {
            // Mostly all are as the one before: look for that first, without a branch.
            let before = keys[first];
            let differ = few.iter().fold(0, |all, key| all | (key.0 ^ before.0));
            if differ == 0 && before.is_whole() {
                continue;
            }
            for (at, &key) in (first..).zip(few) {
                let row = start + at;
                if key == Key::MISSING {
                    return None;
                }
                if key != keys[at] || !(key.is_whole() || questions.same(row - 1, row)) {
                    heads.push((key.at(row), row as u32));
                }
            }
        }
        if heads.len() > (start + keys.len() - 1 - rows.start) / 4 + FEW {
            return None;
        }
    }
    Some(heads)
}

fn decide_runs<const N: usize>(
    starts: &[u32],
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Vec<Decided> {
    let scratch = || (Booth::new(), Vec::new(), Vec::new());
    starts
        .par_windows(2)
        .with_min_len(FEW)
        .map_init(scratch, |(booth, keys, traces), ends| {
            traces.clear();
            columns.read::<N>(ends[0] as usize..ends[1] as usize, keys, None, traces);
            decide(booth, ends[0], traces, columns, rules)
        })
        .collect()
}

/// A row on its way to its question.
#[derive(Clone, Copy)]
struct Dealt<const N: usize> {
    question: Key,
    trace: Trace<N>,
}

fn decide_parts<const N: usize>(
    questions: &(dyn Keys + Sync),
    columns: &Shared<'_>,
    rules: &Rules<'_>,
) -> Vec<Decided> {
    let rows = questions.rows();
    let parts = (rows / PART).next_power_of_two().min(MOST_PARTS);
    let chunk = rows.div_ceil(2 * rayon::current_num_threads()).max(CHUNK);
    let chunks = (0..rows.div_ceil(chunk)).into_par_iter();
    let dealt: Vec<Vec<Vec<Dealt<N>>>> =
        chunks.map(|at| deal(questions, columns, part_of(rows, chunk, at), parts)).collect();
    let scratch = || (Booth::new(), Vec::new());
    let decided = (0..parts).into_par_iter().map_init(scratch, |(booth, traces), part| {
        let dealt = || dealt.iter().flat_map(|chunk| &chunk[part]);
        let (firsts, ends) = gather(dealt, questions, traces);
        let starts = [0].into_iter().chain(ends.iter().copied());
        let groups = firsts.iter().zip(starts.zip(&ends));
        groups
            .map(|(&first, (start, &end))| {
                decide(booth, first, &traces[start..end], columns, rules)
            })
            .collect::<Vec<_>>()
    });
    let mut decided: Vec<Decided> = decided.flatten_iter().collect();
    decided.par_sort_unstable_by_key(|decided| decided.question);
    decided
}

/// Puts rows into parts by their question.
fn deal<const N: usize>(
    questions: &dyn Keys,
    columns: &Shared<'_>,
    rows: Range<usize>,
    parts: usize,
) -> Vec<Vec<Dealt<N>>> {
    // A little more than the average, as parts differ.
    let room = rows.len() / parts;
    let mut dealt: Vec<Vec<Dealt<N>>> =
        (0..parts).map(|_| Vec::with_capacity(room + room / 8 + FEW)).collect();
    // Rows are handed over several at a time: a few long writes to memory, not many short ones.
    let blank = Dealt { question: Key::MISSING, trace: Trace::BLANK };
    let mut hands = vec![([blank; HAND], 0); parts];
    let (mut keys, mut traces, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    let (mut asked, mut answered) = (Seen::new(), Seen::new());
    for start in rows.clone().step_by(BLOCK) {
        let block = start..rows.end.min(start + BLOCK);
        keys.clear();
        traces.clear();
        questions.keys(block.clone(), &mut keys);
        asked.settle(&mut keys, start, questions);
        columns.read(block, &mut scratch, Some(&mut answered), &mut traces);
        for (&question, &trace) in keys.iter().zip(&traces) {
            if question == Key::MISSING {
                continue;
            }
            // The high bits choose the part, the low ones tell questions apart there.
            let hash = question.spread();
            let part = (u128::from(hash) * parts as u128) >> 64;
            let trace = Trace { tag: hash as u32, ..trace };
            let part = part as usize;
            let (hand, count) = &mut hands[part];
            hand[*count] = Dealt { question, trace };
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

/// Puts the traces of each question together, in launch order: the first row of each question, and
/// where its traces end.
fn gather<'a, const N: usize, I: Iterator<Item = &'a Dealt<N>>>(
    dealt: impl Fn() -> I,
    questions: &dyn Keys,
    traces: &mut Vec<Trace<N>>,
) -> (Vec<u32>, Vec<usize>) {
    let mut index: HashTable<(u32, u32)> = HashTable::new();
    let (mut keys, mut firsts, mut sizes): (Vec<Key>, Vec<u32>, Vec<usize>) = Default::default();
    let mut numbers: Vec<u32> = Vec::new();
    // Where a tag was found last: where to look first.
    let mut hints = [0_u32; 1 << 12];
    let hash = |tag: u32| u64::from(tag) << 32 | u64::from(tag);
    for Dealt { question, trace } in dealt() {
        let is_its =
            |at: u32| keys.get(at as usize).is_some_and(|key| key.agrees(*question, questions));
        let hint = &mut hints[trace.tag as usize % (1 << 12)];
        if !is_its(*hint) {
            *hint = match index.find(hash(trace.tag), |&(at, _)| is_its(at)) {
                Some(&(at, _)) => at,
                None => {
                    let at = keys.len() as u32;
                    index.insert_unique(hash(trace.tag), (at, trace.tag), |&(_, tag)| hash(tag));
                    keys.push(*question);
                    firsts.push(trace.row);
                    sizes.push(0);
                    at
                }
            };
        }
        let number = *hint;
        // With the row that the next one most likely has.
        keys[number as usize] = *question;
        sizes[number as usize] += 1;
        numbers.push(number);
    }
    let mut end = 0;
    let mut next: Vec<usize> = sizes
        .iter()
        .map(|size| {
            end += size;
            end - size
        })
        .collect();
    traces.clear();
    traces.resize(numbers.len(), Trace::BLANK);
    for (Dealt { trace, .. }, &number) in dealt().zip(&numbers) {
        let place = &mut next[number as usize];
        traces[*place] = *trace;
        *place += 1;
    }
    // Each question has been filled up to where the next one starts.
    (firsts, next)
}
