//! [`Scorer`]: settings that are checked, and the scores of traces by them.

use std::cell::RefCell;

use super::groups::{Bounds, Groups};
use super::select::Candidates;
use super::tokens::{Steps, Tokens};
use super::{Checked, Scores, Settings, bottom_count, check_confidence, plain};
use crate::error::{Error, Place, Result};
use crate::fixed::{self, Decimals, Exact, Rounding};
use crate::parallel;
use crate::sample::Sample;
use crate::simd::{Lanes, Level, Work};
use crate::staircase::{self, Staircase};
use crate::stream::{BatchScorer, TraceScorer};

/// Scores traces by settings that were checked once.
#[derive(Clone, Copy, Debug)]
pub struct Scorer {
    settings: Checked,
    level: Level,
}

impl Scorer {
    /// By these settings.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the one that is out of range.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { settings: settings.checked()?, level: Level::widest().at_most_avx2() })
    }

    /// With these vector instructions, whatever else the CPU has; the scores are the same. For AVX-512
    /// it takes AVX2, which was faster wherever it was measured.
    #[must_use]
    pub fn at(self, level: Level) -> Self {
        Self { level: level.at_most_avx2(), ..self }
    }

    /// Scores one trace: `values` holds its token confidences, `[n]`, in nats.
    ///
    /// # Errors
    /// [`Error::NotFinite`] and [`Error::OutOfRange`] naming the position.
    pub fn score<T: Sample>(&self, values: &[T]) -> Result<Scores> {
        self.score_one(values, 0, None)
    }

    /// As [`score`](Self::score), and the [record lows](crate::staircase) of the trace's groups, which
    /// are appended to `lows`. These are not rounded: what stops a trace never is.
    ///
    /// # Errors
    /// As [`score`](Self::score); [`Error::Setting`] with `decimals`, which the two would differ by, and
    /// for a trace of 2³² tokens or more.
    pub fn score_with_lows<T: Sample>(&self, values: &[T], lows: &mut Staircase) -> Result<Scores> {
        if let Some(decimals) = self.settings.decimals {
            let expected = "record lows are not rounded: leave it out";
            return Err(Error::setting("decimals", decimals, expected));
        }
        if u32::try_from(values.len()).is_err() {
            return Err(Error::setting("tokens", values.len(), "must be below 2^32 in a trace"));
        }
        self.score_one(values, 0, Some(lows))
    }

    /// Scores many traces, in parallel: trace i is `values[offsets[i]..offsets[i + 1]]`.
    ///
    /// # Errors
    /// As [`score`](Self::score), naming the first trace that is wrong; [`Error::Offsets`] when the
    /// offsets fall or leave `values`.
    pub fn score_many<T: Sample>(&self, values: &[T], offsets: &[usize]) -> Result<Vec<Scores>> {
        check_offsets(offsets, values.len())?;
        parallel::try_map(offsets.len() - 1, |trace| {
            self.score_one(&values[offsets[trace]..offsets[trace + 1]], trace, None)
        })
    }

    /// Scores many traces, in parallel, each a slice of its own.
    ///
    /// # Errors
    /// As [`score`](Self::score), naming the first trace that is wrong.
    pub fn score_slices<T: Sample>(&self, traces: &[&[T]]) -> Result<Vec<Scores>> {
        parallel::try_map(traces.len(), |trace| self.score_one(traces[trace], trace, None))
    }

    /// Follows a trace while it is generated; a complete group below `threshold`, in nats, asks for a
    /// stop.
    ///
    /// # Errors
    /// [`Error::Setting`] when the threshold is not finite.
    pub fn stream(&self, threshold: Option<f64>) -> Result<TraceScorer> {
        TraceScorer::new(self.settings, threshold)
    }

    /// Follows `slots` traces, one decode step of all a call; the bottom-group score is not kept.
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and for more slots than [`MAX_SLOTS`](crate::stream::MAX_SLOTS) or
    /// than there is memory for.
    pub fn batch(&self, slots: usize, threshold: Option<f64>) -> Result<BatchScorer> {
        BatchScorer::new(slots, self.settings, threshold)
    }

    fn score_one<T: Sample>(
        &self,
        values: &[T],
        trace: usize,
        mut lows: Option<&mut Staircase>,
    ) -> Result<Scores> {
        let settings = &self.settings;
        let narrow = SCRATCH.with_borrow_mut(|scratch| {
            let lows = lows.as_deref_mut();
            let scores = match settings.decimals {
                None => self.level.run(Narrow { values, settings, scratch, rounding: Exact, lows }),
                Some(decimals) => {
                    let rounding = Decimals::new(decimals);
                    self.level.run(Narrow { values, settings, scratch, rounding, lows })
                }
            };
            if values.len() > KEPT {
                *scratch = Scratch::default();
            }
            scores
        });
        if let Some(scores) = narrow {
            return Ok(scores);
        }
        for (position, c) in values.iter().enumerate() {
            check_confidence(c.wide(), Place::Token { trace, position })?;
        }
        let tokens: Vec<i64> =
            values.iter().map(|c| fixed::quantise(settings.round(c.wide()))).collect();
        if let Some(lows) = lows {
            staircase::of_quantised(&tokens, settings.window, lows);
        }
        Ok(plain::score(&tokens, settings))
    }
}

