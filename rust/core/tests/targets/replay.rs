//! A run from scores alone against the controller fed with tokens, where the order of events cannot
//! matter: the budget is spent.

use arbitrary::{Result, Unstructured};
use deepconf_core::policy::Stop;
use deepconf_core::replay::{Ended, Pool, Row};

use crate::driver::{self, End, Recording};
use crate::oracle::Dice;

const ANSWERS: [&str; 3] = ["a", "b", "c"];

pub fn run(u: &mut Unstructured) -> Result<()> {
    let mut dice = Dice(u.arbitrary()?);
    let lag = u.int_in_range(0..=3)?;
    let mut policy = driver::random_policy(&mut dice);
    policy.decimals = dice.pick(&[None, None, Some(0), Some(3)]);
    policy.stop = Stop::Budget;
    let mut recordings = driver::random_recordings(&mut dice, &policy);
    for recording in &mut recordings {
        // A replay knows of no failures, nor of what a trace says that is stopped.
        recording.end = if recording.end == End::Itself { End::Itself } else { End::Length };
        recording.partial = None;
    }
    let driven = driver::drive(&policy, &recordings, dice.next());

    let mut pool = Pool::new(std::slice::from_ref(&policy)).unwrap();
    let rows: Vec<Row> =
        (0..).zip(&recordings).map(|(trace, recording)| row(trace, recording)).collect();
    let traces: Vec<&[f32]> = recordings.iter().map(|recording| &*recording.confidences).collect();
    pool.add(&rows, &traces).unwrap();
    pool.close().unwrap();
    let draw: Vec<u32> = (0..policy.budget).collect();
    let run = pool.run(0, &policy, &draw, lag).unwrap();

    let outcome = &driven.outcome;
    assert_eq!(run.answer.map(|answer| ANSWERS[answer as usize]), outcome.answer.as_deref());
    assert_eq!((run.threshold, run.reason), (outcome.threshold, outcome.reason));
    assert_eq!((run.fallback, run.unarmed), (outcome.vote.fallback, outcome.unarmed.is_some()));
    let stopped = driven.stops.len() as u32;
    assert_eq!((run.stopped, run.finished, run.aborted), (stopped, policy.budget - stopped, 0));
    let tokens = |(trace, recording): (u32, &Recording)| {
        let stop = driven.stops.get(&trace);
        stop.map_or(recording.confidences.len() as u64, |token| token + 1 + lag)
    };
    assert_eq!(run.tokens, (0..).zip(&recordings).map(tokens).sum::<u64>());
    Ok(())
}

fn row(trace: i64, recording: &Recording) -> Row {
    let number = |answer: &String| ANSWERS.iter().position(|name| name == answer).unwrap() as u32;
    let ended = if recording.end == End::Itself { Ended::ByItself } else { Ended::AtTheLimit };
    Row { question: 0, trace, answer: recording.answer.as_ref().map(number), ended }
}
