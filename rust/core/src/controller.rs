//! The decisions of a run, without I/O: events in, actions out.
//!
//! A driver launches what it is told to, reports tokens as they are scored and traces as they end,
//! and obeys. Whether the events come from a live server or from a recording makes no difference, so
//! what is replayed is what would have happened.
//!
//! ```
//! use deepconf_core::controller::{Action, Controller, Finish, Reason};
//! use deepconf_core::policy::{Policy, Preset};
//!
//! let policy = Policy::new(Preset::High).budget(8).warmup(4).window(2);
//! let mut controller = Controller::new(policy)?;
//! assert_eq!(controller.start()?, [Action::Launch(vec![0, 1, 2, 3])]);
//! for trace in 0..4 {
//!     controller.launched(trace)?;
//!     controller.tokens(trace, &[9.0, 8.0, 9.0])?;
//! }
//! for trace in 0..3 {
//!     assert!(controller.finished(trace, Finish::End, Some("42"))?.is_empty());
//! }
//! let actions = controller.finished(3, Finish::End, Some("42"))?; // warmup over: they all agree
//! let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
//! assert_eq!((outcome.answer.as_deref(), outcome.reason), (Some("42"), Reason::Consensus));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! # How a run goes
//!
//! 1. *Warmup* (online): the first traces run to their end. When the last of them is over, the
//!    threshold s is the percentile 100·(1 − η) of their lowest group confidences.
//! 2. *Sampling*: the others run under s. The first complete group below s stops its trace, which
//!    then never votes. Offline, all traces run to their end.
//! 3. After every trace that ends, and every answer that gets known, the vote is counted: at consensus,
//!    or when the winner is certain, what still runs is aborted.
//! 4. The answer is the weighted vote of the traces that ended by themselves and stayed at s or above;
//!    of all that ended by themselves, where that leaves too few ballots.
//!
//! Naming an answer may take longer than the trace did, so an end has two steps:
//! [`ended`](Controller::ended) frees the trace's place at once, and [`answered`](Controller::answered)
//! lets it vote. Until then it is *unnamed*: its weight counts against the leader, whoever that is, and
//! the budget is not spent. [`finished`](Controller::finished) is both steps in one.
//!
//! Traces that are scored elsewhere, by an engine or from a recording, are told by
//! [`scored`](Controller::scored) instead of token by token. All else is the same.
//!
//! **Cost.** O(1) a token, and O(1) when a trace ends, but for a vote that may settle the run: that
//! one is counted anew, O(traces). With `stop="certain"`, and where an offline filter may settle the
//! run, every end costs that.

mod action;
mod ballots;
mod entry;
mod settle;
mod standing;
mod state;

use std::collections::HashMap;

pub use action::{Action, Finish, Outcome, Reason, Status, Stepped, Unarmed};
pub use state::{Leader, Phase, State};

use entry::{Entry, Scoring};
use standing::Standing;

use crate::error::{Error, Result};
use crate::fixed;
use crate::policy::{Measure, Mode, Policy};
use crate::trace::{Scorer, Scores, Settings};

/// The state machine of one run: see the module.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: Policy,
    traces: Vec<Entry>,
    started: bool,
    calibrated: bool,
    threshold: Option<f64>,
    answers: Vec<String>,
    answer_ids: HashMap<String, u32>,
    outcome: Option<Outcome>,
    /// How many traces are in flight.
    in_flight: usize,
    /// How many have ended without their answers being known.
    unnamed: usize,
    /// The vote of those that are named, once the threshold is known.
    standing: Standing,
}

impl Controller {
    /// A run that has not started.
    ///
    /// # Errors
    /// As [`Policy::check`].
    pub fn new(policy: Policy) -> Result<Self> {
        policy.check()?;
        Ok(Self {
            calibrated: policy.mode == Mode::Offline,
            policy,
            traces: Vec::new(),
            started: false,
            threshold: None,
            answers: Vec::new(),
            answer_ids: HashMap::new(),
            outcome: None,
            in_flight: 0,
            unnamed: 0,
            standing: Standing::default(),
        })
    }

