//! Any events in any order on the controller, and on the slow and obvious one beside it.

use arbitrary::{Result, Unstructured};
use deepconf_core::policy::{Mode, Stop};

use crate::oracle::Dice;
use crate::{driver, reference};

pub fn run(u: &mut Unstructured) -> Result<()> {
    let mut policy = driver::random_policy(&mut Dice(u.arbitrary()?));
    let certain = policy.mode == Mode::Online || policy.keep == 1.0;
    policy.stop = if certain && u.ratio(1, 3)? { Stop::Certain } else { policy.stop };
    // An input that is used up draws zeros for ever.
    let events = u.len() / 3;
    let mut below =
        |sides: usize| u.int_in_range(0..=sides as u32 - 1).unwrap_or_default() as usize;
    reference::compare(&policy, events, &mut below);
    Ok(())
}
