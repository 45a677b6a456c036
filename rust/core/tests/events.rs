//! Events one at a time: what a controller refuses, what it takes late, and what it tells.
#![allow(clippy::unwrap_used)]

use deepconf_core::Error;
use deepconf_core::controller::{Action, Controller, Finish, Reason, Status};
use deepconf_core::policy::{MAX_BUDGET, Policy, Preset, Stop};

/// Two warmup traces of four, window 2, no end before the budget.
fn policy() -> Policy {
    let high = Policy::preset("high").unwrap();
    high.budget(4).warmup(2).window(2).min_ballots(0).stop(Stop::Budget)
}

fn started(policy: Policy) -> Controller {
    let mut controller = Controller::new(policy).unwrap();
    controller.start().unwrap();
    controller
}

/// A trace from its launch to its end.
fn play(controller: &mut Controller, trace: u32, tokens: &[f32], answer: &str) -> Vec<Action> {
    controller.launched(trace).unwrap();
    controller.tokens(trace, tokens).unwrap();
    controller.finished(trace, Finish::End, Some(answer)).unwrap()
}

/// Warmed up at a threshold of about 4, with traces 2 and 3 running.
fn sampling() -> Controller {
    let mut controller = started(policy());
    assert_eq!(play(&mut controller, 0, &[4.0, 4.0], "a"), []);
    assert_eq!(play(&mut controller, 1, &[4.0, 4.0], "b"), [Action::Launch(vec![2, 3])]);
    controller.launched(2).unwrap();
    controller.launched(3).unwrap();
    controller
}

