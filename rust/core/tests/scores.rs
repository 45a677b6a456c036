//! Whole-trace and token scores against the oracle, and against each other on every path.
#![allow(clippy::unwrap_used)]

mod oracle;

use deepconf_core::Sample;
use deepconf_core::token::Table;
use deepconf_core::trace::{Scorer, Scores, Settings};
use oracle::{Dice, alike};
use proptest::prelude::*;

fn settings(window: u64, tail: u64, bottom: f64) -> Settings {
    Settings::default().window(window).tail(tail).bottom(bottom)
}

fn score<T: Sample>(values: &[T], settings: &Settings) -> Scores {
    Scorer::new(*settings).unwrap().score(values).unwrap()
}

/// The scores' bits, so that NaN equals NaN and nothing else is forgiven.
fn bits(scores: &Scores) -> ([u64; 4], u64, bool) {
    let Scores { mean, lowest_group, bottom_group, tail, num_tokens, short, .. } = *scores;
    ([mean, lowest_group, bottom_group, tail].map(f64::to_bits), num_tokens, short)
}

fn all_bits(scores: &[Scores]) -> Vec<([u64; 4], u64, bool)> {
    scores.iter().map(bits).collect()
}

fn check_against_oracle<T: Sample>(values: &[T], settings: &Settings) {
    let scores = score(values, settings);
    let plain: Vec<f64> = values.iter().map(|c| c.wide()).collect();
    let (window, n) = (settings.window as usize, values.len());
    for (name, got, expected) in [
        ("mean", scores.mean, oracle::mean(&plain)),
        ("lowest", scores.lowest_group, oracle::lowest_group(&plain, window)),
        (
            "bottom",
            scores.bottom_group,
            oracle::bottom_group(&plain, window, settings.bottom.unwrap()),
        ),
        ("tail", scores.tail, oracle::tail(&plain, settings.tail as usize)),
    ] {
        assert!(alike(got, expected, 1e-7), "{name}: {got} for {expected}, {settings:?}, n={n}");
    }
    assert_eq!((scores.num_tokens, scores.short), (n as u64, 0 < n && n < window));
}

/// Lengths that stand in every relation to the window, the window and a tail.
fn shapes() -> impl Strategy<Value = (usize, u64, u64)> {
    (1_u64..40).prop_flat_map(|w| {
        let n = w as usize;
        let length =
            prop_oneof![Just(0), Just(1), Just(n - 1), Just(n), Just(n + 1), 0..n, n..10 * n + 20];
        (length, Just(w), 1_u64..60)
    })
}

fn fraction() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.001), Just(0.1), Just(1.0), 0.001_f64..1.0]
}

