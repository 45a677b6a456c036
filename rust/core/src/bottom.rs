//! The bottom-q group confidence: the mean of the lowest groups (equation 5 of the paper).
//!
//! Of m groups the `max(1, ⌊q·m⌋)` smallest count; q is 0.10 in the paper. Group sums are whole
//! numbers of quanta ([`crate::fixed`]), so equal groups are interchangeable and the result does not
//! depend on how they were selected.
//!
//! Neighbouring groups share all but one of their tokens, so a block of 64 spans little, and
//! `slide` has bounds for it. With k blocks' worth of groups to select, the k-th smallest of
//! the blocks' upper bounds is an upper bound of the largest group selected, and the k-th smallest of
//! their lower bounds a lower one. Blocks above both are left out unseen; those below are added up
//! whole; only what straddles them is searched. The lowest group is among those looked at.
//!
//! All three searches count what lies below a pivot, until few candidates are left.
//!
//! **Cost.** Some ten vectorised passes over m/64 bounds, twice; the sums of the blocks at or below the
//! bracket, about an eighth of all; some ten passes over those that straddle, about a fifteenth.
//! Where blocks span everything (noise without memory, a tiny window), as much for all groups.

use crate::sample::Sample;
use crate::simd::Lanes;
use crate::slide::{BLOCK, Groups};

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

/// Memory of [`smallest`], used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    straddling: Vec<i64>,
    few: Vec<i64>,
}

/// What the `count` smallest groups add up to, 1 ≤ `count` ≤ m, and the smallest.
#[inline(always)]
pub(crate) fn smallest<T: Sample, F: Fn(T) -> f64 + Copy, L: Lanes>(
    groups: &Groups<'_, T, F, L>,
    count: usize,
    scratch: &mut Scratch,
) -> (i128, i64) {
    let Scratch { straddling, few } = scratch;
    let (low, high) = bracket(groups, count);
    straddling.clear();
    let (mut sum, mut rest, mut lowest) = (0, count, i64::MAX);
    let mut sums = [0; BLOCK];
    for (block, (&block_low, &block_high)) in groups.lows().iter().zip(groups.highs()).enumerate() {
        if block_low > high {
            continue;
        }
        let sums = groups.read(block, &mut sums);
        if block_low < lowest {
            lowest = sums.iter().fold(lowest, |lowest, &sum| lowest.min(sum));
        }
        if block_high < low {
            sum += total(sums);
            rest -= sums.len();
        } else {
            straddling.extend_from_slice(sums);
        }
    }
    (sum + smallest_of(straddling, rest, low, high, few), lowest)
}

/// Bounds of the `count`-th smallest group, both included.
#[inline(always)]
fn bracket<T: Sample, F: Fn(T) -> f64 + Copy, L: Lanes>(
    groups: &Groups<'_, T, F, L>,
    count: usize,
) -> (i64, i64) {
    let (whole, over) = (groups.len() / BLOCK, groups.len() % BLOCK);
    // k whole blocks with nothing above it hold at least `count` groups; fewer than k with something
    // below it, and the last block that is not whole, hold fewer.
    let k = count.div_ceil(BLOCK);
    let high = if k <= whole {
        Place::of(k, &groups.highs()[..whole], CLOSE).end - 1
    } else {
        i64::MAX - 1
    };
    let k = count.saturating_sub(over).div_ceil(BLOCK);
    let low = if k == 0 { i64::MIN } else { Place::of(k, &groups.lows()[..whole], CLOSE).low };
    (low, high)
}

/// With at most so many candidates, a bound of a bracket is good enough.
const CLOSE: usize = 4;

/// Where the k-th smallest of some numbers is: within `low..end`.
#[derive(Clone, Copy)]
struct Place {
    low: i64,
    end: i64,
    /// How many are below `low`: fewer than k.
    below: usize,
    /// How many are below `end`: at least k.
    within: usize,
}

impl Place {
    /// Of the `k`-th smallest of all `numbers`, among `few` candidates or equal ones.
    #[inline(always)]
    fn of(k: usize, numbers: &[i64], few: usize) -> Self {
        let low = numbers.iter().fold(i64::MAX, |low, &number| low.min(number));
        let high = numbers.iter().fold(i64::MIN, |high, &number| high.max(number));
        Self { low, end: high + 1, below: 0, within: numbers.len() }.narrowed(k, numbers, few)
    }

    /// Until there are at most `few` candidates, or only equal ones.
    #[inline(always)]
    fn narrowed(self, k: usize, numbers: &[i64], few: usize) -> Self {
        let Self { mut low, mut end, mut below, mut within } = self;
        let mut round = 0_u32;
        while within - below > few && i128::from(end) - i128::from(low) > 1 {
            // Where it would be if all were evenly spread; every third time the middle, which bounds
            // the number of rounds.
            round += 1;
            let part = (k - below) as f64 / (within - below) as f64;
            let part = if round.is_multiple_of(3) { 0.5 } else { part };
            let step = ((i128::from(end) - i128::from(low)) as f64 * part) as i128;
            let pivot =
                (i128::from(low) + step).clamp(i128::from(low) + 1, i128::from(end) - 1) as i64;
            let number = number_below(numbers, pivot);
            if number < k {
                (low, below) = (pivot, number);
            } else {
                (end, within) = (pivot, number);
            }
        }
        Self { low, end, below, within }
    }
}