    /// Begins: the first traces to launch.
    ///
    /// # Errors
    /// [`Error::Event`] when it has begun already.
    pub fn start(&mut self) -> Result<Vec<Action>> {
        if self.started {
            return Err(self.misplaced("the start", 0, "a run starts once"));
        }
        self.started = true;
        self.advance()
    }

    /// The trace is being generated.
    ///
    /// # Errors
    /// [`Error::Event`] unless it was to be launched.
    pub fn launched(&mut self, trace: u32) -> Result<()> {
        match self.status(trace) {
            Some(Status::Launching) => self.traces[trace as usize].status = Status::Running,
            // The answer came before the launch was reported.
            Some(Status::Aborting) => {}
            _ => return Err(self.misplaced("launch", trace, "only a trace to be launched can be")),
        }
        Ok(())
    }

    /// The trace broke off and is generated anew, under its own number: what was told of it is void.
    ///
    /// # Errors
    /// [`Error::Event`] unless it runs, or is being aborted.
    pub fn relaunched(&mut self, trace: u32) -> Result<()> {
        match self.status(trace) {
            Some(status @ (Status::Running | Status::Aborting)) => {
                self.traces[trace as usize] = Entry { status, ..Entry::LAUNCHING };
            }
            _ => {
                let expected = "only a running trace can begin anew";
                return Err(self.misplaced("relaunch", trace, expected));
            }
        }
        Ok(())
    }

    /// New tokens of a trace were scored: `[n_new]`, in nats.
    ///
    /// Tokens after the one that asks for a stop are counted, not scored.
    ///
    /// # Errors
    /// [`Error::Event`] unless it runs; [`Error::NotFinite`] and [`Error::OutOfRange`] naming trace and
    /// position in the trace. Nothing is then added.
    pub fn tokens(&mut self, trace: u32, confidences: &[f32]) -> Result<Option<Action>> {
        let Some(entry) = self.traces.get_mut(trace as usize) else {
            return Err(self.misplaced("tokens", trace, "it was never launched"));
        };
        match entry.status {
            Status::Running if confidences.is_empty() => return Ok(None),
            Status::Running => {}
            Status::Stopping | Status::Aborting => {
                entry.tokens += confidences.len() as u64;
                return Ok(None);
            }
            _ => return Err(self.misplaced("tokens", trace, "only a running trace has new ones")),
        }
        if matches!(entry.scoring, Scoring::Waiting) {
            self.traces[trace as usize].scoring = self.scoring(trace)?;
        }
        let entry = &mut self.traces[trace as usize];
        let Scoring::Live { live, rounded } = &mut entry.scoring else {
            return Err(self.misplaced("tokens", trace, "its scores are told, not its tokens"));
        };
        let seen = live.num_tokens();
        let stop = match live.extend(confidences) {
            Ok(stop) => stop,
            Err(error) => {
                if seen == 0 {
                    entry.scoring = Scoring::Waiting;
                }
                return Err(error.in_trace(trace, seen));
            }
        };
        if let Some(rounded) = rounded {
            rounded.extend(&confidences[..stop.map_or(confidences.len(), |at| at + 1)])?;
        }
        entry.tokens += confidences.len() as u64;
        Ok(stop.map(|at| {
            entry.status = Status::Stopping;
            Action::Stop { trace, token: seen + at as u64 }
        }))
    }

