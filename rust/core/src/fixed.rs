//! The one definition of every sum of confidences.
//!
//! A confidence is rounded once, at the door, to a whole number of quanta of 2⁻⁴⁰ nats
//! ([`quantise`]). From there on sums are integer sums: exact, associative and free of drift. So
//! a window slid by a billion tokens equals a fresh one, and streaming, batch, replay, any thread
//! count and any CPU agree bit for bit, without anyone having to keep an order of additions.
//!
//! **Range.** Confidences must lie within ±[`LIMIT`] = 32,768 nats; anything beyond is refused
//! with an error, never clipped. (A token whose every alternative is masked at −9999 is still in.)
//!
//! **Accuracy.** The rounding is at most 2⁻⁴¹ ≈ 4.5e-13 nats a token, in absolute terms. A float32
//! of magnitude 2⁻¹⁷ ≈ 7.6e-6 or more is a whole number of quanta, and so exact; for k ≥ 2 every
//! token confidence is at least ln k, and so exact. What is left is one float64 division.
//!
//! **Width.** The batch path adds in 64 bits while `w · max|C| < 2²¹` nats (a window of 2,048 up to
//! 1,024 nats), and in 128 bits beyond. The streaming scorer adds in 128 bits throughout. Being
//! exact, they agree.
//!
//! **Cost.** One floating-point addition a token, without a branch: adding 6,144 to a confidence
//! leaves its quanta in the low bits, and the bias cancels in the difference of two.

/// The number of fraction bits: a quantum is 2⁻⁴⁰ nats.
pub const FRACTION_BITS: u32 = 40;

/// Confidences must be smaller than this in magnitude, in nats.
pub const LIMIT: f64 = 32_768.0;

/// Below this magnitude [`biased`] is exact.
pub(crate) const FAST_LIMIT: f64 = 2_048.0;

/// Below this many nats a group's sum fits 64 bits, with room to add and subtract.
pub(crate) const NARROW_LIMIT: f64 = 2_097_152.0;

const SCALE: f64 = (1_u64 << FRACTION_BITS) as f64;

/// 1.5 · 2¹²: a float64 between 2¹² and 2¹³ has a unit in the last place of 2⁻⁴⁰, so adding this
/// rounds to the nearest quantum, ties to even, and leaves the number of quanta in the low bits.
const MAGIC: f64 = 6_144.0;

/// What [`biased`] makes of nothing.
pub(crate) const BIAS: i64 = MAGIC.to_bits() as i64;

/// The confidence `c` in quanta, rounded to nearest, ties to even.
///
/// `c` must be in range: see [`in_range`].
///
/// ```
/// use deepconf_core::fixed::quantise;
/// assert_eq!(quantise(0.5), 1 << 39);
/// assert_eq!(quantise(-32_767.0), -(32_767 << 40));
/// ```
#[inline]
#[must_use]
pub fn quantise(c: f64) -> i64 {
    if c.abs() < FAST_LIMIT {
        biased(c).wrapping_sub(BIAS)
    } else {
        (c * SCALE).round_ties_even() as i64
    }
}

/// [`quantise`] plus [`BIAS`], for magnitudes below [`FAST_LIMIT`].
#[inline(always)]
pub(crate) fn biased(c: f64) -> i64 {
    (c + MAGIC).to_bits() as i64
}

/// At least as many quanta as `c`, 0 ≤ c < 2¹⁶ nats, and as the rounding of 64 confidences beside it.
#[inline(always)]
pub(crate) fn quanta_above(c: f64) -> i64 {
    // As in `biased`, in units of 2⁻³⁵.
    const MAGIC: f64 = 196_608.0;
    (((c + MAGIC).to_bits() as i64 - MAGIC.to_bits() as i64) << 5) + 64
}

/// Whether `c` is finite and within ±[`LIMIT`].
#[inline]
#[must_use]
pub fn in_range(c: f64) -> bool {
    c.abs() < LIMIT
}

/// The mean, in nats, of `count` quantised confidences that add up to `sum`; NaN for none.
///
/// The sum is rounded to float64 once and divided once, so equal sums give equal bits, and a
/// larger sum never gives a smaller mean.
#[inline]
#[must_use]
pub fn mean(sum: i128, count: u64) -> f64 {
    sum as f64 / count as f64 / SCALE
}

/// [`mean`] of a sum that fits 64 bits: the same bits, for less.
#[inline(always)]
pub(crate) fn mean_narrow(sum: i64, count: u64) -> f64 {
    sum as f64 / count as f64 / SCALE
}

/// 10⁰ to 10⁹, which are exact; of `powi` Rust leaves the precision open.
const POWERS: [f64; 10] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// How a confidence is rounded before it is quantised; known when a kernel is compiled.
pub(crate) trait Rounding: Copy {
    /// The confidence as it enters the sums.
    fn round(self, c: f64) -> f64;
}

/// Not at all.
#[derive(Clone, Copy)]
pub(crate) struct Exact;

impl Rounding for Exact {
    #[inline(always)]
    fn round(self, c: f64) -> f64 {
        c
    }
}

/// To so many decimals, ties to even, as NumPy rounds; holds their power of ten.
#[derive(Clone, Copy)]
pub(crate) struct Decimals(f64);

impl Decimals {
    /// Of settings that are checked: nine at the most.
    #[inline(always)]
    pub(crate) fn new(decimals: u8) -> Self {
        Self(POWERS[usize::from(decimals)])
    }
}

impl Rounding for Decimals {
    #[inline(always)]
    fn round(self, c: f64) -> f64 {
        (c * self.0).round_ties_even() / self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fast_and_plain_quantisation_agree(c in -2_048.0_f64..2_048.0) {
            prop_assert_eq!(biased(c) - BIAS, (c * SCALE).round_ties_even() as i64);
        }

        #[test]
        fn a_float32_above_the_quantum_is_exact(c in prop_oneof![8e-6_f32..32_767.0, -32_767.0_f32..-8e-6]) {
            prop_assert_eq!(quantise(f64::from(c)) as f64 / SCALE, f64::from(c));
        }

        #[test]
        fn means_grow_with_their_sums(sum in any::<i64>(), step in 0_i64..1 << 40, count in 1_u64..1 << 40) {
            prop_assert!(mean(i128::from(sum), count) <= mean(i128::from(sum) + i128::from(step), count));
        }
    }

    #[test]
    fn range() {
        for (c, inside) in [
            (0.0, true),
            (32_767.999, true),
            (-32_767.999, true),
            (32_768.0, false),
            (f64::INFINITY, false),
            (f64::NEG_INFINITY, false),
            (f64::NAN, false),
        ] {
            assert_eq!(in_range(c), inside, "{c}");
        }
    }

    #[test]
    fn the_mean_of_nothing_is_nan() {
        assert!(mean(0, 0).is_nan());
    }
}
