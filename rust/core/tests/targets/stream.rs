//! `TraceScorer` and `BatchScorer` against `score` and against sums of whole quanta.

use arbitrary::{Result, Unstructured};
use deepconf_core::stream::{BatchScorer, TraceScorer};
use deepconf_core::trace::{Scorer, Settings};

use crate::quanta::{self, group, groups, same, sound};
use crate::traces;

pub fn run(u: &mut Unstructured) -> Result<()> {
    let n = traces::length(u)?.min(3_000);
    let batch = traces::settings(u, n)?;
    let Settings { window, bottom, decimals, .. } = batch;
    let values = traces::trace(u, n, window)?;
    let threshold = threshold(u, &values)?;
    let keeps_all = u.arbitrary()?;
    let settings = batch.bottom(bottom.filter(|_| keeps_all));
    let mut scorer = Scorer::new(settings).unwrap().stream(threshold).unwrap();
    let mut slots = Scorer::new(settings).unwrap().batch(3, threshold).unwrap();
    if u.arbitrary()? {
        // What was followed before leaves nothing behind.
        let _ = scorer.extend(&values[..n / 2]);
        scorer.reset();
    }
    let mut seen: Vec<f64> = Vec::new();
    let mut at = 0;
    while at < n {
        // An input that is used up draws ones for ever.
        let step = if u.is_empty() { n } else { u.int_in_range(1..=700)? };
        let end = (at + step).min(n);
        let before = scorer.num_tokens();
        let stop = if end == at + 1 {
            scorer.push(values[at]).map(|stop| stop.then_some(0))
        } else {
            scorer.extend(&values[at..end])
        };
        if !values[at..end].iter().all(|&c| sound(c)) {
            assert!(stop.is_err() && scorer.num_tokens() == before);
            at = end;
            continue;
        }
        let stop = stop.unwrap();
        let added = &values[at..stop.map_or(end, |stop| at + stop + 1)];
        let first = seen.len();
        seen.extend(added);
        at += added.len();
        let sums = groups(&quanta::quanta(&seen, decimals), window as usize);
        for (token, &c) in added.iter().enumerate() {
            let complete = (first + token + 1).checked_sub(window as usize);
            let group = complete.map(|at| group(sums[at], &batch));
            let asks = group.zip(threshold).is_some_and(|(group, s)| group < s);
            assert_eq!(asks, stop == Some(token), "{group:?} against {threshold:?}");
            let mut answer = [false];
            slots.step(&[1], &[c], &mut answer).unwrap();
            assert_eq!(answer[0], asks);
        }
        compare(&scorer, &slots, &seen, &batch, keeps_all);
    }
    assert_eq!(slots.num_tokens().collect::<Vec<_>>(), [0, seen.len() as u64, 0]);
    Ok(())
}

/// One that groups reach and miss by a hair, or one that they do not.
fn threshold(u: &mut Unstructured, values: &[f64]) -> Result<Option<f64>> {
    let n = values.len();
    let threshold = match u.int_in_range(0..=3)? {
        0 => return Ok(None),
        1 => {
            let from = u.int_in_range(0..=n)?;
            let part = &values[from..u.int_in_range(from..=n)?];
            part.iter().sum::<f64>() / part.len() as f64
        }
        2 => values.first().copied().unwrap_or(f64::NAN),
        _ => f64::from(u.arbitrary::<i16>()?) / 8.0,
    };
    Ok(Some(threshold).filter(|s| s.is_finite()))
}

fn compare(
    scorer: &TraceScorer,
    slots: &BatchScorer,
    seen: &[f64],
    batch: &Settings,
    keeps_all: bool,
) {
    let (streamed, scored) = (scorer.scores(), Scorer::new(*batch).unwrap().score(seen).unwrap());
    quanta::check(&scored, seen, batch);
    let pairs = [
        (streamed.mean, scored.mean),
        (streamed.lowest_group, scored.lowest_group),
        (streamed.bottom_group, if keeps_all { scored.bottom_group } else { f64::NAN }),
        (streamed.tail, scored.tail),
        (slots.lowest_groups().nth(1).unwrap(), scored.lowest_group),
        (scorer.mean(), scored.mean),
        (scorer.tail(), scored.tail),
    ];
    let equal = pairs.iter().all(|&(left, right)| same(left, right));
    assert!(equal, "{streamed:?} is not {scored:?}: {batch:?}");
    assert_eq!((streamed.num_tokens, streamed.short), (scored.num_tokens, scored.short));
}
