//! The definitions in whole quanta of 2⁻⁴⁰ nats: nothing is rounded between a confidence and the end,
//! so that what the crate says must agree to the last bit, whatever the confidences.

// Each test file uses its own part.
#![allow(dead_code)]

use deepconf_core::trace::{Scores, Settings};

/// Quanta in a nat.
pub const QUANTA: f64 = (1_u64 << 40) as f64;

/// Whether a confidence is one that the crate takes.
pub fn sound(c: f64) -> bool {
    c.abs() < 32_768.0
}

pub fn round(value: f64, decimals: u8) -> f64 {
    // Exact, as powers by `powi` need not be.
    let scale = 10_u64.pow(decimals.into()) as f64;
    (value * scale).round_ties_even() / scale
}

/// Whole quanta.
pub fn quanta(values: &[f64], decimals: Option<u8>) -> Vec<i128> {
    let rounded = |c: f64| decimals.map_or(c, |decimals| round(c, decimals));
    values.iter().map(|&c| (rounded(c) * QUANTA).round_ties_even() as i128).collect()
}

/// The mean of `count` tokens that add up to `sum`, nats.
pub fn nats(sum: i128, count: usize) -> f64 {
    sum as f64 / count as f64 / QUANTA
}

/// The sum of each group of `window`, those that are complete.
pub fn groups(tokens: &[i128], window: usize) -> Vec<i128> {
    let Some(first) = tokens.get(..window) else { return Vec::new() };
    let mut group: i128 = first.iter().sum();
    let mut groups = vec![group];
    for (new, old) in tokens[window..].iter().zip(tokens) {
        group += new - old;
        groups.push(group);
    }
    groups
}

/// The confidence of a group, as a threshold sees it.
pub fn group(sum: i128, settings: &Settings) -> f64 {
    let mean = nats(sum, settings.window as usize);
    settings.decimals.map_or(mean, |decimals| round(mean, decimals))
}

/// Mean, lowest group, bottom group and tail.
pub fn scores(values: &[f64], settings: &Settings) -> [f64; 4] {
    let tokens = quanta(values, settings.decimals);
    let (n, window) = (tokens.len(), settings.window as usize);
    let last = (settings.tail as usize).min(n);
    let (mean, tail) = (nats(tokens.iter().sum(), n), nats(tokens[n - last..].iter().sum(), last));
    let mut groups = groups(&tokens, window);
    if groups.is_empty() {
        return [mean, mean, settings.bottom.map_or(f64::NAN, |_| mean), tail];
    }
    groups.sort_unstable();
    let count = |q: f64| ((groups.len() as f64 * q) as usize).max(1);
    let bottom = |q| nats(groups[..count(q)].iter().sum(), window * count(q));
    let bottom = settings.bottom.map_or(f64::NAN, bottom);
    [mean, group(groups[0], settings), bottom, tail]
}

/// Holds the scores of a trace against these definitions.
pub fn check(got: &Scores, values: &[f64], settings: &Settings) {
    let want = scores(values, settings);
    let found = [got.mean, got.lowest_group, got.bottom_group, got.tail];
    let equal = found.iter().zip(&want).all(|(&left, &right)| same(left, right));
    assert!(equal, "{found:?} is not {want:?}: {} tokens, {settings:?}", values.len());
    assert_eq!(got.num_tokens, values.len() as u64);
    assert_eq!(got.short, !values.is_empty() && values.len() < settings.window as usize);
}

/// Equal bits, but for the sign of zero and the payload of NaN.
pub fn same(left: f64, right: f64) -> bool {
    left == right || left.is_nan() && right.is_nan()
}
