//! Token confidence, entropy and confidence from logits against their definitions in float64.

use arbitrary::{Result, Unstructured};
use deepconf_core::Sample;
use deepconf_core::token::Table;
use half::f16;

use crate::oracle::{self, Dice};

pub fn run(u: &mut Unstructured) -> Result<()> {
    let most = *u.choose(&[2, 8, 25, 70, 400])?;
    let k = u.int_in_range(1..=most)?;
    let rows = u.int_in_range(0..=if k > 70 { 3 } else { 40 })?;
    let floor =
        if u.ratio(1, 3)? { Some(-f64::from(u.int_in_range(1..=400_u16)?) / 8.0) } else { None };
    let top = u.int_in_range(1..=k + 1)?;
    let scale = *u.choose(&[1e-6, 0.125, 1.0, 10.0, 90.0])?;
    let dice = &mut Dice(u.arbitrary()?);
    let mut logs: Vec<f64> = (0..rows * k).map(|_| -scale * dice.unit()).collect();
    // Ties: at the place where the likeliest end, above all.
    if u.arbitrary()? {
        logs.iter_mut().for_each(|l| *l = (*l / scale * 4.0).round() * scale / 4.0);
    }
    for _ in 0..u.int_in_range(0..=4)? {
        let Some(last) = logs.len().checked_sub(1) else { break };
        logs[u.int_in_range(0..=last)?] = match u.int_in_range(0..=5)? {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => -0.0,
            _ => f64::NEG_INFINITY,
        };
    }
    match u.int_in_range(0..=2)? {
        0 => check(&logs, k, top, floor),
        1 => check(&logs.iter().map(|&l| l as f32).collect::<Vec<_>>(), k, top, floor),
        _ => check(&logs.iter().map(|&l| f16::from_f64(l)).collect::<Vec<_>>(), k, top, floor),
    }
    // Logits are known up to a number that is added to all: one that float32 has no room beside.
    let offset = *u.choose(&[0.0, -1e4, 1e6, -3e7, 1e9])?;
    let wide: Vec<f64> = logs.iter().map(|l| l + offset).collect();
    check_logits(&wide, k, top, floor);
    let single: Vec<f32> = wide.iter().map(|&l| l as f32).collect();
    check_logits(&single, k, top, floor);
    Ok(())
}

/// Rows as the scores see them: −∞ is raised to the floor, if there is one.
fn raised(row: &[f64], floor: Option<f64>) -> Vec<f64> {
    row.iter().map(|&l| floor.filter(|&floor| l < floor).unwrap_or(l)).collect()
}

fn finite(rows: &[Vec<f64>]) -> bool {
    rows.iter().flatten().all(|l| l.is_finite())
}

fn check<T: Sample>(values: &[T], k: usize, top: usize, floor: Option<f64>) {
    let wide: Vec<f64> = values.iter().map(|l| l.wide()).collect();
    let table = Table::new(values, k).unwrap();
    let rows: Vec<Vec<f64>> = wide.chunks(k).map(|row| raised(row, floor)).collect();
    let want = |score: fn(&[f64]) -> f64| rows.iter().map(|row| score(row)).collect::<Vec<_>>();
    let sound = finite(&rows);
    let ranks = k > 1;
    agree(table.confidence(floor).ok(), (ranks && sound).then(|| want(oracle::token_confidence)));
    agree(table.entropy(floor).ok(), sound.then(|| want(oracle::token_entropy)));
    check_logits(values, k, top, floor);
}

fn check_logits<T: Sample>(values: &[T], k: usize, top: usize, floor: Option<f64>) {
    let wide: Vec<f64> = values.iter().map(|l| l.wide()).collect();
    let want = (2..=k).contains(&top).then(|| likeliest(&wide, k, top, floor)).flatten();
    let want = want.map(|rows| rows.iter().map(|row| oracle::token_confidence(row)).collect());
    let table = Table::new(values, k).unwrap();
    agree(table.logits_confidence(top, floor).ok(), want);
}

/// The log-probabilities of the `top` likeliest of each row of logits; `None` where some are not sound.
fn likeliest(logits: &[f64], k: usize, top: usize, floor: Option<f64>) -> Option<Vec<Vec<f64>>> {
    if logits.iter().any(|&l| l.is_nan() || l == f64::INFINITY) {
        return None;
    }
    let rows: Vec<Vec<f64>> = logits
        .chunks(k)
        .map(|row| {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mass: f64 = row.iter().map(|l| (l - highest).exp()).sum();
            let mut logs: Vec<f64> = row.iter().map(|l| l - highest - mass.ln()).collect();
            logs.sort_by(|a, b| b.total_cmp(a));
            raised(&logs[..top], floor)
        })
        .collect();
    // Where all are masked, not even a floor helps: −∞ less −∞ is NaN.
    finite(&rows).then_some(rows)
}

fn agree(got: Option<Vec<f32>>, want: Option<Vec<f64>>) {
    assert_eq!(got.is_some(), want.is_some(), "{got:?} for {want:?}");
    let (got, want) = (got.unwrap_or_default(), want.unwrap_or_default());
    assert_eq!(got.len(), want.len());
    for (got, want) in got.into_iter().zip(want) {
        assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs().max(1.0), "{got} for {want}");
    }
}
