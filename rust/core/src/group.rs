//! Group confidence while a trace is being generated, and the signal to stop it.
//!
//! [`TraceScorer`] follows one trace, [`BatchScorer`] one decode step of a whole batch. After any
//! number of tokens both report, bit for bit, what [`crate::trace`] says of the same tokens.
//!
//! ```
//! use deepconf_core::group::{StreamSettings, TraceScorer};
//!
//! let settings = StreamSettings { window: 3, threshold: Some(4.0), ..StreamSettings::default() };
//! let mut scorer = TraceScorer::new(settings)?;
//! assert_eq!(scorer.extend(&[9.0_f32, 8.0])?, None); // no complete group yet: never a stop
//! assert_eq!(scorer.extend(&[1.0_f32, 2.0, 7.0])?, Some(1)); // (8 + 1 + 2) / 3 < 4
//! assert_eq!((scorer.num_tokens(), scorer.group()), (4, Some(11.0 / 3.0)));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** O(1) a token, whatever the window; 8 bytes for each of the last `max(w, t)` tokens, that
//! number made a power of two, grown as they come. With `bottom` set the whole trace is kept (8 bytes a token), since the lowest tenth
//! of all groups cannot be known from less.

use crate::error::{Error, Place, Result};
use crate::fixed;
use crate::sample::Sample;
use crate::trace::{Scores, Settings, check_confidence, score_quantised};

/// The most slots that a [`BatchScorer`] has.
pub const MAX_SLOTS: usize = 1 << 20;

/// What a trace is followed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamSettings {
    /// w: tokens in a group.
    pub window: u64,
    /// t: tokens in the tail.
    pub tail: u64,
    /// q of the bottom-group score; `None` to do without and keep O(w) memory.
    pub bottom: Option<f64>,
    /// s: a complete group below it asks for a stop.
    pub threshold: Option<f64>,
    /// Decimals to round to, as in [`Settings::decimals`].
    pub decimals: Option<u8>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        let Settings { window, tail, bottom, decimals } = Settings::default();
        Self { window, tail, bottom: Some(bottom), threshold: None, decimals }
    }
}

impl StreamSettings {
    fn batch(&self) -> Settings {
        let Self { window, tail, bottom, decimals, .. } = *self;
        Settings { window, tail, bottom: bottom.unwrap_or(1.0), decimals }
    }
}

/// What is the same for all traces that are followed together.
#[derive(Clone, Debug)]
struct Rules {
    settings: Settings,
    keeps_all: bool,
    /// How many tokens must be kept.
    capacity: usize,
    threshold: Option<f64>,
    /// A complete group whose sum is smaller asks for a stop.
    stop_below: i128,
}

impl Rules {
    fn new(settings: StreamSettings) -> Result<Self> {
        let batch = settings.batch();
        batch.check()?;
        let keeps_all = settings.bottom.is_some();
        let capacity = if keeps_all { usize::MAX } else { batch.window.max(batch.tail) as usize };
        let (threshold, stop_below) = (None, i128::MIN);
        let mut rules = Self { settings: batch, keeps_all, capacity, threshold, stop_below };
        rules.set_threshold(settings.threshold)?;
        Ok(rules)
    }

    fn set_threshold(&mut self, threshold: Option<f64>) -> Result<()> {
        self.stop_below = match threshold {
            None => i128::MIN,
            Some(s) if s.is_finite() => self.smallest_sum_reaching(s),
            Some(s) => return Err(Error::setting("threshold", s, "must be finite")),
        };
        self.threshold = threshold;
        Ok(())
    }

    /// The smallest group sum whose mean is not below `s`: an integer comparison then decides
    /// exactly as the float comparison would.
    fn smallest_sum_reaching(&self, s: f64) -> i128 {
        let value = |sum| self.settings.lowest(sum, self.settings.window, false);
        let (mut below, mut reaching) = (-(1_i128 << 90), 1_i128 << 90);
        while reaching - below > 1 {
            let middle = below + (reaching - below) / 2;
            *(if value(middle) < s { &mut below } else { &mut reaching }) = middle;
        }
        reaching
    }
}

/// What is known of one trace.
#[derive(Clone, Debug)]
struct Followed {
    /// A ring whose length is a power of two: token i is at i modulo the length.
    recent: Vec<i64>,
    num_tokens: u64,
    total: i128,
    group: i128,
    lowest: i128,
}

impl Followed {
    const NOTHING: Self =
        Self { recent: Vec::new(), num_tokens: 0, total: 0, group: 0, lowest: i128::MAX };

