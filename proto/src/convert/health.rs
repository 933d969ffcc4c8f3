//! Verdicts, and the events that led to them.

use std::time::Duration;

use berth_core::{facts, health};

use super::{Malformed, ms, nvml_status};
use crate::v1;

impl From<health::GpuHealth> for v1::GpuHealth {
    fn from(h: health::GpuHealth) -> Self {
        let state = match h.state {
            health::GpuState::Healthy => v1::GpuState::Healthy,
            health::GpuState::Suspect => v1::GpuState::Suspect,
            health::GpuState::Unhealthy => v1::GpuState::Unhealthy,
            health::GpuState::Verifying => v1::GpuState::Verifying,
        };
        Self {
            uuid: h.uuid,
            state: state.into(),
            reason: h.reason,
            message: h.message,
            since_ms: ms(h.since),
            cleared_by: h.cleared_by,
            gpu: h.gpu,
        }
    }
}

impl From<v1::GpuHealth> for health::GpuHealth {
    fn from(h: v1::GpuHealth) -> Self {
        let state = match v1::GpuState::try_from(h.state) {
            Ok(v1::GpuState::Healthy) => health::GpuState::Healthy,
            Ok(v1::GpuState::Suspect) => health::GpuState::Suspect,
            Ok(v1::GpuState::Verifying) => health::GpuState::Verifying,
            // A state of a newer agent, or none: do not hand the GPU out on a guess.
            Ok(v1::GpuState::Unhealthy | v1::GpuState::Unspecified) | Err(_) => health::GpuState::Unhealthy,
        };
        Self {
            uuid: h.uuid,
            state,
            reason: h.reason,
            message: h.message,
            since: Duration::from_millis(h.since_ms),
            cleared_by: h.cleared_by,
            gpu: h.gpu,
        }
    }
}

impl From<health::NodeHealth> for v1::NodeHealth {
    fn from(h: health::NodeHealth) -> Self {
        Self {
            gpus: h.gpus.into_iter().map(Into::into).collect(),
            nvml_state: v1::NvmlState::from(h.nvml.state).into(),
            message: h.nvml.message,
            missing_gpus: h.missing_gpus,
            // Goes past the types of core: it is the agents' own.
            memory: Vec::new(),
        }
    }
}

impl From<v1::NodeHealth> for health::NodeHealth {
    fn from(h: v1::NodeHealth) -> Self {
        Self {
            gpus: h.gpus.into_iter().map(Into::into).collect(),
            nvml: nvml_status(h.nvml_state, h.message),
            missing_gpus: h.missing_gpus,
        }
    }
}

impl From<facts::GpuEvent> for v1::GpuEvent {
    fn from(e: facts::GpuEvent) -> Self {
        let kind = match e.kind {
            facts::GpuEventKind::Xid(n) => v1::gpu_event::Kind::Xid(n),
            facts::GpuEventKind::Other(name) => v1::gpu_event::Kind::Other(name),
        };
        Self {
            kind: Some(kind),
            uuid: e.uuid,
            pci_address: e.pci_address,
            age_ms: ms(e.age),
            source: e.source,
            detail: e.detail,
            gpu_instance_id: e.instance.map(|i| i.gpu),
            compute_instance_id: e.instance.and_then(|i| i.compute),
        }
    }
}

impl TryFrom<v1::GpuEvent> for facts::GpuEvent {
    type Error = Malformed;
    fn try_from(e: v1::GpuEvent) -> Result<Self, Malformed> {
        let kind = match e.kind {
            Some(v1::gpu_event::Kind::Xid(n)) => facts::GpuEventKind::Xid(n),
            Some(v1::gpu_event::Kind::Other(name)) => facts::GpuEventKind::Other(name),
            None => {
                return Err(Malformed {
                    field: "event.kind",
                    problem: "is missing".into(),
                });
            }
        };
        Ok(Self {
            kind,
            uuid: e.uuid,
            pci_address: e.pci_address,
            age: Duration::from_millis(e.age_ms),
            source: e.source,
            detail: e.detail,
            instance: e.gpu_instance_id.map(|gpu| facts::MigInstance {
                gpu,
                compute: e.compute_instance_id,
            }),
        })
    }
}
