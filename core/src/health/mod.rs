//! Which GPU may be handed out: verdicts on what the hardware reported.
//!
//! ```text
//! event ─► xid, nvml_event ─► a fault until what it needs is proven (clearing) ─┐
//!      └──► history ─► a pattern of several events, while it holds ──────────────┤
//! reading ─► checks ─► a finding while it holds ─────────────────────────────────┴─► Healthy → Suspect → Unhealthy → Verifying → Healthy
//! ```

mod assess;
pub mod breaker;
pub mod checks;
mod clearing;
#[cfg(test)]
mod documented;
mod duplicates;
mod fault;
mod history;
pub mod kernel_lines;
pub mod kernel_log;
mod node;
pub mod nvml_event;
mod reason;
mod throttle;
mod tracker;
mod words;
mod xid;

use std::time::Duration;

pub use assess::missing_gpus;
pub use clearing::Proof;
pub use duplicates::Recent;
pub use node::{NodeState, all_out, cause_told, is_of_hardware};
pub use reason::Reason;
pub use tracker::{Memory, Remembered, Tracker, VERIFY_FOR};
pub use xid::{Bucket, Effect, Part, Verdict, judge};

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
    /// UUID of the GPU that this is a MIG slice of; `None`: it is a GPU.
    pub gpu: Option<String>,
}

/// Health of a node's GPUs, whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// One entry a known GPU, each followed by its MIG slices. A slice is never better than its GPU.
    pub gpus: Vec<GpuHealth>,
    /// State of NVML.
    pub nvml: NvmlStatus,
    /// Functions bound to the vendor's driver that NVML does not list.
    pub missing_gpus: u32,
}

impl NodeHealth {
    /// The GPUs, and those of their MIG slices that are worse than their GPU: each trouble once.
    pub fn troubles(&self) -> impl Iterator<Item = &GpuHealth> {
        let state_of = |uuid: &String| self.gpus.iter().find(|gpu| gpu.uuid == *uuid).map(|gpu| gpu.state);
        self.gpus.iter().filter(move |entry| match &entry.gpu {
            None => true,
            Some(gpu) => state_of(gpu).is_none_or(|state| entry.state > state),
        })
    }
}
