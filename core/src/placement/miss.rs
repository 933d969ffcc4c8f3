//! Why a node is out, and by how much.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::node::{GpuView, NodeView, SliceView, Taint};
use super::resources::{amount, bytes};
use super::selector::HostPort;
use crate::facts::NvmlStatus;

/// Steps of the filter in their order: a node that fails at a later one was nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// `spec.nodeSelector`.
    NodeSelector,
    /// Required node affinity.
    NodeAffinity,
    /// `spec.unschedulable`.
    Cordon,
    /// Taints.
    Taints,
    /// The agent has yet to report for the first time.
    Agent,
    /// GPU class.
    Class,
    /// CUDA compute capability.
    ComputeCapability,
    /// Requests against what is allocatable.
    Resources,
    /// Host ports.
    HostPorts,
    /// State of the GPUs and of NVML.
    Health,
    /// What only fresh samples tell.
    LiveFacts,
    /// The scheduler refused a pod of the same owner there.
    Refused,
}

impl Stage {
    /// As in metrics and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeSelector => "nodeSelector",
            Self::NodeAffinity => "nodeAffinity",
            Self::Cordon => "cordon",
            Self::Taints => "taints",
            Self::Agent => "agent",
            Self::Class => "class",
            Self::ComputeCapability => "computeCapability",
            Self::Resources => "resources",
            Self::HostPorts => "hostPorts",
            Self::Health => "health",
            Self::LiveFacts => "liveFacts",
            Self::Refused => "refused",
        }
    }
}

