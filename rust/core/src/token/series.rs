//! Exponential and logarithm as loops of additions and multiplications, which become vectors.
//!
//! No step is left to the CPU's choice (such as fused multiplications), so the bits are the same on all.

/// eˣ for x ≤ 0, relative error below 2·10⁻⁷; 0 for x < −87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, and n put into the exponent.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number, which stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few bits, so that n times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Of the least relative error on the interval, 4·10⁻⁹.
    const SERIES: [f32; 6] = [0.008_368_717, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0];
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut series = 0.001_381_459_9;
    for term in SERIES {
        series = series * r + term;
    }
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23;
    let power = series * f32::from_bits(exponent);
    if x < -87.0 { 0.0 } else { power }
}

/// ln x for finite x ≥ 1, error below 10⁻⁹ + 10⁻⁹ · ln x.
///
/// x = 2ⁿ·f with f in [√½, √2), and ln f = 2·artanh((f − 1) / (f + 1)) as a series.
#[inline(always)]
pub(super) fn ln(x: f64) -> f64 {
    /// 2⁵²: a whole number in its low bits is added to it.
    const MAGIC: f64 = 4_503_599_627_370_496.0;
    const FRACTION: u64 = (1 << 52) - 1;
    /// 1/3, 1/5, … of the series.
    const SERIES: [f64; 4] = [1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0];
    // Bits counted from those of √½, so that the exponent's change where f begins anew.
    let bits = x.to_bits().wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits());
    let n = f64::from_bits((bits >> 52) | MAGIC.to_bits()) - MAGIC;
    let f =
        f64::from_bits((bits & FRACTION).wrapping_add(std::f64::consts::FRAC_1_SQRT_2.to_bits()));
    let s = (f - 1.0) / (f + 1.0);
    let square = s * s;
    let mut series = 1.0 / 11.0;
    for term in SERIES {
        series = series * square + term;
    }
    n * std::f64::consts::LN_2 + 2.0 * s * (1.0 + square * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_close() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1_000.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= 2e-7 * expected, "{x}");
        }
        assert_eq!((exp(0.0), exp(-87.1), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn the_logarithm_is_close() {
        for i in 0..=300_000 {
            let x = (f64::from(i) / 10_000.0).exp();
            assert!((ln(x) - x.ln()).abs() <= 1e-9 * (1.0 + x.ln()), "{x}: {}", ln(x));
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