#[test]
fn a_misplaced_event_is_refused_and_changes_nothing() {
    type Event = fn(&mut Controller) -> deepconf_core::Result<()>;
    type Case = (&'static str, fn() -> Controller, Event);
    let cases: [Case; 17] = [
        ("the start of trace 0, which is launching", || started(policy()), |c| c.start().map(drop)),
        ("launch of trace 9, which is unknown", sampling, |c| c.launched(9)),
        ("launch of trace 2, which is running", sampling, |c| c.launched(2)),
        ("launch of trace 0, which is finished", sampling, |c| c.launched(0)),
        ("relaunch of trace 4, which is unknown", sampling, |c| c.relaunched(4)),
        ("relaunch of trace 0, which is finished", sampling, |c| c.relaunched(0)),
        ("relaunch of trace 1, which is launching", || started(policy()), |c| c.relaunched(1)),
        ("tokens of trace 4, which is unknown", sampling, |c| c.tokens(4, &[1.0]).map(drop)),
        ("tokens of trace 0, which is finished", sampling, |c| c.tokens(0, &[1.0]).map(drop)),
        (
            "tokens of trace 1, which is launching",
            || started(policy()),
            |c| c.tokens(1, &[1.0]).map(drop),
        ),
        ("the end of trace 7, which is unknown", sampling, |c| {
            c.finished(7, Finish::End, Some("new")).map(drop)
        }),
        ("the end of trace 1, which is finished", sampling, |c| {
            c.finished(1, Finish::Length, Some("new")).map(drop)
        }),
        (
            "the end of trace 1, which is launching",
            || started(policy()),
            |c| c.finished(1, Finish::End, None).map(drop),
        ),
        ("the failure of trace 0, which is finished", sampling, |c| c.failed(0).map(drop)),
        ("the failure of trace 5, which is unknown", sampling, |c| c.failed(5).map(drop)),
        (
            "launch of trace 0, which is unknown",
            || Controller::new(policy()).unwrap(),
            |c| c.launched(0),
        ),
        (
            "the end of trace 0, which is unknown",
            || Controller::new(policy()).unwrap(),
            |c| c.finished(0, Finish::End, None).map(drop),
        ),
    ];
    for (expected, controller, event) in cases {
        let mut controller = controller();
        let before = format!("{controller:?}");
        let error = event(&mut controller).unwrap_err();
        assert!(matches!(error, Error::Event { .. }), "{error}");
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(format!("{controller:?}"), before, "{error}");
    }
}

#[test]
fn a_bad_token_is_named_and_changes_nothing() {
    for preset in ["high", "official-high"] {
        let policy = Policy::preset(preset).unwrap().budget(4).warmup(2).window(2);
        let mut controller = started(policy);
        controller.launched(1).unwrap();
        controller.tokens(1, &[1.0, 2.0, 3.0]).unwrap();
        let before = format!("{controller:?}");
        let error = controller.tokens(1, &[1.0, f32::NAN]).unwrap_err().to_string();
        assert!(error.contains("NaN at trace 1, position 4:"), "{error}");
        let error = controller.tokens(1, &[-40_000.0]).unwrap_err().to_string();
        assert!(error.contains("-40000 at trace 1, position 3:"), "{error}");
        assert_eq!(format!("{controller:?}"), before);
    }
}

#[test]
fn a_stop_names_its_token_and_what_follows_is_only_counted() {
    let mut controller = sampling();
    assert_eq!(controller.tokens(2, &[9.0, 9.0]).unwrap(), None);
    let stop = controller.tokens(2, &[5.0, 2.0, 0.5, 0.5]).unwrap();
    assert_eq!(stop, Some(Action::Stop { trace: 2, token: 3 }));
    assert_eq!(controller.status(2), Some(Status::Stopping));
    let scores = controller.scores(2).unwrap();
    assert_eq!((scores.num_tokens, scores.lowest_group), (4, 3.5));
    // The server is a few tokens ahead.
    assert_eq!(controller.tokens(2, &[0.0, f32::NAN]).unwrap(), None);
    assert_eq!(controller.num_tokens(), 4 + 8);
    // However it is said to have ended, it was stopped, and does not vote.
    assert_eq!(controller.finished(2, Finish::End, Some("c")).unwrap(), []);
    assert_eq!(controller.status(2), Some(Status::Stopped));
    // As text, in which NaN equals NaN: without `bottom` there is one among the scores.
    assert_eq!(format!("{:?}", controller.scores(2)), format!("{:?}", Some(scores)));
    controller.tokens(3, &[4.0, 4.0]).unwrap();
    let actions = controller.finished(3, Finish::End, Some("b")).unwrap();
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.voters.as_slice(), outcome.answer.as_deref()), (&[0, 1, 3][..], Some("b")));
}

#[test]
fn a_trace_that_begins_anew_is_as_if_nothing_had_been_told_of_it() {
    let mut broken = sampling();
    let before = format!("{broken:?}");
    broken.tokens(2, &[9.0, 9.0, 4.0]).unwrap();
    broken.relaunched(2).unwrap();
    assert_eq!(format!("{broken:?}"), before);
    // 4 + 3 is below the threshold, and would not have been together with a 9 before.
    let stop = Action::Stop { trace: 2, token: 1 };
    assert_eq!(broken.tokens(2, &[4.0, 3.0]).unwrap(), Some(stop));
    // A stop is decided: what follows of the trace does not matter any more.
    let before = format!("{broken:?}");
    let error = broken.relaunched(2).unwrap_err().to_string();
    assert!(error.starts_with("relaunch of trace 2, which is stopping"), "{error}");
    assert_eq!(format!("{broken:?}"), before);
    // Nor does it where the run is over.
    broken.tokens(3, &[9.0]).unwrap();
    broken.cancel();
    broken.relaunched(3).unwrap();
    assert_eq!(broken.status(3), Some(Status::Aborting));
    assert_eq!(broken.num_tokens(), 4 + 2);
}