    /// New tokens of many traces were scored: token i is of `traces[i]`, in nats.
    ///
    /// What stands together of one trace is one event, as [`tokens`](Self::tokens) has it; a trace may
    /// occur more than once. What is wrong with one trace costs no other: its error is told, and what
    /// follows of it in this step is left out, since whoever drives gives it up.
    ///
    /// # Errors
    /// [`Error::Length`] when there are not as many of each; nothing is then added.
    pub fn step(&mut self, traces: &[u32], confidences: &[f32]) -> Result<Stepped> {
        if traces.len() != confidences.len() {
            return Err(Error::Length {
                left: "traces",
                left_len: traces.len(),
                right: "confidences",
                right_len: confidences.len(),
            });
        }
        let mut stepped = Stepped::default();
        let mut rest = confidences;
        for part in traces.chunk_by(|a, b| a == b) {
            let (trace, new) = (part[0], rest.split_off(..part.len()).unwrap_or_default());
            if stepped.errors.iter().any(|&(lost, _)| lost == trace) {
                continue;
            }
            match self.tokens(trace, new) {
                Ok(stop) => stepped.stops.extend(stop),
                Err(error) => stepped.errors.push((trace, error)),
            }
        }
        Ok(stepped)
    }

    /// What a trace that is scored elsewhere has come to, in place of its [`tokens`](Self::tokens).
    ///
    /// Once before it ends is enough. Told while it runs, `scores` are those so far, and later ones
    /// take their place; `stop` is the token that completed the first group below
    /// [`threshold`](Self::threshold), of which the trace is then stopping: `scores` go up to there.
    /// `tokens` are all that were generated, scored or not.
    ///
    /// A score that the policy weighs or ranks by and that is NaN takes the trace's vote.
    ///
    /// # Errors
    /// [`Error::Event`] unless it runs, and where its tokens were told; [`Error::Argument`] where the
    /// numbers cannot be: fewer tokens than before or than were scored, a stop beyond them, a stop of
    /// a trace without a threshold, a score that is infinite or out of range.
    pub fn scored(
        &mut self,
        trace: u32,
        scores: Scores,
        tokens: u64,
        stop: Option<u64>,
    ) -> Result<Option<Action>> {
        let Some(entry) = self.traces.get(trace as usize) else {
            return Err(self.misplaced("scores", trace, "it was never launched"));
        };
        let running = match entry.status {
            Status::Running => true,
            Status::Stopping | Status::Aborting => false,
            _ => return Err(self.misplaced("scores", trace, "only a running trace has new ones")),
        };
        if matches!(entry.scoring, Scoring::Live { .. }) {
            return Err(self.misplaced("scores", trace, "its tokens were told"));
        }
        let least = entry.tokens.max(scores.num_tokens);
        if tokens < least {
            let expected = format!("trace {trace} has {least} already");
            return Err(Error::argument("num_tokens", tokens, expected));
        }
        let measures = [Measure::Mean, Measure::LowestGroup, Measure::BottomGroup, Measure::Tail];
        for measure in measures {
            let value = measure.of(&scores);
            if !(value.is_nan() || fixed::in_range(value)) {
                let expected = "must be in nats, within ±32,768, or NaN where it is not known";
                return Err(Error::argument(measure.name(), value, expected));
            }
        }
        if let Some(token) = stop {
            let expected = if self.threshold_of(trace).is_none() {
                format!("trace {trace} has no threshold that could stop it")
            } else if token >= tokens {
                format!("trace {trace} has {tokens} tokens, counted from 0")
            } else {
                String::new()
            };
            if !expected.is_empty() {
                return Err(Error::argument("stop_token", token, expected));
            }
        }
        let entry = &mut self.traces[trace as usize];
        entry.tokens = tokens;
        if !running {
            return Ok(None);
        }
        entry.scoring = Scoring::Known(scores);
        Ok(stop.map(|token| {
            entry.status = Status::Stopping;
            Action::Stop { trace, token }
        }))
    }

    /// A trace ended; `answer` is what it says, if anything: [`ended`](Self::ended) and
    /// [`answered`](Self::answered) in one event.
    ///
    /// # Errors
    /// [`Error::Event`] unless it was in flight.
    pub fn finished(
        &mut self,
        trace: u32,
        finish: Finish,
        answer: Option<&str>,
    ) -> Result<Vec<Action>> {
        self.end(trace, finish)?;
        self.name(trace, answer);
        self.advance()
    }

