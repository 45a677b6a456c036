//! The bottom-q group confidence: the mean of the lowest groups (equation 5 of the paper).
//!
//! Of m groups the `max(1, ⌊q·m⌋)` smallest count; q is 0.10 in the paper. Group sums are whole
//! numbers of quanta ([`crate::fixed`]), so equal groups are interchangeable and the result does not
//! depend on how they were selected.
//!
//! **Cost.** Expected O(m), in place: one quickselect and one sum.

/// How many of `groups` groups count for the bottom fraction `q`.
///
/// ```
/// use deepconf_core::bottom::count;
/// assert_eq!((count(1_000, 0.10), count(9, 0.10), count(1, 1.0)), (100, 1, 1));
/// ```
#[must_use]
pub fn count(groups: usize, q: f64) -> usize {
    ((groups as f64 * q) as usize).clamp(1, groups.max(1))
}

/// The sum of the `count` smallest entries; reorders `sums`.
pub(crate) fn smallest<S: Copy + Ord + Into<i128>>(sums: &mut [S], count: usize) -> i128 {
    if count < sums.len() {
        sums.select_nth_unstable(count);
    }
    sums[..count].iter().map(|&sum| sum.into()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_smallest_are_those_of_a_full_sort(mut sums in prop::collection::vec(-50_i64..50, 1..200), q in 0.001_f64..=1.0) {
            let count = count(sums.len(), q);
            let mut sorted = sums.clone();
            sorted.sort_unstable();
            let expected: i128 = sorted[..count].iter().map(|&s| i128::from(s)).sum();
            prop_assert_eq!(smallest(&mut sums, count), expected);
        }
    }
}
