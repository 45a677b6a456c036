//! Who votes, what a vote weighs, and what it comes to.

use super::entry::Entry;
use super::{Controller, Outcome, Reason, Status, Unarmed};
use crate::fixed;
use crate::policy::{Calibrate, Measure, Mode, Over, Policy};
use crate::vote::{self, Rules, Vote};

impl Controller {
    pub(super) fn calibrate(&self) -> Option<f64> {
        let counts = |entry: &&Entry| match entry.status {
            Status::Finished => true,
            Status::Length => self.policy.calibrate_on == Calibrate::All,
            _ => false,
        };
        let ended = self.traces.iter().filter(counts);
        let lowest = ended.map(|entry| entry.final_score(Measure::LowestGroup));
        vote::top(&mut lowest.collect(), self.policy.keep)
    }

    /// Adds the ballot of a trace, if it has one that counts, to the standing.
    pub(super) fn cast(&mut self, trace: usize) {
        let entry = &self.traces[trace];
        if let Some(answer) = self.ballot(entry).filter(|_| self.is_kept(entry)) {
            self.standing.add(answer, self.weight(entry));
        }
    }

    /// The vote as it stands, and the traces it counted.
    pub(super) fn vote(&self) -> (Vote, Vec<u32>) {
        let measured = |measure: Measure| -> Vec<f64> {
            self.traces.iter().map(|entry| entry.final_score(measure)).collect()
        };
        let weights: Option<Vec<f64>> =
            self.policy.weight.measure().map(|measure| {
                measured(measure).into_iter().map(|weight| self.clip(weight)).collect()
            });
        let answers: Vec<Option<u32>> = self.traces.iter().map(|t| self.ballot(t)).collect();
        let rules = Rules {
            weights: weights.as_deref(),
            keep: 1.0,
            scores: None,
            min_ballots: self.policy.min_ballots as usize,
            over_all: self.policy.percentile_over == Over::All,
        };
        let ranking: Option<Vec<f64>> = match self.policy.mode {
            Mode::Online => self.threshold.map(|_| measured(Measure::LowestGroup)),
            Mode::Offline => (self.policy.keep < 1.0).then(|| measured(self.policy.measure)),
        };
        let vote = match (&ranking, self.policy.mode) {
            (None, _) => vote::tally(&vote::optional(&answers), &rules),
            (Some(scores), Mode::Online) => vote::above(self.threshold, scores, &answers, &rules),
            (Some(scores), Mode::Offline) => {
                let rules = Rules { keep: self.policy.keep, scores: Some(scores), ..rules };
                vote::tally(&vote::optional(&answers), &rules)
            }
        };
        let voted = |&row: &usize| {
            let kept = match (&ranking, vote.threshold) {
                (Some(scores), Some(s)) if !vote.fallback => scores[row] >= s,
                _ => true,
            };
            answers[row].is_some() && kept
        };
        let voters = (0..answers.len()).filter(voted).map(|row| row as u32).collect();
        (vote, voters)
    }

    /// A trace's answer, if it may vote.
    pub(super) fn ballot(&self, entry: &Entry) -> Option<u32> {
        entry.answer.filter(|_| self.may_vote(entry))
    }

    /// Whether its way of ending lets a trace vote, once it has an answer.
    pub(super) fn may_vote(&self, entry: &Entry) -> bool {
        let by_status = match (entry.status, self.policy.mode) {
            (Status::Finished, _) | (Status::Length, Mode::Offline) => true,
            (Status::Stopped | Status::Length, Mode::Online) => self.policy.stopped_vote,
            _ => false,
        };
        // A trace without tokens has no score and never votes.
        let is_scored = || {
            let ranked = match self.policy.mode {
                Mode::Online => Measure::LowestGroup,
                Mode::Offline => self.policy.measure,
            };
            let needed = [Some(ranked), self.policy.weight.measure()];
            needed.into_iter().flatten().all(|measure| !entry.final_score(measure).is_nan())
        };
        by_status && !entry.late && entry.scored() > 0 && is_scored()
    }

    /// Whether its lowest group reaches the threshold, if there is one.
    pub(super) fn is_kept(&self, entry: &Entry) -> bool {
        self.threshold.is_none_or(|s| entry.final_score(Measure::LowestGroup) >= s)
    }

    /// What the vote of a trace that ended weighs.
    pub(super) fn weight(&self, entry: &Entry) -> f64 {
        self.policy.weight.measure().map_or(1.0, |of| self.clip(entry.final_score(of)))
    }

    /// A weight fit for voting: what rounding made negative is 0.
    pub(super) fn clip(&self, weight: f64) -> f64 {
        weight.clamp(0.0, self.policy.max_weight.unwrap_or(fixed::LIMIT))
    }

    /// The outcome, by the vote as it stands.
    pub(super) fn count(&self, reason: Reason) -> Outcome {
        let (vote, voters) = self.vote();
        let answers: Vec<String> = vote
            .ballots
            .iter()
            .filter_map(|ballot| self.answer_of(ballot.first).map(str::to_owned))
            .collect();
        Outcome {
            threshold: self.threshold.or(vote.threshold),
            voters,
            unarmed: if reason.cut_short() { None } else { self.unarmed() },
            ..Outcome::new(vote, answers, reason)
        }
    }

    fn unarmed(&self) -> Option<Unarmed> {
        let Policy { mode, window, warmup, .. } = self.policy;
        if mode == Mode::Offline {
            return None;
        }
        let longest = self.traces.iter().map(Entry::scored).max().unwrap_or(0);
        if longest < window {
            return Some(Unarmed::Window { window, longest });
        }
        (self.calibrated && self.threshold.is_none()).then_some(Unarmed::Warmup { warmup })
    }
}
