//! A driver that plays recorded traces to a controller, in an order and in pieces that a seed draws,
//! and obeys; and what the run should come to, worked out naively.

// Each test file uses its own part.
#![allow(dead_code)]

use std::collections::BTreeMap;

use deepconf_core::controller::{Action, Controller, Finish, Outcome, Phase, Status};
use deepconf_core::policy::{Calibrate, Measure, Mode, Over, Policy, Stop, Weight};

use crate::oracle::{self, Dice, Tally};

/// How a recorded trace ends when nobody stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Itself,
    Length,
    Failure,
}

/// A recorded trace. Confidences are on the oracle's grid.
#[derive(Clone, Debug)]
pub struct Recording {
    pub confidences: Vec<f32>,
    pub end: End,
    pub answer: Option<String>,
    /// What it says if it is stopped.
    pub partial: Option<String>,
}

/// What happened.
#[derive(Debug)]
pub struct Run {
    pub controller: Controller,
    pub outcome: Outcome,
    /// In the order they were asked for.
    pub launched: Vec<u32>,
    /// The traces that ended before the answer, in that order.
    pub ended: Vec<u32>,
    /// The token at which each stopped trace was stopped.
    pub stops: BTreeMap<u32, u64>,
    pub most_in_flight: usize,
}

struct Flight {
    trace: u32,
    launched: bool,
    /// Asked to stop or to abort.
    leaving: bool,
    delivered: usize,
}

struct Driver<'a> {
    controller: Controller,
    recordings: &'a [Recording],
    dice: Dice,
    flights: Vec<Flight>,
    /// Whether answers may come after ends.
    late: bool,
    /// What is to be told yet of traces that have ended.
    unnamed: Vec<(u32, Option<String>)>,
    outcome: Option<Outcome>,
    launched: Vec<u32>,
    ended: Vec<u32>,
    stops: BTreeMap<u32, u64>,
    most_in_flight: usize,
    tokens: u64,
}

/// Plays the recordings until every trace has ended, those that are aborted too.
pub fn drive(policy: &Policy, recordings: &[Recording], seed: u64) -> Run {
    play(policy, recordings, seed, usize::MAX, false)
}

/// The same, but that answers come later than ends, and in another order.
pub fn drive_late(policy: &Policy, recordings: &[Recording], seed: u64) -> Run {
    play(policy, recordings, seed, usize::MAX, true)
}

/// The same, cancelled after so many steps, if the answer has not come before.
pub fn drive_until(policy: &Policy, recordings: &[Recording], seed: u64, steps: usize) -> Run {
    play(policy, recordings, seed, steps, false)
}

fn play(policy: &Policy, recordings: &[Recording], seed: u64, steps: usize, late: bool) -> Run {
    let mut driver = Driver {
        controller: Controller::new(policy.clone()).unwrap(),
        recordings,
        dice: Dice(seed),
        flights: Vec::new(),
        late,
        unnamed: Vec::new(),
        outcome: None,
        launched: Vec::new(),
        ended: Vec::new(),
        stops: BTreeMap::new(),
        most_in_flight: 0,
        tokens: 0,
    };
    let actions = driver.controller.start().unwrap();
    driver.obey(actions);
    for step in 0.. {
        if step == steps {
            let actions = driver.controller.cancel();
            driver.obey(actions);
        }
        if driver.flights.is_empty() && driver.unnamed.is_empty() {
            break;
        }
        driver.step();
        driver.check();
    }
    let Driver { controller, outcome, launched, ended, stops, most_in_flight, .. } = driver;
    let outcome = outcome.expect("the run is over");
    assert_eq!(controller.outcome(), Some(&outcome));
    Run { controller, outcome, launched, ended, stops, most_in_flight }
}

