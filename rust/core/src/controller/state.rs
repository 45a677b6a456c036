//! Where a run stands, for whoever looks at it.

use std::fmt;

use super::{Controller, Status};

/// A printable summary of where a run stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct State {
    /// How far it is.
    pub phase: Phase,
    /// How many traces have each status that there is, in the order seen.
    pub traces: Vec<(Status, usize)>,
    /// Traces that ended and whose answer is not known yet.
    pub unnamed: usize,
    /// Traces of the budget not launched yet.
    pub remaining: usize,
    /// Tokens scored or counted so far.
    pub tokens: u64,
    /// s, once known.
    pub threshold: Option<f64>,
    /// Who leads the vote.
    pub leader: Option<Leader>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The threshold is not known yet.
    Warmup,
    /// Traces are launched under the threshold.
    Sampling,
    /// There is an outcome.
    Done,
}

impl Phase {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warmup => "warmup",
            Self::Sampling => "sampling",
            Self::Done => "done",
        }
    }
}

/// The leading answer of a vote.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Leader {
    /// The answer.
    pub answer: String,
    /// Its share of all weight.
    pub share: f64,
    /// How many traces voted, for this answer or another.
    pub num_voters: usize,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} to launch", self.phase.name(), self.remaining)?;
        for (status, count) in &self.traces {
            write!(f, ", {count} {}", status.name())?;
        }
        if self.unnamed > 0 {
            write!(f, " ({} unnamed)", self.unnamed)?;
        }
        write!(f, "; {} tokens", self.tokens)?;
        if let Some(s) = self.threshold {
            write!(f, "; threshold {s:.4}")?;
        }
        if let Some(Leader { answer, share, num_voters }) = &self.leader {
            write!(f, "; {answer:?} leads with {:.1}% of {num_voters} votes", 100.0 * share)?;
        }
        Ok(())
    }
}

impl Controller {
    /// Where the run stands.
    #[must_use]
    pub fn state(&self) -> State {
        let mut traces: Vec<(Status, usize)> = Vec::new();
        for entry in &self.traces {
            match traces.iter_mut().find(|(status, _)| *status == entry.status) {
                Some((_, count)) => *count += 1,
                None => traces.push((entry.status, 1)),
            }
        }
        let vote = self.calibrated.then(|| self.vote().0);
        let leader = vote.and_then(|vote| {
            let answer = self.answer_of(vote.winner()?.first)?.to_owned();
            Some(Leader { answer, share: vote.share, num_voters: vote.num_voters })
        });
        State {
            phase: match (&self.outcome, self.calibrated) {
                (Some(_), _) => Phase::Done,
                (None, true) => Phase::Sampling,
                (None, false) => Phase::Warmup,
            },
            traces,
            unnamed: self.unnamed,
            remaining: if self.outcome.is_some() { 0 } else { self.remaining() },
            tokens: self.num_tokens(),
            threshold: self.threshold,
            leader,
        }
    }
}
