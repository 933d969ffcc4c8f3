//! Who uses which GPU: what the kubelet handed out and whose processes run, joined to the devices that NVML knows.
//!
//! ```text
//! kubelet: device id, claim ─► device::resolve ─┐
//!                                               ├─► join ─► pods and units left, by UUID
//! process ─► cgroup::pod_uid ───────────────────┘
//! ```
//!
//! A device id that cannot be told to a GPU is no GPU's: it is counted, and then nobody claims to know what is left.

pub mod cgroup;
mod device;
mod join;

use std::collections::BTreeSet;

use crate::facts::PodName;
use crate::placement::resources::is_gpu;

pub use device::{Found, resolve};
pub use join::{Device, Joined, join};

/// DRA driver of NVIDIA's GPUs.
pub const DRA_DRIVER: &str = "gpu.nvidia.com";

/// What the kubelet's PodResources socket says, of our resources alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kubelet {
    /// Devices that containers hold. The kubelet lists a device once for each NUMA node it is near.
    pub held: Vec<Held>,
    /// What a device plugin offers and calls healthy, held or not; `None`: this kubelet does not tell.
    pub allocatable: Option<BTreeSet<PluginDevice>>,
}

/// One device in the hands of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The pod. The kubelet does not say its UID.
    pub pod: PodName,
    /// Name of the container.
    pub container: String,
    /// What it was given.
    pub device: HeldDevice,
}

/// What a container was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldDevice {
    /// By a device plugin.
    Plugin(PluginDevice),
    /// By a DRA driver, for a ResourceClaim.
    Claim(ClaimDevice),
}

/// A device as a device plugin names it to the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PluginDevice {
    /// e.g. `nvidia.com/gpu`.
    pub resource: String,
    /// e.g. `GPU-…`, `MIG-…`, `GPU-…::3`, `nvidia0/gi2`.
    pub id: String,
}

/// A device as a DRA driver names it in its ResourceSlices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ClaimDevice {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

/// A pod's process on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// UUID of the GPU.
    pub gpu: String,
    /// GPU instance and compute instance, on a GPU in MIG mode.
    pub instance: Option<(u32, u32)>,
    /// UID of the pod, by the process's cgroup.
    pub pod_uid: String,
    /// The pod, where the node can tell.
    pub pod: Option<PodName>,
    /// Bytes it has on the device; `None`: the driver does not say.
    pub memory_bytes: Option<u64>,
}

/// Whether a device plugin's resource may be NVIDIA GPUs: those are the devices there are readings of. Users may rename them within the
/// vendor's domain.
pub fn is_ours(resource: &str) -> bool {
    resource.starts_with("nvidia.com/")
}

/// Whether it is certainly GPUs, so that an id that cannot be resolved is a gap in what is known.
fn is_surely_gpu(resource: &str) -> bool {
    is_ours(resource) && is_gpu(resource)
}

#[cfg(test)]
mod tests;
