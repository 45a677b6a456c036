//! The controller once more, slow and obvious: it keeps what was told of each trace, and works out
//! everything else afresh, in float64, whenever it is asked. Written from DESIGN.md.
//!
//! On confidences that are small multiples of a power of two both must agree to the last bit.

// Each user takes its own part.
#![allow(dead_code)]

use deepconf_core::controller::{
    Action, Controller, Finish, Outcome, Phase, Reason, Status, Unarmed,
};
use deepconf_core::fixed;
use deepconf_core::policy::{Calibrate, Measure, Mode, Over, Policy, Stop};
use deepconf_core::vote::{Ballot, Vote};

use crate::oracle::{self, Tally};

/// Why is not looked at.
const UNARMED: Unarmed = Unarmed::Warmup { warmup: 0 };

#[derive(Clone, Debug)]
pub enum Event {
    Start,
    Launched(u32),
    Relaunched(u32),
    Tokens(u32, Vec<f32>),
    Ended(u32, Finish),
    Answered(u32, Option<String>),
    Finished(u32, Finish, Option<String>),
    Failed(u32),
    Cancel,
    EngineDied,
}

/// What the controller makes of an event; `None` where it refuses it.
pub fn play(controller: &mut Controller, event: &Event) -> Option<Vec<Action>> {
    match event {
        Event::Start => controller.start().ok(),
        Event::Launched(trace) => controller.launched(*trace).ok().map(|()| Vec::new()),
        Event::Relaunched(trace) => controller.relaunched(*trace).ok().map(|()| Vec::new()),
        Event::Tokens(trace, new) => {
            controller.tokens(*trace, new).ok().map(|stop| stop.into_iter().collect())
        }
        Event::Ended(trace, finish) => controller.ended(*trace, *finish).ok(),
        Event::Answered(trace, answer) => controller.answered(*trace, answer.as_deref()).ok(),
        Event::Finished(trace, finish, answer) => {
            controller.finished(*trace, *finish, answer.as_deref()).ok()
        }
        Event::Failed(trace) => controller.failed(*trace).ok(),
        Event::Cancel => Some(controller.cancel()),
        Event::EngineDied => Some(controller.engine_died()),
    }
}

/// What was told of a trace.
#[derive(Clone, Debug)]
struct Story {
    status: Status,
    /// The tokens up to the one that asked for a stop.
    scored: Vec<f64>,
    /// All of them.
    tokens: u64,
    /// What it says, once that is told.
    answer: Option<Option<String>>,
}

#[derive(Clone, Debug)]
pub struct Reference {
    policy: Policy,
    started: bool,
    traces: Vec<Story>,
    /// The outcome, and the threshold then.
    over: Option<(Outcome, Option<f64>)>,
}

fn in_flight(status: Status) -> bool {
    use Status::{Aborting, Launching, Running, Stopping};
    matches!(status, Launching | Running | Stopping | Aborting)
}

impl Reference {
    pub fn new(policy: Policy) -> Self {
        Self { policy, started: false, traces: Vec::new(), over: None }
    }

    /// The same event; `None` where it does not fit.
    pub fn play(&mut self, event: &Event) -> Option<Vec<Action>> {
        let status = |trace: &u32| self.traces.get(*trace as usize).map(|story| story.status);
        match event {
            Event::Start => {
                if self.started {
                    return None;
                }
                self.started = true;
            }
            Event::Launched(trace) => {
                return match status(trace)? {
                    Status::Launching => {
                        self.traces[*trace as usize].status = Status::Running;
                        Some(Vec::new())
                    }
                    Status::Aborting => Some(Vec::new()),
                    _ => None,
                };
            }
            Event::Relaunched(trace) => {
                let status = status(trace)?;
                if !matches!(status, Status::Running | Status::Aborting) {
                    return None;
                }
                self.traces[*trace as usize] =
                    Story { status, scored: Vec::new(), tokens: 0, answer: None };
                return Some(Vec::new());
            }
            Event::Tokens(trace, new) => return self.tokens(*trace, new),
            Event::Ended(trace, finish) => self.end(*trace, *finish)?,
            Event::Answered(trace, answer) => self.name(*trace, answer)?,
            Event::Finished(trace, finish, answer) => {
                self.end(*trace, *finish)?;
                self.name(*trace, answer)?;
            }
            Event::Failed(trace) => {
                if !in_flight(status(trace)?) {
                    return None;
                }
                let story = &mut self.traces[*trace as usize];
                (story.status, story.answer) = (Status::Failed, Some(None));
            }
            Event::Cancel if self.over.is_some() => return Some(Vec::new()),
            Event::Cancel => return Some(self.conclude(Reason::Cancelled)),
            Event::EngineDied if self.over.is_some() => return Some(Vec::new()),
            Event::EngineDied => return Some(self.conclude(Reason::EngineDied)),
        }
        Some(self.consequences())
    }

