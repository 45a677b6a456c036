//! A winner that is declared certain also wins when every trace runs to its end.
#![allow(clippy::unwrap_used)]

mod driver;
mod oracle;

use deepconf_core::controller::Reason;
use deepconf_core::policy::{Mode, Policy, Stop, Weight};
use driver::{End, Recording, drive};
use oracle::Dice;

/// Policies whose weights are bounded by what a trace has shown: a minimum over groups.
fn policy(dice: &mut Dice) -> Policy {
    let mut policy = driver::random_policy(dice);
    policy.keep = if policy.mode == Mode::Offline { 1.0 } else { policy.keep };
    policy.window = 1 + dice.below(4) as u64;
    policy.weight = dice.pick(&[Weight::LowestGroup, Weight::LowestGroup, Weight::Majority]);
    policy.max_weight = dice.pick(&[None, Some(9.0), Some(9.0)]);
    policy.decimals = dice.pick(&[None, Some(0), Some(1)]);
    policy.min_ballots = 0;
    policy.stopped_vote = dice.below(8) == 0;
    policy.stop = Stop::Certain;
    policy
}

/// Two answers that are close, and traces that begin lower than they go on.
fn recordings(dice: &mut Dice, policy: &Policy) -> Vec<Recording> {
    let first = dice.pick(&[0.25, 1.0, 4.5]);
    let recording = |_| {
        let level = dice.pick(&[0.75_f32, 1.5, 4.5, 8.5]);
        let n = 1 + dice.below(8);
        let token = |at: usize| if at == 0 { first } else { level + dice.below(3) as f32 / 8.0 };
        let confidences = (0..n).map(token).collect();
        let answer = dice.pick(&[Some("a"), Some("a"), Some("b"), None]).map(str::to_owned);
        let partial = dice.pick(&[None, Some("b")]).map(str::to_owned);
        Recording { confidences, end: End::Itself, answer, partial }
    };
    (0..policy.budget).map(recording).collect()
}

#[test]
fn certain_is_certain() {
    let mut certain = 0;
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let mut policy = policy(&mut dice);
        let recordings = recordings(&mut dice, &policy);
        let early = drive(&policy, &recordings, seed);
        if early.outcome.reason != Reason::Certain {
            continue;
        }
        certain += 1;
        policy.stop = Stop::Budget;
        let late = drive(&policy, &recordings, seed);
        assert_eq!(early.outcome.answer, late.outcome.answer, "seed {seed}: {policy:?}");
    }
    assert!(certain > 1_000, "{certain}");
}
