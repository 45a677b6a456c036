//! Filtering and voting: which traces are kept, and which answer wins.
//!
//! A trace votes when it has an answer and its score reaches the threshold: the linearly
//! interpolated percentile 100·(1 − η) of the scores, for keep η. An answer's ballots add up the
//! weights of the traces that gave it; ties go to the answer seen first, in launch order.
//!
//! ```
//! use deepconf_core::vote::{Rules, vote};
//!
//! let answers = [Some("7"), Some("8"), Some("8"), None, Some("7")];
//! let scores = [9.0, 2.0, 3.0, 9.5, 8.0];
//! let majority = vote(&answers, &Rules::default())?;
//! assert_eq!(majority.ballots[0].first, 0); // two votes each: "7" was seen first
//! let top_half = vote(&answers, &Rules { keep: 0.5, scores: Some(&scores), ..Rules::default() })?;
//! assert_eq!((top_half.num_voters, top_half.share), (2, 1.0));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Many questions.** [`vote_many`] takes slices, [`vote_columns`] anything that hands out
//! [`Keys`], such as an Arrow array in place. Rows are told apart by 16-byte [`Key`]s. A key holds
//! the value itself if that is an integer or a text of up to fifteen bytes; otherwise it is a hash,
//! and rows whose keys agree are compared, so a collision costs time and never a wrong count. The
//! hash has a fixed seed: somebody who picks texts that collide can slow a vote down, no more.
//!
//! **Cost.** Of n rows:
//!
//! | step | what it costs |
//! |---|---|
//! | checks | one read of weights and scores, without a branch |
//! | are questions together? | a key a row, against the row before; soon given up if not |
//! | if so | nothing: each question's traces are read where they stand |
//! | if not | 48 bytes a row (64 with weights and scores apart), written and read once |
//! | threshold | a quickselect over the question's scores |
//! | count | a hint by six bits of the key says which ballot it was the last time |
//! | … the hint is wrong | a look through the ballots, in a hash table from the seventeenth on |
//!
//! Rows that are not together are dealt to parts by the hash of their question. A part fits the
//! cache of a core, which numbers its questions and sorts its rows there. Only texts of more than
//! fifteen bytes are looked up once more, row by row at random places in memory, to be sure that
//! they are the same: this can double the time.
//!
//! Parts and questions go in parallel. The traces of a question are always taken in launch order,
//! and by one thread, so that every sum is the same whatever the number of threads.

use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use rayon::prelude::*;

use crate::error::{Error, Place, Result};

/// How many rows a column is asked for at a time.
const BLOCK: usize = 1024;
/// How many rows one thread looks through at a time.
const CHUNK: usize = 1 << 16;
/// How many rows a part should have, so that they stay in a core's own cache.
const PART: usize = 1 << 14;
/// More parts than this are more places than a processor likes to write to in turn.
const MOST_PARTS: usize = 1 << 10;
/// How many rows are handed to a part at a time.
const HAND: usize = 8;
/// Up to so many distinct answers are looked through one by one.
const FEW: usize = 16;

/// What tells the values of a column apart, in 16 bytes.
///
/// ```
/// use deepconf_core::vote::Key;
/// let buffer = b"forty-two, or 42";
/// assert_eq!(Key::text(buffer, 14..16), Key::text(b"42", 0..2));
/// assert!(Key::text(buffer, 0..15).is_whole() && !Key::text(buffer, 0..16).is_whole());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key(u128);

/// For each length, the bytes of a text that long, and its length where a key has it.
const SHORT: [(u128, u128); 16] = {
    let mut table = [(0, 0); 16];
    let mut len = 0;
    while len < 16 {
        table[len] = ((1 << (8 * len)) - 1, (len as u128) << 120);
        len += 1;
    }
    table
};

impl Key {
    /// The key of a row without a value.
    pub const MISSING: Self = Self(u128::MAX);
    /// Says that the key is a hash.
    const HASHED: u128 = 1 << 127;

    /// The key of an integer; it holds all of it.
    #[must_use]
    pub fn integer(value: u64) -> Self {
        Self(u128::from(value))
    }

