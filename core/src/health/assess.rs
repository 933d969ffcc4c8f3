//! One verdict from what is held against a GPU and what NVML can say at the moment.

use std::time::Duration;

use super::checks::Row;
use super::xid::{self, Effect};
use super::{GpuState, Reason};
use crate::facts::{GpuEvent, GpuEventKind, NodeFacts, NvmlState, NvmlStatus, SOURCE_KERNEL_LOG_EARLIER};

/// Something held against one GPU: an event until it was reset, a check's finding as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub effect: Effect,
    pub reason: Reason,
    pub message: String,
    /// How long ago it happened when it was told.
    pub age: Duration,
}

impl Fault {
    /// What an event means; `None`: nothing beyond being counted.
    pub fn of(event: &GpuEvent) -> Option<Self> {
        let (effect, reason, message) = match &event.kind {
            GpuEventKind::Xid(xid) => {
                let (effect, reason, advice) = xid::verdict(*xid).effect(&event.detail);
                (effect, reason, format!("XID {xid}: {advice}"))
            }
            GpuEventKind::Other(name) => match name.as_str() {
                "EccDoubleBit" => (
                    Effect::Unhealthy,
                    Reason::DoubleBitError,
                    "uncorrectable memory error: drain the node and reset the GPU".into(),
                ),
                "DriverBound" | "DriverUnbound" => return None,
                other => (
                    Effect::Suspect,
                    Reason::XidWarning,
                    format!("the driver reported {other}"),
                ),
            },
        };
        let mut fault = Self {
            effect,
            reason,
            message,
            age: event.age,
        };
        if event.source == SOURCE_KERNEL_LOG_EARLIER && effect > Effect::Suspect {
            // A GPU that is still ill shows it in other ways, too; one that was reset since must not stay away for an old line.
            fault.effect = Effect::Suspect;
            fault
                .message
                .push_str(" (before the kernel log was followed; it may have been done since)");
        }
        (effect > Effect::Counted).then_some(fault)
    }

    /// The worst of the checks, the first of those that are equally bad.
    pub fn worst(rows: &[Row]) -> Option<Self> {
        let mut worst: Option<Self> = None;
        for row in rows {
            let (Some(effect), Some(reason)) = (row.effect(), row.reason) else {
                continue;
            };
            if worst.as_ref().is_none_or(|w| effect > w.effect) {
                worst = Some(Self {
                    effect,
                    reason,
                    message: row.message.clone(),
                    age: Duration::ZERO,
                });
            }
        }
        worst
    }

    pub fn is_unhealthy(&self) -> bool {
        self.effect == Effect::Unhealthy
    }

    fn assessment(&self) -> Assessment {
        Assessment {
            state: match self.effect {
                Effect::Counted => GpuState::Healthy,
                Effect::Suspect => GpuState::Suspect,
                Effect::Unhealthy => GpuState::Unhealthy,
            },
            reason: Some(self.reason),
            message: self.message.clone(),
        }
    }
}

/// State, reason and message of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assessment {
    pub state: GpuState,
    pub reason: Option<Reason>,
    pub message: String,
}

/// The worst of `held` and `nvml` decides; a GPU whose fault was followed by a fresh driver is `recovering`.
pub(super) fn assess(held: Option<&Fault>, recovering: bool, nvml: &NvmlStatus) -> Assessment {
    let held = match held {
        Some(fault) if !recovering || fault.is_unhealthy() => fault.assessment(),
        Some(_) | None if recovering => Assessment {
            state: GpuState::Verifying,
            reason: Some(Reason::Recovering),
            message: "the cause of a fault is gone; the GPU is being watched".into(),
        },
        Some(_) | None => Assessment {
            state: GpuState::Healthy,
            reason: None,
            message: String::new(),
        },
    };
    match driver(nvml) {
        Some(now) if now.state > held.state => now,
        _ => held,
    }
}

/// What NVML's state alone says about every GPU of the node.
fn driver(nvml: &NvmlStatus) -> Option<Assessment> {
    let (state, reason) = match nvml.state {
        NvmlState::Ready => return None,
        NvmlState::Hung => (GpuState::Unhealthy, Reason::GPUDriverHung),
        NvmlState::NoLibrary | NvmlState::NoDriver => (GpuState::Unhealthy, Reason::DriverNotLoaded),
        NvmlState::VersionMismatch | NvmlState::Released => (GpuState::Unhealthy, Reason::DriverUpgrading),
        NvmlState::Error => (GpuState::Unhealthy, Reason::NvmlError),
        // Says nothing about the GPU; that its readings are stale keeps pods away that need them.
        NvmlState::Unknown | NvmlState::ProbeUnavailable => (GpuState::Suspect, Reason::ProbeUnavailable),
    };
    Some(Assessment {
        state,
        reason: Some(reason),
        message: nvml.message.clone(),
    })
}

/// Display functions that the NVIDIA driver holds and NVML does not list, but for those that it was told to keep from everybody. Zero while NVML does not answer: then nothing can be compared.
pub fn missing_gpus(facts: &NodeFacts) -> u32 {
    if facts.nvml.state != NvmlState::Ready {
        return 0;
    }
    let bound = facts
        .nvidia_display_functions()
        .filter(|f| f.driver.as_deref() == Some("nvidia"))
        .count();
    let excluded = facts.driver.as_ref().and_then(|d| d.excluded_gpus).unwrap_or(0);
    u32::try_from(bound.saturating_sub(facts.gpus.len()))
        .unwrap_or(u32::MAX)
        .saturating_sub(excluded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nvml(state: NvmlState) -> NvmlStatus {
        NvmlStatus {
            state,
            message: "m".into(),
        }
    }

    #[test]
    fn an_xid_from_before_the_log_was_followed_is_no_more_than_suspect() {
        let event = |source: &str| GpuEvent {
            kind: GpuEventKind::Xid(95),
            uuid: None,
            pci_address: None,
            age: Duration::ZERO,
            source: source.into(),
            detail: String::new(),
        };
        for (source, effect) in [
            ("nvml", Effect::Unhealthy),
            ("kmsg", Effect::Unhealthy),
            ("kmsg-earlier", Effect::Suspect),
        ] {
            assert_eq!(Fault::of(&event(source)).map(|f| f.effect), Some(effect), "{source}");
        }
    }

    #[test]
    fn the_worse_of_fault_and_driver_decides() {
        let fault = |effect| Fault {
            effect,
            reason: Reason::XidUnlisted,
            message: "f".into(),
            age: Duration::ZERO,
        };
        let suspect = fault(Effect::Suspect);
        let unhealthy = fault(Effect::Unhealthy);
        for (held, recovering, state, want) in [
            (None, false, NvmlState::Ready, GpuState::Healthy),
            (None, true, NvmlState::Ready, GpuState::Verifying),
            (Some(&suspect), false, NvmlState::Ready, GpuState::Suspect),
            (Some(&suspect), false, NvmlState::Hung, GpuState::Unhealthy),
            (
                Some(&unhealthy),
                false,
                NvmlState::ProbeUnavailable,
                GpuState::Unhealthy,
            ),
            (None, false, NvmlState::ProbeUnavailable, GpuState::Suspect),
            (None, false, NvmlState::NoDriver, GpuState::Unhealthy),
            (None, false, NvmlState::VersionMismatch, GpuState::Unhealthy),
        ] {
            assert_eq!(assess(held, recovering, &nvml(state)).state, want, "{held:?} {state}");
        }
        let lost = assess(Some(&unhealthy), false, &nvml(NvmlState::ProbeUnavailable));
        assert_eq!(lost.reason, Some(Reason::XidUnlisted));
    }
}
