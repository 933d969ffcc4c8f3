//! A node as placement sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Resources;
use crate::facts::NvmlStatus;
use crate::health::GpuState;

/// One node at the moment of a decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Requests of pods bound here, and of pods promised here that are not bound yet.
    pub used: Resources,
    /// Host ports taken by those pods.
    pub host_ports: BTreeSet<(String, String, u16)>,
    /// What the node's agent says; `None`: no agent ever reported, the node counts by allocatable alone.
    pub hardware: Option<Hardware>,
    /// The node offers GPUs and this process has yet to hear how they are: its agent may be about to report.
    pub awaits_agent: bool,
}

/// A node taint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Taint {
    pub key: String,
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What a node's agent reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hardware {
    /// Time since the agent was last heard.
    pub silent: Duration,
    /// State of NVML.
    pub nvml: NvmlStatus,
    /// GPUs in NVML order.
    pub gpus: Vec<GpuView>,
    /// GPUs that PCI shows and NVML does not.
    pub missing_gpus: u32,
    /// MIG slices that must not be handed out although their GPU may be.
    pub sick_slices: Vec<SliceView>,
}

/// A MIG slice of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SliceView {
    /// `MIG-…`.
    pub uuid: String,
    /// Resource of its profile where each profile has one; `None`: the profile is not known.
    pub resource: Option<String>,
    /// State.
    pub state: GpuState,
    /// Why it is not healthy.
    pub reason: String,
}

/// One GPU of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuView {
    /// `GPU-…`.
    pub uuid: String,
    /// Class slug.
    pub class: String,
    /// State.
    pub state: GpuState,
    /// Why it is not healthy; empty when it is.
    pub reason: String,
    /// Bytes in all.
    pub memory_total: Option<u64>,
    /// Bytes free by NVML, minus what was promised and has not shown up; `None`: no fresh sample.
    pub memory_free: Option<u64>,
    /// CUDA compute capability.
    pub compute_capability: Option<(u32, u32)>,
    /// Pods that are there to stay are known to hold all of it: the kubelet has nothing of it to hand out. `false` also where that is not
    /// known.
    pub held: bool,
}
