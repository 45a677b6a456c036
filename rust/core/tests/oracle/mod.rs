//! The definitions in float64, slow and obvious, to hold the crate against.
//!
//! On confidences that are small multiples of a power of two (see [`grid`]) every sum here is exact,
//! so that what the crate says must agree to the last bit.

// Each test file uses its own part.
#![allow(dead_code)]

use std::collections::HashMap;

/// Equation 2: minus the mean log-probability.
pub fn token_confidence(row: &[f64]) -> f64 {
    -row.iter().sum::<f64>() / row.len() as f64
}

/// Equation 1, renormalised over the entries.
pub fn token_entropy(row: &[f64]) -> f64 {
    let mass: f64 = row.iter().map(|l| l.exp()).sum();
    -row.iter().map(|l| l.exp() / mass).map(|p| p * p.ln()).sum::<f64>()
}

/// The mean; NaN for nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// How many tokens a group has: a trace shorter than the window is one group.
pub fn group_size(values: &[f64], window: usize) -> usize {
    window.min(values.len())
}

/// The sum of each group, every window added afresh; none for an empty trace.
pub fn group_sums(values: &[f64], window: usize) -> Vec<f64> {
    if values.is_empty() {
        return Vec::new();
    }
    values.windows(group_size(values, window)).map(|group| group.iter().sum()).collect()
}

/// The confidence of each group.
pub fn groups(values: &[f64], window: usize) -> Vec<f64> {
    let size = group_size(values, window) as f64;
    group_sums(values, window).iter().map(|sum| sum / size).collect()
}

/// The smallest group; NaN for an empty trace.
pub fn lowest_group(values: &[f64], window: usize) -> f64 {
    groups(values, window).into_iter().fold(f64::NAN, f64::min)
}

/// The mean of the max(1, ⌊q·m⌋) smallest of m groups; NaN for an empty trace.
pub fn bottom_group(values: &[f64], window: usize, q: f64) -> f64 {
    let mut sums = group_sums(values, window);
    sums.sort_by(f64::total_cmp);
    let count = ((q * sums.len() as f64).floor() as usize).max(1).min(sums.len());
    sums[..count].iter().sum::<f64>() / (group_size(values, window) * count) as f64
}

/// The mean of the last min(t, n) tokens.
pub fn tail(values: &[f64], t: usize) -> f64 {
    mean(&values[values.len().saturating_sub(t)..])
}

/// The first token whose group is complete and strictly below `threshold`.
pub fn first_stop(values: &[f64], window: usize, threshold: f64) -> Option<usize> {
    if values.len() < window {
        return None;
    }
    groups(values, window).iter().position(|&group| group < threshold).map(|at| at + window - 1)
}

/// The linearly interpolated percentile of what is not NaN, as `numpy.percentile` has it.
pub fn percentile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = q / 100.0 * sorted.len().checked_sub(1)? as f64;
    // A tenth of eleven is one, whatever 1 - 0.9 is in float64.
    let rank = if (rank - rank.round()).abs() < 1e-9 { rank.round() } else { rank };
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    let t = rank - rank.floor();
    Some(if t < 0.5 { low + (high - low) * t } else { high - (high - low) * (1.0 - t) })
}

/// What a naive count of the votes comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Each answer's first voter, weight and number of voters, the heaviest first.
    pub ballots: Vec<(usize, f64, usize)>,
    pub share: f64,
    pub voters: Vec<usize>,
    pub threshold: Option<f64>,
    pub fallback: bool,
}

impl Tally {
    pub fn winner<A: Copy>(&self, answers: &[Option<A>]) -> Option<A> {
        self.ballots.first().and_then(|&(first, ..)| answers[first])
    }
}

/// Adds up the ballots of `voters`.
fn count<A: Eq>(answers: &[Option<A>], weights: &[f64], voters: Vec<usize>) -> Tally {
    let mut ballots: Vec<(usize, f64, usize)> = Vec::new();
    for &voter in &voters {
        match ballots.iter_mut().find(|(first, ..)| answers[*first] == answers[voter]) {
            Some((_, weight, number)) => {
                *weight += weights[voter];
                *number += 1;
            }
            None => ballots.push((voter, weights[voter], 1)),
        }
    }
    let total: f64 = ballots.iter().map(|(_, weight, _)| weight).sum();
    // The sort is stable: ties stay in the order seen.
    ballots.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = ballots.first().map_or(0.0, |(_, weight, _)| *weight);
    let share = if total > 0.0 { most / total } else { 0.0 };
    Tally { ballots, share, voters, threshold: None, fallback: false }
}

/// The vote of those that answered and whose score reaches the threshold, or of all that answered.
pub fn vote_above<A: Eq>(
    answers: &[Option<A>],
    weights: &[f64],
    scores: &[f64],
    threshold: Option<f64>,
    min_ballots: usize,
) -> Tally {
    let answered = || (0..answers.len()).filter(|&i| answers[i].is_some() && !scores[i].is_nan());
    let kept = answered().filter(|&i| threshold.is_some_and(|s| scores[i] >= s)).collect();
    let tally = count(answers, weights, kept);
    if tally.voters.len() >= min_ballots {
        return Tally { threshold, ..tally };
    }
    Tally { threshold, fallback: true, ..count(answers, weights, answered().collect()) }
}

/// The vote with the best `keep` of the scores; without scores, of all that answered.
pub fn vote<A: Eq>(
    answers: &[Option<A>],
    weights: &[f64],
    scores: Option<&[f64]>,
    keep: f64,
    min_ballots: usize,
    over_all: bool,
) -> Tally {
    let Some(scores) = scores.filter(|_| keep < 1.0) else {
        let answered = (0..answers.len()).filter(|&i| answers[i].is_some()).collect();
        return count(answers, weights, answered);
    };
    let ranked = (0..answers.len()).filter(|&i| over_all || answers[i].is_some());
    let ranked: Vec<f64> = ranked.map(|i| scores[i]).collect();
    let threshold = percentile(&ranked, 100.0 * (1.0 - keep));
    vote_above(answers, weights, scores, threshold, min_ballots)
}

/// Rows of each question, questions in order of first appearance.
pub fn rows_by_question<Q: Eq + std::hash::Hash>(questions: &[Q]) -> Vec<Vec<usize>> {
    let mut places: HashMap<&Q, usize> = HashMap::new();
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for (row, question) in questions.iter().enumerate() {
        let place = *places.entry(question).or_insert(rows.len());
        if place == rows.len() {
            rows.push(Vec::new());
        }
        rows[place].push(row);
    }
    rows
}

/// `eighths` as confidences: small multiples of 1/8, whose sums float64 holds exactly.
pub fn grid(eighths: &[i16]) -> Vec<f32> {
    eighths.iter().map(|&e| f32::from(e) / 8.0).collect()
}

/// As float64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&c| f64::from(c)).collect()
}

/// The first float64 of two that are alike: equal, both NaN, or within `relative` of each other and
/// the rounding at the door, 2⁻⁴¹ nats.
pub fn alike(left: f64, right: f64, relative: f64) -> bool {
    left == right
        || left.is_nan() && right.is_nan()
        || (left - right).abs() <= relative * right.abs() + (-41.0_f64).exp2()
}

/// Random numbers that a seed repeats (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 … `sides` − 1.
    pub fn below(&mut self, sides: usize) -> usize {
        (self.next() % sides as u64) as usize
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}