    /// The key of any value, by its hash.
    #[must_use]
    pub fn hash(value: impl Hash) -> Self {
        Self(Self::HASHED | u128::from(FixedState::default().hash_one(value)))
    }

    /// The key of a text, the bytes `text` of a buffer; it holds all of up to fifteen bytes.
    ///
    /// # Panics
    /// When `text` does not lie in the buffer.
    #[inline]
    #[must_use]
    pub fn text(buffer: &[u8], text: Range<usize>) -> Self {
        let len = text.len();
        if len > 15 {
            let mut hasher = FixedState::default().build_hasher();
            hasher.write(&buffer[text]);
            return Self(Self::HASHED | u128::from(hasher.finish()));
        }
        match buffer[text.start..].first_chunk() {
            Some(bytes) => Self::short(u128::from_le_bytes(*bytes), len),
            None => {
                let bytes = buffer[text].iter().rev();
                Self::short(bytes.fold(0, |all, &byte| all << 8 | u128::from(byte)), len)
            }
        }
    }

    /// The key of a text of `len` bytes: the lowest of `bytes`.
    ///
    /// # Panics
    /// When `len` is over fifteen.
    #[inline]
    #[must_use]
    pub fn short(bytes: u128, len: usize) -> Self {
        let (mask, length) = SHORT[len];
        Self(bytes & mask | length)
    }

    /// As [`Key::short`], of bytes that are zero beyond the text, which has at most fifteen.
    #[inline]
    #[must_use]
    pub fn padded(bytes: u128, len: u8) -> Self {
        Self(bytes | u128::from(len) << 120)
    }

    /// This key, or [`Key::MISSING`].
    #[inline]
    #[must_use]
    pub fn unless(self, missing: bool) -> Self {
        Self(self.0 | u128::from(missing).wrapping_neg())
    }

    /// Whether the key holds the value itself, so that equal keys are equal values.
    #[inline]
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.0 & Self::HASHED == 0
    }

    /// Six bits.
    #[inline]
    fn hint(self) -> usize {
        let folded = self.0 as u64 ^ (self.0 >> 64) as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
    }

    /// A hash, good in every bit.
    fn spread(self) -> u64 {
        FixedState::default().hash_one(self.0)
    }
}

/// A column of questions or of answers.
pub trait Keys {
    /// How many rows it has.
    fn rows(&self) -> usize;

    /// Appends a key for each of `rows`. Equal values have equal keys.
    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>);

    /// Whether two rows whose keys are equal, but not whole, hold the same value.
    fn same(&self, left: usize, right: usize) -> bool;
}

/// Values in memory, each of which may be missing.
struct Slice<'a, T, F> {
    values: &'a [T],
    get: F,
}

impl<T, K: Eq + Hash, F: Fn(&T) -> Option<&K>> Keys for Slice<'_, T, F> {
    fn rows(&self) -> usize {
        self.values.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        let values = self.values[rows].iter().map(&self.get);
        out.extend(values.map(|value| value.map_or(Key::MISSING, Key::hash)));
    }

    fn same(&self, left: usize, right: usize) -> bool {
        (self.get)(&self.values[left]) == (self.get)(&self.values[right])
    }
}

fn present<Q>(question: &Q) -> Option<&Q> {
    Some(question)
}

fn optional<A: Eq + Hash>(
    values: &[Option<A>],
) -> Slice<'_, Option<A>, impl Fn(&Option<A>) -> Option<&A>> {
    Slice { values, get: Option::as_ref }
}

/// How a vote is taken.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// One weight a trace, finite and at least 0; `None` counts heads.
    pub weights: Option<&'a [f64]>,
    /// η: the fraction of traces to keep, in (0, 1]. 1 keeps all.
    pub keep: f64,
    /// What `keep` filters on, one a trace; the weights when `None`. NaN marks a trace without
    /// tokens, which never votes when there is a filter.
    pub scores: Option<&'a [f64]>,
    /// With fewer voters left the filter is given up.
    pub min_ballots: usize,
    /// Whether the percentile is taken over traces without an answer too, as the paper has it.
    pub over_all: bool,
}