impl Driver<'_> {
    fn obey(&mut self, actions: Vec<Action>) {
        assert!(self.outcome.is_none() || actions.is_empty(), "{actions:?} after the answer");
        for action in actions {
            match action {
                Action::Launch(traces) => {
                    let flight = |&trace: &u32| Flight {
                        trace,
                        launched: false,
                        leaving: false,
                        delivered: 0,
                    };
                    self.flights.extend(traces.iter().map(flight));
                    self.launched.extend(traces);
                }
                Action::Abort(traces) => {
                    for trace in traces {
                        let mut flights = self.flights.iter_mut();
                        let flight = flights.find(|f| f.trace == trace).expect("it is in flight");
                        assert!(!flight.leaving, "trace {trace} is asked to go twice");
                        flight.leaving = true;
                    }
                }
                Action::Answer(outcome) => self.outcome = Some(*outcome),
                other => panic!("{other:?} from something other than tokens"),
            }
        }
        self.most_in_flight = self.most_in_flight.max(self.flights.len());
    }

    /// Something happens to one of the traces in flight.
    fn step(&mut self) {
        let at = self.dice.below(self.flights.len() + self.unnamed.len());
        if let Some(at) = at.checked_sub(self.flights.len()) {
            let (trace, answer) = self.unnamed.swap_remove(at);
            let actions = self.controller.answered(trace, answer.as_deref());
            return self.obey(actions.unwrap());
        }
        let flight = &mut self.flights[at];
        let (trace, recording) = (flight.trace, &self.recordings[flight.trace as usize]);
        if !flight.launched {
            flight.launched = true;
            let lost = recording.end == End::Failure && recording.confidences.is_empty();
            if lost && self.dice.below(2) == 0 {
                return self.end(at);
            }
            return self.controller.launched(trace).unwrap();
        }
        let left = &recording.confidences[flight.delivered..];
        let chunk = &left[..self.dice.below(9).min(left.len())];
        flight.delivered += chunk.len();
        self.tokens += chunk.len() as u64;
        match self.controller.tokens(trace, chunk).unwrap() {
            None => {}
            Some(Action::Stop { trace: stopped, token }) => {
                assert!(stopped == trace && !flight.leaving && self.outcome.is_none());
                flight.leaving = true;
                assert!(self.stops.insert(trace, token).is_none(), "a trace is stopped once");
            }
            Some(action) => panic!("{action:?} from tokens"),
        }
        let flight = &self.flights[at];
        if flight.delivered == recording.confidences.len()
            || flight.leaving && self.dice.below(2) == 0
        {
            self.end(at);
        }
    }

    fn end(&mut self, at: usize) {
        let Flight { trace, leaving, .. } = self.flights.swap_remove(at);
        let Recording { end, answer, partial, .. } = &self.recordings[trace as usize];
        if self.outcome.is_none() {
            self.ended.push(trace);
        }
        let actions = if leaving {
            // Whatever the server calls it, it ended because it was asked to.
            let finish = self.dice.pick(&[Finish::Aborted, Finish::End, Finish::Length]);
            self.finish(trace, finish, partial.as_deref())
        } else {
            match end {
                End::Itself => self.finish(trace, Finish::End, answer.as_deref()),
                End::Length => self.finish(trace, Finish::Length, answer.as_deref()),
                End::Failure => self.controller.failed(trace).unwrap(),
            }
        };
        self.obey(actions);
    }

    fn finish(&mut self, trace: u32, finish: Finish, answer: Option<&str>) -> Vec<Action> {
        if self.late {
            self.unnamed.push((trace, answer.map(str::to_owned)));
            self.controller.ended(trace, finish).unwrap()
        } else {
            self.controller.finished(trace, finish, answer).unwrap()
        }
    }

    /// What holds at any moment.
    fn check(&self) {
        let state = self.controller.state();
        assert!(state.to_string().starts_with(state.phase.name()));
        assert_eq!((state.phase == Phase::Done), self.outcome.is_some());
        assert_eq!(state.tokens, self.tokens);
        let count: usize = state.traces.iter().map(|(_, count)| count).sum();
        assert_eq!(count, self.launched.len());
        let remaining = self.controller.policy().budget as usize - count;
        assert_eq!(state.remaining, if self.outcome.is_some() { 0 } else { remaining });
    }
}

