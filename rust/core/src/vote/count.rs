//! The ballots of one question.

use hashbrown::HashTable;

use super::column::Keys;
use super::key::Key;
use super::{Ballot, Vote};

/// Up to so many distinct answers are looked through one by one.
const LOOKED_THROUGH: usize = 16;

/// What a trace casts. Packed, as there are many.
#[derive(Clone, Copy, Default)]
#[repr(Rust, packed(4))]
pub(super) struct Cast {
    /// The answer's, with its row.
    pub(super) key: Key,
    pub(super) row: u32,
    pub(super) weight: f64,
}

/// Where votes are counted, one question after the other.
pub(super) struct Count {
    /// In the order seen.
    ballots: Vec<Ballot>,
    /// The key of each ballot's answer.
    keys: Vec<Key>,
    /// Ballots by key, once there are many.
    index: HashTable<u32>,
    /// Where a key was found last, by some of its bits: where to look first.
    hints: [u8; 64],
}

/// What became of one question, the ballots aside.
pub(super) struct Outcome {
    pub(super) threshold: Option<f64>,
    pub(super) fallback: bool,
    pub(super) num_voters: usize,
    pub(super) total: f64,
}

impl Count {
    pub(super) fn new() -> Self {
        Self { ballots: Vec::new(), keys: Vec::new(), index: HashTable::new(), hints: [0; 64] }
    }

    /// Counts the votes of those that have an answer.
    pub(super) fn count(
        &mut self,
        votes: impl Iterator<Item = Cast>,
        answers: &(impl Keys + ?Sized),
    ) -> Outcome {
        self.ballots.clear();
        self.keys.clear();
        self.index.clear();
        let mut num_voters = 0;
        for Cast { key, row, weight } in votes {
            if key == Key::MISSING {
                continue;
            }
            let at = self.ballot(key, row as usize, answers);
            let ballot = &mut self.ballots[at];
            ballot.weight += weight;
            ballot.voters += 1;
            num_voters += 1;
        }
        let total = self.ballots.iter().map(|ballot| ballot.weight).sum();
        Outcome { threshold: None, fallback: false, num_voters, total }
    }

    /// Which ballot is for the answer of this key, in `row`.
    #[inline]
    fn ballot(&mut self, key: Key, row: usize, answers: &(impl Keys + ?Sized)) -> usize {
        let hint = key.hint();
        let at = usize::from(self.hints[hint]);
        if self.keys.get(at).is_some_and(|seen| seen.agrees(key, answers)) {
            return at;
        }
        let at = self.search(key, row, answers);
        self.hints[hint] = u8::try_from(at).unwrap_or_default();
        at
    }

    fn search(&mut self, key: Key, row: usize, answers: &(impl Keys + ?Sized)) -> usize {
        let Self { ballots, keys, index, .. } = self;
        let is_its = |at: usize| keys[at].agrees(key, answers);
        let found = if ballots.len() <= LOOKED_THROUGH {
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
        ballots.push(Ballot::new(row, 0.0, 0));
        keys.push(key);
        if at >= LOOKED_THROUGH {
            // The first beyond brings all before it along.
            let fresh = if at == LOOKED_THROUGH { 0 } else { at };
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
