//! The types of float that confidences and log-probabilities come in.

use half::f16;

/// A number that scores are computed from: `f16`, `f32` or `f64`, and no other type.
///
/// That its default is 0 and that it widens without a rounding is relied on.
pub trait Sample: Copy + Default + Send + Sync + sealed::Sealed + 'static {
    /// The value as a float64; exact.
    fn wide(self) -> f64;
}

mod sealed {
    pub trait Sealed {
        /// The narrower of `f32` and `f64` that holds every value.
        type Native: super::Native;

        /// The value; exact.
        fn native(self) -> Self::Native;
    }
}

/// What the CPU compares and subtracts.
pub trait Native: Copy + PartialOrd {
    /// −∞.
    const LOWEST: Self;

    /// The least finite number.
    const MIN: Self;

    /// The number, where this type has it.
    fn exactly(number: f64) -> Option<Self>;

    /// By how much this is above another, rounded to float32 once.
    fn above(self, other: Self) -> f32;

    /// The value as a float64; exact.
    fn wide(self) -> f64;
}

macro_rules! native {
    ($float:ty) => {
        impl Native for $float {
            const LOWEST: Self = <$float>::NEG_INFINITY;
            const MIN: Self = <$float>::MIN;

            fn exactly(number: f64) -> Option<Self> {
                let here = number as $float;
                (f64::from(here) == number).then_some(here)
            }

            #[inline(always)]
            fn above(self, other: Self) -> f32 {
                (self - other) as f32
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }
        }
    };
}

native!(f32);
native!(f64);

macro_rules! sample {
    ($float:ty, $native:ty, $exactly:expr) => {
        impl sealed::Sealed for $float {
            type Native = $native;

            #[inline(always)]
            fn native(self) -> $native {
                $exactly(self)
            }
        }

        impl Sample for $float {
            #[inline(always)]
            fn wide(self) -> f64 {
                sealed::Sealed::native(self).into()
            }
        }
    };
}

sample!(f32, f32, |c| c);
sample!(f64, f64, |c| c);
sample!(f16, f32, half_to_f32);

/// Exact for finite values, and in vectors on every CPU.
#[inline(always)]
fn half_to_f32(c: f16) -> f32 {
    // The exponent and fraction stand 13 bits further up in a float32, whose exponent counts from 127
    // and not from 15.
    let bits = u32::from(c.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    // Infinity and NaN, 2¹⁶ so far, get their exponent.
    let special = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn float16_widens_exactly(bits in any::<u16>()) {
            let (half, wide) = (f16::from_bits(bits), f16::from_bits(bits).wide());
            prop_assert!(wide == half.to_f64() || wide.is_nan() && half.is_nan());
        }
    }
}
