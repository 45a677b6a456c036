//! The lowest groups of a trace: what they add up to (equation 5 of the paper), and the least of them.
//!
//! Of m groups the `max(1, ⌊q·m⌋)` smallest count; q is 0.10 in the paper. Group sums are whole
//! numbers of quanta ([`crate::fixed`]), so equal groups are interchangeable and the result does not
//! depend on how they were selected.
//!
//! Every sixteenth sum is known already ([`Groups::starts`]). Some hundreds of these tell, within a few
//! percent, where the largest of the lowest groups must be. One pass over the blocks of groups then
//! leaves out unseen what is above that range, adds up what is below it, and keeps the few candidates
//! within it, of which the standard library selects. Where the sample deceived, and the one looked for
//! is not within the range, a second pass looks at all that is on its other side.
//!
//! **Cost.** Two comparisons a block of 64 groups. The sums of the blocks that are not above the range
//! are read, about an eighth of all (w = 2,048); for those, two comparisons, a masked addition and a
//! store a group; selecting among 3 to 8 percent of the groups. Where blocks span everything (noise
//! without memory, a tiny window), the sums of all groups.

use std::ops::Range;

use super::groups::{BLOCK, Groups};
use crate::fixed::Rounding;
use crate::sample::Sample;
use crate::simd::{FOUR, Lanes};

/// How many of `groups` groups count for the bottom fraction `q`, in (0, 1]: `max(1, ⌊q·m⌋)`.
///
/// ```
/// use deepconf_core::trace::bottom_count;
/// assert_eq!((bottom_count(1_000, 0.10), bottom_count(9, 0.10), bottom_count(1, 1.0)), (100, 1, 1));
/// ```
#[must_use]
pub fn bottom_count(groups: usize, q: f64) -> usize {
    ((groups as f64 * q) as usize).clamp(1, groups.max(1))
}

/// The largest sample.
const SAMPLE: usize = 512;

/// How many standard deviations of a sample's rank the range reaches to either side.
const WIDTH: f64 = 2.5;

/// What the candidates of a block may take, four of anything behind the last one included.
const ROOM: usize = BLOCK + FOUR;

/// Memory of [`Groups::lowest`], used again.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    sample: Vec<i64>,
    sums: Vec<i64>,
}

#[cfg(test)]
impl Candidates {
    /// How many there is room for.
    pub(super) fn room(&self) -> usize {
        self.sums.len()
    }
}

/// The lowest groups.
#[derive(Debug, PartialEq)]
pub(super) struct Lowest {
    /// What they add up to, in quanta.
    pub(super) sum: i128,
    /// The sum of the least of all.
    pub(super) least: i64,
}

/// What a pass over the groups finds.
struct Pass {
    /// How many are below the range.
    below: usize,
    /// What these add up to.
    sum: i128,
    /// How many are within it: the candidates.
    within: usize,
    /// The least below its end.
    least: i64,
}

impl<T: Sample, R: Rounding, L: Lanes> Groups<'_, T, R, L> {
    /// The `count` smallest of the m groups, 1 ≤ `count` ≤ m.
    #[inline(always)]
    pub(super) fn lowest(&self, count: usize, memory: &mut Candidates) -> Lowest {
        let Candidates { sample, sums } = memory;
        let mut range = self.range_of(count, sample);
        let mut pass = self.pass(&range, sums);
        if !(pass.below..pass.below + pass.within).contains(&(count - 1)) {
            let is_above = pass.below < count;
            range = if is_above { range.end..i64::MAX } else { i64::MIN..range.start };
            pass = self.pass(&range, sums);
        }
        let Pass { below, sum, within, least } = pass;
        let (sums, rest) = (&mut sums[..within], count - below);
        sums.select_nth_unstable(rest - 1);
        let rest = sums[..rest].iter().map(|&sum| i128::from(sum)).sum::<i128>();
        Lowest { sum: sum + rest, least }
    }

    /// Where the `count`-th smallest is in all likelihood.
    #[inline(always)]
    fn range_of(&self, count: usize, sample: &mut Vec<i64>) -> Range<i64> {
        let starts = self.starts();
        sample.clear();
        sample.extend(starts.iter().step_by(starts.len().div_ceil(SAMPLE)));
        let part = count as f64 / self.len() as f64;
        let rank = part * sample.len() as f64;
        let width = WIDTH * (rank * (1.0 - part)).sqrt() + 1.0;
        let (low, high) = (rank - width, (rank + width) as usize);
        let mut range = i64::MIN..i64::MAX;
        let mut below = &mut sample[..];
        if high < below.len() {
            let (left, &mut end, _) = below.select_nth_unstable(high);
            (range.end, below) = (end + 1, left);
        }
        if low >= 0.0 && (low as usize) < below.len() {
            range.start = *below.select_nth_unstable(low as usize).1;
        }
        range
    }

    /// Adds up the groups below the range, and puts those within at the front of `kept`.
    #[inline(always)]
    fn pass(&self, range: &Range<i64>, kept: &mut Vec<i64>) -> Pass {
        let Range { start, end } = *range;
        let lanes = self.lanes();
        let mut pass = Pass { below: 0, sum: 0, within: 0, least: i64::MAX };
        for (block, (&low, &high)) in self.lows().iter().zip(self.highs()).enumerate() {
            if low >= end {
                continue;
            }
            let sums = self.read(block);
            if low < pass.least {
                pass.least = sums.iter().fold(pass.least, |least, &sum| least.min(sum));
            }
            if low < start {
                let (count, sum) = below(&sums, start);
                pass.below += count;
                pass.sum += sum;
            }
            if high >= start {
                if kept.len() < pass.within + ROOM {
                    kept.resize(2 * kept.len() + ROOM, 0);
                }
                let room = &mut kept[pass.within..][..ROOM];
                let mut count = 0;
                for &four in sums.as_chunks::<FOUR>().0 {
                    // The mask takes nothing away: there are no more than a block.
                    let (room, _) = room[count & (BLOCK - 1)..].as_chunks_mut::<FOUR>();
                    count += lanes.within(four, start..end, &mut room[0]);
                }
                pass.within += count;
            }
        }
        pass
    }
}

/// How many groups of a block are below `start`, and what they add up to.
///
/// r groups on, 2·r tokens of less than 2⁵¹ quanta have come and gone: added over a block of 64, these
/// changes stay below 2016 · 2⁵² < 2⁶³.
#[inline(always)]
fn below(sums: &[i64; BLOCK], start: i64) -> (usize, i128) {
    let first = sums[0];
    let (mut count, mut changes) = (0_u64, 0_i64);
    for &sum in sums {
        let is_below = sum < start;
        count += u64::from(is_below);
        changes = changes.wrapping_add(if is_below { sum.wrapping_sub(first) } else { 0 });
    }
    (count as usize, i128::from(changes) + i128::from(first) * i128::from(count))
}
