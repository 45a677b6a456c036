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
//! use deepconf_core::trace::{Scorer, Settings};
//!
//! let scorer = Scorer::new(Settings::default().window(4).tail(2))?;
//! let values = [5.0_f32, 5.0, 5.0, 1.0, 1.0, 5.0, /* the next trace */ 7.0, 9.0];
//! let scores = scorer.score_many(&values, &[0, 6, 8])?;
//! assert_eq!((scores[0].lowest_group, scores[0].tail), (3.0, 3.0));
//! assert_eq!((scores[1].lowest_group, scores[1].short), (8.0, true));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** A trace is read from memory once, and about an eighth of it again from the cache; a byte
//! and a half of scratch memory a token, and 8 for a token whose group is a candidate, with no
//! allocation once a thread's has grown to the longest trace (of up to 262,144 tokens; beyond, the
//! memory is given back each time). [`Scorer::score_many`] and [`Scorer::score_slices`] score
//! traces in parallel, never one trace split; nothing else starts a thread. Values beyond ±2,048, or
//! sums beyond 2²¹ nats, take a plain path.

mod groups;
pub(crate) mod plain;
mod scorer;
mod select;
mod tokens;

use crate::error::{Error, Place, Result};
use crate::fixed::{self, Decimals, Rounding};

pub(crate) use groups::{BLOCK, Groups};
pub use scorer::Scorer;
pub use select::bottom_count;

/// The largest window and tail.
pub const MAX_WINDOW: u64 = 1 << 31;

/// What the scores of a trace are computed with.
///
/// ```
/// use deepconf_core::trace::Settings;
///
/// let settings = Settings::default().window(512).tail(512).bottom(None);
/// assert_eq!((settings.window, settings.bottom, settings.decimals), (512, None, None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// w: tokens in a group; 2,048.
    pub window: u64,
    /// t: tokens in the tail; 2,048.
    pub tail: u64,
    /// q: the fraction of the groups that the bottom-group score is the mean of, in (0, 1]; 0.10. `None`
    /// does without that score, which is NaN then: a stream keeps w tokens instead of all.
    pub bottom: Option<f64>,
    /// Rounds token confidences and the lowest complete group to so many decimals; the authors'
    /// published code has 3. `None`: as they are.
    pub decimals: Option<u8>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: 2_048, tail: 2_048, bottom: Some(0.10), decimals: None }
    }
}

impl Settings {
    /// Sets w.
    #[must_use]
    pub fn window(self, window: u64) -> Self {
        Self { window, ..self }
    }

    /// Sets t.
    #[must_use]
    pub fn tail(self, tail: u64) -> Self {
        Self { tail, ..self }
    }

    /// Sets q, or does without.
    #[must_use]
    pub fn bottom(self, bottom: impl Into<Option<f64>>) -> Self {
        Self { bottom: bottom.into(), ..self }
    }

    /// Sets the decimals to round to, or none.
    #[must_use]
    pub fn decimals(self, decimals: impl Into<Option<u8>>) -> Self {
        Self { decimals: decimals.into(), ..self }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the one that is out of range.
    pub fn check(&self) -> Result<()> {
        self.checked().map(|_| ())
    }

    fn checked(self) -> Result<Checked> {
        let Self { window, tail, bottom, decimals } = self;
        let (window, tail) = (check_window("window", window)?, check_window("tail", tail)?);
        if let Some(q) = bottom.filter(|q| !(*q > 0.0 && *q <= 1.0)) {
            let expected = "must be a fraction of the groups, in (0, 1]";
            return Err(Error::setting("bottom", q, expected));
        }
        if let Some(decimals) = decimals.filter(|&decimals| decimals > 9) {
            return Err(Error::setting("decimals", decimals, "must be 9 at the most"));
        }
        Ok(Checked { window, tail, bottom, decimals })
    }
}

fn check_window(name: &'static str, value: u64) -> Result<usize> {
    if (1..=MAX_WINDOW).contains(&value) {
        return Ok(value as usize);
    }
    Err(Error::setting(name, value, format!("must be between 1 and {MAX_WINDOW} tokens")))
}

/// [`Settings`] that are in range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    pub(crate) window: usize,
    pub(crate) tail: usize,
    pub(crate) bottom: Option<f64>,
    pub(crate) decimals: Option<u8>,
}

impl Checked {
    /// One confidence as it enters the sums.
    #[inline(always)]
    pub(crate) fn round(&self, c: f64) -> f64 {
        self.decimals.map_or(c, |decimals| Decimals::new(decimals).round(c))
    }

    /// The value of a complete group that adds up to `sum`, as the lowest.
    #[inline]
    pub(crate) fn lowest(&self, sum: i128) -> f64 {
        self.round(fixed::mean(sum, self.window as u64))
    }

    /// The scores of a trace shorter than the window, or empty.
    fn of_one_group(&self, mean: f64, tail: f64, n: usize) -> Scores {
        let bottom_group = self.bottom.map_or(f64::NAN, |_| mean);
        let (num_tokens, short) = (n as u64, n > 0);
        Scores { mean, lowest_group: mean, bottom_group, tail, num_tokens, short }
    }

    /// The scores of a trace of complete groups, of which the smallest is `least`, and the `count`
    /// smallest add up to `sum`.
    #[inline(always)]
    fn of_groups(
        &self,
        mean: f64,
        tail: f64,
        n: usize,
        least: i128,
        sum: i128,
        count: usize,
    ) -> Scores {
        let tokens = (self.window * count) as u64;
        Scores {
            mean,
            lowest_group: self.lowest(least),
            bottom_group: self.bottom.map_or(f64::NAN, |_| fixed::mean(sum, tokens)),
            tail,
            num_tokens: n as u64,
            short: false,
        }
    }
}

/// The scores of one trace, in nats; all NaN when it has no tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scores {
    /// Average trace confidence.
    pub mean: f64,
    /// Lowest group confidence.
    pub lowest_group: f64,
    /// Bottom-q group confidence; NaN where [`Settings::bottom`] is `None`.
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