impl Default for Rules<'_> {
    fn default() -> Self {
        Self { weights: None, keep: 1.0, scores: None, min_ballots: 1, over_all: false }
    }
}

/// What an answer got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ballot {
    /// The first voter that gave this answer.
    pub first: usize,
    /// V(a), the sum of the weights.
    pub weight: f64,
    /// How many traces voted for it.
    pub voters: usize,
}

/// The outcome of a vote.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    /// The heaviest first; ties in the order seen.
    pub ballots: Vec<Ballot>,
    /// V(â) / ΣV: the winner's share; 0 when nobody voted or all weights are 0.
    pub share: f64,
    /// How many traces voted.
    pub num_voters: usize,
    /// The score that had to be reached; `None` without a filter.
    pub threshold: Option<f64>,
    /// Whether the filter left too few voters and was given up.
    pub fallback: bool,
}

impl Vote {
    /// The ballots of the answer that won; `None` when nobody voted.
    #[must_use]
    pub fn winner(&self) -> Option<&Ballot> {
        self.ballots.first()
    }
}

/// Votes on one question: `answers[i]` is what trace i answered, `None` for nothing.
///
/// # Errors
/// [`Error::Length`], [`Error::Weight`], [`Error::Setting`] for `keep`, or when there is a filter
/// and nothing to filter on.
pub fn vote<A: Eq + Hash>(answers: &[Option<A>], rules: &Rules<'_>) -> Result<Vote> {
    vote_column(&optional(answers), rules)
}

/// As [`vote`], on a column.
///
/// # Errors
/// As [`vote`].
pub fn vote_column(answers: &dyn Keys, rules: &Rules<'_>) -> Result<Vote> {
    rules.check(answers.rows())?;
    let columns = Columns { answers, weights: rules.weights, scores: rules.filter() };
    columns.check_weights(0..answers.rows())?;
    let mut traces: Vec<Trace<2>> = Vec::new();
    columns.read(0..answers.rows(), &mut Vec::new(), &mut traces);
    let mut booth = Booth::new();
    let outcome = booth.tally(&traces, answers, rules);
    Ok(booth.vote(&outcome))
}

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
/// As [`vote`], naming the row.
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

impl Rules<'_> {
    fn check(&self, len: usize) -> Result<()> {
        check_keep(self.keep)?;
        if u32::try_from(len).is_err() {
            return Err(Error::setting("answers", len, "at most 4,294,967,295 rows at a time"));
        }
        for (name, column) in [("weights", self.weights), ("scores", self.scores)] {
            if let Some(column) = column {
                check_length(name, column.len(), "answers", len)?;
            }
        }
        if self.keep == 1.0 {
            return Ok(());
        }
        let Some(scores) = self.scores.or(self.weights) else {
            let expected = "a filter needs scores (or weights) to filter on";
            return Err(Error::setting("keep", self.keep, expected));
        };
        let infinite = |scores: &[f64]| {
            // All of a chunk, without a branch: at the speed of memory.
            let any = scores.iter().fold(false, |any, score| any | score.is_infinite());
            any.then(|| scores.iter().position(|score| score.is_infinite())).flatten()
        };
        let found = scores.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, scores)| {
            infinite(scores).map(|position| chunk * CHUNK + position)
        });
        match found {
            Some(position) => Err(Error::NotFinite {
                argument: if self.scores.is_some() { "scores" } else { "weights" },
                place: Place::Position(position),
                value: scores[position],
                hint: " (NaN marks a trace without tokens)",
            }),
            None => Ok(()),
        }
    }

    /// The scores to filter on, if there is a filter.
    fn filter(&self) -> Option<&[f64]> {
        self.scores.or(self.weights).filter(|_| self.keep < 1.0)
    }
}

pub(crate) fn check_keep(keep: f64) -> Result<()> {
    if keep > 0.0 && keep <= 1.0 {
        return Ok(());
    }
    Err(Error::setting("keep", keep, "must be a fraction of the traces, in (0, 1]"))
}

