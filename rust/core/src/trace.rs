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
//! **Cost.** A trace is read from memory once, and about an eighth of it again from the cache; a byte
//! and a half of scratch memory a token (and 8 for a token whose group has to be looked at), with no
//! allocation once a thread's has grown to the longest trace. Traces run in parallel, never one trace
//! split. Values beyond ±2,048, or sums beyond 2²¹ nats, take a plain path.

use std::cell::RefCell;

use crate::error::{Error, Place, Result};
use crate::fixed::{self, FAST_LIMIT, NARROW_LIMIT};
use crate::slide::{self, Groups};
use crate::staircase::{self, Staircase};
use crate::steps::Steps;
use crate::token::Sample;
use crate::{bottom, parallel, simd};

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
    #[inline(always)]
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

impl Scores {
    /// Of a trace without tokens.
    pub const NOTHING: Self = Self {
        mean: f64::NAN,
        lowest_group: f64::NAN,
        bottom_group: f64::NAN,
        tail: f64::NAN,
        num_tokens: 0,
        short: false,
    };

    /// Of a trace shorter than the window, or empty.
    fn of_one_group(mean: f64, tail: f64, n: usize) -> Self {
        let (num_tokens, short) = (n as u64, n > 0);
        Self { mean, lowest_group: mean, bottom_group: mean, tail, num_tokens, short }
    }
}

/// Scores one trace: `values` holds its token confidences, `[n]`, in nats.
///
/// # Errors
/// [`Error::Setting`]; [`Error::NotFinite`] and [`Error::OutOfRange`] naming the position.
pub fn score<T: Sample>(values: &[T], settings: &Settings) -> Result<Scores> {
    settings.check()?;
    score_one(values, settings, 0, None)
}

/// As [`score`], and the [record lows](crate::staircase) of the trace's groups, which are appended to
/// `lows`. These are not rounded: what stops a trace never is.
///
/// # Errors
/// As [`score`]; [`Error::Setting`] with `decimals`, which the two would differ by, and for a trace of
/// 2³² tokens or more.
pub fn score_with_lows<T: Sample>(
    values: &[T],
    settings: &Settings,
    lows: &mut Staircase,
) -> Result<Scores> {
    settings.check()?;
    if let Some(decimals) = settings.decimals {
        let expected = "record lows are not rounded: leave it out";
        return Err(Error::setting("decimals", decimals, expected));
    }
    if u32::try_from(values.len()).is_err() {
        return Err(Error::setting("tokens", values.len(), "must be below 2^32 in a trace"));
    }
    score_one(values, settings, 0, Some(lows))
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
    parallel::try_map(offsets.len() - 1, |trace| {
        let of_trace = offsets[trace] as usize..offsets[trace + 1] as usize;
        score_one(&values[of_trace], settings, trace, None)
    })
}

/// Scores many traces, in parallel, each a slice of its own.
///
/// # Errors
/// As [`score`], naming the trace too.
pub fn score_slices<T: Sample>(traces: &[&[T]], settings: &Settings) -> Result<Vec<Scores>> {
    settings.check()?;
    parallel::try_map(traces.len(), |trace| score_one(traces[trace], settings, trace, None))
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
    steps: Steps,
    groups: slide::Memory,
    bottom: bottom::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn score_one<T: Sample>(
    values: &[T],
    settings: &Settings,
    trace: usize,
    mut lows: Option<&mut Staircase>,
) -> Result<Scores> {
    let narrow = SCRATCH.with_borrow_mut(|scratch| match settings.decimals {
        None => {
            let door = |c: T| c.wide();
            let lows = lows.as_deref_mut();
            simd::widest(Narrow { values, settings, scratch, door, lows })
        }
        Some(_) => {
            let door = |c: T| settings.door(c.wide());
            simd::widest(Narrow { values, settings, scratch, door, lows: None })
        }
    });
    if let Some(scores) = narrow {
        return Ok(scores);
    }
    if let Some(position) = values.iter().position(|c| !fixed::in_range(c.wide())) {
        let place = Place::Token { trace, position };
        check_confidence(values[position].wide(), place)?;
    }
    let tokens: Vec<i64> =
        values.iter().map(|c| fixed::quantise(settings.door(c.wide()))).collect();
    if let Some(lows) = lows {
        staircase::of_quantised(&tokens, settings.window as usize, lows);
    }
    Ok(score_quantised(&tokens, settings))
}

/// The scores in 64-bit sums; `None` where a value is too large for them, or not finite.
struct Narrow<'a, T, F> {
    values: &'a [T],
    settings: &'a Settings,
    scratch: &'a mut Scratch,
    /// A confidence as it enters the sums.
    door: F,
    /// Where record lows go, if they are wanted.
    lows: Option<&'a mut Staircase>,
}

