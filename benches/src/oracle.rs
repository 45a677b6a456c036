//! The slow, obvious answers.

use std::collections::HashMap;

use deepconf_core::Sample;
use deepconf_core::trace::{Scores, Settings};
use deepconf_core::vote::Votes;

fn close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-7 * expected.abs(), "{what}: {got}, not {expected}");
}

fn mean<T: Sample>(values: &[T]) -> f64 {
    values.iter().map(|c| c.wide()).sum::<f64>() / values.len() as f64
}

/// Panics unless these are the scores of `values`.
pub fn check<T: Sample>(values: &[T], settings: &Settings, scores: &Scores) {
    let window = (settings.window as usize).min(values.len());
    let mut groups: Vec<f64> = values.windows(window).map(mean).collect();
    groups.sort_by(f64::total_cmp);
    let bottom = settings.bottom.expect("it is asked for");
    let count = ((groups.len() as f64 * bottom) as usize).max(1);
    close(scores.mean, mean(values), "mean");
    close(scores.lowest_group, groups[0], "lowest group");
    close(scores.bottom_group, groups[..count].iter().sum::<f64>() / count as f64, "bottom group");
    close(
        scores.tail,
        mean(&values[values.len().saturating_sub(settings.tail as usize)..]),
        "tail",
    );
}

/// Panics unless these are the token confidences of the rows.
pub fn check_confidences(logprobs: &[f32], k: usize, confidences: &[f32]) {
    for (row, &c) in logprobs.chunks(k).zip(confidences).step_by(97) {
        close(f64::from(c), -mean(row), "token confidence");
    }
}

/// Panics unless these are the token entropies of the rows.
pub fn check_entropies(logprobs: &[f32], k: usize, entropies: &[f32]) {
    for (row, &h) in logprobs.chunks(k).zip(entropies).step_by(97) {
        let mass: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        let parts = row.iter().map(|&l| f64::from(l).exp() / mass);
        let expected: f64 = parts.filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((f64::from(h) - expected).abs() <= 1e-6, "token entropy: {h}, not {expected}");
    }
}

/// Panics unless these are the token confidences of the rows of logits.
pub fn check_logits(logits: &[f32], vocabulary: usize, k: usize, confidences: &[f32]) {
    for (row, &c) in logits.chunks(vocabulary).zip(confidences).step_by(29) {
        let mut row: Vec<f64> = row.iter().map(|&l| f64::from(l)).collect();
        row.sort_by(|a, b| b.total_cmp(a));
        let normal = row.iter().map(|l| (l - row[0]).exp()).sum::<f64>().ln() + row[0];
        let expected = normal - row[..k].iter().sum::<f64>() / k as f64;
        assert!((f64::from(c) - expected).abs() <= 3e-7 * (1.0 + expected), "{c}, not {expected}");
    }
}

/// Panics unless the winners are those of a plain count.
pub fn check_votes(
    questions: &[u64],
    answers: &[Option<u64>],
    weights: &[f64],
    keep: f64,
    votes: &Votes,
) {
    let mut rows: HashMap<u64, Vec<usize>> = HashMap::new();
    for (row, &question) in questions.iter().enumerate() {
        rows.entry(question).or_default().push(row);
    }
    for (at, &first) in votes.question_rows.iter().enumerate().step_by(101) {
        let rows = &rows[&questions[first]];
        let mut ranked: Vec<f64> =
            rows.iter().filter(|&&r| answers[r].is_some()).map(|&r| weights[r]).collect();
        ranked.sort_by(f64::total_cmp);
        let rank = (1.0 - keep) * (ranked.len() - 1) as f64;
        let (low, high) = (ranked[rank.floor() as usize], ranked[rank.ceil() as usize]);
        let threshold = low + (high - low) * rank.fract();
        let mut ballots: HashMap<u64, f64> = HashMap::new();
        for &row in rows.iter().filter(|&&r| weights[r] >= threshold - 1e-12) {
            if let Some(answer) = answers[row] {
                *ballots.entry(answer).or_default() += weights[row];
            }
        }
        let best = ballots.values().copied().fold(0.0, f64::max);
        let winner = votes.answer_rows[at].and_then(|row| answers[row]);
        assert!(winner.is_some_and(|answer| ballots[&answer] >= best - 1e-9), "question {at}");
    }
}
