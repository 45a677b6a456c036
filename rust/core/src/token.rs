//! Token confidence and token entropy, from the log-probabilities of the likeliest tokens.
//!
//! Token confidence (equation 2 of the paper) is `C = −(1/k) · Σ log p` over the k most likely
//! tokens. It is *higher* when the model is surer: a peaked distribution pushes the alternatives
//! far down. With k = 1 there are no alternatives and it would be *lower* when the model is surer, so
//! that is refused. Log-probabilities are raw, in nats: before temperature, penalties and masks.
//!
//! ```
//! use deepconf_core::token::{self, Table};
//!
//! let peaked = [-0.01_f32, -6.0, -7.0, -8.0];
//! let flat = [-1.2_f32, -1.3, -1.4, -1.7];
//! let table = Table::new(&[peaked, flat].concat(), 4)?.confidence(None)?;
//! assert_eq!(table, [5.2525, 1.4]);
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Arithmetic.** A row is added in float64, in four lanes (lane j takes columns j, j + 4, …) that
//! are joined as `(0 + 2) + (1 + 3)`, and the mean is rounded to float32 once. Every path (dense
//! tables, vLLM's flat lists, dicts) goes through this one definition.
//!
//! **Cost.** One conversion and one addition an entry, memory-bound for float32 tables. From logits:
//! a maximum and an exponential an entry, the second read from the cache.

use half::f16;

use std::cell::RefCell;

use crate::error::{Error, Place, Result};
use crate::{parallel, simd};

/// A number that scores are computed from: `f16`, `f32` or `f64`.
pub trait Sample: Copy + Default + Send + Sync + 'static {
    /// The value as a float64; exact.
    fn wide(self) -> f64;
}

macro_rules! sample {
    ($float:ty, $wide:expr) => {
        impl Sample for $float {
            #[inline(always)]
            fn wide(self) -> f64 {
                $wide(self)
            }
        }
    };
}

sample!(f32, f64::from);
sample!(f64, |c| c);
sample!(f16, half_to_f64);

/// Exact for finite values, and in vectors on every CPU.
#[inline(always)]
fn half_to_f64(c: f16) -> f64 {
    // The exponent and fraction stand 13 bits further up in a float32, whose exponent counts from 127
    // and not from 15.
    let bits = u32::from(c.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    // Infinity and NaN, 2¹⁶ so far, get their exponent.
    let special = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
    f64::from(f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16))
}

/// The token confidence of one row of log-probabilities, NaN for an empty one.
///
/// Does not look for non-finite values: they come out as a non-finite confidence.
#[inline(always)]
#[must_use]
pub fn confidence<T: Sample>(row: &[T], floor: Option<f64>) -> f32 {
    let sum = match floor {
        None => sum(row, |l| l),
        // `max` would turn a NaN into the floor.
        Some(floor) => sum(row, |l| if l < floor { floor } else { l }),
    };
    (-sum / row.len() as f64) as f32
}

#[inline(always)]
fn sum<T: Sample>(row: &[T], door: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0_f64; 4];
    let (fours, rest) = row.as_chunks::<4>();
    for four in fours {
        for (lane, &l) in lanes.iter_mut().zip(four) {
            *lane += door(l.wide());
        }
    }
    for (lane, &l) in lanes.iter_mut().zip(rest) {
        *lane += door(l.wide());
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// The entropy, in nats, of one row of log-probabilities, renormalised over its entries; NaN when one
/// of them is not finite.
fn entropy<T: Sample>(row: &[T], floor: Option<f64>) -> f32 {
    let logs = || row.iter().map(|l| clip(l.wide(), floor));
    let top = logs().fold(f64::NEG_INFINITY, f64::max);
    // With q = e^(l − top): H = ln Σq − Σ q·(l − top) / Σq. A masked entry makes 0·(−∞), a NaN.
    let (mass, moment) = logs().fold((0.0, 0.0), |(mass, moment), l| {
        let q = (l - top).exp();
        (mass + q, moment + q * (l - top))
    });
    (mass.ln() - moment / mass) as f32
}

/// Log-probabilities of n tokens, k entries each: `[n, k]`, row-major, in nats.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a, T> {
    values: &'a [T],
    k: usize,
}

/// Rows are handed to threads in runs of this many.
const ROWS: usize = 4_096;

/// Scores rows of k into as many slots; whether all are finite.
type Score<T> = fn(&[T], usize, Option<f64>, &mut [f32]) -> bool;

