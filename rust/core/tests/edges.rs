//! The edges, as a table, and what every wrong input is told.
#![allow(clippy::unwrap_used)]

use deepconf_core::Error;
use deepconf_core::group::{BatchScorer, StreamSettings, TraceScorer};
use deepconf_core::token::Table;
use deepconf_core::trace::{MAX_WINDOW, Scores, Settings, score, score_many, score_slices};

fn settings(window: u64, tail: u64, bottom: f64) -> Settings {
    Settings { window, tail, bottom, decimals: None }
}

/// What a trace is expected to score: mean, lowest, bottom, tail and whether it is short.
type Expected = (f64, f64, f64, f64, bool);

#[test]
fn lengths_around_the_window() {
    // Window 3, tail 2, bottom 0.5.
    let table: [(&str, &[f32], Expected); 6] = [
        ("one token", &[7.0], (7.0, 7.0, 7.0, 7.0, true)),
        ("n = w − 1", &[4.0, 8.0], (6.0, 6.0, 6.0, 6.0, true)),
        ("n = w", &[4.0, 8.0, 6.0], (6.0, 6.0, 6.0, 7.0, false)),
        ("n = w + 1", &[4.0, 8.0, 6.0, 1.0], (4.75, 5.0, 5.0, 3.5, false)),
        ("n > w", &[4.0, 8.0, 6.0, 1.0, 2.0, 0.0], (3.5, 1.0, 2.0, 1.0, false)),
        ("negative", &[-4.0, -8.0, -6.0, -1.0], (-4.75, -6.0, -6.0, -3.5, false)),
    ];
    for (name, values, (mean, lowest_group, bottom_group, tail, short)) in table {
        let num_tokens = values.len() as u64;
        let expected = Scores { mean, lowest_group, bottom_group, tail, num_tokens, short };
        let settings = settings(3, 2, 0.5);
        assert_eq!(score(values, &settings).unwrap(), expected, "{name}");
        let wide: Vec<f64> = values.iter().map(|&c| c.into()).collect();
        assert_eq!(score(&wide, &settings).unwrap(), expected, "{name}");
        let mut scorer = TraceScorer::new(StreamSettings {
            window: 3,
            tail: 2,
            bottom: Some(0.5),
            ..StreamSettings::default()
        })
        .unwrap();
        scorer.extend(values).unwrap();
        assert_eq!(scorer.scores(), expected, "{name}");
    }
}

#[test]
fn an_empty_trace_has_no_score() {
    let Scores { mean, lowest_group, bottom_group, tail, num_tokens, short } =
        score::<f32>(&[], &Settings::default()).unwrap();
    assert!([mean, lowest_group, bottom_group, tail].iter().all(|score| score.is_nan()));
    assert_eq!((num_tokens, short), (0, false));
    let scorer = TraceScorer::new(StreamSettings::default()).unwrap();
    let none = [scorer.mean(), scorer.lowest_group(), scorer.tail(), scorer.scores().bottom_group];
    assert!(none.iter().all(|score| score.is_nan()));
    assert_eq!((scorer.group(), scorer.num_tokens(), scorer.scores().short), (None, 0, false));
}

#[test]
fn no_traces() {
    let settings = Settings::default();
    assert_eq!(score_many::<f32>(&[], &[0], &settings).unwrap(), []);
    assert_eq!(score_many(&[1.0_f32, 2.0], &[1], &settings).unwrap(), []);
    assert_eq!(score_slices::<f64>(&[], &settings).unwrap(), []);
}

#[test]
fn window_one_and_windows_beyond_everything() {
    let values = [3.0_f32, 1.0, 2.0];
    let one = score(&values, &settings(1, 1, 0.1)).unwrap();
    assert_eq!((one.lowest_group, one.bottom_group, one.tail, one.short), (1.0, 1.0, 2.0, false));
    let all = score(&values, &settings(1, 1, 1.0)).unwrap();
    assert_eq!(all.bottom_group, all.mean);
    let huge = score(&values, &settings(MAX_WINDOW, MAX_WINDOW, 0.1)).unwrap();
    assert_eq!((huge.lowest_group, huge.tail, huge.short), (2.0, 2.0, true));
    // A scorer's memory grows with the tokens, not with the window.
    let mut scorer = TraceScorer::new(StreamSettings {
        window: MAX_WINDOW,
        bottom: None,
        ..StreamSettings::default()
    })
    .unwrap();
    assert_eq!(scorer.extend(&values).unwrap(), None);
    assert_eq!((scorer.lowest_group(), scorer.armed()), (2.0, false));
}

#[test]
fn one_log_probability_a_token_is_no_confidence() {
    let table = Table::new(&[-0.5_f32, -3.0, 0.0], 1).unwrap();
    assert!(table.confidence(None).unwrap_err().to_string().starts_with("k=1: must be at least 2"));
    assert_eq!(table.entropy(None).unwrap(), [0.0, 0.0, 0.0]);
}

#[test]
fn one_giant_trace() {
    let values: Vec<f32> =
        (0..3_000_000_u32).map(|i| if i == 2_345_678 { 0.0 } else { 10.0 }).collect();
    let scores = score_many(&values, &[0, 3_000_000], &settings(1_000, 500, 0.001)).unwrap();
    // 1,000 of 2,999,001 groups hold the zero, and ⌊0.001·m⌋ = 2,999 count.
    assert_eq!((scores[0].lowest_group, scores[0].tail), (9.99, 10.0));
    let bottom = (1_000.0 * 9.99 + 1_999.0 * 10.0) / 2_999.0;
    assert!((scores[0].bottom_group - bottom).abs() < 1e-12);
}