#[test]
fn warmup_is_never_stopped() {
    let mut controller = started(policy());
    controller.launched(0).unwrap();
    controller.launched(1).unwrap();
    controller.tokens(0, &[8.0; 9]).unwrap();
    controller.finished(0, Finish::End, Some("a")).unwrap();
    assert_eq!(controller.tokens(1, &[0.0; 9]).unwrap(), None);
    assert_eq!(controller.threshold(), None);
    controller.finished(1, Finish::End, Some("b")).unwrap();
    assert_eq!(controller.threshold().map(|s| (s * 1e9).round()), Some(8e8));
}

#[test]
fn after_the_answer_late_events_are_taken_and_only_counted() {
    let mut controller = sampling();
    controller.tokens(2, &[9.0]).unwrap();
    let actions = controller.cancel();
    let [Action::Abort(aborted), Action::Answer(outcome)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(aborted, &[2, 3]);
    assert_eq!((outcome.reason, outcome.voters.as_slice()), (Reason::Cancelled, &[0, 1][..]));
    let known = controller.outcome().cloned();
    assert_eq!(controller.tokens(2, &[0.0, f32::NAN, 1.0]).unwrap(), None);
    assert_eq!(controller.finished(2, Finish::End, Some("late")).unwrap(), []);
    assert_eq!(controller.tokens(3, &[1.0]).unwrap(), None);
    assert_eq!(controller.failed(3).unwrap(), []);
    assert_eq!(controller.num_tokens(), 4 + 4 + 1);
    assert_eq!(controller.status(2), Some(Status::Aborted));
    assert_eq!(controller.status(3), Some(Status::Failed));
    assert_eq!(controller.outcome(), known.as_ref());
    assert_eq!(controller.cancel(), []);
    assert!(controller.tokens(2, &[1.0]).is_err());
}

#[test]
fn a_launch_reported_after_the_answer_is_taken() {
    let mut controller = started(policy());
    let actions = controller.cancel();
    assert!(matches!(&actions[..], [Action::Abort(two), Action::Answer(_)] if two == &[0, 1]));
    controller.launched(0).unwrap();
    controller.tokens(0, &[1.0]).unwrap();
    assert_eq!(controller.finished(0, Finish::Aborted, None).unwrap(), []);
    // Or it was never launched at all.
    assert_eq!(controller.finished(1, Finish::Aborted, None).unwrap(), []);
    assert_eq!(controller.state().to_string(), "done: 0 to launch, 2 aborted; 1 tokens");
}

#[test]
fn a_run_cancelled_before_it_starts_has_no_answer() {
    let mut controller = Controller::new(policy()).unwrap();
    let actions = controller.cancel();
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.answer.as_ref(), outcome.reason), (None, Reason::Cancelled));
    assert_eq!(controller.start().unwrap(), []);
}

#[test]
fn failures_and_truncated_traces_leave_the_rest_their_votes() {
    let mut controller = started(policy().budget(5).warmup(3));
    controller.failed(0).unwrap(); // lost before it was launched
    controller.launched(1).unwrap();
    controller.tokens(1, &[0.0, 0.0]).unwrap();
    controller.finished(1, Finish::Length, Some("cut")).unwrap();
    let actions = play(&mut controller, 2, &[6.0, 6.0], "a");
    assert_eq!((actions, controller.threshold()), (vec![Action::Launch(vec![3, 4])], Some(6.0)));
    controller.launched(3).unwrap();
    controller.tokens(3, &[9.0, 9.0]).unwrap();
    controller.failed(3).unwrap();
    controller.launched(4).unwrap();
    controller.tokens(4, &[9.0, 9.0]).unwrap();
    // Somebody else aborted it.
    let actions = controller.finished(4, Finish::Aborted, Some("b")).unwrap();
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.answer.as_deref(), outcome.voters.as_slice()), (Some("a"), &[2][..]));
    assert_eq!(outcome.unarmed, None);
    let state = controller.state().to_string();
    assert!(
        state.starts_with("done: 0 to launch, 2 failed, 1 length, 1 finished, 1 aborted; 8 tok")
    );
    assert!(state.ends_with("threshold 6.0000; \"a\" leads with 100.0% of 1 votes"), "{state}");
}