    fn tokens(&mut self, trace: u32, new: &[f32]) -> Option<Vec<Action>> {
        let s = self.threshold().filter(|_| trace >= self.policy.warmup);
        let window = self.policy.window as usize;
        let story = self.traces.get_mut(trace as usize)?;
        match story.status {
            Status::Stopping | Status::Aborting => {
                story.tokens += new.len() as u64;
                return Some(Vec::new());
            }
            Status::Running => {}
            _ => return None,
        }
        if new.iter().any(|c| !c.is_finite() || f64::from(c.abs()) >= fixed::LIMIT) {
            return None;
        }
        story.tokens += new.len() as u64;
        story.scored.extend(oracle::wide(new));
        let stop = s.and_then(|s| oracle::first_stop(&story.scored, window, s));
        Some(stop.map_or_else(Vec::new, |token| {
            story.scored.truncate(token + 1);
            story.status = Status::Stopping;
            vec![Action::Stop { trace, token: token as u64 }]
        }))
    }

    fn end(&mut self, trace: u32, finish: Finish) -> Option<()> {
        let story = self.traces.get_mut(trace as usize)?;
        story.status = match (story.status, finish) {
            (Status::Aborting, _) | (Status::Running, Finish::Aborted) => Status::Aborted,
            (Status::Stopping, _) => Status::Stopped,
            (Status::Running, Finish::End) => Status::Finished,
            (Status::Running, Finish::Length) => Status::Length,
            _ => return None,
        };
        Some(())
    }

    fn name(&mut self, trace: u32, answer: &Option<String>) -> Option<()> {
        let story = self.traces.get_mut(trace as usize)?;
        if in_flight(story.status) || story.answer.is_some() {
            return None;
        }
        story.answer = Some(answer.clone());
        Some(())
    }

    fn consequences(&mut self) -> Vec<Action> {
        if self.over.is_some() || !self.started {
            return Vec::new();
        }
        let budget = self.policy.budget as usize;
        if let Some(reason) = self.settled() {
            return self.conclude(reason);
        }
        let running = self.traces.iter().filter(|story| in_flight(story.status)).count();
        let limit = if self.warm() { budget } else { self.policy.warmup as usize };
        let room = self.policy.concurrency.map_or(budget, |most| most as usize);
        let (first, count) = (self.traces.len(), room.saturating_sub(running));
        let last = limit.min(first + count);
        if last > first {
            let fresh =
                Story { status: Status::Launching, scored: vec![], tokens: 0, answer: None };
            self.traces.resize(last, fresh);
            return vec![Action::Launch((first as u32..last as u32).collect())];
        }
        let spent = first == budget && running == 0 && self.num_unnamed() == 0;
        if spent { self.conclude(Reason::Budget) } else { Vec::new() }
    }

    /// Whether no warmup trace is outstanding.
    fn warm(&self) -> bool {
        let warmup = self.policy.warmup as usize;
        self.traces.len() >= warmup
            && self.traces[..warmup].iter().all(|story| !in_flight(story.status))
    }

    pub fn threshold(&self) -> Option<f64> {
        if let Some((_, threshold)) = self.over {
            return threshold;
        }
        if self.policy.mode == Mode::Offline || !self.warm() {
            return None;
        }
        let counts = |story: &&Story| match story.status {
            Status::Finished => true,
            Status::Length => self.policy.calibrate_on == Calibrate::All,
            _ => false,
        };
        let warmup = self.traces[..self.policy.warmup as usize].iter().filter(counts);
        let lowest: Vec<f64> = warmup.map(|s| self.score(s, Measure::LowestGroup)).collect();
        oracle::percentile(&lowest, 100.0 * (1.0 - self.policy.keep))
    }

    fn score(&self, story: &Story, measure: Measure) -> f64 {
        let (window, tail) = (self.policy.window as usize, self.policy.tail as usize);
        match measure {
            Measure::Mean => oracle::mean(&story.scored),
            Measure::LowestGroup => oracle::lowest_group(&story.scored, window),
            Measure::BottomGroup => oracle::bottom_group(&story.scored, window, self.policy.bottom),
            Measure::Tail => oracle::tail(&story.scored, tail),
            _ => unreachable!("{measure:?}"),
        }
    }