#[inline(always)]
fn fill<T>(values: &[T], k: usize, scores: &mut [f32], score: impl Fn(&[T]) -> f32) -> bool {
    let mut sound = true;
    for (slot, row) in scores.iter_mut().zip(values.chunks_exact(k)) {
        *slot = score(row);
        sound &= slot.is_finite();
    }
    sound
}

/// [`fill`] with the token confidences of rows of `K`.
#[inline(always)]
fn fill_rows<T: Sample, const K: usize>(values: &[T], scores: &mut [f32]) -> bool {
    let mut sound = true;
    for (slot, row) in scores.iter_mut().zip(values.as_chunks::<K>().0) {
        *slot = confidence(row, None);
        sound &= slot.is_finite();
    }
    sound
}

struct Confidences<'a, T> {
    values: &'a [T],
    k: usize,
    floor: Option<f64>,
    scores: &'a mut [f32],
}

impl<T: Sample> simd::Work for Confidences<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn call(self, _: impl simd::Lanes) -> bool {
        let Self { values, k, floor, scores } = self;
        // The usual numbers: loops that the compiler knows the length of.
        match (floor, k) {
            (None, 5) => fill_rows::<T, 5>(values, scores),
            (None, 10) => fill_rows::<T, 10>(values, scores),
            (None, 20) => fill_rows::<T, 20>(values, scores),
            (None, 21) => fill_rows::<T, 21>(values, scores),
            _ => fill(values, k, scores, |row| confidence(row, floor)),
        }
    }
}

impl<'a, T: Sample> Table<'a, T> {
    /// Cuts `values` into rows of `k`.
    ///
    /// # Errors
    /// [`Error::Setting`] when `k` is 0 or does not divide the number of values.
    pub fn new(values: &'a [T], k: usize) -> Result<Self> {
        if k == 0 {
            return Err(Error::setting("k", k, "a row needs at least one log-probability"));
        }
        if !values.len().is_multiple_of(k) {
            let expected = format!("must divide the {} log-probabilities into rows", values.len());
            return Err(Error::setting("k", k, expected));
        }
        Ok(Self { values, k })
    }

    /// The confidence of each token, `[n]`, in nats. `floor` raises smaller entries, −∞ included.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column; [`Error::Setting`] when rows have one entry.
    pub fn confidence(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        check_k("k", self.k)?;
        self.map(floor, |values, k, floor, scores| {
            simd::widest(Confidences { values, k, floor, scores })
        })
    }

    /// The entropy of each token, `[n]`, in nats (equation 1), renormalised over the k entries.
    ///
    /// Over a whole distribution this is the entropy; over the top k it is a proxy that says how
    /// spread the likeliest tokens are among themselves.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column.
    pub fn entropy(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        self.map(floor, |values, k, floor, scores| {
            fill(values, k, scores, |row| entropy(row, floor))
        })
    }

    /// The confidence of each token, `[n]`, in nats, from whole rows of logits, `[n, vocabulary]`.
    ///
    /// The log-softmax is never stored: a row is read twice, once for its largest entries and once for
    /// the sum of exponentials, whose relative error is about 10⁻⁷. −∞ is a token that cannot come;
    /// among the `top` most likely it needs a `floor`, as for [`confidence`](Self::confidence).
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column; [`Error::Setting`] when `top` is not in 2..=k.
    pub fn logits_confidence(&self, top: usize, floor: Option<f64>) -> Result<Vec<f32>> {
        check_k("k", top)?;
        if top > self.k {
            let expected = format!("must be between 2 and the {} logits of a row", self.k);
            return Err(Error::setting("k", top, expected));
        }
        check_floor(floor)?;
        let n = self.values.len() / self.k;
        let one = |row: usize| {
            let logits = &self.values[row * self.k..][..self.k];
            SCRATCH.with_borrow_mut(|scratch| {
                simd::widest(Logits { logits, top, floor, scratch }).ok_or(row)
            })
        };
        let scores = parallel::map(n, one);
        let scores: std::result::Result<Vec<f32>, usize> = scores.into_iter().collect();
        scores.map_err(|_| self.blame_logits(floor))
    }

