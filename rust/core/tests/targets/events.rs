//! A controller that is told anything: what cannot be is refused and changes nothing, and the outcome
//! is the naive vote of what ended.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use deepconf_core::controller::{Action, Controller, Finish, Outcome, Reason, Status};
use deepconf_core::policy::{Mode, Policy, Stop};
use deepconf_core::trace::Scores;

use crate::driver::{self, End, Recording, Run};
use crate::oracle::{self, Dice};
use crate::quanta::sound;

pub fn run(u: &mut Unstructured) -> Result<()> {
    let mut books = Books::new(policy(&mut Dice(u.arbitrary()?)));
    while !u.is_empty() {
        books.event(u)?;
    }
    Ok(())
}

fn policy(dice: &mut Dice) -> Policy {
    let policy = driver::random_policy(dice);
    let offline_filter = policy.mode == Mode::Offline && policy.keep < 1.0;
    let stop = if offline_filter { policy.stop } else { dice.pick(&[policy.stop, Stop::Certain]) };
    Policy { stop, ..policy }
}

/// What the controller was told and has accepted, and what it said.
struct Books {
    controller: Controller,
    recordings: Vec<Recording>,
    launched: Vec<u32>,
    ended: Vec<u32>,
    stops: BTreeMap<u32, u64>,
    /// Those that ended, and of which no answer was told.
    unnamed: BTreeSet<u32>,
    /// Those of which scores were told instead of tokens: the naive vote knows nothing of them.
    told: BTreeSet<u32>,
    outcome: Option<Outcome>,
}

fn in_flight(status: Option<Status>) -> bool {
    use Status::{Aborting, Launching, Running, Stopping};
    matches!(status, Some(Launching | Running | Stopping | Aborting))
}

impl Books {
    fn new(policy: Policy) -> Self {
        let recording =
            Recording { confidences: Vec::new(), end: End::Failure, answer: None, partial: None };
        let recordings = vec![recording; policy.budget as usize];
        let mut controller = Controller::new(policy).unwrap();
        let actions = controller.start().unwrap();
        let mut books = Self {
            controller,
            recordings,
            launched: Vec::new(),
            ended: Vec::new(),
            stops: BTreeMap::new(),
            unnamed: BTreeSet::new(),
            told: BTreeSet::new(),
            outcome: None,
        };
        books.obey(actions);
        books
    }

    fn event(&mut self, u: &mut Unstructured) -> Result<()> {
        let budget = self.controller.policy().budget;
        let trace = u.int_in_range(0..=budget)?;
        let before = self.controller.clone();
        let status = self.controller.status(trace);
        let running = status == Some(Status::Running);
        let ends = in_flight(status) && status != Some(Status::Launching);
        let (expected, accepted) = match u.int_in_range(0..=40)? {
            0..8 => {
                let expected = matches!(status, Some(Status::Launching | Status::Aborting));
                (expected, self.controller.launched(trace).is_ok())
            }
            8..24 => {
                let confidences = confidences(u)?;
                let fits = confidences.iter().all(|&c| sound(c.into()));
                let scorable =
                    !running || confidences.is_empty() || fits && !self.told.contains(&trace);
                (ends && scorable, self.tokens(trace, running, &confidences))
            }
            24..32 => {
                let finish =
                    *u.choose(&[Finish::End, Finish::End, Finish::Length, Finish::Aborted])?;
                let answer = if u.arbitrary()? { Some(answer(u)?) } else { None };
                (ends, self.end(trace, finish, answer))
            }
            32..36 => (self.unnamed.contains(&trace), self.answered(trace, answer(u)?)),
            36..38 => (in_flight(status), self.failed(trace)),
            38 => {
                // Whether it is accepted depends on the numbers.
                let accepted = self.scored(u, trace)?;
                (accepted, accepted)
            }
            39 => (false, self.controller.start().is_ok()),
            _ => {
                let end = if u.arbitrary()? { Controller::cancel } else { Controller::engine_died };
                let actions = end(&mut self.controller);
                self.obey(actions);
                (true, true)
            }
        };
        assert_eq!(accepted, expected, "trace {trace} is {status:?}: {before:?}");
        if !accepted {
            assert_eq!(format!("{before:?}"), format!("{:?}", self.controller));
        }
        self.check();
        Ok(())
    }

    fn obey(&mut self, actions: Vec<Action>) {
        assert!(self.outcome.is_none() || actions.is_empty(), "{actions:?} after the answer");
        let answered = matches!(actions.last(), Some(Action::Answer(_)));
        for action in actions {
            match action {
                Action::Launch(traces) => self.launched.extend(traces),
                Action::Abort(traces) => {
                    let aborting =
                        |&trace: &u32| self.controller.status(trace) == Some(Status::Aborting);
                    assert!(traces.iter().all(aborting));
                }
                Action::Answer(outcome) => self.outcome = Some(*outcome),
                Action::Stop { .. } => panic!("{action:?} from something other than tokens"),
                #[allow(unreachable_patterns)]
                action => panic!("{action:?} is unknown"),
            }
        }
        if answered {
            // Names that come later count only where the run was cut short.
            self.compare();
        }
    }