/// The tokens of a trace that count for its scores.
fn scored(recordings: &[Recording], run: &Run, trace: usize) -> Vec<f64> {
    let all = oracle::wide(&recordings[trace].confidences);
    let stop = run.stops.get(&(trace as u32));
    stop.map_or(all.clone(), |&token| all[..=token as usize].to_vec())
}

/// A measure of a trace, from its tokens.
pub fn measured(policy: &Policy, values: &[f64], measure: Measure) -> f64 {
    let (window, tail) = (policy.window as usize, policy.tail as usize);
    match measure {
        Measure::Mean => oracle::mean(values),
        Measure::LowestGroup => oracle::lowest_group(values, window),
        Measure::BottomGroup => oracle::bottom_group(values, window, policy.bottom),
        Measure::Tail => oracle::tail(values, tail),
        _ => unreachable!("{measure:?}"),
    }
}

/// Whether the first `count` ends complete the warmup.
pub fn calibrated(policy: &Policy, run: &Run, count: usize) -> bool {
    (0..policy.warmup).all(|trace| run.ended[..count].contains(&trace))
}

/// The threshold that the warmup traces set, all of them having ended.
pub fn threshold(policy: &Policy, recordings: &[Recording]) -> Option<f64> {
    let counts = |recording: &&Recording| match recording.end {
        End::Itself => true,
        End::Length => policy.calibrate_on == Calibrate::All,
        End::Failure => false,
    };
    let warmup = recordings[..policy.warmup as usize].iter().filter(counts);
    let lowest =
        |r: &Recording| measured(policy, &oracle::wide(&r.confidences), Measure::LowestGroup);
    oracle::percentile(&warmup.map(lowest).collect::<Vec<_>>(), 100.0 * (1.0 - policy.keep))
}

/// The vote after the first `count` ends, and who answered what in it.
pub fn tally<'a>(
    policy: &Policy,
    recordings: &'a [Recording],
    run: &Run,
    count: usize,
) -> (Tally, Vec<Option<&'a str>>) {
    let ended = &run.ended[..count];
    let online = policy.mode == Mode::Online;
    let tokens: Vec<Vec<f64>> =
        (0..recordings.len()).map(|trace| scored(recordings, run, trace)).collect();
    let scores = |measure| -> Vec<f64> {
        let score = |(trace, values): (usize, &Vec<f64>)| {
            let known = ended.contains(&(trace as u32));
            if known { measured(policy, values, measure) } else { f64::NAN }
        };
        tokens.iter().enumerate().map(score).collect()
    };
    let answers: Vec<Option<&str>> = recordings
        .iter()
        .enumerate()
        .map(|(trace, recording)| {
            let stopped = run.stops.contains_key(&(trace as u32));
            let votes = match recording.end {
                _ if stopped => policy.stopped_vote,
                End::Itself => true,
                End::Length => !online || policy.stopped_vote,
                End::Failure => false,
            };
            let votes = votes && ended.contains(&(trace as u32)) && !tokens[trace].is_empty();
            let answer = if stopped { &recording.partial } else { &recording.answer };
            answer.as_deref().filter(|_| votes)
        })
        .collect();
    let weights = match policy.weight.measure() {
        None => vec![1.0; recordings.len()],
        Some(measure) => {
            let most = policy.max_weight.unwrap_or(f64::INFINITY);
            scores(measure).iter().map(|weight| weight.max(0.0).min(most)).collect()
        }
    };
    let floor = policy.min_ballots as usize;
    let threshold = calibrated(policy, run, count).then(|| threshold(policy, recordings)).flatten();
    let tally = if !online {
        let over_all = policy.percentile_over == Over::All;
        let ranking = scores(policy.measure);
        oracle::vote(&answers, &weights, Some(&ranking), policy.keep, floor, over_all)
    } else if threshold.is_some() {
        oracle::vote_above(&answers, &weights, &scores(Measure::LowestGroup), threshold, floor)
    } else {
        oracle::vote(&answers, &weights, None, 1.0, floor, false)
    };
    (tally, answers)
}