    /// NaN for a trace in flight.
    fn final_scores(&self, measure: Measure) -> Vec<f64> {
        let score = |story: &Story| match in_flight(story.status) {
            true => f64::NAN,
            false => self.score(story, measure),
        };
        self.traces.iter().map(score).collect()
    }

    fn clip(&self, weight: f64) -> f64 {
        weight.max(0.0).min(self.policy.max_weight.unwrap_or(fixed::LIMIT))
    }

    fn weights(&self) -> Vec<f64> {
        match self.policy.weight.measure() {
            None => vec![1.0; self.traces.len()],
            Some(measure) => self.final_scores(measure).into_iter().map(|w| self.clip(w)).collect(),
        }
    }

    fn may_vote(&self, story: &Story) -> bool {
        let online = self.policy.mode == Mode::Online;
        let ended_well = match story.status {
            Status::Finished => true,
            Status::Length => !online || self.policy.stopped_vote,
            Status::Stopped => self.policy.stopped_vote,
            _ => false,
        };
        ended_well && !story.scored.is_empty()
    }

    /// What each trace says that may vote.
    fn ballots(&self) -> Vec<Option<&str>> {
        let ballot = |story: &'_ Story| self.may_vote(story);
        let said = |story| -> Option<&str> { Story::said(story).filter(|_| ballot(story)) };
        self.traces.iter().map(said).collect()
    }

    fn tally(&self, answers: &[Option<&str>]) -> Tally {
        let policy = &self.policy;
        let (weights, floor) = (self.weights(), policy.min_ballots as usize);
        match (policy.mode, self.threshold()) {
            (Mode::Offline, _) => {
                let over_all = policy.percentile_over == Over::All;
                let scores = self.final_scores(policy.measure);
                oracle::vote(answers, &weights, Some(&scores), policy.keep, floor, over_all)
            }
            (Mode::Online, None) => oracle::vote(answers, &weights, None, 1.0, floor, false),
            (_, s) => {
                let lowest = self.final_scores(Measure::LowestGroup);
                oracle::vote_above(answers, &weights, &lowest, s, floor)
            }
        }
    }

    fn settled(&self) -> Option<Reason> {
        let policy = &self.policy;
        let filtered = policy.mode == Mode::Offline && policy.keep < 1.0;
        if !self.warm() || policy.stop == Stop::Budget || filtered && self.num_unnamed() > 0 {
            return None;
        }
        let tally = self.tally(&self.ballots());
        let enough = tally.voters.len() >= policy.min_ballots.max(1) as usize;
        if tally.fallback || !enough {
            return None;
        }
        let weight = |place: usize| tally.ballots.get(place).map_or(0.0, |ballot| ballot.1);
        let waiting = self.waiting_weights();
        let unnamed: f64 = waiting.iter().sum();
        if policy.stop == Stop::Consensus {
            let total: f64 = tally.ballots.iter().map(|ballot| ballot.1).sum();
            let share =
                if waiting.is_empty() { tally.share } else { weight(0) / (total + unnamed) };
            let ahead = waiting.is_empty() || weight(0) > weight(1) + unnamed;
            return (share >= policy.consensus && ahead).then_some(Reason::Consensus);
        }
        let most = if policy.weight.measure().is_some() { self.clip(fixed::LIMIT) } else { 1.0 };
        let running: f64 = self.traces.iter().map(|story| self.most_to_come(story, most)).sum();
        let unlaunched = (policy.budget as usize - self.traces.len()) as f64 * most;
        let outstanding = running + unlaunched + unnamed;
        let margin = 1e-9 * (weight(0) + outstanding);
        (outstanding > 0.0 && weight(0) - weight(1) > outstanding + margin)
            .then_some(Reason::Certain)
    }

    /// The most that a trace in flight can add to a ballot.
    fn most_to_come(&self, story: &Story, most: f64) -> f64 {
        let complete = story.scored.len() as u64 >= self.policy.window;
        let by_lowest = self.policy.weight.measure() == Some(Measure::LowestGroup);
        match story.status {
            Status::Launching => most,
            Status::Running | Status::Stopping | Status::Aborting => {
                if story.status != Status::Running && !self.policy.stopped_vote {
                    0.0
                } else if by_lowest && complete {
                    self.clip(self.score(story, Measure::LowestGroup))
                } else {
                    most
                }
            }
            _ => 0.0,
        }
    }