/// The first reason why a node is out. Its `Display` completes the sentence "the node …".
///
/// Borrows from the ask and the node: most nodes of a big cluster are out, and few of the reasons are ever read.
#[derive(Debug, Clone, PartialEq)]
pub enum Miss<'a> {
    /// A label of `nodeSelector` is not there.
    NodeSelector {
        /// Label key.
        key: &'a str,
        /// Wanted value.
        value: &'a str,
    },
    /// No term of the required node affinity matches.
    NodeAffinity,
    /// Cordoned.
    Cordoned,
    /// A taint that is not tolerated.
    Taint(&'a Taint),
    /// The node's agent has yet to report to a new leader, and the pod asks for GPUs.
    AgentAwaited,
    /// Of none of the wanted classes.
    Class {
        /// What the node has.
        has: &'a BTreeSet<String>,
        /// Wanted, in order of preference.
        wanted: &'a [String],
    },
    /// Too old, or not known.
    ComputeCapability {
        /// The least of the node's GPUs; `None`: not known.
        has: Option<(u32, u32)>,
        /// Wanted.
        wanted: (u32, u32),
    },
    /// Too little of a resource. Amounts in thousandths.
    Resource {
        /// Resource name.
        name: &'a str,
        /// Requested.
        wanted: i64,
        /// Left.
        left: i64,
        /// The node, for what is allocatable and used.
        node: &'a NodeView,
    },
    /// A host port is taken.
    HostPort(&'a HostPort),
    /// NVML says that GPUs cannot be used now.
    Nvml(&'a NvmlStatus),
    /// A GPU that may be handed out must not be.
    UnhealthyGpu(&'a GpuView),
    /// A MIG slice that may be handed out must not be.
    UnhealthySlice(&'a SliceView),
    /// GPUs that PCI shows and NVML does not.
    MissingGpus(u32),
    /// Nobody reports live facts of the node.
    NoAgent,
    /// The last live facts are too old.
    AgentSilent(Duration),
    /// A GPU without a fresh sample.
    NoSample(&'a GpuView),
    /// Too little free VRAM on a GPU that may be handed out.
    GpuMemory {
        /// `GPU-…`.
        uuid: &'a str,
        /// Free bytes.
        free: u64,
        /// Wanted bytes.
        wanted: u64,
    },
    /// The MIG slices that are asked have less memory than is asked.
    SliceMemory {
        /// Resource of the slices.
        resource: &'a str,
        /// Bytes of one.
        has: u64,
        /// Wanted bytes.
        wanted: u64,
    },
    /// kube-scheduler's words when it refused a pod of the same owner.
    Refused(&'a str),
}

impl Miss<'_> {
    /// The step of the filter that it belongs to.
    pub fn stage(&self) -> Stage {
        match self {
            Self::NodeSelector { .. } => Stage::NodeSelector,
            Self::NodeAffinity => Stage::NodeAffinity,
            Self::Cordoned => Stage::Cordon,
            Self::Taint(_) => Stage::Taints,
            Self::AgentAwaited => Stage::Agent,
            Self::Class { .. } => Stage::Class,
            Self::ComputeCapability { .. } => Stage::ComputeCapability,
            Self::Resource { .. } => Stage::Resources,
            Self::HostPort(_) => Stage::HostPorts,
            Self::Nvml(_) | Self::UnhealthyGpu(_) | Self::UnhealthySlice(_) | Self::MissingGpus(_) => Stage::Health,
            Self::NoAgent
            | Self::AgentSilent(_)
            | Self::NoSample(_)
            | Self::GpuMemory { .. }
            | Self::SliceMemory { .. } => Stage::LiveFacts,
            Self::Refused(_) => Stage::Refused,
        }
    }

    /// What is short as a share of what is wanted, 0 to 1; 0 where there is nothing to measure.
    #[allow(clippy::cast_precision_loss)] // a share for comparing, nobody adds it up
    pub fn shortfall(&self) -> f64 {
        match self {
            Self::Resource { wanted, left, .. } => 1.0 - (*left).max(0) as f64 / (*wanted).max(1) as f64,
            Self::GpuMemory { free: has, wanted, .. } | Self::SliceMemory { has, wanted, .. } => {
                1.0 - *has as f64 / (*wanted).max(1) as f64
            }
            Self::ComputeCapability { has, wanted } => {
                let number = |(major, minor): (u32, u32)| f64::from(major) + f64::from(minor) / 10.0;
                1.0 - has.map_or(0.0, number) / number(*wanted).max(0.1)
            }
            Self::NodeSelector { .. }
            | Self::NodeAffinity
            | Self::Cordoned
            | Self::Taint(_)
            | Self::AgentAwaited
            | Self::Class { .. }
            | Self::HostPort(_)
            | Self::Nvml(_)
            | Self::UnhealthyGpu(_)
            | Self::UnhealthySlice(_)
            | Self::MissingGpus(_)
            | Self::NoAgent
            | Self::AgentSilent(_)
            | Self::NoSample(_)
            | Self::Refused(_) => 0.0,
        }
    }

    /// Whether its text holds a reading, which changes by itself.
    pub fn is_reading(&self) -> bool {
        matches!(self, Self::AgentSilent(_) | Self::GpuMemory { .. } | Self::NoSample(_))
    }

    /// What nodes with this miss have in common, to be counted: "5 `not of class h100`".
    pub fn in_common(&self) -> String {
        match self {
            Self::NodeSelector { key, value } => format!("without label {key}={value}"),
            Self::NodeAffinity => "outside the required node affinity".into(),
            Self::Cordoned => "cordoned".into(),
            Self::Taint(taint) => format!("tainted {taint}"),
            Self::AgentAwaited => "whose agent has yet to report".into(),
            Self::Class { wanted, .. } => format!("not of class {}", wanted.join(" or ")),
            Self::ComputeCapability { wanted, .. } => format!("below compute capability {}.{}", wanted.0, wanted.1),
            Self::Resource { name, .. } => format!("short of {name}"),
            Self::HostPort(port) => format!("with host port {} taken", port.2),
            Self::Nvml(_) | Self::UnhealthyGpu(_) | Self::UnhealthySlice(_) | Self::MissingGpus(_) => {
                "with GPUs that are not ready".into()
            }
            Self::NoAgent | Self::AgentSilent(_) | Self::NoSample(_) => "without live facts".into(),
            Self::GpuMemory { .. } => "short of free GPU memory".into(),
            Self::SliceMemory { resource, .. } => format!("with slices {resource} that are too small"),
            Self::Refused(_) => "where the scheduler refused a pod of the same owner".into(),
        }
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}:{}", self.key, self.effect),
            value => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}

impl fmt::Display for Miss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeSelector { key, value } => write!(f, "lacks node label {key}={value}"),
            Self::NodeAffinity => f.write_str("matches no term of the required node affinity"),
            Self::Cordoned => f.write_str("is cordoned"),
            Self::Taint(taint) => write!(f, "taint {taint} is not tolerated"),
            Self::AgentAwaited => f.write_str("has an agent that has yet to report, and the pod asks for GPUs"),
            Self::Class { has, wanted } => {
                let wanted = wanted.join(" or ");
                let list = has.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
                match has.len() {
                    0 => write!(f, "has no GPU of class {wanted}"),
                    1 => write!(f, "is of class {list}, not {wanted}"),
                    _ => write!(f, "has GPUs of class {list}, not only {wanted}"),
                }
            }
            Self::ComputeCapability { has, wanted } => {
                match has {
                    Some((major, minor)) => write!(f, "has compute capability {major}.{minor}")?,
                    None => f.write_str("has no known compute capability")?,
                }
                write!(f, ", {}.{} wanted", wanted.0, wanted.1)
            }
            Self::Resource {
                name,
                wanted,
                left,
                node,
            } => {
                let show = |milli| amount(name, milli);
                let Some(allocatable) = node.allocatable.0.get(*name) else {
                    return write!(f, "has no {name}, {} wanted", show(*wanted));
                };
                write!(f, "has {} of {} {name} free ", show((*left).max(0)), show(*wanted))?;
                write!(
                    f,
                    "({} allocatable, {} in use or promised)",
                    show(*allocatable),
                    show(node.used.milli(name))
                )
            }
            Self::HostPort((protocol, ip, port)) => write!(f, "host port {ip}:{port}/{protocol} is taken"),
            Self::Nvml(status) if status.message.is_empty() => write!(f, "NVML is not ready ({})", status.state),
            Self::Nvml(status) => write!(f, "NVML is not ready ({}: {})", status.state, status.message),
            Self::UnhealthyGpu(gpu) if gpu.reason.is_empty() => write!(f, "{} is {:?}", gpu.uuid, gpu.state),
            Self::UnhealthyGpu(gpu) => write!(f, "{} is {:?} ({})", gpu.uuid, gpu.state, gpu.reason),
            Self::UnhealthySlice(slice) => write!(f, "{} is {:?} ({})", slice.uuid, slice.state, slice.reason),
            Self::MissingGpus(1) => f.write_str("1 GPU is on the PCI bus that NVML does not show"),
            Self::MissingGpus(n) => write!(f, "{n} GPUs are on the PCI bus that NVML does not show"),
            Self::NoAgent => f.write_str("no agent reports from it, and the pod asks live facts"),
            Self::AgentSilent(silent) => {
                write!(
                    f,
                    "agent silent for {} s, and the pod asks live facts",
                    silent.as_secs()
                )
            }
            Self::NoSample(gpu) => write!(f, "{} has no fresh sample of its free memory", gpu.uuid),
            Self::GpuMemory { uuid, free, wanted } => {
                write!(f, "{uuid} has {} free, {} wanted", bytes(*free), bytes(*wanted))
            }
            Self::SliceMemory { resource, has, wanted } => {
                write!(f, "{resource} has {} of memory, {} wanted", bytes(*has), bytes(*wanted))
            }
            Self::Refused(words) => write!(f, "refused a pod of the same owner: {words}"),
        }
    }
}
