//! One verdict from what is held against a GPU and what NVML can say at the moment.

use super::fault::Fault;
use super::xid::Effect;
use super::{GpuState, Reason};
use crate::facts::{NodeFacts, NvmlState, NvmlStatus};

impl Fault {
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
        NvmlState::ReleaseBlocked => (GpuState::Unhealthy, Reason::DriverReleaseBlocked),
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
    fn the_worse_of_fault_and_driver_decides() {
        let fault = |effect| Fault::seen(effect, Reason::XidUnlisted, "f".into());
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
            (None, false, NvmlState::Released, GpuState::Unhealthy),
            (None, false, NvmlState::ReleaseBlocked, GpuState::Unhealthy),
        ] {
            assert_eq!(assess(held, recovering, &nvml(state)).state, want, "{held:?} {state}");
        }
        let lost = assess(Some(&unhealthy), false, &nvml(NvmlState::ProbeUnavailable));
        assert_eq!(lost.reason, Some(Reason::XidUnlisted));
    }
}