    /// Of the traces that vote once they are named, whatever they say.
    fn waiting_weights(&self) -> Vec<f64> {
        let (s, weights) = (self.threshold(), self.weights());
        let lowest = self.final_scores(Measure::LowestGroup);
        (0..self.traces.len())
            .filter(|&i| self.traces[i].waits() && self.may_vote(&self.traces[i]))
            .filter(|&i| s.is_none_or(|s| lowest[i] >= s))
            .map(|i| weights[i])
            .collect()
    }

    fn conclude(&mut self, reason: Reason) -> Vec<Action> {
        let answers = self.ballots();
        let tally = self.tally(&answers);
        let text = |first: usize| answers[first].unwrap_or_default().to_owned();
        let named: Vec<String> = tally.ballots.iter().map(|ballot| text(ballot.0)).collect();
        let threshold = self.threshold();
        let mut vote = Vote::default();
        vote.ballots = tally
            .ballots
            .iter()
            .map(|&(first, weight, voters)| Ballot::new(first, weight, voters))
            .collect();
        vote.share = tally.share;
        vote.num_voters = tally.voters.len();
        vote.threshold = tally.threshold;
        vote.fallback = tally.fallback;
        let mut outcome = Outcome::new(vote, named, reason);
        outcome.voters = tally.voters.iter().map(|&voter| voter as u32).collect();
        outcome.threshold = threshold.or(tally.threshold);
        outcome.unarmed = self.unarmed(reason).then_some(UNARMED);
        let mut abort = Vec::new();
        for (trace, story) in self.traces.iter_mut().enumerate() {
            if matches!(story.status, Status::Launching | Status::Running) {
                story.status = Status::Aborting;
                abort.push(trace as u32);
            }
        }
        self.over = Some((outcome.clone(), threshold));
        let abort = (!abort.is_empty()).then_some(Action::Abort(abort));
        abort.into_iter().chain([Action::Answer(Box::new(outcome))]).collect()
    }

    fn unarmed(&self, reason: Reason) -> bool {
        let by_itself = !matches!(reason, Reason::Cancelled | Reason::EngineDied);
        let longest = self.traces.iter().map(|story| story.scored.len() as u64).max();
        by_itself
            && self.policy.mode == Mode::Online
            && (longest.unwrap_or(0) < self.policy.window || self.threshold().is_none())
    }

    pub fn num_unnamed(&self) -> usize {
        self.traces.iter().filter(|story| story.waits()).count()
    }

    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// All traces launched, with their statuses.
    pub fn statuses(&self) -> Vec<Status> {
        self.traces.iter().map(|story| story.status).collect()
    }

    /// Demands that the controller says the same of every trace.
    pub fn check(&self, controller: &Controller) {
        assert_eq!(controller.threshold(), self.threshold());
        assert_eq!(controller.state().unnamed, self.num_unnamed());
        assert_eq!(controller.num_tokens(), self.traces.iter().map(|s| s.tokens).sum::<u64>());
        assert_eq!(controller.status(self.traces.len() as u32), None);
        for (trace, story) in self.traces.iter().enumerate() {
            let trace = trace as u32;
            assert_eq!(controller.status(trace), Some(story.status), "trace {trace}");
            let scores = controller.scores(trace).unwrap();
            assert_eq!(scores.num_tokens, story.scored.len() as u64, "trace {trace}");
            for measure in [Measure::Mean, Measure::LowestGroup, Measure::Tail] {
                let (got, expected) = (measure.of(&scores), self.score(story, measure));
                assert!(got == expected || story.scored.is_empty() && got.is_nan(), "{measure:?}");
            }
        }
        let state = controller.state();
        assert_eq!(
            (state.unnamed, state.phase == Phase::Done),
            (self.num_unnamed(), self.is_over())
        );
    }

    /// A name for each trace that waits, such that the leader has the hardest time: all for the
    /// runner-up, or for somebody new. The outcome that was settled must stand.
    pub fn check_settled(&self, outcome: &Outcome) {
        let runner_up = outcome.answers.get(1).map_or("somebody new", String::as_str);
        for name in [runner_up, "somebody new"] {
            let mut named = self.clone();
            for story in named.traces.iter_mut().filter(|story| story.waits()) {
                story.answer = Some(Some(name.to_owned()));
            }
            let answers = named.ballots();
            let tally = named.tally(&answers);
            assert_eq!(tally.winner(&answers), outcome.answer.as_deref(), "{name}");
            if outcome.reason == Reason::Consensus {
                assert!(tally.share >= self.policy.consensus - 1e-12, "{}", tally.share);
            }
        }
    }
}

