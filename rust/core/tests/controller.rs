//! Whole runs on recorded traces, in every order, against a naive recomputation.
#![allow(clippy::unwrap_used)]

mod driver;
mod oracle;
mod reference;

use std::collections::BTreeMap;

use deepconf_core::controller::{Reason, Status};
use deepconf_core::policy::{Mode, Policy, Stop, Weight};
use driver::{
    End, Recording, Run, drive, drive_late, drive_until, is_over, random_policy, random_recordings,
};
use oracle::Dice;
use proptest::prelude::*;

fn scenario(seed: u64) -> (Policy, Vec<Recording>) {
    let mut dice = Dice(seed);
    let policy = random_policy(&mut dice);
    let recordings = random_recordings(&mut dice, &policy);
    (policy, recordings)
}

/// The outcome against the naive vote of the traces that ended before it.
fn check_outcome(policy: &Policy, recordings: &[Recording], run: &Run) {
    let (tally, answers) = driver::tally(policy, recordings, run, run.ended.len());
    let outcome = &run.outcome;
    let ballots: Vec<_> =
        outcome.vote.ballots.iter().map(|b| (b.first, b.weight, b.voters)).collect();
    assert_eq!(ballots, tally.ballots);
    assert_eq!(outcome.answer.as_deref(), tally.winner(&answers));
    let in_order: Vec<_> =
        tally.ballots.iter().map(|(first, ..)| answers[*first].unwrap()).collect();
    assert_eq!(outcome.answers, in_order);
    assert_eq!(outcome.voters, tally.voters.iter().map(|&v| v as u32).collect::<Vec<_>>());
    assert_eq!(outcome.vote.num_voters, tally.voters.len());
    assert_eq!((outcome.vote.share, outcome.vote.fallback), (tally.share, tally.fallback));
    assert_eq!(outcome.threshold, tally.threshold);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn budget_concurrency_and_indices_are_kept(seed in any::<u64>()) {
        let (policy, recordings) = scenario(seed);
        let run = drive(&policy, &recordings, seed);
        let expected: Vec<u32> = (0..run.launched.len() as u32).collect();
        prop_assert_eq!(&run.launched, &expected);
        prop_assert!(run.launched.len() <= policy.budget as usize);
        prop_assert!(run.most_in_flight <= policy.concurrency.unwrap_or(policy.budget) as usize);
        for trace in 0..policy.budget {
            let status = run.controller.status(trace);
            prop_assert_eq!(status.is_some(), run.launched.contains(&trace));
            prop_assert!(status.is_none_or(is_over), "{:?}", status);
        }
        if run.outcome.reason == Reason::Budget {
            prop_assert_eq!(run.launched.len(), policy.budget as usize);
            prop_assert_eq!(run.ended.len(), policy.budget as usize);
        }
    }

    #[test]
    fn stops_are_where_the_oracle_has_them(seed in any::<u64>()) {
        let (policy, recordings) = scenario(seed);
        let run = drive(&policy, &recordings, seed);
        let online = policy.mode == Mode::Online;
        let calibrated = online && driver::calibrated(&policy, &run, run.ended.len());
        let s = calibrated.then(|| driver::threshold(&policy, &recordings)).flatten();
        prop_assert_eq!(run.controller.threshold(), s);
        for trace in 0..run.launched.len() as u32 {
            let values = oracle::wide(&recordings[trace as usize].confidences);
            let due = s.filter(|_| trace >= policy.warmup);
            let due = due.and_then(|s| oracle::first_stop(&values, policy.window as usize, s));
            let stop = run.stops.get(&trace).map(|&token| token as usize);
            match run.controller.status(trace) {
                // Its turn may not have come.
                Some(Status::Aborted) => prop_assert!(stop.is_none()),
                _ => prop_assert_eq!(stop, due),
            }
        }
    }

    #[test]
    fn the_outcome_is_the_naive_recomputation(seed in any::<u64>()) {
        let (policy, recordings) = scenario(seed);
        check_outcome(&policy, &recordings, &drive(&policy, &recordings, seed));
    }

    #[test]
    fn the_order_of_events_changes_nothing(seed in any::<u64>(), orders in any::<[u64; 3]>()) {
        let (policy, recordings) = scenario(seed);
        let policy = policy.stop(Stop::Budget);
        let first = drive(&policy, &recordings, seed);
        for order in orders {
            let concurrency = if order % 2 == 0 { policy.concurrency } else { Some(1 + order as u32 % 4) };
            let again = drive(&policy.clone().concurrency(concurrency), &recordings, order);
            prop_assert_eq!(&again.outcome, &first.outcome);
            prop_assert_eq!(&again.stops, &first.stops);
            for trace in 0..policy.budget {
                prop_assert_eq!(again.controller.status(trace), first.controller.status(trace));
                let scores = |run: &Run| format!("{:?}", run.controller.scores(trace));
                prop_assert_eq!(scores(&again), scores(&first));
            }
        }
    }

    #[test]
    fn when_answers_are_told_changes_nothing(seed in any::<u64>()) {
        let (policy, recordings) = scenario(seed);
        let policy = policy.stop(Stop::Budget);
        let (first, late) = (drive(&policy, &recordings, seed), drive_late(&policy, &recordings, seed));
        prop_assert_eq!(&late.outcome, &first.outcome);
        prop_assert_eq!(&late.stops, &first.stops);
        for trace in 0..policy.budget {
            prop_assert_eq!(late.controller.status(trace), first.controller.status(trace));
        }
    }

    #[test]
    fn consensus_comes_at_the_first_end_that_has_it(seed in any::<u64>()) {
        let (policy, recordings) = scenario(seed);
        let policy = policy.stop(Stop::Consensus);
        let run = drive(&policy, &recordings, seed);
        let last = run.ended.len();
        for count in 1..last {
            prop_assert!(!driver::consensus(&policy, &recordings, &run, count), "after {} ends", count);
        }
        let reached = driver::consensus(&policy, &recordings, &run, last);
        let expected = if reached { Reason::Consensus } else { Reason::Budget };
        prop_assert_eq!(run.outcome.reason, expected);
        if reached {
            prop_assert!(run.outcome.vote.share >= policy.consensus);
            prop_assert!(run.outcome.vote.num_voters >= policy.min_ballots as usize);
        }
    }

    #[test]
    fn a_cancelled_run_keeps_the_votes_it_has(seed in any::<u64>(), steps in 0_usize..150) {
        let (policy, recordings) = scenario(seed);
        let run = drive_until(&policy, &recordings, seed, steps);
        check_outcome(&policy, &recordings, &run);
        let whole = drive(&policy, &recordings, seed);
        if run.outcome.reason != Reason::Cancelled {
            prop_assert_eq!(run.outcome, whole.outcome);
        }
    }
}

