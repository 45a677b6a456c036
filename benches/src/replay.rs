//! A recorded run driven token by token, to hold replays against: the schedule and nothing else.

use deepconf_core::Result;
use deepconf_core::controller::{Action, Controller, Finish};
use deepconf_core::policy::Policy;

/// A run on `traces`, of which the i-th answers `answers[i]`: tokens generated, and the step of the answer.
///
/// # Errors
/// As the controller.
pub fn drive(policy: &Policy, traces: &[&[f32]], answers: &[&str]) -> Result<(u64, u64)> {
    let mut controller = Controller::new(policy.clone())?;
    let mut running: Vec<(u32, usize)> = Vec::new();
    let (mut tokens, mut step) = (0, 0);
    let mut actions = controller.start()?;
    loop {
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Launch(new) => {
                    for trace in new {
                        controller.launched(trace)?;
                        running.push((trace, 0));
                    }
                }
                Action::Answer(_) => return Ok((tokens, step)),
                _ => {}
            }
        }
        step += 1;
        let mut ended = Vec::new();
        for (trace, at) in &mut running {
            let values = traces[*trace as usize];
            let stop = controller.tokens(*trace, &values[*at..=*at])?;
            (*at, tokens) = (*at + 1, tokens + 1);
            if stop.is_some() || *at == values.len() {
                ended.push((*trace, stop.is_some()));
            }
        }
        running.retain(|(trace, _)| ended.iter().all(|(over, _)| over != trace));
        for (trace, stopped) in ended {
            let answer = (!stopped).then(|| answers[trace as usize]);
            actions.extend(controller.finished(trace, Finish::End, answer)?);
            if controller.outcome().is_some() {
                break;
            }
        }
    }
}
