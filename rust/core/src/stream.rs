//! Group confidence while a trace is being generated, and the signal to stop it.
//!
//! [`TraceScorer`] follows one trace, [`BatchScorer`] one decode step of a whole batch. After any
//! number of tokens both report, bit for bit, what [`crate::trace`] says of the same tokens.
//!
//! ```
//! use deepconf_core::trace::{Scorer, Settings};
//!
//! let mut trace = Scorer::new(Settings::default().window(3))?.stream(Some(4.0))?;
//! assert_eq!(trace.extend(&[9.0_f32, 8.0])?, None); // no complete group yet: never a stop
//! assert_eq!(trace.extend(&[1.0_f32, 2.0, 7.0])?, Some(1)); // (8 + 1 + 2) / 3 < 4
//! assert_eq!((trace.num_tokens(), trace.group()), (4, Some(11.0 / 3.0)));
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Cost.** O(1) a token, whatever the window; 8 bytes for each of the last `max(w, t)` tokens, that
//! number made a power of two, grown as they come. With `bottom` set the whole trace is kept (8 bytes
//! a token), since the lowest tenth of all groups cannot be known from less. Many tokens at once
//! ([`TraceScorer::extend`]) cost a third of as many by themselves.

use crate::error::{Error, Place, Result};
use crate::fixed;
use crate::sample::Sample;
use crate::trace::{Checked, Scores, check_confidence, plain};

/// The most slots that a [`BatchScorer`] has.
pub const MAX_SLOTS: usize = 1 << 20;

/// Tokens that are added at once: so many changes of a group fit 64 bits.
const CHUNK: usize = 64;

/// A complete group whose sum is smaller asks for a stop under this threshold.
///
/// An integer comparison then decides exactly as the float comparison of the means would.
fn stop_below(settings: &Checked, threshold: Option<f64>) -> Result<i128> {
    let Some(s) = threshold else { return Ok(i128::MIN) };
    if !s.is_finite() {
        return Err(Error::setting("threshold", s, "must be finite"));
    }
    // No sum is so large: 2³¹ tokens of 2⁵⁵ quanta.
    let (mut below, mut reaching) = (-(1_i128 << 90), 1_i128 << 90);
    while reaching - below > 1 {
        let middle = below + (reaching - below) / 2;
        let side = if settings.lowest(middle) < s { &mut below } else { &mut reaching };
        *side = middle;
    }
    Ok(reaching)
}

/// How many tokens must be kept.
#[inline]
fn capacity(settings: &Checked) -> usize {
    match settings.bottom {
        Some(_) => usize::MAX,
        None => settings.window.max(settings.tail),
    }
}

/// What is known of one trace.
#[derive(Clone, Debug)]
struct Followed {
    /// A ring whose length is a power of two: token i is at i modulo the length.
    recent: Vec<i64>,
    num_tokens: usize,
    total: i128,
    group: i128,
    lowest: i128,
    /// A complete group whose sum is smaller asks for a stop.
    stop_below: i128,
}

impl Followed {
    fn new(stop_below: i128) -> Self {
        Self {
            recent: Vec::new(),
            num_tokens: 0,
            total: 0,
            group: 0,
            lowest: i128::MAX,
            stop_below,
        }
    }

    /// Forgets the trace, keeping threshold and memory.
    fn reset(&mut self) {
        *self = Self { recent: std::mem::take(&mut self.recent), ..Self::new(self.stop_below) };
    }

    /// Adds a token that is in range; whether its group is complete and below the threshold.
    #[inline]
    fn add(&mut self, c: f64, settings: &Checked) -> bool {
        let token = fixed::quantise(settings.round(c));
        self.make_room(1, settings);
        let (at, mask) = (self.num_tokens, self.recent.len() - 1);
        // What leaves the group is read before its place in the ring is used again.
        let old = match at.checked_sub(settings.window) {
            Some(old) => self.recent[old & mask],
            None => 0,
        };
        self.recent[at & mask] = token;
        self.group += i128::from(token - old);
        self.total += i128::from(token);
        self.num_tokens = at + 1;
        if !self.armed(settings) {
            return false;
        }
        self.lowest = self.lowest.min(self.group);
        self.group < self.stop_below
    }

    /// Adds tokens that are in range up to and including the first that asks for a stop.
    fn extend<T: Sample>(&mut self, confidences: &[T], settings: &Checked) -> Option<usize> {
        // One by one until a group is complete.
        let filling = settings.window.saturating_sub(self.num_tokens);
        let (filling, sliding) = confidences.split_at(filling.min(confidences.len()));
        if let Some(stop) = filling.iter().position(|c| self.add(c.wide(), settings)) {
            return Some(stop);
        }
        let mut at = filling.len();
        for chunk in sliding.chunks(CHUNK) {
            let mut quanta = [0; CHUNK];
            let is_fast = |c: &T| c.wide().abs() < fixed::FAST_LIMIT;
            if settings.decimals.is_none() && chunk.iter().fold(true, |all, c| all & is_fast(c)) {
                for (token, c) in quanta.iter_mut().zip(chunk) {
                    *token = fixed::biased(c.wide()).wrapping_sub(fixed::BIAS);
                }
            } else {
                for (token, c) in quanta.iter_mut().zip(chunk) {
                    *token = fixed::quantise(settings.round(c.wide()));
                }
            }
            if let Some(stop) = self.slide(&quanta[..chunk.len()], settings) {
                return Some(at + stop);
            }
            at += chunk.len();
        }
        None
    }

