//! `TraceScorer` and `BatchScorer` against `score` and against sums of whole quanta.
#![no_main]

use arbitrary::Unstructured;
use deepconf_core::group::{BatchScorer, StreamSettings, TraceScorer};
use deepconf_core::trace::{Settings, score};
use deepconf_fuzz::{length, nats, quanta, same, settings, sound, trace};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(u: &mut Unstructured) -> arbitrary::Result<()> {
    let n = length(u)?.min(3_000);
    let batch @ Settings { window, tail, bottom, decimals } = settings(u, n)?;
    let values = trace(u, n, window)?;
    let threshold = match u.int_in_range(0..=3)? {
        0 => None,
        // A mean of the trace itself, which groups reach and miss by a hair.
        1 => {
            let from = u.int_in_range(0..=n)?;
            let to = u.int_in_range(from..=n)?;
            let part = &values[from..to];
            Some(part.iter().sum::<f64>() / part.len() as f64).filter(|s| s.is_finite())
        }
        2 => values.first().copied().filter(|s| s.is_finite()),
        _ => Some(f64::from(u.arbitrary::<i16>()?) / 8.0),
    };
    let keeps_all = u.arbitrary()?;
    let bottom = Some(bottom).filter(|_| keeps_all);
    let settings = StreamSettings { window, tail, bottom, threshold, decimals };
    let mut scorer = TraceScorer::new(settings).expect("sound settings");
    let mut slots = BatchScorer::new(3, settings).expect("sound settings");
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
        let stop = stop.expect("every value is sound");
        let added = &values[at..stop.map_or(end, |stop| at + stop + 1)];
        let first = seen.len();
        seen.extend(added);
        at += added.len();
        let sums = groups(&seen, &batch);
        for (token, &c) in added.iter().enumerate() {
            let group = group(&sums, first + token, &batch);
            let asks = group.zip(threshold).is_some_and(|(group, s)| group < s);
            assert_eq!(asks, stop == Some(token), "{group:?} against {threshold:?}");
            let mut answer = [false];
            slots.step(&[1], &[c], &mut answer).expect("every value is sound");
            assert_eq!(answer[0], asks);
        }
        compare(&scorer, &slots, &seen, &batch, keeps_all);
    }
    assert_eq!(slots.num_tokens().collect::<Vec<_>>(), [0, seen.len() as u64, 0]);
    Ok(())
}

/// The sum of the group that ends at each token, of those that are complete.
fn groups(values: &[f64], settings: &Settings) -> Vec<i128> {
    let tokens = quanta(values, settings.decimals);
    let window = settings.window as usize;
    let mut sums: Vec<i128> = Vec::new();
    for end in window..=tokens.len() {
        sums.push(match sums.last() {
            Some(sum) => sum + tokens[end - 1] - tokens[end - 1 - window],
            None => tokens[..window].iter().sum(),
        });
    }
    sums
}

/// The group that ends at token `at`, as a threshold sees it.
fn group(sums: &[i128], at: usize, settings: &Settings) -> Option<f64> {
    let window = settings.window as usize;
    let mean = nats(*sums.get((at + 1).checked_sub(window)?)?, window);
    let scale = |decimals: u8| 10_f64.powi(decimals.into());
    Some(settings.decimals.map_or(mean, |d| (mean * scale(d)).round_ties_even() / scale(d)))
}

fn compare(
    scorer: &TraceScorer,
    slots: &BatchScorer,
    seen: &[f64],
    batch: &Settings,
    keeps_all: bool,
) {
    let (streamed, scored) = (scorer.scores(), score(seen, batch).expect("every value is sound"));
    let pairs = [
        (streamed.mean, scored.mean),
        (streamed.lowest_group, scored.lowest_group),
        (streamed.bottom_group, if keeps_all { scored.bottom_group } else { f64::NAN }),
        (streamed.tail, scored.tail),
        (slots.lowest_groups().nth(1).expect("there are three"), scored.lowest_group),
        (scorer.mean(), scored.mean),
        (scorer.tail(), scored.tail),
    ];
    let equal = pairs.iter().all(|&(left, right)| same(left, right));
    assert!(equal, "{streamed:?} is not {scored:?}: {batch:?}");
    assert_eq!((streamed.num_tokens, streamed.short), (scored.num_tokens, scored.short));
}
