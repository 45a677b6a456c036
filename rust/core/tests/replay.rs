//! Replays against the controller driven token by token, and staircases against the streaming scorer.
#![allow(clippy::unwrap_used)]

mod driver;
mod oracle;

use deepconf_core::controller::{Action, Controller, Finish, Outcome, Status};
use deepconf_core::policy::{Measure, Mode, Policy, Preset, Stop, Weight};
use deepconf_core::replay::{Ended, Pool, Row, Run};
use deepconf_core::staircase::Staircase;
use deepconf_core::trace::{Scorer, Settings};
use oracle::Dice;
use proptest::prelude::*;

struct Recorded {
    confidences: Vec<f32>,
    answer: Option<u32>,
    ended: Ended,
}

struct Flight {
    trace: u32,
    begun: u64,
    stopping: bool,
    over: bool,
}

/// The schedule, step by step and token by token; it obeys and decides nothing.
struct Slow<'a> {
    controller: Controller,
    draw: &'a [Recorded],
    flights: Vec<Flight>,
    tokens: u64,
    outcome: Option<Outcome>,
}

impl Slow<'_> {
    fn obey(&mut self, actions: Vec<Action>, step: u64) {
        for action in actions {
            match action {
                Action::Launch(traces) => {
                    for trace in traces {
                        self.controller.launched(trace).unwrap();
                        let flight = Flight { trace, begun: step, stopping: false, over: false };
                        self.flights.push(flight);
                    }
                }
                Action::Abort(traces) => {
                    traces.iter().for_each(|&t| self.flights[t as usize].over = true);
                }
                Action::Answer(outcome) => self.outcome = Some(*outcome),
                other => panic!("{other:?}: only tokens ask for a stop"),
            }
        }
    }
}

fn slow(policy: &Policy, draw: &[Recorded], lag: u64) -> Run {
    let controller = Controller::new(policy.clone()).unwrap();
    let mut run = Slow { controller, draw, flights: Vec::new(), tokens: 0, outcome: None };
    let actions = run.controller.start().unwrap();
    run.obey(actions, 0);
    let mut step = 0;
    while run.outcome.is_none() {
        step += 1;
        let mut ended = Vec::new();
        for flight in run.flights.iter_mut().filter(|flight| !flight.over) {
            let confidences = &run.draw[flight.trace as usize].confidences;
            let at = (step - flight.begun - 1) as usize;
            if let Some(&c) = confidences.get(at) {
                run.tokens += 1;
                let stop = run.controller.tokens(flight.trace, &[c]).unwrap();
                flight.stopping = stop.is_some();
            }
            if flight.stopping || at + 1 >= confidences.len() {
                flight.over = true;
                ended.push(flight.trace);
            }
        }
        for trace in ended {
            if run.outcome.is_some() {
                break;
            }
            let recorded = &run.draw[trace as usize];
            let finish = match recorded.ended {
                Ended::ByItself => Finish::End,
                Ended::AtTheLimit => Finish::Length,
            };
            let answer = recorded.answer.filter(|_| !run.flights[trace as usize].stopping);
            let answer = answer.map(|answer| format!("answer {answer}"));
            let actions = run.controller.finished(trace, finish, answer.as_deref()).unwrap();
            run.obey(actions, step);
        }
    }
    let outcome = run.outcome.unwrap();
    let counted = |statuses: &[Status]| {
        let of = |flight: &Flight| run.controller.status(flight.trace).unwrap();
        run.flights.iter().filter(|flight| statuses.contains(&of(flight))).count() as u32
    };
    let stopped = counted(&[Status::Stopped, Status::Stopping]);
    let aborted = counted(&[Status::Aborted, Status::Aborting]);
    Run {
        answer: outcome.vote.winner().and_then(|ballot| draw[ballot.first].answer),
        tokens: run.tokens + lag * u64::from(stopped + aborted),
        steps: step,
        launched: run.flights.len() as u32,
        finished: counted(&[Status::Finished, Status::Length]),
        stopped,
        aborted,
        threshold: outcome.threshold,
        fallback: outcome.vote.fallback,
        reason: outcome.reason,
        unarmed: outcome.unarmed.is_some(),
    }
}

fn random_policy(dice: &mut Dice) -> Policy {
    let policy = driver::random_policy(dice);
    let policy = if dice.below(4) == 0 {
        let preset = Policy::preset(dice.pick(Preset::NAMES)).unwrap();
        let warmup = if preset.mode == Mode::Online { policy.warmup.max(1) } else { 0 };
        let Policy { budget, concurrency, window, tail, .. } = policy;
        preset.budget(budget).warmup(warmup).concurrency(concurrency).window(window).tail(tail)
    } else {
        policy
    };
    let offline_filter = policy.mode == Mode::Offline && policy.keep < 1.0;
    let decimals = dice.pick(&[policy.decimals, policy.decimals, Some(1), Some(3)]);
    let stop = if offline_filter { policy.stop } else { dice.pick(&[policy.stop, Stop::Certain]) };
    policy.decimals(decimals).stop(stop).max_weight(dice.pick(&[None, Some(9.0)]))
}

