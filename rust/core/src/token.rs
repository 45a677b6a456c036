//! Token confidence and token entropy, from the log-probabilities of the likeliest tokens.
//!
//! Token confidence (equation 2 of the paper) is `C = −(1/k) · Σ log p` over the k most likely
//! tokens. It is *higher* when the model is surer: a peaked distribution pushes the alternatives
//! far down. Log-probabilities are raw, in nats: before temperature, penalties and masks.
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
//! **Cost.** One conversion and one addition an entry, memory-bound for float32 tables.

use half::f16;
use rayon::prelude::*;

use crate::error::{Error, Place, Result};

/// A number that scores are computed from: `f16`, `f32` or `f64`.
pub trait Sample: Copy + Default + Send + Sync + 'static {
    /// The bits without the sign, which are ordered as magnitudes are: numbers, infinity, NaN.
    type Magnitude: Copy + Default + Ord;

    /// The value as a float64; exact.
    fn wide(self) -> f64;

    /// Its magnitude.
    fn magnitude(self) -> Self::Magnitude;

    /// The number of that magnitude.
    fn of_magnitude(bits: Self::Magnitude) -> Self;
}

macro_rules! sample {
    ($float:ty, $bits:ty, $wide:expr) => {
        impl Sample for $float {
            type Magnitude = $bits;

            #[inline(always)]
            fn wide(self) -> f64 {
                $wide(self)
            }

            #[inline(always)]
            fn magnitude(self) -> $bits {
                self.to_bits() & (<$bits>::MAX >> 1)
            }

            #[inline(always)]
            fn of_magnitude(bits: $bits) -> Self {
                Self::from_bits(bits)
            }
        }
    };
}

sample!(f32, u32, f64::from);
sample!(f64, u64, |c| c);
sample!(f16, u16, half_to_f64);

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
#[inline]
#[must_use]
pub fn confidence<T: Sample>(row: &[T], floor: Option<f64>) -> f32 {
    let sum = match floor {
        None => sum(row, |l| l),
        // `max` would turn a NaN into the floor.
        Some(floor) => sum(row, |l| if l < floor { floor } else { l }),
    };
    (-sum / row.len() as f64) as f32
}

#[inline]
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
    let door = |l: f64| floor.filter(|&floor| l < floor).unwrap_or(l);
    let logs = || row.iter().map(|l| door(l.wide()));
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
    /// [`Error::NotFinite`] naming row and column.
    pub fn confidence(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        self.map(floor, confidence)
    }

    /// The entropy of each token, `[n]`, in nats (equation 1), renormalised over the k entries.
    ///
    /// Over a whole distribution this is the entropy; over the top k it is a proxy that says how
    /// spread the likeliest tokens are among themselves.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming row and column.
    pub fn entropy(&self, floor: Option<f64>) -> Result<Vec<f32>> {
        self.map(floor, entropy)
    }

    fn map(&self, floor: Option<f64>, score: fn(&[T], Option<f64>) -> f32) -> Result<Vec<f32>> {
        check_floor(floor)?;
        let mut scores = vec![0.0_f32; self.values.len() / self.k];
        let sound = scores
            .par_chunks_mut(ROWS)
            .zip(self.values.par_chunks(ROWS * self.k))
            .map(|(scores, values)| {
                let mut sound = true;
                for (slot, row) in scores.iter_mut().zip(values.chunks_exact(self.k)) {
                    *slot = score(row, floor);
                    sound &= slot.is_finite();
                }
                sound
            })
            .reduce(|| true, |a, b| a & b);
        if sound { Ok(scores) } else { Err(self.blame(floor)) }
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
        fn agrees_with_the_oracle(k in 1_usize..24, rows in 0_usize..40, seed in prop::collection::vec(-30.0_f32..0.0, 960)) {
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
        assert_eq!(Table::new(&[-3.0_f32], 1).unwrap().entropy(None).unwrap(), [0.0]);
    }
}