fn check_length(
    left: &'static str,
    left_len: usize,
    right: &'static str,
    right_len: usize,
) -> Result<()> {
    if left_len == right_len {
        return Ok(());
    }
    Err(Error::Length { left, left_len, right, right_len })
}

/// The traces of one question or of all.
struct Columns<'a, K: ?Sized> {
    answers: &'a K,
    weights: Option<&'a [f64]>,
    scores: Option<&'a [f64]>,
}

/// One row of the columns.
#[derive(Clone, Copy)]
struct Trace<const N: usize> {
    /// The answer's.
    key: Key,
    /// The weight and the score, or one value that is both.
    values: [f64; N],
    row: u32,
    /// Of a row that was dealt, a hash of its question.
    tag: u32,
}

impl<const N: usize> Trace<N> {
    const BLANK: Self = Self { key: Key::MISSING, values: [0.0; N], row: 0, tag: 0 };

    fn answered(&self) -> bool {
        self.key != Key::MISSING
    }

    fn weight(&self) -> f64 {
        self.values[0]
    }

    fn score(&self) -> f64 {
        self.values[N - 1]
    }
}

impl<K: Keys + ?Sized> Columns<'_, K> {
    /// How many values a trace has: weight and score, or one that is both.
    fn values(&self) -> usize {
        match (self.weights, self.scores) {
            (Some(weights), Some(scores)) if std::ptr::eq(weights, scores) => 1,
            (_, Some(_)) => 2,
            (_, None) => 1,
        }
    }

    fn check_weights(&self, rows: Range<usize>) -> Result<()> {
        let Some(weights) = self.weights else { return Ok(()) };
        let bad = |&weight: &f64| !(weight.is_finite() && weight >= 0.0);
        let mut keys = Vec::new();
        for start in rows.clone().step_by(BLOCK) {
            let block = start..rows.end.min(start + BLOCK);
            // Without a branch in the loop, so that it runs at the speed of memory.
            if weights[block.clone()].iter().fold(0, |sum, weight| sum + u32::from(bad(weight)))
                == 0
            {
                continue;
            }
            keys.clear();
            self.answers.keys(block.clone(), &mut keys);
            let wrong = |&row: &usize| keys[row - start] != Key::MISSING && bad(&weights[row]);
            if let Some(position) = block.clone().find(wrong) {
                return Err(Error::Weight { position, value: weights[position] });
            }
        }
        Ok(())
    }

    /// Appends the traces of `rows`; `keys` is scratch.
    fn read<const N: usize>(
        &self,
        rows: Range<usize>,
        keys: &mut Vec<Key>,
        out: &mut Vec<Trace<N>>,
    ) {
        keys.clear();
        self.answers.keys(rows.clone(), keys);
        let start = out.len();
        let traces = rows.clone().zip(keys.iter());
        out.extend(traces.map(|(row, &key)| Trace {
            key,
            values: [1.0; N],
            row: row as u32,
            tag: 0,
        }));
        let fresh = &mut out[start..];
        if let Some(weights) = self.weights {
            fresh.iter_mut().zip(&weights[rows.clone()]).for_each(|(t, &w)| t.values[0] = w);
        }
        if let Some(scores) = self.scores.filter(|_| N > 1) {
            fresh.iter_mut().zip(&scores[rows]).for_each(|(t, &s)| t.values[N - 1] = s);
        }
    }
}

/// Where votes are counted, one question after the other.
struct Booth {
    ranked: Vec<f64>,
    /// In the order seen.
    ballots: Vec<Ballot>,
    /// The key of each ballot's answer.
    keys: Vec<Key>,
    /// Ballots by key, once there are many.
    index: HashTable<u32>,
    /// Where a key was found last, by some of its bits: where to look first.
    hints: [u8; 64],
    /// Which traces vote.
    voters: Vec<u32>,
}

/// What became of one question, the ballots aside.
struct Outcome {
    threshold: Option<f64>,
    fallback: bool,
    num_voters: usize,
    total: f64,
}

