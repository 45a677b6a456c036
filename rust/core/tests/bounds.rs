//! What has deceived bounds, limits and roundings: one test for each way of being nearly right.
#![allow(clippy::unwrap_used)]

mod oracle;
mod quanta;

use deepconf_core::fixed::{FRACTION_BITS, quantise};
use deepconf_core::token::Table;
use deepconf_core::trace::{Scorer, Settings};
use deepconf_core::vote::{Rules, vote};
use deepconf_core::{Error, Level};
use oracle::Dice;
use quanta::QUANTA;

/// Scores at every level in float64, and in float32 where that holds the values, against whole quanta.
fn check(values: &[f64], window: u64, bottom: f64) {
    let settings = Settings::default().window(window).tail(7).bottom(bottom);
    let narrow: Vec<f32> = values.iter().map(|&c| c as f32).collect();
    let wide = oracle::wide(&narrow);
    for level in Level::available() {
        let scorer = Scorer::new(settings).unwrap().at(level);
        quanta::check(&scorer.score(values).unwrap(), values, &settings);
        quanta::check(&scorer.score(&narrow).unwrap(), &wide, &settings);
    }
}

fn noise(seed: u64, n: usize, offset: f64, scale: f64) -> Vec<f64> {
    let mut dice = Dice(seed);
    (0..n).map(|_| offset + scale * (2.0 * dice.unit() - 1.0)).collect()
}

/// Bounds from sums in float32 must be wide enough for what float32 loses of a large mean.
#[test]
fn a_large_offset_with_small_noise() {
    for seed in 0..20 {
        for offset in [-1_000.0, 1_000.0, 2_040.0] {
            for window in [1, 4, 16, 48] {
                check(&noise(seed, 2_000, offset, 5e-4), window, 0.1);
            }
        }
    }
}

/// … and for the rounding of tokens to quanta, where that is all there is.
#[test]
fn confidences_of_a_few_quanta() {
    for seed in 0..100 {
        for scale in [0.6, 1.0, 5.0, 40.0] {
            check(&noise(seed, 700, 0.0, scale / QUANTA), 16, 0.01);
        }
    }
}

/// The last block of groups is seldom full.
#[test]
fn the_lowest_groups_stand_at_the_end() {
    for n in 100..400 {
        let falling: Vec<f64> = (0..n).map(|at| f64::from(n - at)).collect();
        let collapse: Vec<f64> = (0..n).map(|at| if at + 9 < n { 20.0 } else { 1.0 }).collect();
        for bottom in [0.02, 0.1, 0.3, 0.5] {
            check(&falling, 8, bottom);
            check(&collapse, 8, bottom);
        }
    }
}

/// More than 4,096 tokens of 2,048 nats do not fit 64 bits.
#[test]
fn many_large_tokens() {
    for n in [4_000, 8_200, 16_400, 40_000] {
        for c in [2_047.5, -2_047.5] {
            check(&vec![c; n], 16, 0.1);
            check(&noise(7, n, c, 0.4), 1_000, 0.1);
        }
    }
}

/// Groups whose sums are about to leave 64 bits.
#[test]
fn sums_near_the_ends_of_64_bits() {
    for (window, n) in
        [(1_023, 3_000), (1_025, 3_000), (2_050, 5_000), (4_100, 9_000), (8_200, 20_000)]
    {
        check(&noise(3, n, 2_047.85, 0.1), window, 0.1);
        check(&noise(4, n, -2_047.85, 0.1), window, 0.1);
    }
}

/// On both sides of the largest value of the fast way, where halves of a quantum still exist.
#[test]
fn values_around_the_limit_of_the_fast_way() {
    let half = 0.5 / QUANTA;
    for c in [2_048.0 - half, 2_048.0, 2_048.0 + 2.0 * half, 2_048.0 + 6.0 * half, 2_049.3] {
        for c in [c, -c] {
            check(&[c], 1, 0.1);
            check(&[c; 300], 40, 0.1);
            check(&[c, 1.0, 1.0], 2, 1.0);
        }
    }
}

#[test]
fn halves_of_a_quantum_go_to_the_even_one() {
    // Up to 4,096 nats float64 has them, on both sides of the limit of the fast way.
    for nats in [0, 1, 2_047, 2_048, 4_095] {
        let even = nats << FRACTION_BITS;
        for (halves, expected) in [(2 * even + 1, even), (2 * even + 3, even + 2)] {
            let nats = halves as f64 / (1_u64 << (FRACTION_BITS + 1)) as f64;
            assert_eq!((quantise(nats), quantise(-nats)), (expected, -expected), "{nats}");
        }
    }
}

/// Thresholds are compared with sums of up to 2⁸⁶ quanta.
#[test]
fn thresholds_of_any_size() {
    for threshold in [-32_000.0, -5_000.0, 1.5, 4_999.0, 5_000.0, 32_700.0] {
        for window in [1, 1_024, 4_096, 70_000] {
            let settings = Settings::default().window(window).bottom(None);
            let stop = |c: f32| {
                let trace = vec![c; window as usize + 3];
                Scorer::new(settings)
                    .unwrap()
                    .stream(Some(threshold))
                    .unwrap()
                    .extend(&trace)
                    .unwrap()
            };
            let threshold = threshold as f32;
            assert_eq!(stop(threshold.next_down()), Some(window as usize - 1), "{settings:?}");
            assert_eq!(stop(threshold), None, "{settings:?}");
            assert_eq!(stop(threshold.next_up()), None, "{settings:?}");
        }
    }
}

/// `(lane 0 + lane 2) + (lane 1 + lane 3)`, whatever the path.
#[test]
fn the_order_of_additions_in_a_row_is_the_documented_one() {
    let row = [-1e16, -1.0, 1e16, -1.0];
    // Twice the row in the same lanes, and once with the lanes' last column missing.
    let rows = [(row.to_vec(), 0.5), ([row, row].concat(), 0.5), (row[..3].to_vec(), 1.0 / 3.0)];
    for (row, expected) in rows {
        let k = row.len();
        let confidence = Table::new(&row.repeat(9), k).unwrap().confidence(None).unwrap();
        assert_eq!(confidence, [expected as f32; 9]);
        let floored = Table::new(&row.repeat(9), k).unwrap().confidence(Some(-1e300)).unwrap();
        assert_eq!(floored, confidence);
    }
}

/// What is taken as a weight never adds up to infinity.
#[test]
fn the_largest_weights() {
    let answers: Vec<u8> = (0..200).map(|row| row % 3).collect();
    for weight in [1.0, 1e200, 1e280, 1e289, 1e290, 1e295, 1e305, f64::MAX] {
        let weights = vec![weight; answers.len()];
        let rules = Rules::default().weights(Some(&weights[..]));
        let answers: Vec<Option<u8>> = answers.iter().copied().map(Some).collect();
        match vote(&answers, &rules) {
            Ok(vote) => {
                assert!(weight <= 1e290, "{weight}");
                assert!((vote.share - 0.335).abs() < 1e-9, "{weight}: {}", vote.share);
            }
            Err(error) => {
                assert!(weight > 1e290, "{error}");
                assert!(matches!(error, Error::Weight { position: 0, .. }), "{error}");
            }
        }
    }
}
