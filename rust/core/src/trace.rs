//! Whole-trace scores of recorded traces: average, lowest group, bottom-q and tail confidence.
//!
//! | score | paper | definition |
//! |---|---|---|
//! | [`mean`](Scores::mean) | eq. 3 | mean over all n tokens |
//! | [`lowest_group`](Scores::lowest_group) | eq. 6 | smallest mean of w consecutive tokens |
//! | [`bottom_group`](Scores::bottom_group) | eq. 5 | mean of the lowest tenth of the groups |
//! | [`tail`](Scores::tail) | eq. 7 | mean of the last t tokens |
//!
//! Groups are complete windows, stride 1. A trace shorter than the window is one group and is
//! marked `short`; an empty one has no score (NaN).
//!
//! ```
//! use deepconf_core::trace::{Settings, score_many};
//!
//! let settings = Settings { window: 4, tail: 2, ..Settings::default() };
//! let values = [5.0_f32, 5.0, 5.0, 1.0, 1.0, 5.0, /* the next trace */ 7.0, 9.0];
//! let scores = score_many(&values, &[0, 6, 8], &settings)?;
//! assert_eq!((scores[0].lowest_group, scores[0].tail), (3.0, 3.0));
//! assert_eq!((scores[1].lowest_group, scores[1].short), (8.0, true));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** Three passes over a trace that stay in its scratch memory (quantise, slide, select), no
//! allocation once a thread's scratch has grown to the longest trace; traces in parallel, never one
//! trace split.

use std::cell::RefCell;
use std::ops::{AddAssign, Sub};

use rayon::prelude::*;

use crate::bottom;
use crate::error::{Error, Place, Result};
use crate::fixed::{self, FAST_LIMIT};
use crate::token::Sample;

/// The largest window and tail.
pub const MAX_WINDOW: u64 = 1 << 31;

/// What the scores of a trace are computed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// w: tokens in a group.
    pub window: u64,
    /// t: tokens in the tail.
    pub tail: u64,
    /// q: the fraction of the groups that the bottom-group score is the mean of, in (0, 1].
    pub bottom: f64,
    /// Rounds token confidences and the lowest complete group to so many decimals; the authors'
    /// published code has 3.
    pub decimals: Option<u8>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: 2_048, tail: 2_048, bottom: 0.10, decimals: None }
    }
}

impl Settings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the one that is out of range.
    pub fn check(&self) -> Result<()> {
        check_window("window", self.window)?;
        check_window("tail", self.tail)?;
        if !(self.bottom > 0.0 && self.bottom <= 1.0) {
            return Err(Error::setting(
                "bottom",
                self.bottom,
                "must be a fraction of the groups, in (0, 1]",
            ));
        }
        match self.decimals {
            Some(d) if d > 9 => Err(Error::setting("decimals", d, "must be 9 at the most")),
            _ => Ok(()),
        }
    }

    /// The value of a lowest group that adds up to `sum`.
    pub(crate) fn lowest(&self, sum: i128, count: u64, short: bool) -> f64 {
        let mean = fixed::mean(sum, count);
        match self.decimals {
            Some(decimals) if !short => fixed::round_decimals(mean, decimals),
            _ => mean,
        }
    }

    /// One confidence as it enters the sums.
    #[inline]
    pub(crate) fn door(&self, c: f64) -> f64 {
        match self.decimals {
            Some(decimals) => fixed::round_decimals(c, decimals),
            None => c,
        }
    }
}

fn check_window(name: &'static str, value: u64) -> Result<()> {
    if (1..=MAX_WINDOW).contains(&value) {
        return Ok(());
    }
    Err(Error::setting(name, value, format!("must be between 1 and {MAX_WINDOW} tokens")))
}

/// The scores of one trace, in nats; all NaN when it has no tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Average trace confidence.
    pub mean: f64,
    /// Lowest group confidence.
    pub lowest_group: f64,
    /// Bottom-q group confidence.
    pub bottom_group: f64,
    /// Tail confidence.
    pub tail: f64,
    /// n, the number of tokens.
    pub num_tokens: u64,
    /// Whether 0 < n < w, so that the one group is the whole trace.
    pub short: bool,
}

/// Scores one trace: `values` holds its token confidences, `[n]`, in nats.
///
/// # Errors
/// [`Error::Setting`]; [`Error::NotFinite`] and [`Error::OutOfRange`] naming the position.
pub fn score<T: Sample>(values: &[T], settings: &Settings) -> Result<Scores> {
    settings.check()?;
    score_one(values, settings, 0)
}

/// Scores many traces, in parallel: trace i is `values[offsets[i]..offsets[i + 1]]`.
///
/// # Errors
/// As [`score`], naming the trace too; [`Error::Offsets`] when the offsets fall or leave `values`.
pub fn score_many<T: Sample>(
    values: &[T],
    offsets: &[i64],
    settings: &Settings,
) -> Result<Vec<Scores>> {
    settings.check()?;
    check_offsets(offsets, values.len())?;
    offsets
        .par_windows(2)
        .enumerate()
        .map(|(trace, ends)| {
            score_one(&values[ends[0] as usize..ends[1] as usize], settings, trace)
        })
        .collect()
}

/// Scores many traces, in parallel, each a slice of its own.
///
/// # Errors
/// As [`score`], naming the trace too.
pub fn score_slices<T: Sample>(traces: &[&[T]], settings: &Settings) -> Result<Vec<Scores>> {
    settings.check()?;
    let scored = traces.par_iter().enumerate();
    scored.map(|(trace, values)| score_one(values, settings, trace)).collect()
}

