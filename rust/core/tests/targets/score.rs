//! `Scorer::score` and `Scorer::score_many` at every level against sums of whole quanta, to the last bit.

use arbitrary::{Result, Unstructured};
use deepconf_core::trace::{Scorer, Settings};
use deepconf_core::{Level, Sample};
use half::f16;

use crate::{quanta, traces};

pub fn run(u: &mut Unstructured) -> Result<()> {
    let n = traces::length(u)?;
    let settings = traces::settings(u, n)?;
    let values = traces::trace(u, n, settings.window)?;
    let cut = u.int_in_range(0..=n)?;
    match u.int_in_range(0..=2)? {
        0 => check(&values, &settings, cut),
        1 => check(&values.iter().map(|&c| c as f32).collect::<Vec<_>>(), &settings, cut),
        _ => check(&values.iter().map(|&c| f16::from_f64(c)).collect::<Vec<_>>(), &settings, cut),
    }
    Ok(())
}

fn check<T: Sample>(values: &[T], settings: &Settings, cut: usize) {
    let wide: Vec<f64> = values.iter().map(|c| c.wide()).collect();
    let is_sound = wide.iter().all(|&c| quanta::sound(c));
    for level in Level::available() {
        let scorer = Scorer::new(*settings).unwrap().at(level);
        let many = scorer.score_many(values, &[0, cut, values.len()]);
        if !is_sound {
            assert!(scorer.score(values).is_err() && many.is_err(), "{level}");
            continue;
        }
        quanta::check(&scorer.score(values).unwrap(), &wide, settings);
        let many = many.unwrap();
        quanta::check(&many[0], &wide[..cut], settings);
        quanta::check(&many[1], &wide[cut..], settings);
    }
}
