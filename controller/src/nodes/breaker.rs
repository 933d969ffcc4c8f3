//! Says that the fleet breaker is open, once, and looks again when time alone may close it.

use std::time::Duration;

use berth_core::health::breaker::{Breaker, Limit};
use berth_crds::conditions::Reason;

use super::installation;
use crate::context::Context;

/// Nodes that fall ill together are told of together.
const GATHER: Duration = Duration::from_millis(500);
/// Nodes that are named; the page `/nodes` has all.
const NAMED: usize = 5;

/// Follows the breaker, until the process ends.
pub(super) async fn run(context: &Context) {
    let mut open = false;
    loop {
        context.cluster.breaker.next_batch(GATHER).await;
        context.cluster.pass_time(std::time::Instant::now());
        let (note, again_at) = {
            let picture = context.cluster.read();
            let again_at = picture.breaker.again_at().map(|time| picture.clock.moment(time));
            (note(&picture.breaker), again_at)
        };
        if let Some(at) = again_at {
            context.cluster.breaker.push_at((), at);
        }
        match (&note, open) {
            (Some(note), false) => {
                tracing::error!(note, "the fleet breaker is open");
                let object = installation(context).await;
                context.events.warning(object, Reason::FleetBreakerOpen, "Hold", note);
            }
            (Some(note), true) => tracing::warn!(note, "the fleet breaker is still open"),
            (None, true) => {
                let note = "no node is held back any more";
                tracing::info!(note, "the fleet breaker is closed");
                let object = installation(context).await;
                context.events.normal(object, Reason::FleetBreakerClosed, "Hold", note);
            }
            (None, false) => {}
        }
        open = note.is_some();
    }
}

/// What holds whom; `None`: nobody is held.
fn note(breaker: &Breaker) -> Option<String> {
    let held: Vec<(&str, Limit, &str)> = breaker.held().collect();
    let (_, limit, cause) = held.iter().max_by_key(|(_, limit, _)| *limit)?;
    let why = match limit {
        Limit::Share => format!("no more than {} may be out at the same time", breaker.most()),
        Limit::Rate => "as many were taken out in the last 10 minutes as may be".to_owned(),
        Limit::SameCause => {
            format!("as many with {cause} and one driver version were in the last 10 minutes as may be")
        }
    };
    let names = held
        .iter()
        .take(NAMED)
        .map(|(name, _, cause)| format!("{name} ({cause})"));
    let names: Vec<String> = names.collect();
    let more = if held.len() > NAMED { ", …" } else { "" };
    Some(format!(
        "{} of {} GPU nodes are out for their health, {why}: {} more would be and still count: {}{more}",
        breaker.excluded(),
        breaker.nodes(),
        held.len(),
        names.join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use berth_core::health::NodeState;
    use berth_core::health::breaker::Limits;

    use super::*;

    #[test]
    fn the_note_says_how_many_what_and_why() {
        for (limits, why) in [
            (
                Limits {
                    share_percent: 10,
                    new: 99,
                    same_cause: 99,
                },
                "no more than 1 may be out at the same time",
            ),
            (
                Limits {
                    share_percent: 100,
                    new: 1,
                    same_cause: 99,
                },
                "as many were taken out in the last 10 minutes as may be",
            ),
            (
                Limits {
                    share_percent: 100,
                    new: 99,
                    same_cause: 1,
                },
                "as many with XID 62 and one driver version were in the last 10 minutes as may be",
            ),
        ] {
            let mut breaker = Breaker::new(limits);
            for n in 0..8 {
                breaker.observe(&format!("n{n}"), None, NodeState::Ready, Duration::ZERO);
            }
            assert_eq!(note(&breaker), None);
            for n in 0..8 {
                let sick = NodeState::Sick { cause: "XID 62".into() };
                breaker.observe(&format!("n{n}"), None, sick, Duration::ZERO);
            }
            let want = format!(
                "1 of 8 GPU nodes are out for their health, {why}: 7 more would be and still count: n1 (XID 62), n2 (XID 62), \
                 n3 (XID 62), n4 (XID 62), n5 (XID 62), …"
            );
            assert_eq!(note(&breaker), Some(want));
        }
    }
}
