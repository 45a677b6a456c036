//! The edges, as a table, and what every wrong input is told.
#![allow(clippy::unwrap_used)]

use deepconf_core::Error;
use deepconf_core::stream::MAX_SLOTS;
use deepconf_core::token::Table;
use deepconf_core::trace::{MAX_WINDOW, Scorer, Scores, Settings};

fn scorer(window: u64, tail: u64, bottom: f64) -> Scorer {
    Scorer::new(Settings::default().window(window).tail(tail).bottom(bottom)).unwrap()
}

/// The four scores, and whether the trace is short.
fn parts(scores: &Scores) -> Expected {
    (scores.mean, scores.lowest_group, scores.bottom_group, scores.tail, scores.short)
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
    for (name, values, expected) in table {
        let scorer = scorer(3, 2, 0.5);
        let scores = scorer.score(values).unwrap();
        assert_eq!((parts(&scores), scores.num_tokens), (expected, values.len() as u64), "{name}");
        let wide: Vec<f64> = values.iter().map(|&c| c.into()).collect();
        assert_eq!(scorer.score(&wide).unwrap(), scores, "{name}");
        let mut trace = scorer.stream(None).unwrap();
        trace.extend(values).unwrap();
        assert_eq!(trace.scores(), scores, "{name}");
    }
}

#[test]
fn an_empty_trace_has_no_score() {
    let scorer = Scorer::new(Settings::default()).unwrap();
    let Scores { mean, lowest_group, bottom_group, tail, num_tokens, short, .. } =
        scorer.score::<f32>(&[]).unwrap();
    assert!([mean, lowest_group, bottom_group, tail].iter().all(|score| score.is_nan()));
    assert_eq!((num_tokens, short), (0, false));
    let trace = scorer.stream(None).unwrap();
    let none = [trace.mean(), trace.lowest_group(), trace.tail(), trace.scores().bottom_group];
    assert!(none.iter().all(|score| score.is_nan()));
    assert_eq!((trace.group(), trace.num_tokens(), trace.scores().short), (None, 0, false));
}

#[test]
fn no_traces() {
    let scorer = Scorer::new(Settings::default()).unwrap();
    assert_eq!(scorer.score_many::<f32>(&[], &[0]).unwrap(), []);
    assert_eq!(scorer.score_many(&[1.0_f32, 2.0], &[1]).unwrap(), []);
    assert_eq!(scorer.score_slices::<f64>(&[]).unwrap(), []);
}

#[test]
fn window_one_and_windows_beyond_everything() {
    let values = [3.0_f32, 1.0, 2.0];
    let one = scorer(1, 1, 0.1).score(&values).unwrap();
    assert_eq!((one.lowest_group, one.bottom_group, one.tail, one.short), (1.0, 1.0, 2.0, false));
    let all = scorer(1, 1, 1.0).score(&values).unwrap();
    assert_eq!(all.bottom_group, all.mean);
    let huge = scorer(MAX_WINDOW, MAX_WINDOW, 0.1).score(&values).unwrap();
    assert_eq!((huge.lowest_group, huge.tail, huge.short), (2.0, 2.0, true));
    // A scorer's memory grows with the tokens, not with the window.
    let settings = Settings::default().window(MAX_WINDOW).bottom(None);
    let mut trace = Scorer::new(settings).unwrap().stream(None).unwrap();
    assert_eq!(trace.extend(&values).unwrap(), None);
    assert_eq!((trace.lowest_group(), trace.armed()), (2.0, false));
}

#[test]
fn one_log_probability_a_token_is_no_confidence() {
    let table = Table::new(&[-0.5_f32, -3.0, 0.0], 1).unwrap();
    assert!(table.confidence(None).unwrap_err().to_string().starts_with("k=1: must be at least 2"));
    assert_eq!(table.entropy(None).unwrap(), [0.0, 0.0, 0.0]);
}

#[test]
#[cfg_attr(miri, ignore = "is interpreted for minutes")]
fn one_giant_trace() {
    let values: Vec<f32> =
        (0..3_000_000_u32).map(|i| if i == 2_345_678 { 0.0 } else { 10.0 }).collect();
    let scores = scorer(1_000, 500, 0.001).score_many(&values, &[0, 3_000_000]).unwrap();
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
        let scorer = scorer(2, 2, 0.1);
        let cut: [&[f32]; 2] = [&values[..2], &values[2..]];
        for (error, place) in [
            (scorer.score(&values).unwrap_err(), "trace 0, position 3"),
            (scorer.score_many(&values, &[0, 2, 5]).unwrap_err(), "trace 1, position 1"),
            (scorer.score_slices(&cut).unwrap_err(), "trace 1, position 1"),
        ] {
            let message = error.to_string();
            assert!(message.contains(&format!("holds {shown} at {place}")), "{message}");
            assert_eq!(matches!(error, Error::NotFinite { .. }), !bad.is_finite());
            assert_eq!(matches!(error, Error::OutOfRange { .. }), bad.is_finite());
        }
        // The first trace is sound by itself, and the bad values may lie outside the offsets.
        assert!(scorer.score_many(&values, &[0, 2, 3]).is_ok());
    }
}

