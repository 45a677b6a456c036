//! Whether a run is settled: what is still to come can change nothing that counts.

use super::entry::Entry;
use super::{Controller, Reason, Status};
use crate::fixed;
use crate::policy::{Measure, Mode, Stop};
use crate::vote::Vote;

impl Controller {
    pub(super) fn settled(&self) -> Option<Reason> {
        if !self.calibrated || self.policy.stop == Stop::Budget {
            return None;
        }
        let fewest = self.policy.min_ballots.max(1) as usize;
        if self.policy.mode == Mode::Offline && self.policy.keep < 1.0 {
            // An answer more would move the percentile of an offline filter.
            if self.unnamed > 0 {
                return None;
            }
        } else if self.standing.voters() < fewest || !self.may_be_settled() {
            return None;
        }
        let vote = self.vote().0;
        if vote.fallback || vote.num_voters < fewest {
            return None;
        }
        match self.policy.stop {
            Stop::Consensus if self.is_consensus(&vote) => Some(Reason::Consensus),
            Stop::Certain if self.is_certain(&vote) => Some(Reason::Certain),
            _ => None,
        }
    }

    /// Whether the standing leaves it open that the run is settled.
    fn may_be_settled(&self) -> bool {
        match self.policy.stop {
            Stop::Consensus => self.standing.may_be_consensus(self.policy.consensus),
            Stop::Certain => self.standing.may_be_certain(self.outstanding()),
            Stop::Budget => false,
        }
    }

    /// Whether the leader's share is a consensus, whatever the unnamed traces answer.
    fn is_consensus(&self, vote: &Vote) -> bool {
        if self.unnamed == 0 {
            return vote.share >= self.policy.consensus;
        }
        let (count, unnamed) = self
            .unnamed_weights()
            .fold((0_usize, 0.0), |(count, sum), weight| (count + 1, sum + weight));
        if count == 0 {
            return vote.share >= self.policy.consensus;
        }
        let weight = |place: usize| vote.ballots.get(place).map_or(0.0, |ballot| ballot.weight);
        let total: f64 = vote.ballots.iter().map(|ballot| ballot.weight).sum();
        // With τ of a half or less, the runner-up could still become the leader.
        weight(0) >= self.policy.consensus * (total + unnamed) && weight(0) - weight(1) > unnamed
    }

    /// Whether the leader stays ahead even if all that is outstanding goes to the runner-up.
    fn is_certain(&self, vote: &Vote) -> bool {
        let outstanding = self.outstanding();
        let weight = |place: usize| vote.ballots.get(place).map_or(0.0, |ballot| ballot.weight);
        // The margin covers the rounding of the sums.
        outstanding > 0.0 && weight(0) - weight(1) > outstanding + 1e-9 * (weight(0) + outstanding)
    }

    /// The most that all ballots to come can add up to.
    fn outstanding(&self) -> f64 {
        let unlaunched = self.remaining() as f64 * self.most_unlaunched();
        let running = self.traces.iter().filter(|t| t.status.in_flight()).map(|t| self.most(t));
        let unnamed: f64 = self.unnamed_weights().sum();
        running.sum::<f64>() + unlaunched + unnamed
    }

    /// What each trace that is unnamed and would be counted adds to some ballot.
    fn unnamed_weights(&self) -> impl Iterator<Item = f64> {
        // Only online: an offline filter waits.
        let counts = |entry: &&Entry| entry.unnamed && self.may_vote(entry) && self.is_kept(entry);
        self.traces.iter().filter(counts).map(|entry| self.weight(entry))
    }

    /// The most a trace of which nothing is known can add to a ballot.
    fn most_unlaunched(&self) -> f64 {
        self.policy.weight.measure().map_or(1.0, |_| self.clip(fixed::LIMIT))
    }

    /// The most a trace in flight can still add to a ballot.
    fn most(&self, entry: &Entry) -> f64 {
        if entry.status != Status::Running && !self.policy.stopped_vote {
            return if entry.status == Status::Launching { self.most_unlaunched() } else { 0.0 };
        }
        // A minimum over more groups can only fall.
        match (self.policy.weight.measure(), entry.lowest_so_far(&self.policy)) {
            (Some(Measure::LowestGroup), Some(lowest)) => self.clip(lowest),
            _ => self.most_unlaunched(),
        }
    }
}