    /// Forgets the trace, keeping the memory.
    fn reset(&mut self) {
        *self = Self { recent: std::mem::take(&mut self.recent), ..Self::NOTHING };
    }

    /// Adds a token that is in range; whether its group is complete and below the threshold.
    #[inline]
    fn add(&mut self, c: f64, rules: &Rules) -> bool {
        let token = fixed::quantise(rules.settings.door(c));
        let at = self.num_tokens;
        if at == self.recent.len() as u64 && self.recent.len() < rules.capacity {
            self.grow();
        }
        let mask = self.recent.len() - 1;
        // What leaves the group is read before its place in the ring is used again.
        let old = match at.checked_sub(rules.settings.window) {
            Some(old) => self.recent[old as usize & mask],
            None => 0,
        };
        self.recent[at as usize & mask] = token;
        self.group += i128::from(token - old);
        self.total += i128::from(token);
        self.num_tokens = at + 1;
        if !self.armed(rules) {
            return false;
        }
        self.lowest = self.lowest.min(self.group);
        self.group < rules.stop_below
    }

    /// Makes the ring, which has not come round yet, twice as long.
    #[cold]
    fn grow(&mut self) {
        self.recent.resize((2 * self.recent.len()).max(64), 0);
    }

    #[inline]
    fn armed(&self, rules: &Rules) -> bool {
        self.num_tokens >= rules.settings.window
    }

    fn group(&self, rules: &Rules) -> Option<f64> {
        self.armed(rules).then(|| fixed::mean(self.group, rules.settings.window))
    }

    fn lowest_group(&self, rules: &Rules) -> f64 {
        if self.armed(rules) {
            rules.settings.lowest(self.lowest, rules.settings.window, false)
        } else {
            rules.settings.lowest(self.total, self.num_tokens, true)
        }
    }

    fn mean(&self) -> f64 {
        fixed::mean(self.total, self.num_tokens)
    }

    fn tail(&self, rules: &Rules) -> f64 {
        let count = self.num_tokens.min(rules.settings.tail);
        let kept = |token: u64| self.recent[token as usize & (self.recent.len() - 1)];
        let last = (self.num_tokens - count..self.num_tokens).map(kept);
        fixed::mean(last.map(i128::from).sum(), count)
    }
}

/// Follows one trace, a token at a time.
#[derive(Clone, Debug)]
pub struct TraceScorer {
    rules: Rules,
    trace: Followed,
}

impl TraceScorer {
    /// A scorer that has seen nothing yet.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the setting that is out of range.
    pub fn new(settings: StreamSettings) -> Result<Self> {
        Ok(Self { rules: Rules::new(settings)?, trace: Followed::NOTHING })
    }

    /// Forgets the trace, keeping settings, threshold and memory.
    pub fn reset(&mut self) {
        self.trace.reset();
    }

    /// Sets s, from the next token on.
    ///
    /// # Errors
    /// [`Error::Setting`] when it is not finite.
    pub fn set_threshold(&mut self, threshold: Option<f64>) -> Result<()> {
        self.rules.set_threshold(threshold)
    }

    /// Adds one token's confidence; whether its group is complete and below the threshold.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::OutOfRange`]; the token is then not added.
    #[inline]
    pub fn push(&mut self, c: f64) -> Result<bool> {
        check_confidence(c, Place::Position(0))?;
        Ok(self.trace.add(c, &self.rules))
    }

    /// Adds tokens up to and including the first that asks for a stop, and returns its index.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::OutOfRange`] naming the position; nothing is then added.
    pub fn extend<T: Sample>(&mut self, confidences: &[T]) -> Result<Option<usize>> {
        for (position, c) in confidences.iter().enumerate() {
            check_confidence(c.wide(), Place::Position(position))?;
        }
        Ok(confidences.iter().position(|c| self.trace.add(c.wide(), &self.rules)))
    }

    /// The group that ends at the last token, in nats; `None` before w tokens.
    #[must_use]
    pub fn group(&self) -> Option<f64> {
        self.trace.group(&self.rules)
    }

    /// Lowest group confidence so far; before w tokens the mean of what there is, NaN for nothing.
    #[must_use]
    pub fn lowest_group(&self) -> f64 {
        self.trace.lowest_group(&self.rules)
    }