impl Booth {
    fn new() -> Self {
        Self {
            ranked: Vec::new(),
            ballots: Vec::new(),
            keys: Vec::new(),
            index: HashTable::new(),
            hints: [0; 64],
            voters: Vec::new(),
        }
    }

    fn tally<const N: usize>(
        &mut self,
        traces: &[Trace<N>],
        answers: &(impl Keys + ?Sized),
        rules: &Rules<'_>,
    ) -> Outcome {
        if rules.filter().is_none() {
            return self.count(traces, answers, |_| true);
        }
        let ranked = traces.iter().filter(|trace| rules.over_all || trace.answered());
        self.ranked.clear();
        self.ranked.extend(ranked.map(Trace::score));
        let threshold = top(&mut self.ranked, rules.keep);
        self.above(threshold, traces, answers, rules.min_ballots)
    }

    /// Those whose score reaches the threshold vote; all that have one when that leaves too few.
    fn above<const N: usize>(
        &mut self,
        threshold: Option<f64>,
        traces: &[Trace<N>],
        answers: &(impl Keys + ?Sized),
        min_ballots: usize,
    ) -> Outcome {
        let kept = |trace: &Trace<N>| threshold.is_some_and(|s| trace.score() >= s);
        let filtered = self.count(traces, answers, kept);
        if filtered.num_voters >= min_ballots {
            return Outcome { threshold, ..filtered };
        }
        let all = self.count(traces, answers, |trace| !trace.score().is_nan());
        Outcome { threshold, fallback: true, ..all }
    }

    fn count<const N: usize>(
        &mut self,
        traces: &[Trace<N>],
        answers: &(impl Keys + ?Sized),
        kept: impl Fn(&Trace<N>) -> bool,
    ) -> Outcome {
        self.ballots.clear();
        self.keys.clear();
        self.index.clear();
        // Who votes is hard to guess, so nothing branches on it.
        self.voters.clear();
        self.voters.resize(traces.len(), 0);
        let mut num_voters = 0;
        for (at, trace) in traces.iter().enumerate() {
            self.voters[num_voters] = at as u32;
            num_voters += usize::from(trace.answered() & kept(trace));
        }
        for voter in 0..num_voters {
            let trace = &traces[self.voters[voter] as usize];
            let at = self.ballot(trace.key, trace.row as usize, answers);
            let ballot = &mut self.ballots[at];
            ballot.weight += trace.weight();
            ballot.voters += 1;
        }
        Outcome {
            threshold: None,
            fallback: false,
            num_voters,
            total: self.ballots.iter().map(|ballot| ballot.weight).sum(),
        }
    }

    /// Which ballot is for the answer of this key, in `row`.
    #[inline]
    fn ballot(&mut self, key: Key, row: usize, answers: &(impl Keys + ?Sized)) -> usize {
        let hint = key.hint();
        let at = usize::from(self.hints[hint]);
        if key.is_whole() && self.keys.get(at) == Some(&key) {
            return at;
        }
        let at = self.search(key, row, answers);
        self.hints[hint] = u8::try_from(at).unwrap_or_default();
        at
    }

    fn search(&mut self, key: Key, row: usize, answers: &(impl Keys + ?Sized)) -> usize {
        let Self { ballots, keys, index, .. } = self;
        let is_its =
            |at: usize| keys[at] == key && (key.is_whole() || answers.same(ballots[at].first, row));
        let found = if ballots.len() <= FEW {
            (0..ballots.len()).find(|&at| is_its(at))
        } else {
            index.find(key.spread(), |&at| is_its(at as usize)).map(|&at| at as usize)
        };
        if let Some(at) = found {
            return at;
        }
        let at = ballots.len();
        ballots.push(Ballot { first: row, weight: 0.0, voters: 0 });
        keys.push(key);
        if at >= FEW {
            // The first beyond a few brings all before it along.
            let fresh = if at == FEW { 0 } else { at };
            let hash = |&at: &u32| keys[at as usize].spread();
            (fresh as u32..=at as u32).for_each(|at| {
                index.insert_unique(hash(&at), at, hash);
            });
        }
        at
    }

