//! What a node's health says about handing its GPUs out, in one word.

use super::{GpuHealth, GpuState, NodeHealth, Reason};
use crate::facts::NvmlState;

/// No verdict of ours: the GPU is not there, or nothing that runs on it comes back.
const GONE: [Reason; 5] = [
    Reason::FallenOffBus,
    Reason::GpuLost,
    Reason::GpuMissing,
    Reason::GPUDriverHung,
    Reason::GpuUnavailable,
];

/// No fault of the hardware: software that is not there, not yet, or not reached.
const SOFTWARE: [Reason; 6] = [
    Reason::DriverNotLoaded,
    Reason::DriverUpgrading,
    Reason::DriverReleaseBlocked,
    Reason::ConfidentialComputeNotReady,
    Reason::NvmlError,
    Reason::ProbeUnavailable,
];

/// Where a node stands, as far as its hardware goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// Every GPU may be handed out.
    Ready,
    /// Nothing is known of the hardware: no probe answers, or the driver is away or being upgraded.
    Unknown,
    /// A GPU is not handed out by a verdict, of a table or a check, which could be wrong.
    Sick {
        /// `XID 62`, or the reason of the check.
        cause: String,
    },
    /// A GPU is lost, missing or hung: whatever is handed out does not run.
    Gone {
        /// `XID 79`, or the reason.
        cause: String,
    },
}

impl NodeState {
    /// From what the node's agent reported last.
    pub fn of(health: &NodeHealth) -> Self {
        let cause = || cause(health).unwrap_or_else(|| Reason::GpuMissing.as_str().to_owned());
        match health.nvml.state {
            NvmlState::NoLibrary
            | NvmlState::NoDriver
            | NvmlState::VersionMismatch
            | NvmlState::Released
            | NvmlState::ReleaseBlocked
            | NvmlState::Error => return Self::Unknown,
            NvmlState::Hung => {
                return Self::Gone {
                    cause: Reason::GPUDriverHung.as_str().to_owned(),
                };
            }
            NvmlState::Ready | NvmlState::ProbeUnavailable | NvmlState::Unknown => {}
        }
        let mut out = gpus(health).filter(|g| !g.state.may_be_handed_out());
        if health.missing_gpus > 0 || out.clone().any(|g| is_one_of(&g.reason, &GONE)) {
            Self::Gone { cause: cause() }
        } else if out.any(|g| !is_one_of(&g.reason, &SOFTWARE)) {
            Self::Sick { cause: cause() }
        } else if health.nvml.state == NvmlState::Ready {
            Self::Ready
        } else {
            Self::Unknown
        }
    }
}

/// A MIG slice that is ill alone keeps away those who may get it, and leaves the node's GPUs to the others.
fn gpus(health: &NodeHealth) -> impl DoubleEndedIterator<Item = &GpuHealth> + Clone {
    health.gpus.iter().filter(|g| g.gpu.is_none())
}

/// Whether none of the node's GPUs may be handed out.
pub fn all_out(health: &NodeHealth) -> bool {
    !gpus(health).any(|g| g.state.may_be_handed_out())
}

/// Whether a reason, as written in reports and conditions, is one of the hardware's. One that is not known is: it was made to be said.
pub fn is_of_hardware(reason: &str) -> bool {
    !is_one_of(reason, &SOFTWARE)
}

fn is_one_of(reason: &str, list: &[Reason]) -> bool {
    list.iter().any(|r| r.as_str() == reason)
}

/// What keeps the worst of the GPUs back; those that are gone before those with a verdict.
fn cause(health: &NodeHealth) -> Option<String> {
    let rank = |g: &&GpuHealth| (is_one_of(&g.reason, &GONE), g.state);
    let out = gpus(health).rev().filter(|g| g.state > GpuState::Suspect);
    let worst = out.filter(|g| is_of_hardware(&g.reason)).max_by_key(rank)?;
    Some(xid(&worst.message).unwrap_or_else(|| worst.reason.clone()))
}

/// The cause that a node's condition tells, by its reason and its message (`<UUID>: <message of the GPU>`).
pub fn cause_told(reason: &str, message: &str) -> String {
    let of_gpu = message.split_once(": ").and_then(|(_, rest)| xid(rest));
    of_gpu.unwrap_or_else(|| reason.to_owned())
}