/// With at most so many left, they are sorted.
const FEW: usize = 16;

/// The sum of the `count` smallest of `sums`, the largest of which is within `low..=high`.
#[inline(always)]
fn smallest_of(sums: &[i64], count: usize, low: i64, high: i64, few: &mut Vec<i64>) -> i128 {
    let end = high + 1;
    let place = Place { low, end, below: number_below(sums, low), within: number_below(sums, end) };
    let Place { low, end, below, .. } = place.narrowed(count, sums, FEW);
    let sum = total_below(sums, low);
    let rest = count - below;
    if i128::from(end) - i128::from(low) <= 1 {
        return sum + i128::from(low) * rest as i128;
    }
    few.clear();
    for chunk in sums.chunks(BLOCK) {
        if number_below(chunk, end) > number_below(chunk, low) {
            few.extend(chunk.iter().filter(|&&sum| low <= sum && sum < end));
        }
    }
    few.sort_unstable();
    sum + few[..rest].iter().map(|&sum| i128::from(sum)).sum::<i128>()
}

/// The sum of the groups of a block, its first one first.
///
/// r groups on, 2·r tokens of less than 2⁵¹ quanta have come and gone: added over a block of 64, these
/// changes stay below 2016 · 2⁵² < 2⁶³.
#[inline(always)]
fn total(sums: &[i64]) -> i128 {
    let first = sums[0];
    let changes =
        sums.iter().fold(0_i64, |changes, sum| changes.wrapping_add(sum.wrapping_sub(first)));
    i128::from(changes) + i128::from(first) * sums.len() as i128
}

/// How many are below the pivot.
#[inline(always)]
fn number_below(sums: &[i64], pivot: i64) -> usize {
    let mut number = 0_u64;
    for &sum in sums {
        number += u64::from(sum < pivot);
    }
    number as usize
}

/// The sum of those below the pivot: exact, in halves that cannot overflow.
#[inline(always)]
fn total_below(sums: &[i64], pivot: i64) -> i128 {
    const HALF: u32 = 32;
    // Makes all positive, so that a logical shift splits them.
    const LIFT: u64 = 1 << 63;
    let (mut low, mut high, mut number) = (0_u64, 0_u64, 0_u64);
    for &sum in sums {
        let lifted = if sum < pivot { (sum as u64) ^ LIFT } else { 0 };
        low += lifted & u64::from(u32::MAX);
        high += lifted >> HALF;
        number += u64::from(sum < pivot);
    }
    i128::from(low) + (i128::from(high) << HALF) - (i128::from(number) << 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::quantise;
    use crate::simd::Plain;
    use crate::slide::Memory;
    use crate::steps::Steps;
    use proptest::prelude::*;

    fn oracle(values: &[f64], window: usize, count: usize) -> i128 {
        let token = |&c: &f64| i128::from(quantise(c));
        let mut sums: Vec<i128> =
            values.windows(window).map(|group| group.iter().map(token).sum()).collect();
        sums.sort_unstable();
        sums[..count].iter().sum()
    }

    fn check(values: &[f64], window: usize, count: usize) {
        let (mut steps, mut memory) = (Steps::default(), Memory::default());
        steps.take(values, |c| c, Plain);
        let groups = Groups::new(values, window, |c| c, &steps, &mut memory, Plain);
        let mut sums = [0; BLOCK];
        for (block, (low, high)) in groups.lows().iter().zip(groups.highs()).enumerate() {
            let sums = groups.read(block, &mut sums);
            assert!(sums.iter().all(|sum| (low..=high).contains(&sum)), "block {block}");
        }
        let expected = (oracle(values, window, count), oracle(values, window, 1) as i64);
        assert_eq!(smallest(&groups, count, &mut Scratch::default()), expected);
    }

    proptest! {
        #[test]
        fn the_smallest_are_those_of_a_full_sort(
            values in prop::collection::vec(-20.0_f64..20.0, 1..900),
            window in 1_usize..900,
            part in 0.0_f64..1.0,
            smooth in 1_usize..60,
        ) {
            // Runs of equal values, so that groups are close, or equal.
            let values: Vec<f64> = values.iter().flat_map(|&c| vec![c; smooth]).take(2_000).collect();
            let window = window.min(values.len());
            let groups = values.len() - window + 1;
            check(&values, window, ((groups as f64 * part) as usize).clamp(1, groups));
        }

        #[test]
        fn sums_of_any_size_are_added_exactly(
            sums in prop::collection::vec(any::<i64>(), 0..300),
            pivot in any::<i64>(),
        ) {
            let below = sums.iter().filter(|&&sum| sum < pivot);
            prop_assert_eq!(total_below(&sums, pivot), below.clone().map(|&sum| i128::from(sum)).sum::<i128>());
            prop_assert_eq!(number_below(&sums, pivot), below.count());
        }
    }

    #[test]
    fn equal_groups_are_interchangeable() {
        for count in [1, 100, 500, 990] {
            check(&[3.5; 1_000], 11, count);
        }
    }

    #[test]
    fn every_count_around_a_block() {
        let values: Vec<f64> =
            (0..3 * BLOCK + 40).map(|i| ((i * 7_919) % 101) as f64 / 8.0).collect();
        for groups in [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 1] {
            for count in [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, groups - 1, groups] {
                check(&values[..groups + 7], 8, count.clamp(1, groups));
            }
        }
    }
}