    /// A trace ended, and what it answers is not known yet.
    ///
    /// Its place is free, its scores are final, and it counts for the threshold. Until it is
    /// [`answered`](Self::answered) it does not vote, and the run does not end for its budget.
    ///
    /// # Errors
    /// [`Error::Event`] unless it was in flight.
    pub fn ended(&mut self, trace: u32, finish: Finish) -> Result<Vec<Action>> {
        self.end(trace, finish)?;
        self.advance()
    }

    /// What a trace that [`ended`](Self::ended) answers is known now, `None` for nothing.
    ///
    /// Answers are compared as strings: hand in one representative for all that are equivalent. Of a
    /// run that was cut short (cancelled, or the engine died) the vote is counted anew.
    ///
    /// # Errors
    /// [`Error::Event`] unless it has ended and waits for its answer.
    pub fn answered(&mut self, trace: u32, answer: Option<&str>) -> Result<Vec<Action>> {
        if !self.traces.get(trace as usize).is_some_and(|entry| entry.unnamed) {
            let expected = "only a trace that ended and waits for its answer can get one";
            return Err(self.misplaced("the answer", trace, expected));
        }
        self.name(trace, answer);
        self.advance()
    }

    /// A trace was lost to an error: it never votes, and is not replaced.
    ///
    /// # Errors
    /// [`Error::Event`] unless it was in flight.
    pub fn failed(&mut self, trace: u32) -> Result<Vec<Action>> {
        if !self.status(trace).is_some_and(Status::in_flight) {
            return Err(self.misplaced("the failure", trace, "only a trace in flight can fail"));
        }
        self.traces[trace as usize].end(Status::Failed);
        self.in_flight -= 1;
        self.advance()
    }

    /// Ends the run now, with the vote of what has ended.
    ///
    /// Nothing after the answer.
    pub fn cancel(&mut self) -> Vec<Action> {
        self.cut_short(Reason::Cancelled)
    }

    /// Nothing can be generated any more: ends the run as [`cancel`](Self::cancel) does.
    pub fn engine_died(&mut self) -> Vec<Action> {
        self.cut_short(Reason::EngineDied)
    }

    /// What came of the run, once it is over.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// s, once known.
    #[must_use]
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// A trace's status; `None` before it is to be launched.
    #[must_use]
    pub fn status(&self, trace: u32) -> Option<Status> {
        self.traces.get(trace as usize).map(|entry| entry.status)
    }

    /// A trace's scores, up to the token that asked for a stop.
    #[must_use]
    pub fn scores(&self, trace: u32) -> Option<Scores> {
        self.traces.get(trace as usize).map(Entry::scores)
    }

