//! A step of many traces is the same as their tokens one event at a time.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::collections::BTreeMap;

use deepconf_core::controller::{Action, Controller, Finish, Status, Stepped};
use deepconf_core::policy::{Policy, Preset, Stop};
use oracle::Dice;
use proptest::prelude::*;

const TRACES: u32 = 6;

/// Two warmup traces have ended at about 4; four are running.
fn sampling() -> Controller {
    let high = Policy::new(Preset::High).budget(TRACES).warmup(2).window(2);
    let policy = high.min_ballots(0).stop(Stop::Budget);
    let mut controller = Controller::new(policy).unwrap();
    controller.start().unwrap();
    for trace in 0..2 {
        controller.launched(trace).unwrap();
        controller.tokens(trace, &[4.0, 4.0]).unwrap();
        controller.finished(trace, Finish::End, Some("a")).unwrap();
    }
    (2..TRACES).for_each(|trace| controller.launched(trace).unwrap());
    controller
}

/// The same step, told by `tokens`.
fn one_by_one(controller: &mut Controller, traces: &[u32], confidences: &[f32]) -> Stepped {
    let mut events: Vec<(u32, Vec<f32>)> = Vec::new();
    for (&trace, &c) in traces.iter().zip(confidences) {
        match events.last_mut() {
            Some((last, tokens)) if *last == trace => tokens.push(c),
            _ => events.push((trace, vec![c])),
        }
    }
    let mut stepped = Stepped::default();
    let mut errors = BTreeMap::new();
    let mut order = Vec::new();
    for (trace, tokens) in events {
        if errors.contains_key(&trace) {
            continue;
        }
        match controller.tokens(trace, &tokens) {
            Ok(stop) => stepped.stops.extend(stop),
            Err(error) => {
                errors.insert(trace, error);
                order.push(trace);
            }
        }
    }
    stepped.errors = order.iter().map(|trace| (*trace, errors[trace].clone())).collect();
    stepped
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_step_is_its_events_one_by_one(seed in any::<u64>(), steps in 1_usize..12) {
        let mut dice = Dice(seed);
        let (mut whole, mut single) = (sampling(), sampling());
        for _ in 0..steps {
            let entries = dice.below(12);
            // Some ended, one that was never launched; all of one trace together or not.
            let mut traces: Vec<u32> =
                (0..entries).map(|_| dice.below(TRACES as usize + 1) as u32).collect();
            if dice.below(2) == 0 {
                traces.sort_unstable();
            }
            let confidences: Vec<f32> = (0..entries)
                .map(|_| match dice.below(40) {
                    0 => f32::NAN,
                    1 => 1e6,
                    _ => dice.below(64) as f32 / 8.0,
                })
                .collect();
            let expected = one_by_one(&mut single, &traces, &confidences);
            let found = whole.step(&traces, &confidences).unwrap();
            prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            prop_assert_eq!(format!("{whole:?}"), format!("{single:?}"));
        }
    }
}

#[test]
fn a_bad_value_costs_its_trace_only() {
    let mut controller = sampling();
    let traces = [2, 3, 3, 4, 3, 5, 5, 5];
    let confidences = [9.0, 9.0, f32::NAN, 9.0, 9.0, 9.0, 1.0, 1.0];
    let Stepped { stops, errors, .. } = controller.step(&traces, &confidences).unwrap();
    assert_eq!(stops, [Action::Stop { trace: 5, token: 2 }]);
    let [(3, error)] = &errors[..] else { panic!("{errors:?}") };
    assert!(error.to_string().contains("NaN at trace 3, position 1:"), "{error}");
    let told: Vec<u64> = (2..6).map(|trace| controller.scores(trace).unwrap().num_tokens).collect();
    assert_eq!(told, [1, 0, 1, 3]);
    assert_eq!(controller.status(5), Some(Status::Stopping));
    assert_eq!(controller.num_tokens(), 4 + 5);
}

#[test]
fn there_are_as_many_traces_as_confidences() {
    let mut controller = sampling();
    let before = format!("{controller:?}");
    let error = controller.step(&[2, 3], &[1.0]).unwrap_err().to_string();
    assert!(error.starts_with("traces has 2 entries and confidences has 1"), "{error}");
    assert_eq!(controller.step(&[], &[]).unwrap(), Stepped::default());
    assert_eq!(format!("{controller:?}"), before);
}
