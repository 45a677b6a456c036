//! Every kernel against the oracle and the documented order of additions, at every level.

use super::*;
use half::f16;
use proptest::prelude::*;

fn oracle_confidence(row: &[f32]) -> f64 {
    -row.iter().map(|&l| f64::from(l)).sum::<f64>() / row.len() as f64
}

fn oracle_entropy(row: &[f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass: f64 = row.iter().map(|l| (l - top).exp()).sum();
    let parts = row.iter().map(|l| ((l - top).exp() / mass, l - top - mass.ln()));
    parts.map(|(p, log)| if p > 0.0 { -p * log } else { 0.0 }).sum()
}

proptest! {
    #[test]
    fn agrees_with_the_oracle(k in 2_usize..24, rows in 0_usize..40, seed in prop::collection::vec(-30.0_f32..0.0, 960)) {
        let values = &seed[..rows * k];
        let table = Table::new(values, k).unwrap();
        let (confidence, entropy) = (table.confidence(None).unwrap(), table.entropy(None).unwrap());
        prop_assert_eq!(confidence.len(), rows);
        for (i, row) in values.chunks(k).enumerate() {
            prop_assert!((f64::from(confidence[i]) - oracle_confidence(row)).abs() <= 1e-7 * oracle_confidence(row));
            prop_assert!((f64::from(entropy[i]) - oracle_entropy(&row.iter().map(|&l| l.into()).collect::<Vec<_>>())).abs() <= 1e-6);
        }
    }

    #[test]
    fn float64_and_float32_give_the_same_bits(values in prop::collection::vec(-30.0_f32..0.0, 1..100)) {
        let wide: Vec<f64> = values.iter().map(|&l| f64::from(l)).collect();
        prop_assert_eq!(confidence(&values, None).to_bits(), confidence(&wide, None).to_bits());
    }
}

proptest! {
    #[test]
    fn logits_agree_with_the_oracle(
        vocabulary in 2_usize..700,
        rows in 1_usize..4,
        part in 0.0_f64..1.0,
        scale in 0.01_f32..40.0,
        seed in prop::collection::vec(-1.0_f32..1.0, 2_100),
    ) {
        let k = 2 + ((vocabulary - 2) as f64 * part) as usize;
        let logits: Vec<f32> = seed[..rows * vocabulary].iter().map(|l| l * scale).collect();
        let table = Table::new(&logits, vocabulary).unwrap();
        let confidences = table.logits_confidence(k, None).unwrap();
        for (row, c) in logits.chunks(vocabulary).zip(confidences) {
            let mut row: Vec<f64> = row.iter().map(|&l| f64::from(l)).collect();
            row.sort_by(|a, b| b.total_cmp(a));
            let normal = row.iter().map(|l| (l - row[0]).exp()).sum::<f64>().ln() + row[0];
            let expected = -row[..k].iter().map(|l| l - normal).sum::<f64>() / k as f64;
            prop_assert!((f64::from(c) - expected).abs() <= 3e-7 * (1.0 + expected), "{c}, not {expected}");
        }
    }
}

#[test]
fn masked_logits_are_impossible_tokens() {
    const MASKED: f32 = f32::NEG_INFINITY;
    let logits = [1.0, MASKED, 0.0, MASKED];
    let table = Table::new(&logits, 4).unwrap();
    let pair = Table::new(&[1.0_f32, 0.0], 2).unwrap().logits_confidence(2, None).unwrap();
    assert_eq!(table.logits_confidence(2, None).unwrap(), pair);
    let message = table.logits_confidence(3, None).unwrap_err().to_string();
    assert!(message.contains("logits holds -inf at row 0, column 1"), "{message}");
    assert_eq!(
        table.logits_confidence(4, Some(-9.0)).unwrap(),
        [(2.0 * 9.0 + 2.0 * pair[0]) / 4.0]
    );
    for (wrong, place) in
        [([0.0, f32::NAN], "NaN at row 0, column 1"), ([f32::INFINITY, 0.0], "inf at row 0")]
    {
        let message =
            Table::new(&wrong, 2).unwrap().logits_confidence(2, None).unwrap_err().to_string();
        assert!(message.contains(place), "{message}");
    }
    assert!(Table::new(&[MASKED; 3], 3).unwrap().logits_confidence(2, Some(-9.0)).is_err());
    for (k, expected) in
        [(0, "at least 2"), (1, "at least 2: minus the"), (5, "between 2 and the 4 logits")]
    {
        let message = table.logits_confidence(k, None).unwrap_err().to_string();
        assert!(message.starts_with(&format!("k={k}: must be {expected}")), "{message}");
    }
}

/// Numbers of which some cancel, so that their sums depend on the order of additions.
fn rough(n: usize) -> Vec<f32> {
    let one = |i: usize| match i * i * 7_919 % 10_007 {
        h if h % 4 == 0 => 3e16,
        h if h % 4 == 1 => -3e16,
        h => -(h as f32) / 700.0,
    };
    (0..n).map(one).collect()
}

/// Log-probabilities as a model has them.
fn smooth(n: usize) -> Vec<f32> {
    (0..n).map(|i| -((i * i * 7_919 % 10_007) as f32) / 700.0).collect()
}

/// The documented order, spelt out.
fn in_order<T: Sample>(row: &[T], floor: Option<f64>) -> f32 {
    let mut lanes = [0.0_f64; 4];
    for (column, l) in row.iter().enumerate() {
        lanes[column % 4] += l.wide().max(floor.unwrap_or(f64::NEG_INFINITY));
    }
    let sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    (-sum / row.len() as f64) as f32
}

fn check_every_level<T: Sample>(values: &[T], k: usize, rows: usize) {
    let values = &values[..rows * k];
    for floor in [None, Some(-40.0)] {
        let expected: Vec<u32> =
            values.chunks(k).map(|row| in_order(row, floor).to_bits()).collect();
        let mut entropies: Option<Vec<f32>> = None;
        for level in Level::available() {
            let table = Table::new(values, k).unwrap().at(level);
            if k > 1 {
                let bits: Vec<u32> =
                    table.confidence(floor).unwrap().iter().map(|c| c.to_bits()).collect();
                assert_eq!(bits, expected, "k = {k}, {rows} rows, {floor:?}, {level}");
            }
            let scores = table.entropy(floor).unwrap();
            for (row, &h) in values.chunks(k).zip(&scores) {
                let row: Vec<f64> =
                    row.iter().map(|l| l.wide().max(floor.unwrap_or(f64::MIN))).collect();
                let expected = oracle_entropy(&row);
                assert!((f64::from(h) - expected).abs() <= 1e-6, "k = {k}: {h}, {expected}");
            }
            assert_eq!(entropies.get_or_insert_with(|| scores.clone()), &scores, "{level}");
        }
    }
}

#[test]
fn every_level_gives_the_documented_bits() {
    for values in [rough(33 * 300), smooth(33 * 300)] {
        let wide: Vec<f64> = values.iter().map(|&l| f64::from(l) + f64::from(l) / 1e12).collect();
        let half: Vec<f16> = values.iter().map(|&l| f16::from_f32(l.clamp(-6e4, 6e4))).collect();
        for k in (1..=66).chain([255, 256, 257, 258, 300]) {
            for rows in [0, 1, 3, 4, 5, 8, 15, 16, 17, 33] {
                check_every_level(&values, k, rows);
                check_every_level(&wide, k, rows);
                check_every_level(&half, k, rows);
            }
        }
    }
    let many = rough(3 * ENTRIES + 21);
    for k in [2, 3, 7, 20] {
        check_every_level(&many, k, many.len() / k);
    }
}

/// (0 + 2) + (1 + 3) rounds to another number than every other order of the lanes does.
#[test]
fn the_order_of_lanes_is_pinned() {
    let close = [1e16, 0.75, -1e16, 0.5];
    for level in Level::available() {
        let scores = Table::new(&close.repeat(5), 4).unwrap().at(level).confidence(None);
        let expected = -(((close[0] + close[2]) + (close[1] + close[3])) / 4.0);
        assert_eq!(scores.unwrap(), [expected as f32; 5]);
    }
    // Other orders: in turn, halves, and pairs of neighbours.
    for wrong in [
        ((close[0] + close[1]) + close[2]) + close[3],
        (close[0] + close[1]) + (close[2] + close[3]),
        (close[0] + close[3]) + (close[1] + close[2]),
    ] {
        assert_ne!(wrong, (close[0] + close[2]) + (close[1] + close[3]));
    }
}

#[test]
fn logits_at_every_level() {
    let logits: Vec<f32> =
        (0..3 * 1_300).map(|i| ((i * i * 31 % 4_099) as f32 / 200.0).sin() * 25.0).collect();
    let wide: Vec<f64> = logits.iter().map(|&l| f64::from(l) + 1e6).collect();
    let half: Vec<f16> = logits.iter().map(|&l| f16::from_f32(l)).collect();
    fn check<T: Sample>(values: &[T]) {
        for k in [2, 15, 16, 17, 255, 256, 257, 511, 513, 1_300] {
            let values = &values[..values.len() / k * k];
            for top in [2, k.min(20), k] {
                let mut first: Option<Vec<f32>> = None;
                for level in Level::available() {
                    let table = Table::new(values, k).unwrap().at(level);
                    let scores = table.logits_confidence(top, None).unwrap();
                    for (row, &c) in values.chunks(k).zip(&scores) {
                        let mut row: Vec<f64> = row.iter().map(|l| l.wide()).collect();
                        row.sort_by(|a, b| b.total_cmp(a));
                        let mass = row.iter().map(|l| (l - row[0]).exp()).sum::<f64>().ln();
                        let below = row[..top].iter().map(|l| row[0] - l).sum::<f64>();
                        let expected = mass + below / top as f64;
                        let error = (f64::from(c) - expected).abs();
                        assert!(error <= 3e-7 * (1.0 + expected), "{c}, not {expected}");
                    }
                    assert_eq!(first.get_or_insert_with(|| scores.clone()), &scores);
                }
            }
        }
    }
    check(&logits);
    check(&wide);
    check(&half);
}

#[test]
fn float64_logits_keep_what_is_below_their_maximum() {
    let logits = [1e6 + 0.03, 1e6, 1e6 - 1.0, 1e6 - 2.0];
    let low = logits.map(|l| l - 1e6);
    let score = |logits: &[f64]| Table::new(logits, 4).unwrap().logits_confidence(2, None);
    assert_eq!(score(&logits).unwrap(), score(&low).unwrap());
}

#[test]
fn the_first_row_that_failed_is_named() {
    const MASKED: f32 = f32::NEG_INFINITY;
    let message = |rows: &[f32], k, floor| {
        Table::new(rows, 3).unwrap().logits_confidence(k, floor).unwrap_err().to_string()
    };
    let rows = [1.0, MASKED, 0.0, MASKED, 5.0, MASKED, f32::NAN, 0.0, 0.0];
    assert!(message(&rows, 2, None).contains("logits holds -inf at row 1, column 0"));
    assert!(message(&rows, 2, Some(-9.0)).contains("NaN at row 2, column 0"));
    let rows = [MASKED, 2.0, 1.0, MASKED, MASKED, MASKED, 1.0, 2.0, 3.0];
    let none = message(&rows, 2, Some(-9.0));
    assert!(none.contains("-inf at row 1, column 0: every value must be finite; some"), "{none}");
    let mut rows = vec![0.5; 3 * 300_000];
    (rows[600_001], rows[899_999]) = (f32::NAN, f32::INFINITY);
    assert!(message(&rows, 2, None).contains("NaN at row 200000, column 1"));
    let huge = Table::new(&[0.0, 0.0, 0.0, 3e38, -3e38, -3.1e38], 3).unwrap();
    let huge = huge.logits_confidence(3, None).unwrap_err().to_string();
    assert!(huge.starts_with("logits=-3.1e38 at row 1, column 2: must be"), "{huge}");
    let huge = Table::new(&[-1.0, -1.0, -1.0, -1e300], 2).unwrap().confidence(None);
    let huge = huge.unwrap_err().to_string();
    assert!(huge.starts_with("logprobs=-1e300 at row 1, column 1: must be in nats"), "{huge}");
}

#[test]
fn a_non_finite_entry_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![-1.0; 12];
        values[7] = bad;
        let message = Table::new(&values, 5).unwrap_err().to_string();
        assert!(message.contains("k=5"), "{message}");
        let table = Table::new(&values, 4).unwrap();
        for error in [table.confidence(None).unwrap_err(), table.entropy(None).unwrap_err()] {
            assert!(error.to_string().contains("row 1, column 3"), "{error}");
        }
    }
}

