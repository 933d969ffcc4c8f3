//! Gated pod → node.
//!
//! ```text
//! the picture ──► view (what each node has left) ──► core::placement::decide ──► patch: pin + gate in one ──► watch ──► the picture
//!                   ▲                                     │ no node fits                                       │
//!                   └── promises in flight                └──► outcome, Event; tried again on change           └──► recover: refused pins
//! ```
//!
//! A pod is acted on only while our gate is its last one, whoever owns it. `release` is the way out: it takes every gate of ours away.

mod explain;
pub mod holders;
pub mod patch;
mod recover;
pub mod release;
mod round;
mod view;

use std::future::pending;
use std::pin::pin;
use std::time::{Duration, Instant};

use berth_core::placement::{Decision, Fleet, decide};

pub use explain::Explanations;

use crate::cluster::{Picture, Pod};
use crate::context::Context;
use round::Rounds;

/// What placement last concluded for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Pinned to a node.
    Placed {
        /// Node name.
        node: String,
        /// One sentence: why.
        because: String,
    },
    /// Waits.
    Waiting {
        /// Reason of condition and Event: `NoFit`, `NoDevicePlugin`, `WaitingForAgents`, `PinRefused`,
        /// `InvalidSpec`, `ApplyFailed`.
        reason: berth_crds::conditions::Reason,
        /// Nearest miss, for people.
        message: String,
    },
    /// Left to kube-scheduler because it fits nowhere.
    Released {
        /// Nearest miss, for people.
        message: String,
    },
}

/// Whether a waiting pod would find its node among those where `others` are, if they were gone.
pub fn fits_without(pod: &Pod, others: &[&Pod], picture: &Picture) -> bool {
    if others.is_empty() || pod.ask.invalid.is_some() {
        return false;
    }
    let fleet = Fleet::new(view::nodes_without(others, picture, Instant::now()));
    matches!(decide(&pod.ask, &fleet), Decision::Place { .. })
}

/// How long a burst of changes is gathered before pods are looked at.
const GATHER: Duration = Duration::from_millis(20);

/// Places waiting pods and recovers refused ones, until the process ends. Does nothing before this process leads
/// (`Cluster::set_leader`) and nodes and pods are listed.
pub async fn run(context: Context) {
    let cluster = context.cluster.clone();
    let mut rounds = Rounds::new(context);
    let mut deadline = rounds.round();
    // Lives across turns of the loop: patches that finish one after another must not put off the gathering for ever.
    let mut batch = pin!(cluster.placement.next_batch(GATHER));
    loop {
        tokio::select! {
            _ = batch.as_mut() => {
                batch.set(cluster.placement.next_batch(GATHER));
                deadline = rounds.round();
            }
            retry = rounds.finished() => deadline = deadline.into_iter().chain(retry).min(),
            () = until(deadline) => deadline = rounds.round(),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