/// The XID that a message begins with: finer than its reason, which several share.
fn xid(message: &str) -> Option<String> {
    let number = message.strip_prefix("XID ")?.split(':').next()?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| format!("XID {number}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::facts::{Gpu, GpuEvent, GpuEventKind, NodeFacts, NvmlStatus};
    use crate::health::Tracker;

    fn gpu(state: GpuState, reason: &str) -> GpuHealth {
        GpuHealth {
            uuid: "GPU-0".into(),
            state,
            reason: reason.into(),
            message: String::new(),
            since: Duration::ZERO,
            cleared_by: None,
            gpu: None,
        }
    }

    fn health(state: NvmlState, gpus: &[(GpuState, &str)], missing_gpus: u32) -> NodeHealth {
        NodeHealth {
            gpus: gpus.iter().map(|(state, reason)| gpu(*state, reason)).collect(),
            nvml: NvmlStatus {
                state,
                message: String::new(),
            },
            missing_gpus,
        }
    }

    #[test]
    fn a_slice_that_is_ill_alone_leaves_the_node_ready() {
        let slice = GpuHealth {
            gpu: Some("GPU-0".into()),
            ..gpu(GpuState::Unhealthy, "ResetRequired")
        };
        let mut health = health(NvmlState::Ready, &[(GpuState::Healthy, "")], 0);
        health.gpus.push(slice);
        assert_eq!(
            NodeState::of(&health),
            NodeState::Ready,
            "nobody drains a machine for it"
        );
    }

    #[test]
    fn what_is_gone_is_told_from_what_was_judged_and_from_software() {
        use GpuState::*;
        let sick = |cause: &str| NodeState::Sick { cause: cause.into() };
        let gone = |cause: &str| NodeState::Gone { cause: cause.into() };
        for (nvml, gpus, missing, want) in [
            (NvmlState::Ready, &[(Healthy, "")][..], 0, NodeState::Ready),
            (NvmlState::Ready, &[(Suspect, "PcieWidth")], 0, NodeState::Ready),
            (NvmlState::Ready, &[], 0, NodeState::Ready),
            (
                NvmlState::Ready,
                &[(Healthy, ""), (Unhealthy, "DoubleBitError")],
                0,
                sick("DoubleBitError"),
            ),
            (NvmlState::Ready, &[(Verifying, "Recovering")], 0, sick("Recovering")),
            // The first of the worst.
            (
                NvmlState::Ready,
                &[(Verifying, "Recovering"), (Unhealthy, "A"), (Unhealthy, "B")],
                0,
                sick("A"),
            ),
            (
                NvmlState::Ready,
                &[(Unhealthy, "A"), (Unhealthy, "GpuLost")],
                0,
                gone("GpuLost"),
            ),
            (
                NvmlState::Ready,
                &[(Unhealthy, "FallenOffBus")],
                0,
                gone("FallenOffBus"),
            ),
            (NvmlState::Ready, &[(Healthy, "")], 1, gone("GpuMissing")),
            (
                NvmlState::Hung,
                &[(Unhealthy, "GPUDriverHung")],
                0,
                gone("GPUDriverHung"),
            ),
            // Of the hardware nothing is known, whatever was before.
            (
                NvmlState::NoDriver,
                &[(Unhealthy, "DriverNotLoaded")],
                0,
                NodeState::Unknown,
            ),
            (
                NvmlState::VersionMismatch,
                &[(Unhealthy, "GpuLost")],
                0,
                NodeState::Unknown,
            ),
            (
                NvmlState::Released,
                &[(Unhealthy, "DriverUpgrading")],
                0,
                NodeState::Unknown,
            ),
            (NvmlState::Error, &[(Unhealthy, "NvmlError")], 0, NodeState::Unknown),
            (
                NvmlState::ProbeUnavailable,
                &[(Suspect, "ProbeUnavailable")],
                0,
                NodeState::Unknown,
            ),
            // What was seen before the probe went away stays known.
            (NvmlState::ProbeUnavailable, &[(Unhealthy, "A")], 0, sick("A")),
            // A reason of a newer agent.
            (NvmlState::Ready, &[(Unhealthy, "FluxLow")], 0, sick("FluxLow")),
        ] {
            assert_eq!(
                NodeState::of(&health(nvml, gpus, missing)),
                want,
                "{nvml} {gpus:?} {missing}"
            );
        }
    }

    #[test]
    fn all_out_is_all() {
        use GpuState::*;
        for (gpus, want) in [
            (&[(Unhealthy, "A"), (Verifying, "B")][..], true),
            (&[(Unhealthy, "A"), (Suspect, "B")], false),
            (&[], true),
        ] {
            assert_eq!(all_out(&health(NvmlState::Ready, gpus, 0)), want, "{gpus:?}");
        }
    }

    #[test]
    fn the_cause_is_the_xid_that_the_tracker_names() {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&NodeFacts {
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            gpus: vec![Gpu {
                uuid: "GPU-0".into(),
                ..Gpu::default()
            }],
            ..NodeFacts::default()
        });
        let xid = |number| GpuEvent {
            kind: GpuEventKind::Xid(number),
            uuid: Some("GPU-0".into()),
            pci_address: None,
            age: Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        };
        tracker.on_event(&xid(62), Duration::ZERO);
        let now = NodeState::of(&tracker.health(Duration::ZERO));
        assert_eq!(now, NodeState::Sick { cause: "XID 62".into() });
        assert_eq!(
            cause_told("ResetRequired", "GPU-0: XID 62: reset the GPU; 2 of 8"),
            "XID 62"
        );
        assert_eq!(cause_told("Throttled", "GPU-0: hot"), "Throttled");
        for (message, want) in [
            ("XID 62: reset the GPU", Some("XID 62")),
            ("XID : x", None),
            ("XID a: x", None),
            ("uncorrectable", None),
        ] {
            assert_eq!(super::xid(message).as_deref(), want, "{message}");
        }
    }
}