#[test]
fn the_largest_confidences_are_still_sound() {
    for value in [32_767.998_f64, -32_767.998] {
        let trace = vec![value; 5_000];
        let scores = scorer(2_048, 2_048, 0.1).score(&trace).unwrap();
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
        let settings = Settings::default().window(500).tail(400).decimals(3);
        let scores = Scorer::new(settings).unwrap().score(&trace).unwrap();
        let expected = sign * 32_768.0;
        assert_eq!((scores.mean, scores.lowest_group, scores.tail), (expected, expected, expected));
    }
}

#[test]
fn offsets_may_start_late_and_leave_values_over() {
    let values = [99.0_f32, 1.0, 3.0, 5.0, 99.0];
    let scores = scorer(2, 2, 0.1).score_many(&values, &[1, 3, 3, 4]).unwrap();
    assert_eq!(scores.iter().map(|s| s.num_tokens).collect::<Vec<_>>(), [2, 0, 1]);
    assert_eq!((scores[0].mean, scores[2].mean), (2.0, 5.0));
    assert!(scores[1].mean.is_nan());
}

#[test]
fn wrong_offsets_are_named() {
    let values = [1.0_f32; 5];
    let wrong: [(&[usize], &str); 5] = [
        (&[], "offsets=[]: must hold one entry more"),
        (&[0, 3, 2, 5], "offsets[2] = 2: offsets must not fall, and 3 stands before it"),
        (&[0, 3, 6], "offsets[2] = 6: there are only 5 values"),
        (&[6], "offsets[0] = 6: there are only 5 values"),
        (&[0, i64::MAX as usize], "offsets[1] = 9223372036854775807: there are only 5"),
    ];
    for (offsets, expected) in wrong {
        let message = scorer(2, 2, 0.1).score_many(&values, offsets).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let sound = Settings::default();
    let wrong = [
        ("window=0", sound.window(0)),
        ("window=2147483649", sound.window(MAX_WINDOW + 1)),
        ("tail=0", sound.tail(0)),
        ("tail=18446744073709551615", sound.tail(u64::MAX)),
        ("bottom=0", sound.bottom(0.0)),
        ("bottom=-0.1", sound.bottom(-0.1)),
        ("bottom=1.5", sound.bottom(1.5)),
        ("bottom=NaN", sound.bottom(f64::NAN)),
        ("decimals=10", sound.decimals(10)),
    ];
    for (expected, settings) in wrong {
        for error in [Scorer::new(settings).unwrap_err(), settings.check().unwrap_err()] {
            let message = error.to_string();
            assert!(message.starts_with(&format!("{expected}: must be")), "{message}");
        }
    }
    let scorer = Scorer::new(sound).unwrap();
    for threshold in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for message in [
            scorer.stream(Some(threshold)).unwrap_err().to_string(),
            scorer.batch(4, Some(threshold)).unwrap_err().to_string(),
        ] {
            assert_eq!(message, format!("threshold={threshold}: must be finite"));
        }
    }
    let message = scorer.batch(MAX_SLOTS + 1, None).unwrap_err().to_string();
    assert_eq!(message, "slots=1048577: must be 1048576 at the most");
}

/// With many bad traces it is the first that is named, however many threads there are.
#[test]
#[cfg_attr(miri, ignore = "threads are interpreted for minutes")]
fn the_first_bad_trace_is_named() {
    let mut values = vec![1.0_f32; 4_000];
    let offsets: Vec<usize> = (0..=400).map(|trace| 10 * trace).collect();
    for trace in [37, 38, 200, 301, 399] {
        values[10 * trace + 3] = f32::NAN;
    }
    let cut: Vec<&[f32]> = values.chunks(10).collect();
    let scorer = scorer(2, 2, 0.1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    for _ in 0..50 {
        for scored in [
            pool.install(|| scorer.score_many(&values, &offsets)),
            pool.install(|| scorer.score_slices(&cut)),
        ] {
            let message = scored.unwrap_err().to_string();
            assert!(message.contains("NaN at trace 37, position 3"), "{message}");
        }
    }
}
