//! Scores while a trace grows: streaming equals batch after every token, never drifts, and stops
//! where the oracle does.
#![allow(clippy::unwrap_used)]

mod oracle;

use deepconf_core::stream::TraceScorer;
use deepconf_core::trace::{Scorer, Scores, Settings};
use oracle::Dice;
use proptest::prelude::*;

fn scorer(window: u64, tail: u64, bottom: Option<f64>) -> Scorer {
    Scorer::new(Settings::default().window(window).tail(tail).bottom(bottom)).unwrap()
}

fn stream(window: u64, tail: u64, bottom: Option<f64>, threshold: Option<f64>) -> TraceScorer {
    scorer(window, tail, bottom).stream(threshold).unwrap()
}

fn bits(scores: &Scores) -> ([u64; 4], u64, bool) {
    let Scores { mean, lowest_group, bottom_group, tail, num_tokens, short, .. } = *scores;
    // One NaN is as good as another.
    let bits = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() };
    ([mean, lowest_group, bottom_group, tail].map(bits), num_tokens, short)
}

fn confidences(dice: &mut Dice, n: usize) -> Vec<f32> {
    let scale = dice.pick(&[1.0, 25.0, 3_000.0, 65_000.0]);
    (0..n).map(|_| ((dice.unit() - 0.3) * scale * 0.7) as f32).collect()
}

fn check_prefix(trace: &TraceScorer, seen: &[f32], scorer: &Scorer, window: usize) {
    let batch = bits(&scorer.score(seen).unwrap());
    let mut parts = trace.scores();
    assert_eq!(bits(&parts), batch, "after {} tokens", seen.len());
    (parts.mean, parts.lowest_group, parts.tail) =
        (trace.mean(), trace.lowest_group(), trace.tail());
    assert_eq!(bits(&parts), batch, "after {} tokens", seen.len());
    let armed = seen.len() >= window;
    assert_eq!((trace.armed(), trace.group().is_some()), (armed, armed));
    assert_eq!(trace.num_tokens(), seen.len() as u64);
}

