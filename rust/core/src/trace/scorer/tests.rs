//! The fast path at every level against the plain way, to the last bit, record lows included.

use half::f16;
use proptest::prelude::*;

use super::*;

fn bits(scores: Scores) -> [u64; 4] {
    [scores.mean, scores.lowest_group, scores.bottom_group, scores.tail].map(f64::to_bits)
}

fn check<T: Sample>(values: &[T], settings: Settings) {
    let checked = settings.checked().unwrap();
    let tokens: Vec<i64> = values.iter().map(|c| fixed::quantise(c.wide())).collect();
    let mut expected = Staircase::default();
    staircase::of_quantised(&tokens, checked.window, &mut expected);
    let plain = bits(plain::score(&tokens, &checked));
    let mut scratch = Scratch::default();
    for level in Level::available() {
        let mut found = Staircase::default();
        let (scratch, lows) = (&mut scratch, Some(&mut found));
        let narrow = Narrow { values, settings: &checked, scratch, rounding: Exact, lows };
        let scores = level.run(narrow).expect("they are in range");
        let n = values.len();
        assert_eq!(bits(scores), plain, "{level}, {settings:?}, n = {n}");
        assert_eq!(found, expected, "{level}, {settings:?}, n = {n}");
    }
}

fn settings(window: usize, bottom: f64) -> Settings {
    Settings::default().window(window as u64).tail(50).bottom(bottom)
}

proptest! {
    #[test]
    fn patterns(
        pattern in prop::collection::vec(-900.0_f32..900.0, 1..60),
        n in 1_usize..1_400,
        w in 1_usize..1_400,
        bottom in 0.001_f64..=1.0,
    ) {
        let values: Vec<f32> = (0..n).map(|i| pattern[i * i % pattern.len()]).collect();
        check(&values, settings(w, bottom));
    }

    /// Runs of equal values, so that groups are close, or equal.
    #[test]
    fn levels_held_for_a_while(
        values in prop::collection::vec(-20.0_f64..20.0, 1..900),
        w in 1_usize..900,
        bottom in 0.001_f64..=1.0,
        held in 1_usize..60,
    ) {
        let values: Vec<f64> = values.iter().flat_map(|&c| vec![c; held]).take(2_000).collect();
        check(&values, settings(w.min(values.len()), bottom));
    }

    /// Every sixteenth group is sampled, and none of these is like the rest.
    #[test]
    fn samples_that_deceive(
        pattern in prop::collection::vec(0.0_f32..9.0, 16),
        odd in prop::sample::select(vec![-30.0_f32, 4.0, 30.0]),
        n in 1_usize..6_000,
        w in prop::sample::select(vec![1_usize, 2, 17, 33]),
        bottom in 0.001_f64..=1.0,
    ) {
        let values: Vec<f32> =
            (0..n).map(|i| if i % 16 == 0 { odd } else { pattern[i % 16] }).collect();
        check(&values, settings(w, bottom));
    }

    #[test]
    fn every_float_type(values in prop::collection::vec(0.0_f32..30.0, 1..600), w in 1_usize..300) {
        let halves: Vec<f16> = values.iter().map(|&c| f16::from_f32(c)).collect();
        let singles: Vec<f32> = halves.iter().map(|&c| f32::from(c)).collect();
        let doubles: Vec<f64> = halves.iter().map(|&c| f64::from(c)).collect();
        check(&halves, settings(w, 0.1));
        check(&singles, settings(w, 0.1));
        check(&doubles, settings(w, 0.1));
    }
}

#[test]
fn values_up_to_the_limit() {
    for window in [7, 16, 40] {
        let values: Vec<f32> =
            (0..500).map(|i| if i * i % 7 < 3 { 2_047.0 } else { -2_047.0 }).collect();
        check(&values, settings(window, 0.2));
    }
}

#[test]
fn equal_groups_are_interchangeable() {
    for bottom in [0.001, 0.1, 0.5, 1.0] {
        check(&[3.5_f32; 1_000], settings(11, bottom));
    }
}

#[test]
fn lengths_around_steps_blocks_and_chunks() {
    let around = |size: usize| [size - 1, size, size + 1];
    let sizes = [16, 64, 80, 128, 144, 192, 256];
    for n in sizes.into_iter().flat_map(around).chain([1, 2, 520]) {
        for window in [16, 32, 64, 128].into_iter().flat_map(around).chain([1, 2, n]) {
            let values: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 / 8.0).collect();
            for bottom in [0.01, 0.3, 1.0] {
                check(&values, settings(window, bottom));
            }
        }
    }
}

/// A trace of any length leaves no more than some megabytes behind.
#[test]
fn memory_is_given_back() {
    let scorer = Scorer::new(settings(16, 1.0)).unwrap();
    let held = || SCRATCH.with_borrow(|scratch| scratch.candidates.room());
    scorer.score(&vec![1.0_f32; KEPT]).unwrap();
    assert!((KEPT / 2..3 * KEPT).contains(&held()));
    scorer.score(&vec![1.0_f32; KEPT + 1]).unwrap();
    assert_eq!(held(), 0);
}