/// Traces that mostly agree, so that the winner is often certain before the end.
fn one_sided(dice: &mut Dice, policy: &Policy) -> Vec<Recording> {
    let mut recordings = random_recordings(dice, policy);
    for recording in &mut recordings {
        if recording.confidences.is_empty() {
            recording.confidences = vec![2.0; 12];
        }
        if dice.below(10) < 6 {
            (recording.end, recording.answer) = (End::Itself, Some("a".into()));
        }
    }
    recordings
}

fn certain_policy(dice: &mut Dice, weight: Weight, mode: Mode) -> Policy {
    let policy = random_policy(dice);
    let budget = 4 + dice.below(14) as u32;
    let online = mode == Mode::Online;
    let keep = if online { policy.keep } else { 1.0 };
    policy
        .mode(mode)
        .budget(budget)
        .warmup(if online { 1 + dice.below(3) as u32 } else { 0 })
        .keep(keep)
        .weight(weight)
        // Not above what sure traces reach, so that the bound is of use.
        .max_weight(Some(dice.pick(&[1.0, 2.5, 6.0])))
        .stop(Stop::Certain)
}

/// Whenever a run ends because its winner is certain, the whole budget names the same winner.
#[test]
fn a_certain_winner_wins() {
    let mut dice = Dice(21);
    for weight in [Weight::Majority, Weight::LowestGroup, Weight::Mean, Weight::Tail] {
        for mode in [Mode::Online, Mode::Offline] {
            let (mut fired, mut spent, mut whole_spent) = (0, 0, 0);
            for _ in 0..2_000 {
                let policy = certain_policy(&mut dice, weight, mode);
                let recordings = one_sided(&mut dice, &policy);
                let late = drive_late(&policy, &recordings, dice.next());
                let certain = drive(&policy, &recordings, dice.next());
                check_outcome(&policy, &recordings, &certain);
                let to_the_end = policy.stop(Stop::Budget);
                let whole = drive(&to_the_end, &recordings, dice.next());
                if late.outcome.reason == Reason::Certain {
                    assert_eq!(late.outcome.answer, whole.outcome.answer, "{to_the_end:?}");
                }
                if certain.outcome.reason == Reason::Certain {
                    assert_eq!(certain.outcome.answer, whole.outcome.answer, "{to_the_end:?}");
                    assert!(certain.outcome.answer.is_some());
                    fired += 1;
                    spent += certain.controller.num_tokens();
                    whole_spent += whole.controller.num_tokens();
                } else {
                    assert_eq!(certain.outcome, whole.outcome);
                }
            }
            assert!(fired >= 200 && spent < whole_spent, "{weight:?}, {mode:?}: {fired} of 2,000");
        }
    }
}

