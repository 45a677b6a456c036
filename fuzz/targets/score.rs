//! `score` and `score_many` against sums of whole quanta, to the last bit.
#![no_main]

use arbitrary::Unstructured;
use deepconf_core::Sample;
use deepconf_core::trace::{Settings, score, score_many};
use deepconf_fuzz::{exact, length, same, settings, sound, trace};
use half::f16;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // An input that is too short is no failure.
    let _ = run(&mut Unstructured::new(data));
});

fn run(u: &mut Unstructured) -> arbitrary::Result<()> {
    let n = length(u)?;
    let settings = settings(u, n)?;
    let values = trace(u, n, settings.window)?;
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
    let many = score_many(values, &[0, cut as i64, values.len() as i64], settings);
    if !wide.iter().all(|&c| sound(c)) {
        assert!(score(values, settings).is_err() && many.is_err());
        return;
    }
    agree(&score(values, settings).expect("every value is sound"), &wide, settings);
    let many = many.expect("every value is sound");
    agree(&many[0], &wide[..cut], settings);
    agree(&many[1], &wide[cut..], settings);
}

fn agree(got: &deepconf_core::trace::Scores, wide: &[f64], settings: &Settings) {
    let want = exact(wide, settings);
    let found = [got.mean, got.lowest_group, got.bottom_group, got.tail];
    let equal = found.iter().zip(&want).all(|(&left, &right)| same(left, right));
    assert!(equal, "{found:?} is not {want:?}: {} tokens, {settings:?}", wide.len());
    assert_eq!(got.num_tokens, wide.len() as u64);
    assert_eq!(got.short, !wide.is_empty() && wide.len() < settings.window as usize);
}