impl<T: Sample, F: Fn(T) -> f64 + Copy> simd::Work for Narrow<'_, T, F> {
    type Output = Option<Scores>;

    #[inline(always)]
    fn call(self, lanes: impl simd::Lanes) -> Option<Scores> {
        let Self { values, settings, scratch, door, lows } = self;
        let Scratch { steps, groups, bottom: memory } = scratch;
        let n = values.len();
        let window = settings.window as usize;
        let fits =
            |largest: f64| largest < FAST_LIMIT && largest * (n.min(window) as f64) < NARROW_LIMIT;
        // The bound costs nothing, and may be four times too large.
        if !fits(steps.take(values, door, lanes)) && !fits(largest(values, door)) {
            return None;
        }
        let mean = |count: usize| fixed::mean(steps.sum(values, n - count..n, door), count as u64);
        let (mean, tail) = (mean(n), mean(n.min(settings.tail as usize)));
        if n < window {
            return Some(Scores::of_one_group(mean, tail, n));
        }
        let groups = Groups::new(values, window, door, steps, groups, lanes);
        let count = bottom::count(groups.len(), settings.bottom);
        let (sum, lowest) = bottom::smallest(&groups, count, memory);
        if let Some(lows) = lows {
            staircase::of_groups(&groups, lowest, window, lows);
        }
        Some(Scores {
            mean,
            lowest_group: settings.lowest(lowest.into(), settings.window, false),
            bottom_group: fixed::mean(sum, settings.window * count as u64),
            tail,
            num_tokens: n as u64,
            short: false,
        })
    }
}

/// The largest magnitude, NaN above all.
#[inline(always)]
fn largest<T: Sample>(values: &[T], door: impl Fn(T) -> f64) -> f64 {
    let bits = values.iter().map(|&c| door(c).abs().to_bits());
    f64::from_bits(bits.fold(0, u64::max))
}

