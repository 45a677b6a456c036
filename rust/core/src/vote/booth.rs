//! Where the votes of one question are counted.

use std::ops::Range;

use hashbrown::HashTable;

use super::key::{Key, Keys};
use super::seen::Seen;
use super::{Ballot, Rules, Vote, top};
use crate::error::{Error, Result};

/// How many rows a column is asked for at a time.
pub(super) const BLOCK: usize = 1024;
/// Larger weights could add up to infinity.
const MOST_WEIGHT: f64 = 1e290;
/// Up to so many distinct answers are looked through one by one.
pub(super) const FEW: usize = 16;

/// The traces of one question or of all.
pub(super) struct Columns<'a, K: ?Sized> {
    pub(super) answers: &'a K,
    pub(super) weights: Option<&'a [f64]>,
    pub(super) scores: Option<&'a [f64]>,
}

/// One row of the columns.
#[derive(Clone, Copy)]
pub(super) struct Trace<const N: usize> {
    /// The answer's.
    pub(super) key: Key,
    /// The weight and the score, or one value that is both.
    pub(super) values: [f64; N],
    pub(super) row: u32,
    /// Of a row that was dealt, a hash of its question.
    pub(super) tag: u32,
}

impl<const N: usize> Trace<N> {
    pub(super) const BLANK: Self = Self { key: Key::MISSING, values: [0.0; N], row: 0, tag: 0 };

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
    pub(super) fn values(&self) -> usize {
        match (self.weights, self.scores) {
            (Some(weights), Some(scores)) if std::ptr::eq(weights, scores) => 1,
            (_, Some(_)) => 2,
            (_, None) => 1,
        }
    }

    pub(super) fn check_weights(&self, rows: Range<usize>) -> Result<()> {
        let Some(weights) = self.weights else { return Ok(()) };
        let bad = |weight: &f64| !(0.0..=MOST_WEIGHT).contains(weight);
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

    /// All traces.
    pub(super) fn all(&self) -> Vec<Trace<2>> {
        let mut traces = Vec::new();
        self.read(0..self.answers.rows(), &mut Vec::new(), None, &mut traces);
        traces
    }

    /// Appends the traces of `rows`, their long answers looked up in `seen`; `keys` is scratch.
    pub(super) fn read<const N: usize>(
        &self,
        rows: Range<usize>,
        keys: &mut Vec<Key>,
        seen: Option<&mut Seen>,
        out: &mut Vec<Trace<N>>,
    ) {
        keys.clear();
        self.answers.keys(rows.clone(), keys);
        match seen {
            Some(seen) => seen.settle(keys, rows.start, self.answers),
            None => keys.iter_mut().zip(rows.clone()).for_each(|(key, row)| *key = key.at(row)),
        }
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
pub(super) struct Booth {
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
pub(super) struct Outcome {
    pub(super) threshold: Option<f64>,
    pub(super) fallback: bool,
    pub(super) num_voters: usize,
    pub(super) total: f64,
}

impl Booth {
    pub(super) fn new() -> Self {
        Self {
            ranked: Vec::new(),
            ballots: Vec::new(),
            keys: Vec::new(),
            index: HashTable::new(),
            hints: [0; 64],
            voters: Vec::new(),
        }
    }

    pub(super) fn tally<const N: usize>(
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
    pub(super) fn above<const N: usize>(
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
        if self.keys.get(at) == Some(&key) {
            return at;
        }
        let at = self.search(key, row, answers);
        self.hints[hint] = u8::try_from(at).unwrap_or_default();
        at
    }

    fn search(&mut self, key: Key, row: usize, answers: &(impl Keys + ?Sized)) -> usize {
        let Self { ballots, keys, index, .. } = self;
        let is_its = |at: usize| keys[at].agrees(key, answers);
        let found = if ballots.len() <= FEW {
            (0..ballots.len()).find(|&at| is_its(at))
        } else {
            index.find(key.spread(), |&at| is_its(at as usize)).map(|&at| at as usize)
        };
        if let Some(at) = found {
            // The row that the next one most likely has.
            keys[at] = key;
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
    pub(super) fn vote(&mut self, outcome: &Outcome) -> Vote {
        let mut ballots = std::mem::take(&mut self.ballots);
        // Stable: equal weights stay in the order seen.
        ballots.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let &Outcome { threshold, fallback, num_voters, .. } = outcome;
        let share = outcome.share(ballots.first());
        Vote { ballots, share, num_voters, threshold, fallback }
    }

    /// The heaviest of the ballots counted last, the first of equals.
    pub(super) fn winner(&self) -> Option<&Ballot> {
        self.ballots.iter().reduce(|best, ballot| {
            if ballot.weight.total_cmp(&best.weight).is_gt() { ballot } else { best }
        })
    }
}

impl Outcome {
    pub(super) fn share(&self, winner: Option<&Ballot>) -> f64 {
        match winner {
            Some(winner) if self.total > 0.0 => winner.weight / self.total,
            _ => 0.0,
        }
    }
}
