//! What a controller and its driver tell each other.

use crate::error::Error;
use crate::vote::Vote;

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Start these traces, trace i with seed `policy.seed + i`, if there is a seed.
    Launch(Vec<u32>),
    /// Stop this trace: a group fell below the threshold.
    Stop {
        /// The trace.
        trace: u32,
        /// The token that completed the group, counted from 0.
        token: u64,
    },
    /// Abort these traces: the answer is known.
    Abort(Vec<u32>),
    /// The run is over.
    Answer(Box<Outcome>),
}

/// What came of one step of all traces.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stepped {
    /// The traces to stop, as [`Action::Stop`], in the order of their tokens.
    pub stops: Vec<Action>,
    /// The traces whose tokens could not be taken, in that order, and why.
    pub errors: Vec<(u32, Error)>,
}

/// How a trace ended, as the server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// By itself.
    End,
    /// At the length limit.
    Length,
    /// Because it was asked to.
    Aborted,
}

/// Where a trace stands, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// To be launched.
    Launching,
    /// Generating.
    Running,
    /// Asked to stop.
    Stopping,
    /// Asked to abort.
    Aborting,
    /// Ended by itself.
    Finished,
    /// Cut at the length limit.
    Length,
    /// Stopped below the threshold.
    Stopped,
    /// Aborted once the answer was known, or by whoever drives.
    Aborted,
    /// Lost to an error.
    Failed,
}

impl Status {
    /// The name, as trace files have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Launching => "launching",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Aborting => "aborting",
            Self::Finished => "finished",
            Self::Length => "length",
            Self::Stopped => "stopped",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }

    /// Whether the trace takes a place among those running.
    pub(super) fn in_flight(self) -> bool {
        matches!(self, Self::Launching | Self::Running | Self::Stopping | Self::Aborting)
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The leading answer's share reached τ.
    Consensus,
    /// Nothing could change the winner any more.
    Certain,
    /// Every trace of the budget was over.
    Budget,
    /// The driver cancelled it.
    Cancelled,
    /// Nothing could be generated any more.
    EngineDied,
}

impl Reason {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Certain => "certain",
            Self::Budget => "budget",
            Self::Cancelled => "cancelled",
            Self::EngineDied => "engine_died",
        }
    }

    /// Whether the run was cut short, its vote being that of what had ended.
    pub(super) fn cut_short(self) -> bool {
        matches!(self, Self::Cancelled | Self::EngineDied)
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// The answer that won; `None` when nobody voted.
    pub answer: Option<String>,
    /// Answers in the order of `vote.ballots`.
    pub answers: Vec<String>,
    /// The vote; a ballot's `first` is a trace.
    pub vote: Vote,
    /// The traces that voted.
    pub voters: Vec<u32>,
    /// s, or the score an offline filter asked for.
    pub threshold: Option<f64>,
    /// Why the run ended.
    pub reason: Reason,
    /// Online: why the threshold could not have stopped anything, if so; nothing of a run cut short.
    pub unarmed: Option<Unarmed>,
}

impl Outcome {
    /// What comes of this vote, with the answers of its ballots: nothing is said of voters, nor of
    /// what could not have been stopped.
    #[must_use]
    pub fn new(vote: Vote, answers: Vec<String>, reason: Reason) -> Self {
        Self {
            answer: answers.first().cloned(),
            answers,
            threshold: vote.threshold,
            vote,
            voters: Vec::new(),
            reason,
            unarmed: None,
        }
    }
}

/// Why nothing could have been stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unarmed {
    /// No group was ever complete.
    #[error(
        "no trace reached the window of {window} tokens (the longest has {longest}), so no group was \
         ever complete and nothing could be stopped: use a smaller window"
    )]
    Window {
        /// w, in tokens.
        window: u64,
        /// How many tokens of the longest trace were scored.
        longest: u64,
    },
    /// There was no threshold.
    #[error(
        "none of the {warmup} warmup traces ended by itself, so there was no threshold and nothing \
         could be stopped: let traces be longer, or warm up with more of them"
    )]
    Warmup {
        /// How many there were.
        warmup: u32,
    },
}