    /// Tokens of all traces so far, those after a stop or abort included.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.traces.iter().map(|entry| entry.tokens).sum()
    }

    fn remaining(&self) -> usize {
        self.policy.budget as usize - self.traces.len()
    }

    fn end(&mut self, trace: u32, finish: Finish) -> Result<()> {
        let status = match (self.status(trace), finish) {
            (Some(Status::Aborting), _) => Status::Aborted,
            (Some(Status::Stopping), _) => Status::Stopped,
            (Some(Status::Running), Finish::End) => Status::Finished,
            (Some(Status::Running), Finish::Length) => Status::Length,
            (Some(Status::Running), Finish::Aborted) => Status::Aborted,
            _ => return Err(self.misplaced("the end", trace, "only a trace in flight can end")),
        };
        let late = self.outcome.is_some();
        let entry = &mut self.traces[trace as usize];
        entry.end(status);
        (entry.unnamed, entry.late) = (true, late);
        self.in_flight -= 1;
        self.unnamed += 1;
        Ok(())
    }

    fn name(&mut self, trace: u32, answer: Option<&str>) {
        let answer = answer.map(|answer| self.answer_id(answer));
        let entry = &mut self.traces[trace as usize];
        entry.unnamed = false;
        entry.answer = answer;
        self.unnamed -= 1;
        if self.calibrated {
            self.cast(trace as usize);
        }
        let votes = answer.is_some() && self.may_vote(&self.traces[trace as usize]);
        let reason = self.outcome.as_ref().map(|outcome| outcome.reason);
        if let Some(reason) = reason.filter(|reason| votes && reason.cut_short()) {
            self.outcome = Some(self.count(reason));
        }
    }

    fn answer_id(&mut self, answer: &str) -> u32 {
        if let Some(&id) = self.answer_ids.get(answer) {
            return id;
        }
        let id = self.answers.len() as u32;
        self.answers.push(answer.to_owned());
        self.answer_ids.insert(answer.to_owned(), id);
        id
    }

    fn answer_of(&self, trace: usize) -> Option<&str> {
        self.traces[trace].answer.map(|id| self.answers[id as usize].as_str())
    }

    #[cold]
    fn misplaced(&self, event: &'static str, trace: u32, expected: &'static str) -> Error {
        Error::Event { event, trace, status: self.status(trace), expected }
    }

    /// What follows from the state, after anything that may have changed it.
    fn advance(&mut self) -> Result<Vec<Action>> {
        if self.outcome.is_some() || !self.started {
            return Ok(Vec::new());
        }
        let warmup = self.policy.warmup as usize;
        let warm = self.traces.len() >= warmup && self.in_flight == 0;
        if !self.calibrated && warm {
            self.threshold = self.calibrate();
            self.calibrated = true;
            (0..self.traces.len()).for_each(|trace| self.cast(trace));
        }
        if let Some(reason) = self.settled() {
            return Ok(self.conclude(reason));
        }
        let limit = if self.calibrated { self.policy.budget as usize } else { warmup };
        let room = self.policy.concurrency.map_or(usize::MAX, |most| most as usize);
        let launch = (limit - self.traces.len()).min(room.saturating_sub(self.in_flight));
        if launch > 0 {
            return Ok(vec![self.launch(launch)]);
        }
        let over = self.in_flight == 0 && self.remaining() == 0 && self.unnamed == 0;
        Ok(if over { self.conclude(Reason::Budget) } else { Vec::new() })
    }

    fn launch(&mut self, count: usize) -> Action {
        let first = self.traces.len();
        self.traces.resize(first + count, Entry::LAUNCHING);
        self.in_flight += count;
        Action::Launch((first as u32..(first + count) as u32).collect())
    }

    /// s, for a trace that it can stop.
    fn threshold_of(&self, trace: u32) -> Option<f64> {
        self.threshold.filter(|_| trace >= self.policy.warmup)
    }

    /// What follows a trace of which the first tokens came.
    fn scoring(&self, trace: u32) -> Result<Scoring> {
        let (live, decimals) = (self.policy.live(), self.policy.decimals);
        let scorer = |settings, threshold| Scorer::new(settings)?.stream(threshold).map(Box::new);
        Ok(Scoring::Live {
            live: scorer(live, self.threshold_of(trace))?,
            rounded: match decimals {
                Some(_) => Some(scorer(Settings { decimals, ..live }, None)?),
                None => None,
            },
        })
    }

    fn cut_short(&mut self, reason: Reason) -> Vec<Action> {
        if self.outcome.is_some() { Vec::new() } else { self.conclude(reason) }
    }

    fn conclude(&mut self, reason: Reason) -> Vec<Action> {
        let outcome = self.count(reason);
        self.outcome = Some(outcome.clone());
        let mut abort = Vec::new();
        for (trace, entry) in self.traces.iter_mut().enumerate() {
            if matches!(entry.status, Status::Launching | Status::Running) {
                entry.status = Status::Aborting;
                abort.push(trace as u32);
            }
        }
        let answer = Action::Answer(Box::new(outcome));
        if abort.is_empty() { vec![answer] } else { vec![Action::Abort(abort), answer] }
    }
}
