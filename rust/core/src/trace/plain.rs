//! The plain way: sums of 128 bits, which hold whatever tokens there are, and a selection among all groups.

use super::{Checked, Scores, bottom_count};
use crate::fixed;

/// The scores of a trace whose tokens are quantised already.
pub(crate) fn score(tokens: &[i64], settings: &Checked) -> Scores {
    let n = tokens.len();
    let mean = |tokens: &[i64]| fixed::mean(sum(tokens), tokens.len() as u64);
    let (mean, tail) = (mean(tokens), mean(&tokens[n - n.min(settings.tail)..]));
    let window = settings.window;
    if n < window {
        return settings.of_one_group(mean, tail, n);
    }
    let mut group = sum(&tokens[..window]);
    let mut groups = vec![group];
    groups.extend(tokens[window..].iter().zip(tokens).map(|(&new, &old)| {
        group += i128::from(new) - i128::from(old);
        group
    }));
    let count = settings.bottom.map_or(1, |q| bottom_count(groups.len(), q));
    groups.select_nth_unstable(count - 1);
    let lowest = groups[..count].iter().copied().min().unwrap_or_default();
    settings.of_groups(mean, tail, n, lowest, groups[..count].iter().sum(), count)
}

fn sum(tokens: &[i64]) -> i128 {
    tokens.iter().map(|&token| i128::from(token)).sum()
}