/// The scores of a trace whose tokens are quantised already, in 128-bit sums: the plain way.
pub(crate) fn score_quantised(tokens: &[i64], settings: &Settings) -> Scores {
    let sum = |tokens: &[i64]| tokens.iter().map(|&token| i128::from(token)).sum::<i128>();
    let n = tokens.len();
    let window = settings.window as usize;
    let mean = fixed::mean(sum(tokens), n as u64);
    let tail = &tokens[n - n.min(settings.tail as usize)..];
    let tail = fixed::mean(sum(tail), tail.len() as u64);
    if n < window {
        return Scores::of_one_group(mean, tail, n);
    }
    let mut group = sum(&tokens[..window]);
    let mut groups = vec![group];
    groups.extend(tokens[window..].iter().zip(tokens).map(|(&new, &old)| {
        group += i128::from(new) - i128::from(old);
        group
    }));
    let count = bottom::count(groups.len(), settings.bottom);
    groups.select_nth_unstable(count - 1);
    let lowest = groups[..count].iter().copied().min().unwrap_or_default();
    Scores {
        mean,
        lowest_group: settings.lowest(lowest, settings.window, false),
        bottom_group: fixed::mean(groups[..count].iter().sum(), settings.window * count as u64),
        tail,
        num_tokens: n as u64,
        short: false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::simd::At;
    use crate::simd::{Plain, Work};
    use half::f16;
    use proptest::prelude::*;

    /// The scores as each instruction set of this CPU has them, the baseline first.
    fn on_every_level<T: Sample>(
        values: &[T],
        settings: &Settings,
    ) -> Vec<(Option<Scores>, Staircase)> {
        let mut scratch = Scratch::default();
        let mut scored = Vec::new();
        let mut levels: Vec<fn(Level<'_, T>) -> Option<Scores>> = vec![|work| work.call(Plain)];
        #[cfg(target_arch = "x86_64")]
        {
            use pulp::x86::{V3, V4};
            if V3::is_available() {
                levels.push(|work| V3::try_new().and_then(|v3| v3.vectorize(At(work, v3))));
            }
            if V4::is_available() {
                levels.push(|work| V4::try_new().and_then(|v4| v4.vectorize(At(work, *v4))));
            }
        }
        for level in levels {
            let mut lows = Staircase::default();
            let (scratch, door) = (&mut scratch, T::wide as fn(T) -> f64);
            let scores = level(Narrow { values, settings, scratch, door, lows: Some(&mut lows) });
            scored.push((scores, lows));
        }
        scored
    }

    /// The scores and record lows of the plain way.
    fn plainly(tokens: &[i64], settings: &Settings) -> (Option<[u64; 4]>, Staircase) {
        let mut lows = Staircase::default();
        staircase::of_quantised(tokens, settings.window as usize, &mut lows);
        (bits(Some(score_quantised(tokens, settings))), lows)
    }

    type Level<'a, T> = Narrow<'a, T, fn(T) -> f64>;

    fn bits(scores: Option<Scores>) -> Option<[u64; 4]> {
        scores.map(|s| [s.mean, s.lowest_group, s.bottom_group, s.tail].map(f64::to_bits))
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_bits_of_the_plain_way(
            pattern in prop::collection::vec(-900.0_f32..900.0, 1..60),
            n in 1_usize..1_400,
            w in 1_u64..1_400,
            tail in 1_u64..1_400,
            bottom in 0.001_f64..=1.0,
        ) {
            let settings = Settings { window: w, tail, bottom, decimals: None };
            let values: Vec<f32> = (0..n).map(|i| pattern[i * i % pattern.len()]).collect();
            let tokens: Vec<i64> = values.iter().map(|&c| fixed::quantise(c.into())).collect();
            let plain = plainly(&tokens, &settings);
            for (scores, lows) in on_every_level(&values, &settings) {
                prop_assert_eq!((bits(scores), lows), plain.clone());
            }
        }

        #[test]
        fn every_float_type_gives_the_same_bits(
            values in prop::collection::vec(0.0_f32..30.0, 1..600),
            w in 1_u64..300,
        ) {
            let settings = Settings { window: w, tail: 50, ..Settings::default() };
            let halves: Vec<f16> = values.iter().map(|&c| f16::from_f32(c)).collect();
            let singles: Vec<f32> = halves.iter().map(|&c| f32::from(c)).collect();
            let doubles: Vec<f64> = halves.iter().map(|&c| f64::from(c)).collect();
            let expected = bits(score(&singles, &settings).ok());
            prop_assert_eq!(bits(score(&halves, &settings).ok()), expected);
            prop_assert_eq!(bits(score(&doubles, &settings).ok()), expected);
        }
    }

    #[test]
    fn values_up_to_the_limit_take_the_fast_path() {
        for window in [7, 16, 40] {
            let values: Vec<f32> =
                (0..500).map(|i| if i * i % 7 < 3 { 2_047.0 } else { -2_047.0 }).collect();
            let settings = Settings { window, tail: 5, bottom: 0.2, decimals: None };
            let tokens: Vec<i64> = values.iter().map(|&c| fixed::quantise(c.into())).collect();
            let plain = plainly(&tokens, &settings);
            for (scores, lows) in on_every_level(&values, &settings) {
                assert_eq!((bits(scores), lows), plain.clone(), "w = {window}");
            }
        }
    }

    #[test]
    fn lengths_around_steps_blocks_and_chunks() {
        let around = |size: usize| [size - 1, size, size + 1];
        let sizes = [16, 64, 80, 128, 144, 192, 256];
        for n in sizes.into_iter().flat_map(around).chain([1, 2, 520]) {
            for window in [16, 32, 64, 128].into_iter().flat_map(around).chain([1, 2, n]) {
                let window = window as u64;
                let values: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 / 8.0).collect();
                let settings = Settings { window, tail: 5, bottom: 0.3, decimals: None };
                let tokens: Vec<i64> = values.iter().map(|&c| fixed::quantise(c.into())).collect();
                let plain = plainly(&tokens, &settings);
                for (scores, lows) in on_every_level(&values, &settings) {
                    assert_eq!((bits(scores), lows), plain.clone(), "n = {n}, w = {window}");
                }
            }
        }
    }
}
