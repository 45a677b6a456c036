//! The vote as it stands, added up while traces are named: O(1) a ballot.
//!
//! Most ballots settle nothing, and that can be seen without a recount. What may settle the run is
//! counted anew, in launch order, and that count decides: here weights are added in the order in
//! which traces are named, which rounds another way.

/// Above what another order of additions can do to the sum of 2³² weights, as a part of it.
const SLACK: f64 = 1e-6;

#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    voters: usize,
    total: f64,
    /// By the number of the answer.
    weights: Vec<f64>,
    leader: usize,
    /// The weight of the answer that comes second.
    second: f64,
}

impl Standing {
    pub(super) fn add(&mut self, answer: u32, weight: f64) {
        let answer = answer as usize;
        if self.weights.len() <= answer {
            self.weights.resize(answer + 1, 0.0);
        }
        self.voters += 1;
        self.total += weight;
        self.weights[answer] += weight;
        if answer == self.leader {
            return;
        }
        let (new, first) = (self.weights[answer], self.weights[self.leader]);
        if new > first {
            (self.leader, self.second) = (answer, first);
        } else {
            self.second = self.second.max(new);
        }
    }

    pub(super) fn voters(&self) -> usize {
        self.voters
    }

    /// Whether the leader's share may reach `consensus`.
    pub(super) fn may_be_consensus(&self, consensus: f64) -> bool {
        let first = self.weights.get(self.leader).copied().unwrap_or_default();
        first * (1.0 + SLACK) >= consensus * self.total
    }

    /// Whether the leader may be ahead by more than `outstanding`.
    pub(super) fn may_be_certain(&self, outstanding: f64) -> bool {
        let first = self.weights.get(self.leader).copied().unwrap_or_default();
        first - self.second + SLACK * self.total >= outstanding
    }
}