#[test]
fn values_that_no_sum_can_hold_are_named() {
    for (bad, shown) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
        (32_768.0, "32768"),
        (-40_000.0, "-40000"),
    ] {
        let values = [1.0, 2.0, 3.0, bad, bad];
        let settings = settings(2, 2, 0.1);
        let cut: [&[f32]; 2] = [&values[..2], &values[2..]];
        for (error, place) in [
            (score(&values, &settings).unwrap_err(), "trace 0, position 3"),
            (score_many(&values, &[0, 2, 5], &settings).unwrap_err(), "trace 1, position 1"),
            (score_slices(&cut, &settings).unwrap_err(), "trace 1, position 1"),
        ] {
            let message = error.to_string();
            assert!(message.contains(&format!("holds {shown} at {place}")), "{message}");
            assert_eq!(matches!(error, Error::NotFinite { .. }), !bad.is_finite());
            assert_eq!(matches!(error, Error::OutOfRange { .. }), bad.is_finite());
        }
        // The first trace is sound by itself, and the bad values may lie outside the offsets.
        assert!(score_many(&values, &[0, 2, 3], &settings).is_ok());
    }
}

#[test]
fn the_largest_confidences_are_still_sound() {
    for value in [32_767.998_f64, -32_767.998] {
        let trace = vec![value; 5_000];
        let scores = score(&trace, &settings(2_048, 2_048, 0.1)).unwrap();
        let Scores { mean, lowest_group, bottom_group, tail, .. } = scores;
        for score in [mean, lowest_group, bottom_group, tail] {
            assert!((score - value).abs() < 1e-8, "{score}");
        }
    }
}

/// Rounding can take a confidence to the limit itself.
#[test]
fn rounding_up_to_the_limit_does_not_overflow() {
    for sign in [1.0, -1.0] {
        let trace = vec![sign * 32_767.999_9_f64; 600];
        let settings = Settings { decimals: Some(3), ..settings(500, 400, 0.1) };
        let scores = score(&trace, &settings).unwrap();
        let expected = sign * 32_768.0;
        assert_eq!((scores.mean, scores.lowest_group, scores.tail), (expected, expected, expected));
    }
}

#[test]
fn offsets_may_start_late_and_leave_values_over() {
    let values = [99.0_f32, 1.0, 3.0, 5.0, 99.0];
    let scores = score_many(&values, &[1, 3, 3, 4], &settings(2, 2, 0.1)).unwrap();
    assert_eq!(scores.iter().map(|s| s.num_tokens).collect::<Vec<_>>(), [2, 0, 1]);
    assert_eq!((scores[0].mean, scores[2].mean), (2.0, 5.0));
    assert!(scores[1].mean.is_nan());
}

#[test]
fn wrong_offsets_are_named() {
    let values = [1.0_f32; 5];
    let wrong: [(&[i64], &str); 7] = [
        (&[], "offsets=[]: must hold one entry more"),
        (&[-1, 3], "offsets[0] = -1: the first offset must be at least 0"),
        (&[0, 3, 2, 5], "offsets[2] = 2: offsets must not fall, and 3 stands before it"),
        (&[0, -2], "offsets[1] = -2: offsets must not fall"),
        (&[0, 3, 6], "offsets[2] = 6: there are only 5 values"),
        (&[6], "offsets[0] = 6: there are only 5 values"),
        (&[0, i64::MAX], "offsets[1] = 9223372036854775807: there are only 5"),
    ];
    for (offsets, expected) in wrong {
        let message = score_many(&values, offsets, &settings(2, 2, 0.1)).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let sound = settings(2, 2, 0.1);
    let wrong = [
        ("window=0", Settings { window: 0, ..sound }),
        ("window=2147483649", Settings { window: MAX_WINDOW + 1, ..sound }),
        ("tail=0", Settings { tail: 0, ..sound }),
        ("tail=18446744073709551615", Settings { tail: u64::MAX, ..sound }),
        ("bottom=0", Settings { bottom: 0.0, ..sound }),
        ("bottom=-0.1", Settings { bottom: -0.1, ..sound }),
        ("bottom=1.5", Settings { bottom: 1.5, ..sound }),
        ("bottom=NaN", Settings { bottom: f64::NAN, ..sound }),
        ("decimals=10", Settings { decimals: Some(10), ..sound }),
    ];
    for (expected, settings) in wrong {
        let Settings { window, tail, bottom, decimals } = settings;
        let bottom = Some(bottom);
        let stream = StreamSettings { window, tail, bottom, threshold: None, decimals };
        for message in [
            score(&[1.0_f32], &settings).unwrap_err().to_string(),
            score_many(&[1.0_f32], &[0, 1], &settings).unwrap_err().to_string(),
            score_slices(&[&[1.0_f32][..]], &settings).unwrap_err().to_string(),
            TraceScorer::new(stream).unwrap_err().to_string(),
        ] {
            assert!(message.starts_with(&format!("{expected}: must be")), "{message}");
        }
    }
    for threshold in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let stream = StreamSettings { threshold: Some(threshold), ..StreamSettings::default() };
        for message in [
            TraceScorer::new(stream).unwrap_err().to_string(),
            BatchScorer::new(4, stream).unwrap_err().to_string(),
        ] {
            assert_eq!(message, format!("threshold={threshold}: must be finite"));
        }
    }
}