    fn map(&self, floor: Option<f64>, score: Score<T>) -> Result<Vec<f32>> {
        check_floor(floor)?;
        let mut scores = vec![0.0_f32; self.values.len() / self.k];
        let sound = parallel::fill(&mut scores, ROWS, |at, scores| {
            let values = &self.values[at * ROWS * self.k..][..scores.len() * self.k];
            score(values, self.k, floor, scores)
        });
        if sound { Ok(scores) } else { Err(self.blame(floor)) }
    }

    /// The first logit that cannot be right, as an error.
    #[cold]
    fn blame_logits(&self, floor: Option<f64>) -> Error {
        let wrong = |l: &T| l.wide().is_nan() || l.wide() == f64::INFINITY;
        let at = self.values.iter().position(wrong);
        let masked = || self.values.iter().position(|l| l.wide() == f64::NEG_INFINITY);
        let (at, hint) = match at {
            Some(at) => (at, ""),
            None if floor.is_none() => (
                masked().unwrap_or_default(),
                "; where fewer than k tokens are possible, set logprob_floor or a smaller k",
            ),
            // Every token of some row is masked.
            None => (masked().unwrap_or_default(), "; some token must be possible"),
        };
        Error::NotFinite {
            argument: "logits",
            place: Place::Cell { row: at / self.k, column: at % self.k },
            value: self.values[at].wide(),
            hint,
        }
    }

    /// The first entry that is not finite, as an error.
    #[cold]
    fn blame(&self, floor: Option<f64>) -> Error {
        let bad = |l: f64| !(l.is_finite() || floor.is_some() && l == f64::NEG_INFINITY);
        match self.values.iter().position(|l| bad(l.wide())) {
            Some(at) => Error::NotFinite {
                argument: "logprobs",
                place: Place::Cell { row: at / self.k, column: at % self.k },
                value: self.values[at].wide(),
                hint: "; where a server reports masked tokens as -inf, set logprob_floor",
            },
            // Finite entries whose sum is beyond float32.
            None => {
                Error::setting("logprobs", "of huge magnitude", "must be in nats, from a softmax")
            }
        }
    }
}

/// Logits are looked at in blocks of this many.
const LOGITS: usize = 64;

/// Memory that a thread uses again for each row of logits.
#[derive(Default)]
struct Scratch {
    /// The largest logit of each block.
    maxima: Vec<f32>,
    ranked: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The token confidence of one row of logits; `None` where it is not finite.
struct Logits<'a, T> {
    logits: &'a [T],
    top: usize,
    floor: Option<f64>,
    scratch: &'a mut Scratch,
}

impl<T: Sample> simd::Work for Logits<'_, T> {
    type Output = Option<f32>;

    #[inline(always)]
    fn call(self, _: impl simd::Lanes) -> Option<f32> {
        let Self { logits, top, floor, scratch: Scratch { maxima, ranked } } = self;
        let (blocks, rest) = logits.as_chunks::<LOGITS>();
        let mut sound = true;
        maxima.clear();
        maxima.extend(blocks.iter().map(|block| largest(block, &mut sound)));
        maxima.push(largest(rest, &mut sound));
        let highest = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !(sound && highest.is_finite()) {
            return None;
        }
        let mass: f64 = blocks.iter().map(|block| exponentials(block, highest)).sum::<f64>()
            + exponentials(rest, highest);
        // As many blocks as there are tokens wanted have one at or above the bound.
        ranked.clear();
        ranked.extend_from_slice(maxima);
        let bound = match ranked.len().checked_sub(top) {
            Some(place) => *ranked.select_nth_unstable_by(place, f32::total_cmp).1,
            None => f32::NEG_INFINITY,
        };
        ranked.clear();
        for (block, &max) in logits.chunks(LOGITS).zip(&*maxima) {
            if max >= bound {
                ranked.extend(block.iter().map(|l| l.wide() as f32).filter(|&l| l >= bound));
            }
        }
        ranked.sort_unstable_by(|a, b| b.total_cmp(a));
        let normal = f64::from(highest) + mass.ln();
        let logprob = |&l: &f32| f64::from(l) - normal;
        let sum: f64 = ranked[..top].iter().map(logprob).map(|l| clip(l, floor)).sum();
        let confidence = (-sum / top as f64) as f32;
        confidence.is_finite().then_some(confidence)
    }
}

#[inline(always)]
fn clip(l: f64, floor: Option<f64>) -> f64 {
    floor.filter(|&floor| l < floor).unwrap_or(l)
}

