//! Traces and settings worth trying, drawn from bytes: those of a fuzzer, or of [`bytes`].
//!
//! What has been found to matter: large offsets with small noise, values of a few quanta, the lowest
//! groups at the very end, thousands of large values, sums at the edge of 64 bits, and sixty binades
//! in one trace.

// Each test file uses its own part.
#![allow(dead_code)]

use arbitrary::{Result, Unstructured};
use deepconf_core::trace::Settings;

use crate::oracle::Dice;
use crate::quanta::QUANTA;

/// The longest trace.
const LONGEST: usize = 12_000;

/// Bytes for what is drawn here, out of a seed.
pub fn bytes(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..32).flat_map(|_| dice.next().to_le_bytes()).collect()
}

/// A window or tail near every size where the code takes another path.
fn near(u: &mut Unstructured, n: usize) -> Result<u64> {
    let at = *u.choose(&[1, 2, 16, 64, 80, 128, 192, 256, 512, 1_024, 2_048, n, n / 2])?;
    let off = u.int_in_range(-2..=2)?;
    Ok((at as i64 + off).max(1) as u64)
}

/// Settings for a trace of `n` tokens.
pub fn settings(u: &mut Unstructured, n: usize) -> Result<Settings> {
    let window = if u.arbitrary()? { near(u, n)? } else { u.int_in_range(1..=n.max(1) as u64)? };
    let tail = near(u, n)?;
    let bottom = match u.int_in_range(0..=3)? {
        0 => *u.choose(&[1.0, 1e-12, 0.999, 0.5, 0.29])?,
        1 => (f64::from(u.arbitrary::<u16>()?) + 1.0) / 65_536.0,
        _ => 0.1,
    };
    let decimals = if u.ratio(1, 6)? { Some(u.int_in_range(0..=9)?) } else { None };
    Ok(Settings::default().window(window).tail(tail).bottom(bottom).decimals(decimals))
}

/// How many tokens.
pub fn length(u: &mut Unstructured) -> Result<usize> {
    let most = *u.choose(&[0, 1, 40, 600, 2_600, LONGEST])?;
    u.int_in_range(0..=most)
}

/// How large the values of a trace are, nats.
fn scale(u: &mut Unstructured, n: usize, window: u64) -> Result<f64> {
    // Where a group's sum leaves 64 bits.
    let edge = 2_097_152.0 / (window as usize).min(n).max(1) as f64;
    let scale = match u.int_in_range(0..=4)? {
        0 => f64::from(u.int_in_range(1..=255_u8)?) / QUANTA,
        1 => edge * *u.choose(&[0.25, 0.5, 0.999_999, 1.0, 1.000_001])?,
        2 => *u.choose(&[2_047.999, 2_048.0, 2_048.001, 1_024.0, 32_767.999, 1e-30, 1e-310])?,
        3 => f64::from(u.int_in_range(-45..=14_i8)?).exp2(),
        _ => f64::from(u.int_in_range(1..=200_u8)?) / 8.0,
    };
    Ok(scale.min(32_767.999))
}

/// What the values of a trace lie around, nats.
fn offset(u: &mut Unstructured) -> Result<f64> {
    match u.int_in_range(0..=3)? {
        0 => Ok(f64::from(u.arbitrary::<i16>()?) / 16.0),
        1 => Ok(*u.choose(&[1_000.0, -1_000.0, 2_000.0, 32_000.0])?),
        _ => Ok(0.0),
    }
}

fn sign(positive: bool) -> f64 {
    if positive { 1.0 } else { -1.0 }
}

/// How many shapes there are.
const SHAPES: usize = 14;

/// `n` values in [−1, 1] of one shape.
fn shape(shape: usize, n: usize, period: usize, dice: &mut Dice) -> Vec<f64> {
    let mut state = 1.0;
    let mut value = |at: usize| {
        let part = at as f64 / n as f64;
        let noise = 2.0 * dice.unit() - 1.0;
        match shape {
            0 => 1.0,
            1 => noise,
            2 => dice.unit(),
            3 => part,
            // The lowest groups stand in the last, partial block.
            4 => 1.0 - part,
            5 => (noise * 8.0).round() / 8.0,
            // Sixty binades.
            6 => noise.signum() * (-(dice.below(60) as f64)).exp2(),
            7 => sign((at / period).is_multiple_of(2)),
            8 => sign(!at.is_multiple_of(period)),
            // A collapse at the end.
            9 if at + period >= n => -1.0,
            9 => 1.0 + noise * 1e-3,
            10 => {
                state = f64::clamp(state + noise * 0.05, -1.0, 1.0);
                state
            }
            // Levels, each held for a while.
            11 => {
                state = if dice.below(period) == 0 { noise } else { state };
                state
            }
            12 => *[1.0, -1.0, 0.0, -0.0].get(dice.below(4)).unwrap_or(&0.0),
            _ if dice.below(50) == 0 => noise,
            _ => 0.0,
        }
    };
    (0..n).map(&mut value).collect()
}

/// A trace of `n` tokens: a shape, a size, an offset, noise, and tokens that the input sets itself,
/// some of which no confidence may be.
pub fn trace(u: &mut Unstructured, n: usize, window: u64) -> Result<Vec<f64>> {
    let (scale, offset) = (scale(u, n, window)?, offset(u)?);
    let (period, kind) = (u.int_in_range(1..=130)?, u.int_in_range(0..=SHAPES - 1)?);
    let mut values = shape(kind, n, period, &mut Dice(u.arbitrary()?));
    values.iter_mut().for_each(|value| *value = offset + scale * *value);
    for _ in 0..u.int_in_range(0..=8)? {
        let Some(last) = n.checked_sub(1) else { break };
        // Counted from the end, where a partial block is.
        values[last - u.int_in_range(0..=last)?] = match u.int_in_range(0..=7)? {
            0 => f64::from(u.arbitrary::<f32>()?),
            1 => u.arbitrary()?,
            2..5 => f64::from(u.arbitrary::<i8>()?) / QUANTA,
            _ => offset + f64::from(u.arbitrary::<i16>()?) / 16.0,
        };
    }
    Ok(values)
}
