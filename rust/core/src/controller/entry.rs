//! What is known of one trace of a run.

use super::Status;
use crate::policy::{Measure, Policy};
use crate::stream::TraceScorer;
use crate::trace::Scores;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) status: Status,
    pub(super) scoring: Scoring,
    /// All tokens, scored or not.
    pub(super) tokens: u64,
    /// It ended, and its answer is not known yet.
    pub(super) unnamed: bool,
    /// Ended when the run was over already: too late to vote.
    pub(super) late: bool,
    pub(super) answer: Option<u32>,
}

/// Where the scores of a trace come from.
#[derive(Clone, Debug)]
pub(super) enum Scoring {
    /// There is nothing to score yet.
    Waiting,
    /// Its tokens are scored here.
    Live {
        /// What decides; frozen at the token that asked for a stop.
        live: Box<TraceScorer>,
        /// What the scores are recomputed from, where they are rounded.
        rounded: Option<Box<TraceScorer>>,
    },
    /// It is scored elsewhere, or has ended.
    Known(Scores),
}

impl Entry {
    pub(super) const LAUNCHING: Self = Self {
        status: Status::Launching,
        scoring: Scoring::Waiting,
        tokens: 0,
        unnamed: false,
        late: false,
        answer: None,
    };

    pub(super) fn scores(&self) -> Scores {
        match &self.scoring {
            Scoring::Waiting => Scores::NOTHING,
            Scoring::Live { live, rounded } => rounded.as_ref().unwrap_or(live).scores(),
            Scoring::Known(scores) => *scores,
        }
    }

    pub(super) fn end(&mut self, status: Status) {
        self.scoring = Scoring::Known(self.scores());
        self.status = status;
    }

    /// The score of a trace that ended; NaN for one that has not, which has no vote yet.
    pub(super) fn final_score(&self, measure: Measure) -> f64 {
        match &self.scoring {
            Scoring::Known(scores) if !self.status.in_flight() => measure.of(scores),
            _ => f64::NAN,
        }
    }

    pub(super) fn scored(&self) -> u64 {
        match &self.scoring {
            Scoring::Waiting => 0,
            Scoring::Live { live, .. } => live.num_tokens(),
            Scoring::Known(scores) => scores.num_tokens,
        }
    }

    /// What its lowest group can no longer rise above, once there is a group. (What is rounded may
    /// round up.)
    pub(super) fn lowest_so_far(&self, policy: &Policy) -> Option<f64> {
        match &self.scoring {
            Scoring::Live { live, rounded: None } if live.armed() => Some(live.lowest_group()),
            Scoring::Known(scores)
                if policy.decimals.is_none() && scores.num_tokens >= policy.window =>
            {
                Some(scores.lowest_group)
            }
            _ => None,
        }
    }
}