/// The largest of a block; `sound` tells of NaN.
#[inline(always)]
fn largest<T: Sample>(block: &[T], sound: &mut bool) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut number = true;
    for part in block.chunks(16) {
        for (lane, l) in lanes.iter_mut().zip(part) {
            let l = l.wide() as f32;
            *lane = if l > *lane { l } else { *lane };
            number &= !l.is_nan();
        }
    }
    *sound &= number;
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// Σ exp(l − highest) of a block, in nats below the highest.
#[inline(always)]
fn exponentials<T: Sample>(block: &[T], highest: f32) -> f64 {
    let mut lanes = [0.0_f32; 16];
    for part in block.chunks(16) {
        for (lane, l) in lanes.iter_mut().zip(part) {
            *lane += exp(l.wide() as f32 - highest);
        }
    }
    lanes.into_iter().map(f64::from).sum()
}

/// eˣ for x ≤ 0, relative error below 2·10⁻⁷; e⁻⁸⁷ for anything smaller.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, the series of eʳ up to r⁷, and n put into the exponent.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number, which stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few bits, so that n times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const SERIES: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut series = 1.0 / 5_040.0;
    for term in SERIES {
        series = series * r + term;
    }
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(exponent)
}

/// Why one log-probability a token is no confidence.
pub const ONE_IS_TOO_FEW: &str = "must be at least 2: minus the log-probability of the likeliest \
    token alone is lowest where the model is surest, so it would rank traces the wrong way round; \
    ask for 20, as the paper does";

/// Checks how many of the most likely tokens make a token confidence; `name` is what it is called.
///
/// # Errors
/// [`Error::Setting`] when there are fewer than two.
pub fn check_k(name: &'static str, k: usize) -> Result<()> {
    if k < 2 { Err(Error::setting(name, k, ONE_IS_TOO_FEW)) } else { Ok(()) }
}