    fn tokens(&mut self, trace: u32, running: bool, confidences: &[f32]) -> bool {
        let Ok(action) = self.controller.tokens(trace, confidences) else { return false };
        if running {
            self.recordings[trace as usize].confidences.extend(confidences);
        }
        if let Some(Action::Stop { trace: stopped, token }) = action {
            assert!(running && stopped == trace);
            assert!(self.stops.insert(trace, token).is_none());
        }
        true
    }

    fn scored(&mut self, u: &mut Unstructured, trace: u32) -> Result<bool> {
        let lowest_group = f64::from(u.int_in_range(-9..=90_i8)?) / 8.0;
        let num_tokens = u.int_in_range(0..=12)?;
        let scores = Scores { lowest_group, num_tokens, ..Scores::NOTHING };
        let stop = if u.ratio(1, 4)? { Some(u.int_in_range(0..=12)?) } else { None };
        let status = self.controller.status(trace);
        let accepted = self.controller.scored(trace, scores, num_tokens, stop).is_ok();
        if accepted && status == Some(Status::Running) {
            self.told.insert(trace);
        }
        Ok(accepted)
    }

    fn end(&mut self, trace: u32, finish: Finish, answer: Option<Option<&str>>) -> bool {
        let before = self.outcome.is_some();
        let running = self.controller.status(trace) == Some(Status::Running);
        // Told first, so that the books are complete when the answer comes.
        let mut controller = self.controller.clone();
        let told = match answer {
            Some(answer) => controller.finished(trace, finish, answer),
            None => controller.ended(trace, finish),
        };
        let Ok(actions) = told else { return false };
        self.controller = controller;
        let recording = &mut self.recordings[trace as usize];
        recording.end = match finish {
            Finish::End if running => End::Itself,
            Finish::Length if running => End::Length,
            _ => End::Failure,
        };
        if !before {
            self.ended.push(trace);
        }
        match answer {
            Some(answer) => self.name(trace, answer),
            None => drop(self.unnamed.insert(trace)),
        }
        self.obey(actions);
        true
    }

    fn answered(&mut self, trace: u32, answer: Option<&str>) -> bool {
        let Ok(actions) = self.controller.answered(trace, answer) else { return false };
        self.unnamed.remove(&trace);
        self.name(trace, answer);
        self.obey(actions);
        true
    }

    fn name(&mut self, trace: u32, answer: Option<&str>) {
        let recording = &mut self.recordings[trace as usize];
        recording.answer = answer.map(str::to_owned);
        recording.partial = recording.answer.clone();
    }

    fn failed(&mut self, trace: u32) -> bool {
        let before = self.outcome.is_some();
        let Ok(actions) = self.controller.failed(trace) else { return false };
        if !before {
            self.ended.push(trace);
        }
        self.obey(actions);
        true
    }

    /// What holds at any moment.
    fn check(&mut self) {
        let policy = self.controller.policy();
        assert!(self.launched.iter().copied().eq(0..self.launched.len() as u32));
        assert!(self.launched.len() <= policy.budget as usize);
        let flying = (0..policy.budget).filter(|&trace| in_flight(self.controller.status(trace)));
        assert!(flying.count() <= policy.concurrency.unwrap_or(policy.budget) as usize);
        let Some(outcome) = &self.outcome else {
            assert!(self.controller.outcome().is_none());
            return;
        };
        if matches!(outcome.reason, Reason::Cancelled | Reason::EngineDied) {
            self.outcome = self.controller.outcome().cloned();
            self.compare();
        }
        assert_eq!(self.controller.outcome(), self.outcome.as_ref());
    }

    /// The outcome, if there is one, against the naive vote.
    fn compare(&self) {
        let Some(outcome) = self.outcome.clone().filter(|_| self.told.is_empty()) else { return };
        let run = Run {
            controller: self.controller.clone(),
            outcome,
            launched: self.launched.clone(),
            ended: self.ended.clone(),
            stops: self.stops.clone(),
            most_in_flight: 0,
        };
        driver::check_outcome(self.controller.policy(), &self.recordings, &run);
    }
}

fn answer<'a>(u: &mut Unstructured) -> Result<Option<&'a str>> {
    Ok(*u.choose(&[None, Some("a"), Some("a"), Some("b"), Some("")])?)
}

/// A few tokens, mostly on the oracle's grid.
fn confidences(u: &mut Unstructured) -> Result<Vec<f32>> {
    let count = u.int_in_range(0..=6)?;
    let eighths: Vec<i16> =
        (0..count).map(|_| u.int_in_range(-20..=100_i8).map(i16::from)).collect::<Result<_>>()?;
    let mut confidences = oracle::grid(&eighths);
    if u.ratio(1, 20)? {
        confidences.push(*u.choose(&[f32::NAN, f32::INFINITY, 32_768.0, -1e9])?);
    }
    Ok(confidences)
}