#[test]
fn a_run_in_which_everything_fails_has_no_answer() {
    for preset in ["low", "offline", "official-high"] {
        let preset = Policy::preset(preset).unwrap();
        let mut controller =
            started(preset.clone().budget(3).warmup(preset.warmup.min(2)).window(2));
        let mut actions = Vec::new();
        for trace in 0..3 {
            actions = controller.failed(trace).unwrap();
        }
        let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!((outcome.answer.as_ref(), outcome.vote.share), (None, 0.0));
        assert_eq!((outcome.threshold, outcome.reason), (None, Reason::Budget));
    }
}

#[test]
fn a_threshold_that_can_stop_nothing_is_told() {
    let unarmed = |window, finish| {
        let mut controller = started(policy().window(window));
        let mut actions = Vec::new();
        for trace in 0..4 {
            controller.launched(trace).unwrap();
            controller.tokens(trace, &[5.0, 5.0, 5.0]).unwrap();
            actions = controller.finished(trace, finish, Some("a")).unwrap();
        }
        let Some(Action::Answer(outcome)) = actions.pop() else { panic!("{actions:?}") };
        outcome.unarmed
    };
    let short = unarmed(4, Finish::End).unwrap().to_string();
    assert!(short.contains("window of 4 tokens (the longest has 3)"), "{short}");
    let truncated = unarmed(2, Finish::Length).unwrap().to_string();
    assert!(truncated.contains("none of the 2 warmup traces ended by itself"), "{truncated}");
    assert_eq!(unarmed(3, Finish::End), None);
}

#[test]
fn an_offline_run_is_never_called_unarmed() {
    let offline = Policy::preset("offline").unwrap().budget(1);
    let mut controller = started(offline);
    let actions = play(&mut controller, 0, &[1.0], "a");
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.unarmed.as_ref(), outcome.threshold), (None, Some(1.0)));
}

#[test]
fn a_trace_without_tokens_never_votes() {
    let mut controller = started(policy());
    play(&mut controller, 0, &[], "empty");
    play(&mut controller, 1, &[3.0, 3.0], "b");
    assert_eq!(controller.threshold(), Some(3.0));
    play(&mut controller, 2, &[], "empty");
    let actions = play(&mut controller, 3, &[], "empty");
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.voters.as_slice(), outcome.answer.as_deref()), (&[1][..], Some("b")));
}

#[test]
fn the_state_tells_where_a_run_stands() {
    let mut controller = Controller::new(policy()).unwrap();
    assert_eq!(controller.state().to_string(), "warmup: 4 to launch; 0 tokens");
    controller.start().unwrap();
    assert_eq!(controller.state().to_string(), "warmup: 2 to launch, 2 launching; 0 tokens");
    let running = sampling().state().to_string();
    assert_eq!(
        running,
        "sampling: 0 to launch, 2 finished, 2 running; 4 tokens; threshold 4.0000; \
         \"a\" leads with 50.0% of 2 votes"
    );
}

