//! Which GPU may be handed out: verdicts on what the hardware reported.
//!
//! ```text
//! event ─► xid ─► a fault that stays until a reset ─┐
//! reading ─► checks ─► a finding while it holds ────┴─► Healthy → Suspect → Unhealthy → Verifying → Healthy
//! ```

mod assess;
pub mod checks;
#[cfg(test)]
mod documented;
mod duplicates;
pub mod kernel_lines;
pub mod kernel_log;
mod reason;
mod throttle;
mod tracker;
mod xid;

use std::time::Duration;

pub use assess::missing_gpus;
pub use duplicates::Recent;
pub use reason::Reason;
pub use tracker::{Tracker, VERIFY_FOR};
pub use xid::{Effect, Verdict, verdict};

use serde::{Deserialize, Serialize};

use crate::facts::NvmlStatus;

/// State of one GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GpuState {
    /// May be handed out.
    #[default]
    Healthy,
    /// May be handed out; something was seen that is worth watching.
    Suspect,
    /// The cause is gone, recovery is not proven yet: not handed out.
    Verifying,
    /// Not handed out.
    Unhealthy,
}

impl GpuState {
    /// Whether placement may count on the GPU.
    pub fn may_be_handed_out(self) -> bool {
        matches!(self, Self::Healthy | Self::Suspect)
    }
}

/// Health of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuHealth {
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// State now.
    pub state: GpuState,
    /// CamelCase name of the worst check; empty when healthy.
    pub reason: String,
    /// What was seen and what to do; empty when healthy.
    pub message: String,
    /// Time in this state.
    pub since: Duration,
    /// What ended the last fault.
    pub cleared_by: Option<String>,
}

/// Health of a node's GPUs, whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// One entry a known GPU.
    pub gpus: Vec<GpuHealth>,
    /// State of NVML.
    pub nvml: NvmlStatus,
    /// Functions bound to the vendor's driver that NVML does not list.
    pub missing_gpus: u32,
}
