//! Stand-in for the tracker of `berth_core::health`: a lost GPU and a fatal-looking XID make a GPU unhealthy, nothing makes it healthy again.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_core::facts::{GpuEvent, GpuEventKind, NodeFacts};
use berth_core::health::{GpuHealth, GpuState, NodeHealth};

/// Health of one node's GPUs.
#[derive(Debug, Default)]
pub struct Tracker {
    facts: NodeFacts,
    faults: BTreeMap<String, (String, String)>,
}

impl Tracker {
    /// A fault, from NVML.
    pub fn on_event(&mut self, event: &GpuEvent) {
        if let (GpuEventKind::Xid(79 | 95 | 119 | 48), Some(uuid)) = (&event.kind, &event.uuid) {
            self.faults
                .insert(uuid.clone(), ("Xid".into(), format!("{:?}", event.kind)));
        }
    }

    /// What the node's hardware is now.
    pub fn on_inventory(&mut self, facts: &NodeFacts) {
        self.facts = facts.clone();
    }

    /// NVML answered that a GPU is lost.
    pub fn on_lost(&mut self, uuid: &str, error: &str) {
        self.faults.insert(uuid.into(), ("GpuLost".into(), error.into()));
    }

    /// Health of the node.
    pub fn health(&self, _now: Duration) -> NodeHealth {
        let health = |uuid: &String| {
            let fault = self.faults.get(uuid);
            GpuHealth {
                uuid: uuid.clone(),
                state: fault.map_or(GpuState::Healthy, |_| GpuState::Unhealthy),
                reason: fault.map(|f| f.0.clone()).unwrap_or_default(),
                message: fault.map(|f| f.1.clone()).unwrap_or_default(),
                since: Duration::ZERO,
                cleared_by: None,
            }
        };
        NodeHealth {
            gpus: self.facts.gpus.iter().map(|g| health(&g.uuid)).collect(),
            nvml: self.facts.nvml.clone(),
            missing_gpus: 0,
        }
    }
}