#[test]
fn the_floor_clips_masked_tokens_but_not_nan() {
    let masked = [-1.0, f32::NEG_INFINITY, -9_999.0, -2.0];
    let table = Table::new(&masked, 4).unwrap();
    assert_eq!(table.confidence(Some(-50.0)).unwrap(), [25.75]);
    assert!(table.entropy(Some(-50.0)).is_ok());
    let broken = [-1.0, f32::NAN];
    assert!(Table::new(&broken, 2).unwrap().confidence(Some(-50.0)).is_err());
    for floor in [0.0, 1.0, f64::NAN, f64::NEG_INFINITY] {
        assert!(table.confidence(Some(floor)).is_err(), "{floor}");
    }
}

#[test]
fn edges() {
    assert!(Table::new(&[-1.0_f32], 0).is_err());
    assert_eq!(Table::<f32>::new(&[], 20).unwrap().confidence(None).unwrap(), []);
    let uniform = [-(8.0_f32.ln()); 8];
    assert!(
        (Table::new(&uniform, 8).unwrap().entropy(None).unwrap()[0] - 8.0_f32.ln()).abs() < 1e-6
    );
    let column = Table::new(&[-3.0_f32], 1).unwrap();
    assert_eq!(column.entropy(None).unwrap(), [0.0]);
    let message = column.confidence(None).unwrap_err().to_string();
    assert!(message.starts_with("k=1: must be at least 2: minus the log-prob"), "{message}");
}

#[test]
fn scores_go_into_as_many_places() {
    let table = Table::new(&[-1.0_f32, -3.0, -2.0, -2.0], 2).unwrap();
    let mut scores = [f32::NAN; 2];
    table.confidence_into(None, &mut scores).unwrap();
    assert_eq!(scores, [2.0, 2.0]);
    table.entropy_into(None, &mut scores).unwrap();
    assert_eq!(scores.to_vec(), table.entropy(None).unwrap());
    table.logits_confidence_into(2, None, &mut scores).unwrap();
    assert_eq!(scores.to_vec(), table.logits_confidence(2, None).unwrap());
    let message = table.confidence_into(None, &mut [0.0; 3]).unwrap_err().to_string();
    assert_eq!(message, "scores has 3 entries and rows has 2: they must be as many");
}