impl Story {
    fn waits(&self) -> bool {
        !in_flight(self.status) && self.answer.is_none()
    }

    fn said(&self) -> Option<&str> {
        self.answer.as_ref()?.as_deref()
    }
}

/// An event, mostly one that fits, by numbers that `below(n)` draws from 0 … n − 1.
pub fn random_event(reference: &Reference, below: &mut dyn FnMut(usize) -> usize) -> Event {
    if !reference.started && below(8) > 0 {
        return Event::Start;
    }
    let traces = &reference.traces;
    let answer = |below: &mut dyn FnMut(usize) -> usize| {
        let answers = [None, Some("a"), Some("a"), Some("a"), Some("b"), Some("c")];
        answers[below(6)].map(str::to_owned)
    };
    let finish = |below: &mut dyn FnMut(usize) -> usize| {
        [Finish::End, Finish::End, Finish::End, Finish::Length, Finish::Aborted][below(5)]
    };
    let busy: Vec<usize> =
        (0..traces.len()).filter(|&i| in_flight(traces[i].status) || traces[i].waits()).collect();
    let fits = !busy.is_empty() && below(8) > 0;
    // Else any trace, launched or not, and any event.
    let trace = if fits { busy[below(busy.len())] } else { below(traces.len() + 2) };
    let story = traces.get(trace).filter(|_| fits);
    let number = trace as u32;
    match story.map(|story| story.status) {
        Some(Status::Launching) if below(8) > 0 => Event::Launched(number),
        Some(status) if in_flight(status) => match below(20) {
            0..10 => Event::Tokens(number, random_tokens(below)),
            10 => Event::Relaunched(number),
            11..15 => Event::Finished(number, finish(below), answer(below)),
            15..19 => Event::Ended(number, finish(below)),
            _ => Event::Failed(number),
        },
        Some(_) => Event::Answered(number, answer(below)),
        None => match below(20) {
            0 => Event::Start,
            1..4 => Event::Launched(number),
            4..6 => Event::Tokens(number, random_tokens(below)),
            6 => Event::Relaunched(number),
            7..10 => Event::Finished(number, finish(below), answer(below)),
            10..13 => Event::Ended(number, finish(below)),
            13..16 => Event::Answered(number, answer(below)),
            16..18 => Event::Failed(number),
            // Not too often, or no run gets far.
            18 if below(12) == 0 => Event::Cancel,
            19 if below(12) == 0 => Event::EngineDied,
            _ => Event::Tokens(number, vec![]),
        },
    }
}

fn random_tokens(below: &mut dyn FnMut(usize) -> usize) -> Vec<f32> {
    let floor = [-8, 8, 16, 40][below(4)];
    let eighths: Vec<i16> = (0..below(9)).map(|_| floor + below(60) as i16).collect();
    let mut tokens = oracle::grid(&eighths);
    if below(40) == 0 {
        tokens.push([f32::NAN, f32::INFINITY, 32_768.0, -1e30][below(4)]);
    }
    tokens
}

/// Plays random events to both and compares all they say; whether the run ended, and why.
pub fn compare(
    policy: &Policy,
    events: usize,
    below: &mut dyn FnMut(usize) -> usize,
) -> Option<Reason> {
    let mut controller = Controller::new(policy.clone()).unwrap();
    let mut reference = Reference::new(policy.clone());
    for _ in 0..events {
        let event = random_event(&reference, below);
        let before = controller.clone();
        let mut got = play(&mut controller, &event);
        let expected = reference.play(&event);
        if got.is_none() {
            assert_eq!(format!("{controller:?}"), format!("{before:?}"), "{event:?}");
        }
        for action in got.iter_mut().flatten() {
            if let Action::Answer(outcome) = action {
                outcome.unarmed = outcome.unarmed.map(|_| UNARMED);
                if matches!(outcome.reason, Reason::Consensus | Reason::Certain) {
                    reference.check_settled(outcome);
                }
            }
        }
        assert_eq!(got, expected, "{event:?} of {controller:?}");
        reference.check(&controller);
    }
    controller.outcome().map(|outcome| outcome.reason)
}