fn check_offsets(offsets: &[usize], len: usize) -> Result<()> {
    let blame = |position: usize, expected: String| {
        Err(Error::Offsets { position, value: offsets[position] as i64, expected })
    };
    let Some(last) = offsets.len().checked_sub(1) else {
        let expected = "must hold one entry more than there are traces";
        return Err(Error::setting("offsets", "[]", expected));
    };
    if let Some(fall) = offsets.windows(2).position(|ends| ends[0] > ends[1]) {
        let before = offsets[fall];
        return blame(fall + 1, format!("offsets must not fall, and {before} stands before it"));
    }
    if offsets[last] > len {
        return blame(last, format!("there are only {len} values"));
    }
    Ok(())
}

/// Memory that a thread uses again for each trace: 18 bytes a token at the most.
#[derive(Default)]
struct Scratch {
    steps: Steps,
    bounds: Bounds,
    candidates: Candidates,
}

/// After a trace of more tokens the memory is given back.
const KEPT: usize = 1 << 18;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The scores in 64-bit sums; `None` where a value is too large for them, or not finite.
struct Narrow<'a, T, R> {
    values: &'a [T],
    settings: &'a Checked,
    scratch: &'a mut Scratch,
    rounding: R,
    /// Where record lows go, if they are wanted.
    lows: Option<&'a mut Staircase>,
}

impl<T: Sample, R: Rounding> Work for Narrow<'_, T, R> {
    type Output = Option<Scores>;

    #[inline(always)]
    fn call(self, lanes: impl Lanes) -> Option<Scores> {
        let Self { values, settings, scratch, rounding, lows } = self;
        let Scratch { steps, bounds, candidates } = scratch;
        let n = values.len();
        let tokens = Tokens::read(values, settings.window, rounding, lanes, steps)?;
        let mean = |count: usize| fixed::mean(tokens.sum(n - count..n), count as u64);
        let (mean, tail) = (mean(n), mean(n.min(settings.tail)));
        if n < settings.window {
            return Some(settings.of_one_group(mean, tail, n));
        }
        let groups = Groups::new(tokens, bounds);
        let count = settings.bottom.map_or(1, |q| bottom_count(groups.len(), q));
        let lowest = groups.lowest(count, candidates);
        if let Some(lows) = lows {
            staircase::of_groups(&groups, lowest.least, lows);
        }
        Some(settings.of_groups(mean, tail, n, lowest.least.into(), lowest.sum, count))
    }
}

#[cfg(test)]
mod tests;