fn check_offsets(offsets: &[i64], len: usize) -> Result<()> {
    let blame = |position: usize, expected: String| {
        Err(Error::Offsets { position, value: offsets[position], expected })
    };
    let Some(&first) = offsets.first() else {
        return Err(Error::setting(
            "offsets",
            "[]",
            "must hold one entry more than there are traces",
        ));
    };
    if first < 0 {
        return blame(0, "the first offset must be at least 0".into());
    }
    if let Some(fall) = offsets.windows(2).position(|ends| ends[0] > ends[1]) {
        return blame(
            fall + 1,
            format!("offsets must not fall, and {} stands before it", offsets[fall]),
        );
    }
    let last = offsets.len() - 1;
    if offsets[last] as u64 > len as u64 {
        return blame(last, format!("there are only {len} values"));
    }
    Ok(())
}

/// Memory that a thread uses again for each trace.
#[derive(Default)]
struct Scratch {
    tokens: Vec<i64>,
    narrow: Vec<i64>,
    wide: Vec<i128>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn score_one<T: Sample>(values: &[T], settings: &Settings, trace: usize) -> Result<Scores> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { tokens, narrow, wide } = scratch;
        let largest = quantise(values, settings, trace, tokens)?;
        // 2²³ nats in quanta of 2⁻⁴⁰ are 2⁶³.
        let fits = largest * settings.window.min(tokens.len() as u64) as f64 <= f64::from(1 << 22);
        Ok(if fits {
            summarise(tokens, settings, narrow)
        } else {
            summarise(tokens, settings, wide)
        })
    })
}

/// The scores of a trace whose tokens are quantised already.
pub(crate) fn score_quantised(tokens: &[i64], settings: &Settings) -> Scores {
    SCRATCH.with_borrow_mut(|scratch| summarise(tokens, settings, &mut scratch.wide))
}

/// Fills `tokens` and returns the largest magnitude, in nats.
fn quantise<T: Sample>(
    values: &[T],
    settings: &Settings,
    trace: usize,
    tokens: &mut Vec<i64>,
) -> Result<f64> {
    tokens.clear();
    // NaN and infinities must not slip through `max`: they fail the comparison instead.
    let mut largest = 0.0_f64;
    let mut sound = true;
    for c in values {
        let magnitude = c.wide().abs();
        sound &= magnitude < fixed::LIMIT;
        largest = if magnitude > largest { magnitude } else { largest };
    }
    if !sound {
        return Err(blame(values, trace));
    }
    if largest < FAST_LIMIT && settings.decimals.is_none() {
        tokens.extend(values.iter().map(|c| fixed::quantise_fast(c.wide())));
    } else {
        tokens.extend(values.iter().map(|c| fixed::quantise(settings.door(c.wide()))));
    }
    Ok(largest)
}

#[cold]
fn blame<T: Sample>(values: &[T], trace: usize) -> Error {
    let found = values.iter().position(|c| !fixed::in_range(c.wide()));
    let position = found.unwrap_or_default();
    check_confidence(values[position].wide(), Place::Token { trace, position })
        .err()
        .unwrap_or_else(|| {
            Error::setting("confidences", "changing", "must not be written to while they are read")
        })
}

/// An error unless `c` is finite and in range.
#[inline]
pub(crate) fn check_confidence(c: f64, place: Place) -> Result<()> {
    if fixed::in_range(c) {
        return Ok(());
    }
    Err(if c.is_finite() {
        Error::OutOfRange { argument: "confidences", place, value: c, limit: fixed::LIMIT }
    } else {
        Error::NotFinite { argument: "confidences", place, value: c, hint: "" }
    })
}

/// Exact integer sums of either width.
trait Sum: Copy + Ord + AddAssign + Sub<Output = Self> + From<i64> + Into<i128> {}
impl Sum for i64 {}
impl Sum for i128 {}

fn summarise<S: Sum>(tokens: &[i64], settings: &Settings, groups: &mut Vec<S>) -> Scores {
    let n = tokens.len();
    let total: i128 = total(tokens);
    let tail = n.min(settings.tail as usize);
    let window = settings.window as usize;
    let mean = fixed::mean(total, n as u64);
    let scores = Scores {
        mean,
        lowest_group: mean,
        bottom_group: mean,
        tail: fixed::mean(self::total(&tokens[n - tail..]), tail as u64),
        num_tokens: n as u64,
        short: 0 < n && n < window,
    };
    if n < window {
        return scores;
    }
    let lowest = slide(tokens, window, groups);
    let count = bottom::count(groups.len(), settings.bottom);
    let bottom = bottom::smallest(groups, count);
    Scores {
        lowest_group: settings.lowest(lowest.into(), settings.window, false),
        bottom_group: fixed::mean(bottom, settings.window * count as u64),
        ..scores
    }
}

fn total(tokens: &[i64]) -> i128 {
    // A token is at most 2⁵⁵ (rounding to decimals can reach the limit), so 128 of them fit 64 bits.
    tokens.chunks(128).map(|block| i128::from(block.iter().sum::<i64>())).sum()
}

/// The sum of every complete window, and the lowest.
fn slide<S: Sum>(tokens: &[i64], window: usize, groups: &mut Vec<S>) -> S {
    groups.clear();
    let mut sum = S::from(0);
    tokens[..window].iter().for_each(|&token| sum += S::from(token));
    let mut lowest = sum;
    groups.push(sum);
    groups.extend(tokens[window..].iter().zip(tokens).map(|(&new, &old)| {
        sum += S::from(new) - S::from(old);
        lowest = lowest.min(sum);
        sum
    }));
    lowest
}
