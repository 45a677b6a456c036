//! What the fuzz targets share: traces worth trying, and the definitions in whole quanta.

use arbitrary::{Result, Unstructured};
use deepconf_core::trace::Settings;

#[path = "../../rust/core/tests/oracle/mod.rs"]
pub mod oracle;

use oracle::Dice;

/// Quanta in a nat.
const QUANTA: f64 = (1_u64 << 40) as f64;

/// The longest trace.
const LONGEST: usize = 6_000;

/// A window or tail near every size where the code takes another path.
fn near(u: &mut Unstructured, n: usize) -> Result<u64> {
    let at = *u.choose(&[1, 2, 16, 64, 80, 128, 192, 256, 512, 1_024, 2_048, n, n / 2])?;
    let off = u.int_in_range(-2..=2)?;
    Ok((at as i64 + off).max(1) as u64)
}

/// Settings for a trace of `n` tokens.
pub fn settings(u: &mut Unstructured, n: usize) -> Result<Settings> {
    let window = if u.arbitrary()? { near(u, n)? } else { u.int_in_range(1..=n.max(1) as u64)? };
    Ok(Settings {
        window,
        tail: near(u, n)?,
        bottom: match u.int_in_range(0..=3)? {
            0 => *u.choose(&[1.0, 1e-12, 0.999, 0.5, 0.29])?,
            1 => (f64::from(u.arbitrary::<u16>()?) + 1.0) / 65_536.0,
            _ => 0.1,
        },
        decimals: if u.ratio(1, 6)? { Some(u.int_in_range(0..=9)?) } else { None },
    })
}

/// How many tokens.
pub fn length(u: &mut Unstructured) -> Result<usize> {
    let most = *u.choose(&[0, 1, 40, 600, 2_600, LONGEST])?;
    u.int_in_range(0..=most)
}

/// A trace of `n` tokens: a shape, a size, an offset, noise, and tokens that the input sets itself.
///
/// What has been found to matter: large offsets with small noise, values of a few quanta, the lowest
/// groups at the very end, sums at the edge of 64 bits, and sixty binades in one trace.
pub fn trace(u: &mut Unstructured, n: usize, window: u64) -> Result<Vec<f64>> {
    let edge = 2_097_152.0 / (window as usize).min(n).max(1) as f64;
    let scale = match u.int_in_range(0..=4)? {
        0 => f64::from(u.int_in_range(1..=255_u8)?) / QUANTA,
        1 => edge * *u.choose(&[0.25, 0.5, 0.999_999, 1.0, 1.000_001])?,
        2 => *u.choose(&[2_047.999, 2_048.0, 2_048.001, 1_024.0, 32_767.999, 1e-30, 1e-310])?,
        3 => (f64::from(u.int_in_range(-45..=14_i8)?)).exp2(),
        _ => f64::from(u.int_in_range(1..=200_u8)?) / 8.0,
    };
    let scale = scale.min(32_767.999);
    let offset = match u.int_in_range(0..=3)? {
        0 => f64::from(u.arbitrary::<i16>()?) / 16.0,
        1 => *u.choose(&[1_000.0, -1_000.0, 2_000.0, 32_000.0])?,
        _ => 0.0,
    };
    let period = u.int_in_range(1..=130)?;
    let shape = u.int_in_range(0..=11)?;
    let dice = &mut Dice(u.arbitrary()?);
    let mut state = 0.0;
    let mut value = |at: usize| {
        let part = at as f64 / n as f64;
        let noise = 2.0 * dice.unit() - 1.0;
        scale
            * match shape {
                0 => 1.0,
                1 => noise,
                2 => dice.unit(),
                3 => part,
                4 => 1.0 - part,
                5 => (noise * 8.0).round() / 8.0,
                6 => noise.signum() * (-(dice.below(60) as f64)).exp2(),
                7 => f64::from(at / period % 2 == 0) * 2.0 - 1.0,
                8 => {
                    if at % period == 0 {
                        -1.0
                    } else {
                        1.0
                    }
                }
                9 => {
                    if at + period >= n {
                        -1.0
                    } else {
                        1.0 + noise * 1e-3
                    }
                }
                10 => {
                    state = f64::clamp(state + noise * 0.05, -1.0, 1.0);
                    state
                }
                _ => {
                    if dice.below(50) == 0 {
                        noise
                    } else {
                        0.0
                    }
                }
            }
    };
    let mut values: Vec<f64> = (0..n).map(|at| offset + value(at)).collect();
    for _ in 0..u.int_in_range(0..=8)? {
        if let Some(last) = n.checked_sub(1) {
            // Counted from the end, where a partial block is.
            values[last - u.int_in_range(0..=last)?] = match u.int_in_range(0..=2)? {
                0 => f64::from(u.arbitrary::<f32>()?),
                1 => f64::from(u.arbitrary::<i8>()?) / QUANTA,
                _ => u.arbitrary()?,
            };
        }
    }
    Ok(values)
}

/// Whether a confidence is one that the crate takes.
pub fn sound(c: f64) -> bool {
    c.abs() < 32_768.0
}

fn round(value: f64, decimals: u8) -> f64 {
    let scale = 10_f64.powi(decimals.into());
    (value * scale).round_ties_even() / scale
}

/// Whole quanta.
pub fn quanta(values: &[f64], decimals: Option<u8>) -> Vec<i128> {
    let door = |c: f64| decimals.map_or(c, |decimals| round(c, decimals));
    values.iter().map(|&c| (door(c) * QUANTA).round_ties_even() as i128).collect()
}

/// The mean of `count` tokens that add up to `sum`, nats.
pub fn nats(sum: i128, count: usize) -> f64 {
    sum as f64 / count as f64 / QUANTA
}

/// Mean, lowest group, bottom group and tail in whole quanta: nothing is rounded before the end.
pub fn exact(values: &[f64], settings: &Settings) -> [f64; 4] {
    let &Settings { window, tail, bottom, decimals } = settings;
    let tokens = quanta(values, decimals);
    let n = tokens.len();
    let last = (tail as usize).min(n);
    let (mean, tail) = (nats(tokens.iter().sum(), n), nats(tokens[n - last..].iter().sum(), last));
    let window = window as usize;
    if n < window || n == 0 {
        return [mean, mean, mean, tail];
    }
    let mut group: i128 = tokens[..window].iter().sum();
    let mut groups = vec![group];
    for at in window..n {
        group += tokens[at] - tokens[at - window];
        groups.push(group);
    }
    groups.sort_unstable();
    let count = ((groups.len() as f64 * bottom) as usize).max(1);
    let lowest = nats(groups[0], window);
    let lowest = decimals.map_or(lowest, |decimals| round(lowest, decimals));
    [mean, lowest, nats(groups[..count].iter().sum(), window * count), tail]
}

/// Equal bits, but for the sign of zero and the payload of NaN.
pub fn same(left: f64, right: f64) -> bool {
    left == right || left.is_nan() && right.is_nan()
}