proptest! {
    #[test]
    fn float32_scores_agree_with_the_oracle((n, w, t) in shapes(), q in fraction(), seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let scale = dice.pick(&[1e-3, 1.0, 30.0, 2_000.0, 32_000.0]);
        let values: Vec<f32> = (0..n).map(|_| (dice.unit() * scale) as f32).collect();
        check_against_oracle(&values, &settings(w, t, q));
    }

    #[test]
    fn float64_scores_agree_with_the_oracle((n, w, t) in shapes(), q in fraction(), seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let scale = dice.pick(&[1e-3, 1.0, 30.0, 2_000.0, 32_000.0]);
        let values: Vec<f64> = (0..n).map(|_| dice.unit() * scale).collect();
        check_against_oracle(&values, &settings(w, t, q));
    }

    #[test]
    fn on_the_grid_scores_are_the_oracles_to_the_last_bit(
        (n, w, t) in shapes(), q in fraction(), eighths in prop::collection::vec(-800_i16..800, 420)
    ) {
        let values = oracle::grid(&eighths[..n]);
        let plain = oracle::wide(&values);
        let window = w as usize;
        let expected = [
            oracle::mean(&plain),
            oracle::lowest_group(&plain, window),
            oracle::bottom_group(&plain, window, q),
            oracle::tail(&plain, t as usize),
        ];
        let Scores { mean, lowest_group, bottom_group, tail, num_tokens, short, .. } =
            score(&values, &settings(w, t, q));
        prop_assert_eq!((num_tokens, short), (n as u64, 0 < n && n < window));
        let got = [mean, lowest_group, bottom_group, tail];
        if n == 0 {
            prop_assert!(got.iter().all(|x| x.is_nan()));
        } else {
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn tokens_agree_with_the_oracle(k in 2_usize..24, n in 0_usize..30, logs in prop::collection::vec(-20.0_f64..0.0, 720)) {
        let values = &logs[..n * k];
        let table = Table::new(values, k).unwrap();
        let (confidence, entropy) = (table.confidence(None).unwrap(), table.entropy(None).unwrap());
        prop_assert_eq!((confidence.len(), entropy.len()), (n, n));
        for (i, row) in values.chunks(k).enumerate() {
            prop_assert!(alike(confidence[i].into(), oracle::token_confidence(row), 1e-7));
            prop_assert!((f64::from(entropy[i]) - oracle::token_entropy(row)).abs() < 1e-6);
        }
    }
}

/// Traces of all sizes in one array, with the offsets that cut it, the first not at 0.
fn batch(seed: u64, traces: usize, longest: usize) -> (Vec<f32>, Vec<usize>) {
    let mut dice = Dice(seed);
    let mut values: Vec<f32> = vec![f32::NAN; 3]; // before the first offset: never looked at
    let mut offsets = vec![3];
    for _ in 0..traces {
        let n = if dice.below(8) == 0 { 0 } else { dice.below(longest) };
        let scale = dice.pick(&[1.0, 20.0, 3_000.0, 32_000.0]);
        values.extend((0..n).map(|_| ((dice.unit() - 0.2) * scale) as f32));
        offsets.push(values.len());
    }
    values.push(f32::INFINITY); // past the last offset
    (values, offsets)
}

#[test]
fn every_path_and_thread_count_gives_the_same_bits() {
    for (seed, window, traces, longest) in [(1, 1, 50, 40), (2, 7, 300, 200), (3, 512, 40, 6_000)] {
        let (values, offsets) = batch(seed, traces, longest);
        let cut: Vec<&[f32]> = offsets.windows(2).map(|ends| &values[ends[0]..ends[1]]).collect();
        let scorer = Scorer::new(settings(window, 2 * window, 0.1)).unwrap();
        let one_by_one: Vec<Scores> = cut.iter().map(|c| scorer.score(c).unwrap()).collect();
        let expected = all_bits(&one_by_one);
        for threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let many = pool.install(|| scorer.score_many(&values, &offsets)).unwrap();
            let slices = pool.install(|| scorer.score_slices(&cut)).unwrap();
            assert_eq!(all_bits(&many), expected, "{threads} threads");
            assert_eq!(all_bits(&slices), expected, "{threads} threads");
        }
        let wide = oracle::wide(&values);
        assert_eq!(all_bits(&scorer.score_many(&wide, &offsets).unwrap()), expected, "float64");
    }
}

/// Group sums beyond 64 bits, held against integer sums of the values in quanta of 2⁻⁹ nats.
#[test]
fn huge_magnitudes_in_big_windows_are_exact() {
    let mut dice = Dice(5);
    for (window, n) in [(300, 300), (1_000, 5_000), (4_096, 9_000)] {
        for signs in [&[1_i128][..], &[-1], &[1, -1]] {
            let huge =
                |dice: &mut Dice| dice.pick(signs) * (32_767 * 512 - dice.below(2_000) as i128);
            let quanta: Vec<i128> = (0..n).map(|_| huge(&mut dice)).collect();
            let values: Vec<f32> = quanta.iter().map(|&q| q as f32 / 512.0).collect();
            let mut sums: Vec<i128> = quanta.windows(window).map(|g| g.iter().sum()).collect();
            sums.sort_unstable();
            let count = (0.1 * sums.len() as f64).floor().max(1.0) as usize;
            let nats = |sum: i128, count: usize| sum as f64 / count as f64 / 512.0;
            let scores = score(&values, &settings(window as u64, 64, 0.1));
            assert_eq!(scores.mean, nats(quanta.iter().sum(), n));
            assert_eq!(scores.lowest_group, nats(sums[0], window));
            assert_eq!(scores.bottom_group, nats(sums[..count].iter().sum(), window * count));
            assert_eq!(scores.tail, nats(quanta[n - 64..].iter().sum(), 64));
        }
    }
}

/// The same trace a thousandfold goes through wider sums, and must come out a thousandfold.
#[test]
fn narrow_and_wide_sums_agree() {
    let mut dice = Dice(6);
    for window in [200, 2_048, 2_500] {
        let eighths = |dice: &mut Dice| (dice.below(508) as f32 - 254.0) / 8.0;
        let small: Vec<f32> = (0..3_000).map(|_| eighths(&mut dice)).collect();
        let large: Vec<f32> = small.iter().map(|c| c * 1_024.0).collect();
        let settings = settings(window, 1_000, 0.25);
        let (small, large) = (score(&small, &settings), score(&large, &settings));
        let mut scaled = small;
        scaled.mean *= 1_024.0;
        scaled.lowest_group *= 1_024.0;
        scaled.bottom_group *= 1_024.0;
        scaled.tail *= 1_024.0;
        assert_eq!(bits(&large), bits(&scaled), "window {window}");
    }
}
