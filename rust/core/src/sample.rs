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
    pub trait Sealed {}
}

macro_rules! sample {
    ($float:ty, $wide:expr) => {
        impl sealed::Sealed for $float {}

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