#[test]
fn a_wrong_policy_is_refused() {
    let error = Controller::new(policy().warmup(5)).unwrap_err().to_string();
    assert!(error.starts_with("warmup=5: must not exceed the budget of 4"), "{error}");
}
#[test]
fn an_end_may_come_before_its_answer() {
    let mut controller = started(policy());
    for trace in 0..2 {
        controller.launched(trace).unwrap();
        controller.tokens(trace, &[4.0, 4.0]).unwrap();
    }
    assert_eq!(controller.ended(0, Finish::End).unwrap(), []);
    assert_eq!(controller.status(0), Some(Status::Finished));
    assert!(controller.state().to_string().contains("(1 unnamed)"));
    // The threshold needs no answers.
    assert_eq!(controller.ended(1, Finish::End).unwrap(), [Action::Launch(vec![2, 3])]);
    assert!(controller.threshold().is_some());
    for trace in 2..4 {
        controller.launched(trace).unwrap();
        controller.tokens(trace, &[5.0, 5.0]).unwrap();
        assert_eq!(controller.ended(trace, Finish::End).unwrap(), []);
    }
    // All have ended, and the run waits for what they say.
    assert_eq!(controller.answered(3, Some("b")).unwrap(), []);
    assert_eq!(controller.answered(0, Some("a")).unwrap(), []);
    assert_eq!(controller.answered(2, Some("b")).unwrap(), []);
    let actions = controller.answered(1, None).unwrap();
    let [Action::Answer(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((outcome.reason, outcome.answer.as_deref()), (Reason::Budget, Some("b")));
    assert_eq!(outcome.voters, [0, 2, 3]);
}

#[test]
fn an_answer_that_is_not_to_come_is_refused() {
    let mut controller = sampling();
    controller.ended(2, Finish::End).unwrap();
    controller.answered(2, None).unwrap();
    controller.tokens(3, &[9.0, 9.0]).unwrap();
    for (trace, says) in [(0, "finished"), (2, "finished"), (3, "running"), (9, "unknown")] {
        let before = format!("{controller:?}");
        let error = controller.answered(trace, Some("new")).unwrap_err();
        assert!(matches!(error, Error::Event { .. }), "{error}");
        let expected = format!("the answer of trace {trace}, which is {says}");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!(format!("{controller:?}"), before);
    }
    assert!(controller.failed(2).is_err());
}

/// Six traces offline, all of which end with the same confidence and without an answer.
fn unnamed(stop: Stop, keep: f64) -> Controller {
    let offline = Policy::preset("offline").unwrap();
    let weight = deepconf_core::policy::Weight::Majority;
    let mut controller = started(
        offline
            .budget(6)
            .window(2)
            .keep(keep)
            .stop(stop)
            .weight(weight)
            .min_ballots(2)
            .consensus(0.6)
            .concurrency(Some(5)),
    );
    for trace in 0..5 {
        controller.launched(trace).unwrap();
        controller.tokens(trace, &[5.0, 5.0]).unwrap();
    }
    for trace in 0..4 {
        controller.ended(trace, Finish::End).unwrap();
    }
    controller
}

#[test]
fn answers_to_come_count_against_a_consensus() {
    let mut controller = unnamed(Stop::Consensus, 1.0);
    assert_eq!(controller.answered(0, Some("a")).unwrap(), []);
    assert_eq!(controller.answered(1, Some("a")).unwrap(), []); // 2 of 4, as it may be
    let actions = controller.answered(2, Some("a")).unwrap(); // 3 of 4, whatever the last one says
    let Some(Action::Answer(outcome)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!((outcome.reason, outcome.voters.len()), (Reason::Consensus, 3));
    // Too late to vote.
    assert_eq!(controller.answered(3, Some("a")).unwrap(), []);
    assert_eq!(controller.outcome().unwrap().voters.len(), 3);
}

#[test]
fn answers_to_come_count_for_the_runner_up() {
    let mut controller = unnamed(Stop::Certain, 1.0);
    for trace in 0..3 {
        assert_eq!(controller.answered(trace, Some("a")).unwrap(), []);
    }
    // 3 against 1 that is unnamed, 1 that runs and 1 to be launched, then against two.
    let actions = controller.answered(3, None).unwrap();
    let Some(Action::Answer(outcome)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!((outcome.reason, outcome.answer.as_deref()), (Reason::Certain, Some("a")));
}

#[test]
fn a_filter_waits_for_the_answers_that_may_change_it() {
    let mut controller = unnamed(Stop::Consensus, 0.9);
    for trace in 0..3 {
        assert_eq!(controller.answered(trace, Some("a")).unwrap(), []);
    }
    assert_eq!(controller.answered(3, Some("a")).unwrap().len(), 2);
    assert_eq!(controller.outcome().unwrap().reason, Reason::Consensus);
}

#[test]
fn what_had_ended_votes_when_the_run_is_cut_short() {
    type End = fn(&mut Controller) -> Vec<Action>;
    let ends: [(Reason, End); 2] =
        [(Reason::Cancelled, Controller::cancel), (Reason::EngineDied, Controller::engine_died)];
    for (reason, end) in ends {
        let mut controller = sampling();
        controller.tokens(2, &[9.0, 9.0]).unwrap();
        controller.ended(2, Finish::End).unwrap();
        let actions = end(&mut controller);
        let [Action::Abort(aborted), Action::Answer(outcome)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!((aborted.as_slice(), outcome.reason), (&[3][..], reason));
        assert_eq!(outcome.voters, [0, 1]);
        assert_eq!(controller.answered(2, Some("b")).unwrap(), []);
        let outcome = controller.outcome().unwrap();
        assert_eq!((outcome.reason, outcome.voters.as_slice()), (reason, &[0, 1, 2][..]));
        assert_eq!(outcome.answer.as_deref(), Some("b"));
        // What was in flight is reported as it ends; there is no other end.
        assert_eq!(controller.failed(3).unwrap(), []);
        assert_eq!((controller.cancel(), controller.engine_died()), (vec![], vec![]));
        assert_eq!(controller.outcome().unwrap().reason, reason);
    }
}

/// A run of three traces that ends when its winner is certain, after its warmup: 5.0 for `said`.
fn weighed(window: u64, decimals: Option<u8>, said: &str) -> Controller {
    let low = Policy::new(Preset::Low).budget(3).warmup(1).window(window).keep(1.0);
    let mut controller = started(low.decimals(decimals).min_ballots(0).stop(Stop::Certain));
    let launch = play(&mut controller, 0, &vec![5.0; window as usize], said);
    assert_eq!(launch, [Action::Launch(vec![1, 2])]);
    controller.launched(1).unwrap();
    controller.launched(2).unwrap();
    controller
}

#[test]
fn a_window_that_is_not_complete_bounds_nothing() {
    let mut controller = weighed(4, None, "a");
    controller.tokens(1, &[0.5]).unwrap(); // its first group may still be (0.5 + 3 · 99) / 4
    controller.tokens(2, &[6.0; 4]).unwrap();
    assert_eq!(controller.finished(2, Finish::End, Some("a")).unwrap(), []);
    controller.tokens(1, &[99.0; 3]).unwrap();
    controller.finished(1, Finish::End, Some("b")).unwrap();
    assert_eq!(controller.outcome().unwrap().answer.as_deref(), Some("b"));
}

#[test]
fn what_will_be_rounded_is_bounded_by_nothing_that_is_not() {
    let mut controller = weighed(2, Some(0), "b");
    controller.tokens(1, &[5.6; 2]).unwrap(); // which weighs 6 in the end
    controller.tokens(2, &[11.0; 2]).unwrap();
    assert_eq!(controller.finished(2, Finish::End, Some("a")).unwrap(), []);
    controller.finished(1, Finish::End, Some("b")).unwrap();
    // Eleven each, and "b" was seen first.
    assert_eq!(controller.outcome().unwrap().answer.as_deref(), Some("b"));
}

#[test]
#[cfg_attr(miri, ignore = "a million traces are interpreted for minutes")]
fn the_largest_budget_can_be_launched_at_once() {
    let largest = Policy::new(Preset::Offline).budget(MAX_BUDGET);
    let mut controller = Controller::new(largest.clone()).unwrap();
    let [Action::Launch(traces)] = &controller.start().unwrap()[..] else { panic!() };
    assert_eq!(traces.len(), 1_000_000);
    let error = Controller::new(largest.budget(u32::MAX)).unwrap_err().to_string();
    assert_eq!(error, "budget=4294967295: must be between 1 and 1000000 traces");
}