    /// Adds a chunk of tokens in quanta to a trace with a complete group, up to and including the first
    /// that asks for a stop: in 64 bits, as changes of the group.
    #[inline]
    fn slide(&mut self, tokens: &[i64], settings: &Checked) -> Option<usize> {
        self.make_room(tokens.len(), settings);
        let recent = &mut self.recent[..];
        let mask = recent.len() - 1;
        let (new, old) = (self.num_tokens, self.num_tokens - settings.window);
        let stop_below = self.stop_below.saturating_sub(self.group);
        let stop_below = stop_below.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let (mut change, mut least, mut total) = (0, i64::MAX, 0);
        let (mut added, mut stop) = (tokens.len(), None);
        for (i, &token) in tokens.iter().enumerate() {
            // As in `add`: read first.
            change += token - recent[(old + i) & mask];
            recent[(new + i) & mask] = token;
            total += token;
            least = least.min(change);
            if change < stop_below {
                (added, stop) = (i + 1, Some(i));
                break;
            }
        }
        self.lowest = self.lowest.min(self.group + i128::from(least));
        self.group += i128::from(change);
        self.total += i128::from(total);
        self.num_tokens += added;
        stop
    }

    /// Makes the ring longer while it has not come round yet, for `more` tokens, a chunk at the most.
    #[inline]
    fn make_room(&mut self, more: usize, settings: &Checked) {
        let len = self.recent.len();
        if self.num_tokens + more > len && len < capacity(settings) {
            self.grow();
        }
    }

    /// Makes the ring, which has not come round yet, twice as long.
    #[cold]
    fn grow(&mut self) {
        self.recent.resize((2 * self.recent.len()).max(CHUNK), 0);
    }

    #[inline]
    fn armed(&self, settings: &Checked) -> bool {
        self.num_tokens >= settings.window
    }

    fn group(&self, settings: &Checked) -> Option<f64> {
        self.armed(settings).then(|| fixed::mean(self.group, settings.window as u64))
    }

    fn lowest_group(&self, settings: &Checked) -> f64 {
        if self.armed(settings) { settings.lowest(self.lowest) } else { self.mean() }
    }

    fn mean(&self) -> f64 {
        fixed::mean(self.total, self.num_tokens as u64)
    }

    fn tail(&self, settings: &Checked) -> f64 {
        let count = self.num_tokens.min(settings.tail);
        let kept = |token: usize| self.recent[token & (self.recent.len() - 1)];
        let last = (self.num_tokens - count..self.num_tokens).map(kept);
        fixed::mean(last.map(i128::from).sum(), count as u64)
    }
}

/// Follows one trace, a token at a time.
#[derive(Clone, Debug)]
pub struct TraceScorer {
    settings: Checked,
    threshold: Option<f64>,
    trace: Followed,
}

impl TraceScorer {
    pub(crate) fn new(settings: Checked, threshold: Option<f64>) -> Result<Self> {
        let trace = Followed::new(stop_below(&settings, threshold)?);
        Ok(Self { settings, threshold, trace })
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
        self.trace.stop_below = stop_below(&self.settings, threshold)?;
        self.threshold = threshold;
        Ok(())
    }

    /// Adds one token's confidence; whether its group is complete and below the threshold.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::OutOfRange`]; the token is then not added.
    #[inline]
    pub fn push(&mut self, c: f64) -> Result<bool> {
        check_confidence(c, Place::Position(0))?;
        Ok(self.trace.add(c, &self.settings))
    }

    /// Adds tokens up to and including the first that asks for a stop, and returns its index.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::OutOfRange`] naming the position; nothing is then added.
    pub fn extend<T: Sample>(&mut self, confidences: &[T]) -> Result<Option<usize>> {
        // Without a way out, so that it is done in vectors.
        if !confidences.iter().fold(true, |all, c| all & fixed::in_range(c.wide())) {
            for (position, c) in confidences.iter().enumerate() {
                check_confidence(c.wide(), Place::Position(position))?;
            }
        }
        Ok(self.trace.extend(confidences, &self.settings))
    }

    /// The group that ends at the last token, in nats; `None` before w tokens.
    #[must_use]
    pub fn group(&self) -> Option<f64> {
        self.trace.group(&self.settings)
    }

    /// Lowest group confidence so far; before w tokens the mean of what there is, NaN for nothing.
    #[must_use]
    pub fn lowest_group(&self) -> f64 {
        self.trace.lowest_group(&self.settings)
    }