fn random_pool(dice: &mut Dice, traces: usize) -> Vec<Recorded> {
    let longest = dice.pick(&[3, 12, 40, 120]);
    let spread = dice.pick(&[1, 40, 4_000]);
    (0..traces)
        .map(|_| {
            let n = if dice.below(8) == 0 { 0 } else { dice.below(longest) };
            let floor = 2.0 + dice.below(spread) as f32 / 1_000.0;
            Recorded {
                confidences: (0..n).map(|_| floor + dice.below(5_000) as f32 / 997.0).collect(),
                answer: dice.pick(&[None, Some(0), Some(0), Some(0), Some(1), Some(2)]),
                ended: dice.pick(&[Ended::ByItself, Ended::ByItself, Ended::AtTheLimit]),
            }
        })
        .collect()
}

fn pool_of(policies: &[Policy], recorded: &[Recorded]) -> Pool {
    let mut pool = Pool::new(policies).unwrap();
    let rows: Vec<Row> = (0_i64..)
        .zip(recorded)
        .map(|(trace, &Recorded { answer, ended, .. })| Row { question: 0, trace, answer, ended })
        .collect();
    let traces: Vec<&[f32]> = recorded.iter().map(|trace| &*trace.confidences).collect();
    pool.add(&rows, &traces).unwrap();
    pool.close().unwrap();
    pool
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn a_replay_is_the_controller_driven_token_by_token(seed in any::<u64>(), lag in 0_u64..3) {
        let mut dice = Dice(seed);
        let policy = random_policy(&mut dice);
        let recorded = random_pool(&mut dice, policy.budget as usize);
        let draw: Vec<u32> = (0..policy.budget).collect();
        let pool = pool_of(std::slice::from_ref(&policy), &recorded);
        let fast = pool.run(0, &policy, &draw, lag).unwrap();
        prop_assert_eq!(fast, slow(&policy, &recorded, lag), "{:?}", policy);
    }

    #[test]
    fn a_staircase_says_what_the_streaming_scorer_does(
        pattern in prop::collection::vec(0.0_f32..9.0, 1..80),
        n in 0_usize..900,
        window in 1_u64..400,
        fall in 0.0_f32..0.02,
        scale in prop::sample::select(vec![1.0_f32, 1_000.0]),
        s in -1.0_f64..12.0,
    ) {
        let values: Vec<f32> =
            (0..n).map(|i| (pattern[i * i % pattern.len()] - fall * i as f32) * scale).collect();
        let scorer = Scorer::new(Settings::default().window(window).bottom(None)).unwrap();
        let mut lows = Staircase::default();
        let scores = scorer.score_with_lows(&values, &mut lows).unwrap();
        prop_assert_eq!(format!("{scores:?}"), format!("{:?}", scorer.score(&values).unwrap()));
        let s = s * f64::from(scale);
        let stop = scorer.stream(Some(s)).unwrap().extend(&values).unwrap();
        prop_assert_eq!(lows.all().first_below(s), stop.map(|at| at as u64));
        let mut trace = scorer.stream(None).unwrap();
        for (at, &c) in values.iter().enumerate() {
            trace.push(c.into()).unwrap();
            let lowest = trace.armed().then(|| trace.lowest_group());
            prop_assert_eq!(lows.all().lowest_after(at as u64 + 1), lowest);
        }
        let groups: Vec<f64> = lows.all().steps().map(|(_, group)| group).collect();
        prop_assert!(groups.windows(2).all(|pair| pair[1] < pair[0]));
    }
}

#[test]
fn all_kinds_of_runs_are_met() {
    let mut met = std::collections::BTreeMap::<&str, u32>::new();
    for seed in 0..3_000 {
        let mut dice = Dice(seed);
        let policy = random_policy(&mut dice);
        let recorded = random_pool(&mut dice, policy.budget as usize);
        let run = slow(&policy, &recorded, 0);
        *met.entry(run.reason.name()).or_default() += 1;
        *met.entry("stopped").or_default() += u32::from(run.stopped > 0);
        *met.entry("aborted").or_default() += u32::from(run.aborted > 0);
        *met.entry("fallback").or_default() += u32::from(run.fallback);
        *met.entry("unarmed").or_default() += u32::from(run.unarmed);
        let bounded = policy.stop == Stop::Certain && policy.weight == Weight::LowestGroup;
        *met.entry("bounded").or_default() += u32::from(bounded && run.aborted > 0);
    }
    for kind in ["consensus", "certain", "budget", "stopped", "aborted", "fallback", "unarmed"] {
        assert!(met[kind] > 100, "{met:?}");
    }
    assert!(met["bounded"] > 5, "{met:?}");
}