    /// The ballots counted last, the heaviest first.
    fn vote(&mut self, outcome: &Outcome) -> Vote {
        let mut ballots = std::mem::take(&mut self.ballots);
        // Stable: equal weights stay in the order seen.
        ballots.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let &Outcome { threshold, fallback, num_voters, .. } = outcome;
        let share = outcome.share(ballots.first());
        Vote { ballots, share, num_voters, threshold, fallback }
    }

    /// The heaviest of the ballots counted last, the first of equals.
    fn winner(&self) -> Option<&Ballot> {
        self.ballots.iter().reduce(|best, ballot| {
            if ballot.weight.total_cmp(&best.weight).is_gt() { ballot } else { best }
        })
    }
}

impl Outcome {
    fn share(&self, winner: Option<&Ballot>) -> f64 {
        match winner {
            Some(winner) if self.total > 0.0 => winner.weight / self.total,
            _ => 0.0,
        }
    }
}

/// The vote on `rows` of `answers`.
pub(crate) fn tally<A: Eq + Hash>(
    rows: &[usize],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) -> Vote {
    let answers = optional(answers);
    let traces = pick(rows, &answers, rules.weights, rules.filter());
    let mut booth = Booth::new();
    let outcome = booth.tally(&traces, &answers, rules);
    booth.vote(&outcome)
}

/// The vote of those whose score reaches the threshold; of all that have one when that leaves too
/// few.
pub(crate) fn above<A: Eq + Hash>(
    threshold: Option<f64>,
    scores: &[f64],
    rows: &[usize],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) -> Vote {
    let answers = optional(answers);
    let traces = pick(rows, &answers, rules.weights, Some(scores));
    let mut booth = Booth::new();
    let outcome = booth.above(threshold, &traces, &answers, rules.min_ballots);
    booth.vote(&outcome)
}

fn pick(
    rows: &[usize],
    answers: &impl Keys,
    weights: Option<&[f64]>,
    scores: Option<&[f64]>,
) -> Vec<Trace<2>> {
    let columns = Columns { answers, weights, scores };
    let (mut keys, mut traces) = (Vec::new(), Vec::new());
    rows.iter().for_each(|&row| columns.read(row..row + 1, &mut keys, &mut traces));
    traces
}

/// The score that the top `keep` of `scores` reach; NaN entries do not count.
pub(crate) fn top(scores: &mut Vec<f64>, keep: f64) -> Option<f64> {
    scores.retain(|score| !score.is_nan());
    percentile(scores, 100.0 * (1.0 - keep))
}

/// The linearly interpolated percentile `q` in [0, 100], as `numpy.percentile` has it; reorders.
///
/// ```
/// use deepconf_core::vote::percentile;
/// assert_eq!(percentile(&mut [4.0, 1.0, 3.0, 2.0], 50.0), Some(2.5));
/// assert_eq!(percentile(&mut [], 50.0), None);
/// ```
#[must_use]
pub fn percentile(values: &mut [f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let rank = (q / 100.0).clamp(0.0, 1.0) * last as f64;
    let (_, &mut low, above) = values.select_nth_unstable_by(rank as usize, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    let (t, step) = (rank.fract(), high - low);
    // From the nearer end, so that the result never leaves [low, high].
    Some(if t >= 0.5 { high - step * (1.0 - t) } else { low + step * t })
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
    for (at, &(key, row)) in heads.iter().enumerate() {
        let is_it = |&at: &u32| {
            let (other, first) = heads[at as usize];
            other == key && (key.is_whole() || questions.same(first as usize, row as usize))
        };
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
                    heads.push((key, row as u32));
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
            columns.read::<N>(ends[0] as usize..ends[1] as usize, keys, traces);
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
    for start in rows.clone().step_by(BLOCK) {
        let block = start..rows.end.min(start + BLOCK);
        keys.clear();
        traces.clear();
        questions.keys(block.clone(), &mut keys);
        columns.read(block, &mut scratch, &mut traces);
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
        let is_its = |at: u32| {
            let at = at as usize;
            keys.get(at) == Some(question)
                && (question.is_whole() || questions.same(firsts[at] as usize, trace.row as usize))
        };
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
