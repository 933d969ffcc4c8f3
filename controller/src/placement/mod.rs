//! Gated pod → node.

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
        /// Reason of condition and Event: `NoFit`, `NoDevicePlugin`, `WaitingForAgents`, `PinRefused`.
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

use crate::context::Context;

/// Places waiting pods and recovers refused ones, until the process ends.
pub async fn run(_context: Context) {
    std::future::pending().await
}