    /// Average confidence so far; NaN for nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.trace.mean()
    }

    /// Tail confidence so far, O(t); NaN for nothing.
    #[must_use]
    pub fn tail(&self) -> f64 {
        self.trace.tail(&self.settings)
    }

    /// n, the tokens seen.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.trace.num_tokens as u64
    }

    /// s, the threshold.
    #[must_use]
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// Whether a group is complete, so that the threshold can stop the trace.
    #[must_use]
    pub fn armed(&self) -> bool {
        self.trace.armed(&self.settings)
    }

    /// All scores so far, as [`Scorer::score`](crate::trace::Scorer::score) has them; without `bottom`,
    /// that one is NaN.
    ///
    /// O(n) with `bottom`, O(t) without.
    #[must_use]
    pub fn scores(&self) -> Scores {
        let n = self.trace.num_tokens;
        if self.settings.bottom.is_some() {
            return plain::score(&self.trace.recent[..n], &self.settings);
        }
        Scores {
            mean: self.mean(),
            lowest_group: self.lowest_group(),
            bottom_group: f64::NAN,
            tail: self.tail(),
            num_tokens: n as u64,
            short: 0 < n && !self.armed(),
        }
    }
}

/// Follows many traces, one decode step of the whole batch at a time.
#[derive(Clone, Debug)]
pub struct BatchScorer {
    settings: Checked,
    slots: Vec<Followed>,
}

impl BatchScorer {
    pub(crate) fn new(slots: usize, settings: Checked, threshold: Option<f64>) -> Result<Self> {
        if slots > MAX_SLOTS {
            return Err(Error::setting("slots", slots, format!("must be {MAX_SLOTS} at the most")));
        }
        let settings = Checked { bottom: None, ..settings };
        let nothing = Followed::new(stop_below(&settings, threshold)?);
        let mut all = Vec::new();
        if all.try_reserve_exact(slots).is_err() {
            return Err(Error::setting("slots", slots, "there is no memory for so many"));
        }
        all.resize(slots, nothing);
        Ok(Self { settings, slots: all })
    }

    /// Adds one token to each slot named; `stop[i]` says whether slot `slot_ids[i]` should stop.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Setting`] for a slot that does not exist; [`Error::NotFinite`] and
    /// [`Error::OutOfRange`] naming the position. Nothing is added then.
    pub fn step<T: Sample>(
        &mut self,
        slot_ids: &[usize],
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
            *stop = self.slots[slot].add(c.wide(), &self.settings);
        }
        Ok(())
    }

    /// Empties the slots named, for new traces.
    ///
    /// # Errors
    /// [`Error::Setting`] for a slot that does not exist.
    pub fn reset(&mut self, slot_ids: &[usize]) -> Result<()> {
        slot_ids.iter().try_for_each(|&slot| self.check_slot(slot))?;
        slot_ids.iter().for_each(|&slot| self.slots[slot].reset());
        Ok(())
    }

    /// Sets s for every slot, from the next token on.
    ///
    /// # Errors
    /// [`Error::Setting`] when it is not finite.
    pub fn set_threshold(&mut self, threshold: Option<f64>) -> Result<()> {
        let stop_below = stop_below(&self.settings, threshold)?;
        self.slots.iter_mut().for_each(|slot| slot.stop_below = stop_below);
        Ok(())
    }

    /// Sets s for the slots named, from their next token on; it outlasts a [`reset`](Self::reset).
    ///
    /// # Errors
    /// [`Error::Setting`] when it is not finite, or a slot does not exist. Nothing is set then.
    pub fn set_threshold_of(&mut self, slot_ids: &[usize], threshold: Option<f64>) -> Result<()> {
        let stop_below = stop_below(&self.settings, threshold)?;
        slot_ids.iter().try_for_each(|&slot| self.check_slot(slot))?;
        slot_ids.iter().for_each(|&slot| self.slots[slot].stop_below = stop_below);
        Ok(())
    }

    /// How many slots there are.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// As [`TraceScorer::group`], slot by slot.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = Option<f64>> {
        self.slots.iter().map(|slot| slot.group(&self.settings))
    }

    /// As [`TraceScorer::lowest_group`], slot by slot.
    pub fn lowest_groups(&self) -> impl ExactSizeIterator<Item = f64> {
        self.slots.iter().map(|slot| slot.lowest_group(&self.settings))
    }

    /// The tokens seen, slot by slot.
    pub fn num_tokens(&self) -> impl ExactSizeIterator<Item = u64> {
        self.slots.iter().map(|slot| slot.num_tokens as u64)
    }

    fn check_slot(&self, slot: usize) -> Result<()> {
        if slot < self.slots.len() {
            return Ok(());
        }
        let expected = format!("there are {} slots, counted from 0", self.slots.len());
        Err(Error::setting("slot_ids", slot, expected))
    }
}