/// Whether the vote after the first `count` ends is a consensus.
pub fn consensus(policy: &Policy, recordings: &[Recording], run: &Run, count: usize) -> bool {
    let (tally, _) = tally(policy, recordings, run, count);
    calibrated(policy, run, count)
        && !tally.fallback
        && !tally.voters.is_empty()
        && tally.voters.len() >= policy.min_ballots as usize
        && tally.share >= policy.consensus
}

/// A policy with small numbers and any settings that fit together.
pub fn random_policy(dice: &mut Dice) -> Policy {
    let mode = dice.pick(&[Mode::Online, Mode::Online, Mode::Offline]);
    let budget = 1 + dice.below(20) as u32;
    let online = mode == Mode::Online;
    Policy::preset("low")
        .unwrap()
        .mode(mode)
        .budget(budget)
        .warmup(if online { 1 + dice.below(budget.min(6) as usize) as u32 } else { 0 })
        .concurrency(dice.pick(&[None, None, Some(1), Some(3), Some(8)]))
        .window(1 + dice.below(8) as u64)
        .tail(1 + dice.below(12) as u64)
        .bottom(dice.pick(&[0.1, 0.3, 1.0]))
        .keep(dice.pick(&[0.1, 0.5, 0.9, 0.37, 1.0]))
        .measure(random_measure(dice))
        .weight(random_weight(dice))
        .max_weight(dice.pick(&[None, Some(4.0)]))
        .stop(dice.pick(&[Stop::Budget, Stop::Consensus]))
        .consensus(dice.pick(&[0.5, 0.75, 0.95, 1.0]))
        .min_ballots(dice.below(5) as u32)
        .calibrate_on(dice.pick(&[Calibrate::Finished, Calibrate::All]))
        .percentile_over(dice.pick(&[Over::Answered, Over::All]))
        .stopped_vote(dice.below(4) == 0)
}

pub fn random_measure(dice: &mut Dice) -> Measure {
    dice.pick(&[Measure::Mean, Measure::LowestGroup, Measure::BottomGroup, Measure::Tail])
}

pub fn random_weight(dice: &mut Dice) -> Weight {
    let weights =
        [Weight::Majority, Weight::Mean, Weight::LowestGroup, Weight::BottomGroup, Weight::Tail];
    dice.pick(&weights)
}

/// As many traces as the budget may launch: sure and shaky ones, most of them sound.
pub fn random_recordings(dice: &mut Dice, policy: &Policy) -> Vec<Recording> {
    let lengths = [0, 3, 10, 30, 30];
    (0..policy.budget)
        .map(|_| {
            let n = dice.pick(&lengths);
            let floor = dice.pick(&[-8, 8, 16, 40]);
            let eighths: Vec<i16> =
                (0..dice.below(n + 1)).map(|_| floor + dice.below(60) as i16).collect();
            let answer = |dice: &mut Dice| {
                let answer = dice.pick(&[None, Some("a"), Some("a"), Some("b"), Some("c")]);
                answer.map(str::to_owned)
            };
            Recording {
                confidences: oracle::grid(&eighths),
                end: dice.pick(&[
                    End::Itself,
                    End::Itself,
                    End::Itself,
                    End::Itself,
                    End::Length,
                    End::Failure,
                ]),
                answer: answer(dice),
                partial: answer(dice),
            }
        })
        .collect()
}

/// The statuses in which a trace may end up.
pub fn is_over(status: Status) -> bool {
    use Status::{Aborted, Failed, Finished, Length, Stopped};
    matches!(status, Finished | Length | Stopped | Aborted | Failed)
}