/// Checks a floor for log-probabilities.
///
/// # Errors
/// [`Error::Setting`] unless it is a finite negative number.
pub fn check_floor(floor: Option<f64>) -> Result<()> {
    match floor {
        Some(floor) if !(floor.is_finite() && floor < 0.0) => Err(Error::setting(
            "logprob_floor",
            floor,
            "must be a finite negative number of nats, such as -100.0",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oracle_confidence(row: &[f32]) -> f64 {
        -row.iter().map(|&l| f64::from(l)).sum::<f64>() / row.len() as f64
    }

    fn oracle_entropy(row: &[f32]) -> f64 {
        let mass: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        -row.iter().map(|&l| f64::from(l).exp() / mass).map(|p| p * p.ln()).sum::<f64>()
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(k in 2_usize..24, rows in 0_usize..40, seed in prop::collection::vec(-30.0_f32..0.0, 960)) {
            let values = &seed[..rows * k];
            let table = Table::new(values, k).unwrap();
            let (confidence, entropy) = (table.confidence(None).unwrap(), table.entropy(None).unwrap());
            prop_assert_eq!(confidence.len(), rows);
            for (i, row) in values.chunks(k).enumerate() {
                prop_assert!((f64::from(confidence[i]) - oracle_confidence(row)).abs() <= 1e-7 * oracle_confidence(row));
                prop_assert!((f64::from(entropy[i]) - oracle_entropy(row)).abs() <= 1e-6);
            }
        }

        #[test]
        fn float64_and_float32_give_the_same_bits(values in prop::collection::vec(-30.0_f32..0.0, 1..100)) {
            let wide: Vec<f64> = values.iter().map(|&l| f64::from(l)).collect();
            prop_assert_eq!(confidence(&values, None).to_bits(), confidence(&wide, None).to_bits());
        }
    }

    #[test]
    fn the_exponential_is_close() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1_000.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= 2e-7 * expected, "{x}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    proptest! {
        #[test]
        fn logits_agree_with_the_oracle(
            vocabulary in 2_usize..700,
            rows in 1_usize..4,
            part in 0.0_f64..1.0,
            scale in 0.01_f32..40.0,
            seed in prop::collection::vec(-1.0_f32..1.0, 2_100),
        ) {
            let k = 2 + ((vocabulary - 2) as f64 * part) as usize;
            let logits: Vec<f32> = seed[..rows * vocabulary].iter().map(|l| l * scale).collect();
            let table = Table::new(&logits, vocabulary).unwrap();
            let confidences = table.logits_confidence(k, None).unwrap();
            for (row, c) in logits.chunks(vocabulary).zip(confidences) {
                let mut row: Vec<f64> = row.iter().map(|&l| f64::from(l)).collect();
                row.sort_by(|a, b| b.total_cmp(a));
                let normal = row.iter().map(|l| (l - row[0]).exp()).sum::<f64>().ln() + row[0];
                let expected = -row[..k].iter().map(|l| l - normal).sum::<f64>() / k as f64;
                prop_assert!((f64::from(c) - expected).abs() <= 3e-7 * (1.0 + expected), "{c}, not {expected}");
            }
        }

        #[test]
        fn float16_widens_exactly(bits in any::<u16>()) {
            let (half, wide) = (f16::from_bits(bits), f16::from_bits(bits).wide());
            prop_assert!(wide == half.to_f64() || wide.is_nan() && half.is_nan());
        }
    }

    #[test]
    fn masked_logits_are_impossible_tokens() {
        const MASKED: f32 = f32::NEG_INFINITY;
        let logits = [1.0, MASKED, 0.0, MASKED];
        let table = Table::new(&logits, 4).unwrap();
        let pair = Table::new(&[1.0_f32, 0.0], 2).unwrap().logits_confidence(2, None).unwrap();
        assert_eq!(table.logits_confidence(2, None).unwrap(), pair);
        let message = table.logits_confidence(3, None).unwrap_err().to_string();
        assert!(message.contains("logits holds -inf at row 0, column 1"), "{message}");
        assert_eq!(
            table.logits_confidence(4, Some(-9.0)).unwrap(),
            [(2.0 * 9.0 + 2.0 * pair[0]) / 4.0]
        );
        for (wrong, place) in
            [([0.0, f32::NAN], "NaN at row 0, column 1"), ([f32::INFINITY, 0.0], "inf at row 0")]
        {
            let message =
                Table::new(&wrong, 2).unwrap().logits_confidence(2, None).unwrap_err().to_string();
            assert!(message.contains(place), "{message}");
        }
        assert!(Table::new(&[MASKED; 3], 3).unwrap().logits_confidence(2, Some(-9.0)).is_err());
        for (k, expected) in
            [(0, "at least 2"), (1, "at least 2: minus the"), (5, "between 2 and the 4 logits")]
        {
            let message = table.logits_confidence(k, None).unwrap_err().to_string();
            assert!(message.starts_with(&format!("k={k}: must be {expected}")), "{message}");
        }
    }

    #[test]
    fn a_non_finite_entry_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![-1.0; 12];
            values[7] = bad;
            let message = Table::new(&values, 5).unwrap_err().to_string();
            assert!(message.contains("k=5"), "{message}");
            let table = Table::new(&values, 4).unwrap();
            for error in [table.confidence(None).unwrap_err(), table.entropy(None).unwrap_err()] {
                assert!(error.to_string().contains("row 1, column 3"), "{error}");
            }
        }
    }

    #[test]
    fn the_floor_clips_masked_tokens_but_not_nan() {
        let masked = [-1.0, f32::NEG_INFINITY, -9_999.0, -2.0];
        let table = Table::new(&masked, 4).unwrap();
        assert_eq!(table.confidence(Some(-50.0)).unwrap(), [25.75]);
        assert!(table.entropy(Some(-50.0)).is_ok());
        let broken = [-1.0, f32::NAN];
        assert!(Table::new(&broken, 2).unwrap().confidence(Some(-50.0)).is_err());
        for floor in [0.0, 1.0, f64::NAN, f64::NEG_INFINITY] {
            assert!(table.confidence(Some(floor)).is_err(), "{floor}");
        }
    }

    #[test]
    fn edges() {
        assert!(Table::new(&[-1.0_f32], 0).is_err());
        assert_eq!(Table::<f32>::new(&[], 20).unwrap().confidence(None).unwrap(), []);
        let uniform = [-(8.0_f32.ln()); 8];
        assert!(
            (Table::new(&uniform, 8).unwrap().entropy(None).unwrap()[0] - 8.0_f32.ln()).abs()
                < 1e-6
        );
        let column = Table::new(&[-3.0_f32], 1).unwrap();
        assert_eq!(column.entropy(None).unwrap(), [0.0]);
        let message = column.confidence(None).unwrap_err().to_string();
        assert!(message.starts_with("k=1: must be at least 2: minus the log-prob"), "{message}");
    }
}