/// Without `max_weight` a trace of which nothing is known could weigh anything: only those that run
/// with a complete group have a bound.
#[test]
fn an_unbounded_weight_is_certain_only_of_running_traces() {
    let mut dice = Dice(22);
    let mut fired = 0;
    for _ in 0..500 {
        let policy = certain_policy(&mut dice, Weight::LowestGroup, Mode::Online);
        let policy = policy.max_weight(None).stopped_vote(false);
        let recordings = one_sided(&mut dice, &policy);
        let certain = drive(&policy, &recordings, dice.next());
        let whole = drive(&policy.clone().stop(Stop::Budget), &recordings, 0);
        if certain.outcome.reason == Reason::Certain {
            assert_eq!(certain.outcome.answer, whole.outcome.answer);
            assert_eq!(certain.launched.len(), policy.budget as usize);
            fired += 1;
        }
    }
    assert!(fired >= 20, "{fired} of 500");
}

/// The random runs above reach what they are there to check.
#[test]
fn the_scenarios_are_not_all_alike() {
    let runs = (0..600).map(|seed| {
        let (policy, recordings) = scenario(seed);
        (drive(&policy, &recordings, seed), policy)
    });
    let (mut stopped, mut consensus, mut fallback, mut unarmed, mut split) = (0, 0, 0, 0, 0);
    for (run, policy) in runs {
        stopped += usize::from(!run.stops.is_empty());
        consensus += usize::from(run.outcome.reason == Reason::Consensus);
        fallback += usize::from(run.outcome.vote.fallback);
        unarmed += usize::from(run.outcome.unarmed.is_some());
        split += usize::from(run.outcome.vote.ballots.len() > 1 && policy.mode == Mode::Online);
    }
    for (what, count) in [
        ("stopped", stopped),
        ("consensus", consensus),
        ("fallback", fallback),
        ("unarmed", unarmed),
        ("split", split),
    ] {
        assert!(count >= 30, "{what}: {count} of 600");
    }
}

/// Any events in any order, those that do not fit and those after the outcome too: the controller
/// does, refuses and says what a slow and obvious one does.
#[test]
fn any_events_are_played_as_the_reference_plays_them() {
    let mut ended = BTreeMap::new();
    for seed in 0..2_500 {
        let mut dice = Dice(seed);
        let policy = random_policy(&mut dice);
        let certain = policy.mode == Mode::Online || policy.keep == 1.0;
        let stop = if certain && dice.below(3) == 0 { Stop::Certain } else { policy.stop };
        let policy = policy.stop(stop);
        let events = 30 + dice.below(220);
        let reason = reference::compare(&policy, events, &mut |sides| dice.below(sides));
        *ended.entry(reason.map_or("none", Reason::name)).or_insert(0) += 1;
    }
    for reason in ["none", "consensus", "certain", "budget", "cancelled", "engine_died"] {
        assert!(ended.get(reason).is_some_and(|&count| count >= 40), "{reason}: {ended:?}");
    }
}