#[test]
fn many_runs_are_each_run_once() {
    let mut dice = Dice(5);
    let recorded = random_pool(&mut dice, 30);
    let low = Policy::preset("low").unwrap().budget(8).warmup(3).window(4).tail(4);
    let offline = Policy::preset("offline").unwrap().budget(9).window(4).tail(4);
    let official = Policy::preset("official-low").unwrap().budget(8).warmup(3).window(5);
    let policies = [low, offline, official];
    let pool = pool_of(&policies, &recorded);
    let draws: Vec<Vec<u32>> =
        (0..7).map(|_| (0..9).map(|_| dice.below(30) as u32).collect()).collect();
    let draws: Vec<&[u32]> = draws.iter().map(|draw| &**draw).collect();
    let runs = pool.run_all(0, &policies, &draws, 2).unwrap();
    let each = policies.iter().flat_map(|policy| draws.iter().map(move |draw| (policy, draw)));
    let expected: Vec<Run> =
        each.map(|(policy, draw)| pool.run(0, policy, draw, 2).unwrap()).collect();
    assert_eq!(runs, expected);
}

#[test]
fn launch_order_is_that_of_the_numbers() {
    let policy = Policy::preset("offline").unwrap().budget(2).keep(1.0).weight(Weight::Majority);
    let mut pool = Pool::new(std::slice::from_ref(&policy)).unwrap();
    let row = |trace, answer| Row { question: 1, trace, answer, ended: Ended::ByItself };
    pool.add(&[row(7, Some(3)), row(-2, Some(4))], &[&[1.0_f32], &[2.0, 3.0]]).unwrap();
    assert!(pool.run(1, &policy, &[0, 1], 0).unwrap_err().to_string().contains("close"));
    pool.close().unwrap();
    // One vote each: the first in launch order wins.
    assert_eq!(pool.run(1, &policy, &[0, 1], 0).unwrap().answer, Some(4));
    assert_eq!(pool.run(1, &policy, &[1, 0], 0).unwrap().answer, Some(3));
    assert_eq!((pool.num_traces(0), pool.num_traces(1)), (0, 2));
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let low = Policy::preset("low").unwrap().budget(4).warmup(2).window(2);
    let mut dice = Dice(1);
    let recorded = random_pool(&mut dice, 4);
    let mut pool = pool_of(std::slice::from_ref(&low), &recorded);
    let refused = |pool: &Pool, policy: &Policy, draw: &[u32], said: &str| {
        let error = pool.run(0, policy, draw, 0).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    refused(&pool, &low, &[0, 1, 2], "budget=4: the draw has only 3");
    refused(&pool, &low, &[0, 1, 2, 4], "draw=4: there are 4 traces");
    refused(&pool, &low.clone().window(3), &[0, 1, 2, 3], "was not read for these");
    refused(&pool, &low.clone().warmup(9), &[0, 1, 2, 3], "warmup=9");
    let error = pool.run(3, &low, &[0, 1, 2, 3], 0).unwrap_err().to_string();
    assert!(error.contains("question=3: there are 1"), "{error}");
    let row = Row { question: 0, trace: 2, answer: None, ended: Ended::ByItself };
    assert!(pool.add(&[row], &[&[1.0_f32]]).unwrap_err().to_string().contains("closed"));
    let mut pool = Pool::new(&[low]).unwrap();
    let wrong = pool.add(&[row, row], &[&[1.0_f32][..], &[1.0, f32::NAN][..]]).unwrap_err();
    assert!(wrong.to_string().contains("trace 1, position 1"), "{wrong}");
    assert_eq!(pool.num_traces(0), 0);
    pool.add(&[row, row], &[&[1.0_f32], &[2.0]]).unwrap();
    assert!(pool.close().unwrap_err().to_string().contains("trace=2"));
}

#[test]
fn scores_that_cannot_be_are_refused() {
    let policy = Policy::preset("low").unwrap().budget(4).warmup(2).window(2);
    let mut controller = Controller::new(policy).unwrap();
    controller.start().unwrap();
    let scorer = Scorer::new(Settings::default().window(2)).unwrap();
    let scores = scorer.score(&[9.0_f32, 8.0, 7.0]).unwrap();
    let mut refused = |trace, scores, tokens, stop, said: &str| {
        let error = controller.scored(trace, scores, tokens, stop).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        controller.clone()
    };
    refused(0, scores, 3, None, "only a running trace");
    refused(9, scores, 3, None, "never launched");
    let mut controller = refused(8, scores, 3, None, "never launched");
    controller.launched(0).unwrap();
    controller.launched(1).unwrap();
    controller.scored(0, scores, 3, None).unwrap();
    let mut refused = |trace, scores, tokens, stop, said: &str| {
        let error = controller.scored(trace, scores, tokens, stop).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    refused(0, scores, 2, None, "num_tokens=2: trace 0 has 3 already");
    refused(1, scores, 2, None, "num_tokens=2: trace 1 has 3 already");
    refused(0, scores, 3, Some(1), "has no threshold");
    let mut wild = scores;
    wild.tail = f64::INFINITY;
    refused(0, wild, 3, None, "tail=inf");
    controller.tokens(1, &[1.0]).unwrap();
    assert!(controller.scored(1, scores, 3, None).is_err());
    assert!(controller.tokens(0, &[1.0]).is_err());
    assert_eq!(Measure::Mean.of(&controller.scores(0).unwrap()), 8.0);
}