proptest! {
    #[test]
    fn streaming_equals_batch_after_every_chunk(
        n in 0_usize..300, w in 1_u64..100, t in 1_u64..60,
        q in prop::option::of(0.001_f64..=1.0), decimals in prop::option::of(0_u8..5), seed in any::<u64>()
    ) {
        let mut dice = Dice(seed);
        let values = confidences(&mut dice, n);
        let settings = Settings::default().window(w).tail(t).bottom(q).decimals(decimals);
        let (scorer, window) = (Scorer::new(settings).unwrap(), w as usize);
        let (mut pushed, mut extended) =
            (scorer.stream(None).unwrap(), scorer.stream(None).unwrap());
        check_prefix(&pushed, &[], &scorer, window);
        let mut at = 0;
        while at < n {
            let most = dice.pick(&[9, 150]);
            let to = (at + dice.below(most)).min(n);
            prop_assert_eq!(extended.extend(&values[at..to]).unwrap(), None);
            for i in at..to {
                prop_assert!(!pushed.push(values[i].into()).unwrap());
                check_prefix(&pushed, &values[..=i], &scorer, window);
            }
            check_prefix(&extended, &values[..to], &scorer, window);
            at = to;
        }
        pushed.reset();
        check_prefix(&pushed, &[], &scorer, window);
        pushed.extend(&values).unwrap();
        check_prefix(&pushed, &values, &scorer, window);
    }

    #[test]
    fn the_group_is_the_mean_of_the_last_window(
        eighths in prop::collection::vec(-800_i16..800, 1..120), w in 1_usize..30
    ) {
        let values = oracle::grid(&eighths);
        let plain = oracle::wide(&values);
        let mut scorer = stream(w as u64, 5, None, None);
        for i in 0..values.len() {
            scorer.push(plain[i]).unwrap();
            let group = (i + 1 >= w).then(|| oracle::mean(&plain[i + 1 - w..=i]));
            prop_assert_eq!(scorer.group(), group);
        }
    }

    #[test]
    fn the_stop_is_the_first_complete_group_strictly_below(
        eighths in prop::collection::vec(0_i16..60, 0..300), w in 1_usize..20, seed in any::<u64>()
    ) {
        let mut dice = Dice(seed);
        let values = oracle::grid(&eighths);
        let plain = oracle::wide(&values);
        let groups = oracle::groups(&plain, w);
        // A group's own value as often as not: it must not stop its trace.
        let threshold = if groups.is_empty() || dice.below(2) == 0 {
            dice.unit() * 8.0
        } else {
            dice.pick(&groups)
        };
        let expected = oracle::first_stop(&plain, w, threshold);
        let scorer = scorer(w as u64, 3, None);
        let stopping = || scorer.stream(Some(threshold)).unwrap();

        let mut pushed = stopping();
        prop_assert_eq!(plain.iter().position(|&c| pushed.push(c).unwrap()), expected);

        let mut extended = stopping();
        let (mut at, mut stopped) = (0, None);
        while at < values.len() && stopped.is_none() {
            let most = dice.pick(&[9, 150]);
            let to = (at + 1 + dice.below(most)).min(values.len());
            stopped = extended.extend(&values[at..to]).unwrap().map(|stop| at + stop);
            at = to;
        }
        prop_assert_eq!(stopped, expected);
        // What came after the stop was not added.
        let seen = expected.map_or(values.len(), |stop| stop + 1);
        check_prefix(&extended, &values[..seen], &scorer, w);

        // Later groups below the threshold ask again, one by one.
        let mut again = stopping();
        for (i, &c) in plain.iter().enumerate() {
            let below = i + 1 >= w && oracle::mean(&plain[i + 1 - w..=i]) < threshold;
            prop_assert_eq!(again.push(c).unwrap(), below);
        }
    }

    #[test]
    fn a_batch_is_many_traces(
        slots in 1_usize..8, w in 1_u64..6, threshold in prop::option::of(0.0_f64..8.0), seed in any::<u64>()
    ) {
        let mut dice = Dice(seed);
        let scorer = scorer(w, 4, None);
        let mut batch = scorer.batch(slots, threshold).unwrap();
        let mut single = vec![scorer.stream(threshold).unwrap(); slots];
        for _ in 0..30 {
            // Any order; a slot named twice takes both tokens, one after the other.
            let ids: Vec<usize> = (0..dice.below(2 * slots)).map(|_| dice.below(slots)).collect();
            let tokens: Vec<f32> = ids.iter().map(|_| dice.below(64) as f32 / 8.0).collect();
            let mut stop = vec![false; ids.len()];
            batch.step(&ids, &tokens, &mut stop).unwrap();
            for (i, &id) in ids.iter().enumerate() {
                prop_assert_eq!(stop[i], single[id].push(tokens[i].into()).unwrap());
            }
            if dice.below(8) == 0 {
                let slot = dice.below(slots);
                batch.reset(&[slot]).unwrap();
                single[slot].reset();
            }
            if dice.below(8) == 0 {
                let threshold = Some(dice.below(64) as f64 / 8.0);
                batch.set_threshold(threshold).unwrap();
                single.iter_mut().for_each(|scorer| scorer.set_threshold(threshold).unwrap());
            }
            if dice.below(8) == 0 {
                let threshold = Some(dice.below(64) as f64 / 8.0);
                let slots: Vec<usize> = (0..slots).filter(|_| dice.below(2) == 0).collect();
                batch.set_threshold_of(&slots, threshold).unwrap();
                slots.iter().for_each(|&slot| single[slot].set_threshold(threshold).unwrap());
            }
            let groups: Vec<Option<f64>> = single.iter().map(TraceScorer::group).collect();
            prop_assert_eq!(batch.groups().collect::<Vec<_>>(), groups);
            let tokens: Vec<u64> = single.iter().map(TraceScorer::num_tokens).collect();
            prop_assert_eq!(batch.num_tokens().collect::<Vec<_>>(), tokens);
            for (lowest, scorer) in batch.lowest_groups().zip(&single) {
                prop_assert_eq!(lowest.to_bits(), scorer.lowest_group().to_bits());
            }
        }
    }

    #[test]
    fn a_bad_value_leaves_a_trace_as_it_was(
        n in 1_usize..30, w in 1_u64..12, q in prop::option::of(0.01_f64..=1.0), seed in any::<u64>()
    ) {
        let mut dice = Dice(seed);
        let mut scorer = stream(w, 7, q, None);
        scorer.extend(&confidences(&mut dice, n)).unwrap();
        let before = format!("{scorer:?}");
        let mut values = confidences(&mut dice, n);
        let at = dice.below(n);
        values[at] = dice.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 32_768.0, -1e30]);
        let message = scorer.extend(&values).unwrap_err().to_string();
        prop_assert!(message.contains(&format!("at position {at}:")), "{}", message);
        prop_assert!(scorer.push(values[at].into()).is_err());
        prop_assert_eq!(format!("{scorer:?}"), before);
    }
}