    /// Average confidence so far; NaN for nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.trace.mean()
    }

    /// Tail confidence so far, O(t); NaN for nothing.
    #[must_use]
    pub fn tail(&self) -> f64 {
        self.trace.tail(&self.rules)
    }

    /// n, the tokens seen.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.trace.num_tokens
    }

    /// s, the threshold.
    #[must_use]
    pub fn threshold(&self) -> Option<f64> {
        self.rules.threshold
    }

    /// Whether a group is complete, so that the threshold can stop the trace.
    #[must_use]
    pub fn armed(&self) -> bool {
        self.trace.armed(&self.rules)
    }

    /// All scores so far, as [`crate::trace::score`] has them; without `bottom`, that one is NaN.
    ///
    /// O(n) with `bottom`, O(t) without.
    #[must_use]
    pub fn scores(&self) -> Scores {
        if self.rules.keeps_all {
            return score_quantised(
                &self.trace.recent[..self.num_tokens() as usize],
                &self.rules.settings,
            );
        }
        Scores {
            mean: self.mean(),
            lowest_group: self.lowest_group(),
            bottom_group: f64::NAN,
            tail: self.tail(),
            num_tokens: self.num_tokens(),
            short: 0 < self.num_tokens() && !self.armed(),
        }
    }
}

/// Follows many traces, one decode step of the whole batch at a time.
#[derive(Clone, Debug)]
pub struct BatchScorer {
    rules: Rules,
    slots: Vec<Followed>,
}

impl BatchScorer {
    /// `slots` scorers with one setting each; the bottom-group score is not kept.
    ///
    /// # Errors
    /// As [`TraceScorer::new`], and for more slots than [`MAX_SLOTS`].
    pub fn new(slots: usize, settings: StreamSettings) -> Result<Self> {
        if slots > MAX_SLOTS {
            return Err(Error::setting("slots", slots, format!("must be {MAX_SLOTS} at the most")));
        }
        let rules = Rules::new(StreamSettings { bottom: None, ..settings })?;
        Ok(Self { rules, slots: vec![Followed::NOTHING; slots] })
    }

    /// Adds one token to each slot named; `stop[i]` says whether slot `slot_ids[i]` should stop.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Setting`] for a slot that does not exist; [`Error::NotFinite`] and
    /// [`Error::OutOfRange`] naming the position. Nothing is added then.
    pub fn step<T: Sample>(
        &mut self,
        slot_ids: &[i64],
        confidences: &[T],
        stop: &mut [bool],
    ) -> Result<()> {
        let lengths = [("confidences", confidences.len()), ("stop", stop.len())];
        for (right, right_len) in lengths {
            let (left, left_len) = ("slot_ids", slot_ids.len());
            if left_len != right_len {
                return Err(Error::Length { left, left_len, right, right_len });
            }
        }
        for (position, (&slot, c)) in slot_ids.iter().zip(confidences).enumerate() {
            self.check_slot(slot)?;
            check_confidence(c.wide(), Place::Position(position))?;
        }
        for ((&slot, c), stop) in slot_ids.iter().zip(confidences).zip(stop) {
            *stop = self.slots[slot as usize].add(c.wide(), &self.rules);
        }
        Ok(())
    }

    /// Empties the slots named, for new traces.
    ///
    /// # Errors
    /// [`Error::Setting`] for a slot that does not exist.
    pub fn reset(&mut self, slot_ids: &[i64]) -> Result<()> {
        slot_ids.iter().try_for_each(|&slot| self.check_slot(slot))?;
        slot_ids.iter().for_each(|&slot| self.slots[slot as usize].reset());
        Ok(())
    }

    /// Sets s for every slot, from the next token on.
    ///
    /// # Errors
    /// [`Error::Setting`] when it is not finite.
    pub fn set_threshold(&mut self, threshold: Option<f64>) -> Result<()> {
        self.rules.set_threshold(threshold)
    }

    /// How many slots there are.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// As [`TraceScorer::group`], slot by slot.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = Option<f64>> {
        self.slots.iter().map(|slot| slot.group(&self.rules))
    }

    /// As [`TraceScorer::lowest_group`], slot by slot.
    pub fn lowest_groups(&self) -> impl ExactSizeIterator<Item = f64> {
        self.slots.iter().map(|slot| slot.lowest_group(&self.rules))
    }

    /// The tokens seen, slot by slot.
    pub fn num_tokens(&self) -> impl ExactSizeIterator<Item = u64> {
        self.slots.iter().map(|slot| slot.num_tokens)
    }

    fn check_slot(&self, slot: i64) -> Result<()> {
        if usize::try_from(slot).is_ok_and(|slot| slot < self.slots.len()) {
            return Ok(());
        }
        let expected = format!("there are {} slots, counted from 0", self.slots.len());
        Err(Error::setting("slot_ids", slot, expected))
    }
}