#[test]
fn a_bad_step_leaves_every_slot_as_it_was() {
    let mut batch = scorer(2, 2, None).batch(3, Some(9.0)).unwrap();
    batch.step(&[0, 1, 2, 0], &[1.0_f32, 2.0, 3.0, 4.0], &mut [false; 4]).unwrap();
    let before = format!("{batch:?}");
    type Step<'a> = (&'a [usize], &'a [f32], usize, &'a str);
    let bad: [Step<'_>; 7] = [
        (&[0, 1], &[1.0, f32::NAN], 2, "NaN at position 1:"),
        (&[0, 1], &[f32::INFINITY, 1.0], 2, "inf at position 0:"),
        (&[2, 1, 0], &[1.0, 1.0, 40_000.0], 3, "40000 at position 2:"),
        (&[0, 3], &[1.0, 1.0], 2, "slot_ids=3: there are 3 slots"),
        (&[0, i64::MAX as usize], &[1.0, 1.0], 2, "slot_ids=9223372036854775807"),
        (&[0, 1], &[1.0], 2, "slot_ids has 2 entries and confidences has 1"),
        (&[0, 1], &[1.0, 1.0], 3, "slot_ids has 2 entries and stop has 3"),
    ];
    for (ids, tokens, mask, expected) in bad {
        let mut stop = vec![false; mask];
        let message = batch.step(ids, tokens, &mut stop).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!stop.contains(&true), "{message}");
        assert_eq!(format!("{batch:?}"), before, "{message}");
    }
    assert!(batch.reset(&[0, 3]).is_err());
    assert!(batch.set_threshold(Some(f64::NAN)).is_err());
    assert!(batch.set_threshold_of(&[0], Some(f64::NAN)).is_err());
    assert!(batch.set_threshold_of(&[0, 3], Some(1.0)).is_err());
    assert_eq!(format!("{batch:?}"), before);
}

#[test]
fn no_slots_and_no_tokens() {
    let mut none = scorer(2, 2, None).batch(0, None).unwrap();
    none.step::<f32>(&[], &[], &mut []).unwrap();
    assert!(none.step(&[0], &[1.0_f32], &mut [false]).is_err());
    let mut scorer = stream(2, 2, None, None);
    assert_eq!(scorer.extend::<f32>(&[]).unwrap(), None);
    assert_eq!(scorer.num_tokens(), 0);
}

/// The threshold may come late and go again, without the past being judged anew.
#[test]
fn a_threshold_holds_from_the_next_token_on() {
    let mut scorer = stream(2, 2, None, None);
    assert_eq!(scorer.extend(&[1.0_f32, 1.0, 9.0, 9.0]).unwrap(), None);
    scorer.set_threshold(Some(5.0)).unwrap();
    assert_eq!(scorer.lowest_group(), 1.0);
    assert!(!scorer.push(9.0).unwrap());
    assert!(scorer.push(0.0).unwrap());
    scorer.set_threshold(None).unwrap();
    assert!(!scorer.push(0.0).unwrap());
    for extreme in [f64::MAX, 1e30, -1e30, f64::MIN] {
        scorer.set_threshold(Some(extreme)).unwrap();
        assert_eq!(scorer.push(0.0).unwrap(), extreme > 0.0, "{extreme}");
    }
}

/// A group sum and its neighbours: the integer comparison decides as the float comparison would.
#[test]
fn thresholds_beside_a_group_are_told_apart() {
    let mut dice = Dice(11);
    for _ in 0..2_000 {
        let w = 1 + dice.below(50);
        let values: Vec<f64> = (0..w).map(|_| f64::from((dice.unit() * 20.0) as f32)).collect();
        let mut scorer = stream(w as u64, 1, None, None);
        scorer.extend(&values).unwrap();
        let group = scorer.group().unwrap();
        for (threshold, stops) in
            [(group, false), (group.next_up(), true), (group.next_down(), false)]
        {
            let stop = stream(w as u64, 1, None, Some(threshold)).extend(&values).unwrap();
            assert_eq!(stop, stops.then_some(w - 1), "{group} under {threshold}");
        }
    }
}

/// Ten million tokens: the group is still that of a fresh window.
#[test]
fn ten_million_tokens_do_not_drift() {
    const WINDOW: usize = 2_048;
    let mut dice = Dice(12);
    let smooth = |dice: &mut Dice| f64::from((2.0 + 20.0 * dice.unit()) as f32);
    let jumping = |dice: &mut Dice| dice.pick(&[1e-3, 30_000.0, -30_000.0, 0.5]);
    let kinds: [&dyn Fn(&mut Dice) -> f64; 2] = [&smooth, &jumping];
    for (kind, draw) in kinds.into_iter().enumerate() {
        let mut scorer = stream(WINDOW as u64, 2_048, None, None);
        let mut recent = vec![0.0; WINDOW];
        for i in 0..10_000_000_usize {
            // Now and then a quiet stretch of small values, where any residue would show.
            let c = if kind == 1 && i % 1_000_000 >= 990_000 { 1e-3 } else { draw(&mut dice) };
            recent[i % WINDOW] = c;
            scorer.push(c).unwrap();
            if i % 1_000_000 == 999_999 {
                let (group, fresh) = (scorer.group().unwrap(), oracle::mean(&recent));
                assert!((group / fresh - 1.0).abs() < 1e-8, "{group} for {fresh} at {i}");
                assert_eq!(scorer.tail().to_bits(), group.to_bits());
            }
        }
        assert_eq!(scorer.num_tokens(), 10_000_000);
    }
}
