//! What a controller heard last, over all its sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use berth_proto::v1::agent_message::Body;
use berth_proto::v1::gpu_event::Kind;
use berth_proto::v1::{GpuState, NvmlState};

use super::Controller;

/// Health, readings and events as they were told.
#[derive(Default)]
pub struct Heard {
    /// By UUID: GPUs and MIG slices.
    pub gpus: BTreeMap<String, Told>,
    /// Functions that PCI has and NVML does not list.
    pub missing: u32,
    /// Every state of NVML, in order, without repeats.
    pub nvml: Vec<NvmlState>,
    /// Messages with readings.
    pub samples: u64,
    /// Events with an XID, by UUID or PCI address and number. Those that were not acknowledged are told anew in the next session.
    pub xids: BTreeMap<(String, u64), u64>,
}

/// What was told of one GPU.
#[derive(Debug, Default)]
pub struct Told {
    /// Its state and reason now.
    pub is: (GpuState, String),
    pub message: String,
    pub cleared_by: Option<String>,
    /// Every state that it was in, in order, without repeats.
    pub states: Vec<GpuState>,
}

impl Heard {
    /// Of all sessions of this controller from now on.
    pub fn of(mut controller: Controller) -> Arc<Mutex<Self>> {
        let heard = Arc::<Mutex<Self>>::default();
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Some(session) = controller.sessions.recv().await {
                let heard = Arc::clone(&all);
                tokio::spawn(async move {
                    // All of it: it ends when the side that may say something is gone.
                    let mut session = session;
                    while let Some(message) = session.heard.recv().await {
                        heard.lock().unwrap().hear(message.body);
                    }
                });
            }
        });
        heard
    }

    fn hear(&mut self, body: Option<Body>) {
        match body {
            Some(Body::Health(health)) => {
                self.missing = health.missing_gpus;
                if self.nvml.last() != Some(&health.nvml_state()) {
                    self.nvml.push(health.nvml_state());
                }
                self.gpus
                    .retain(|uuid, _| health.gpus.iter().any(|gpu| gpu.uuid == *uuid));
                for gpu in health.gpus {
                    let told = self.gpus.entry(gpu.uuid.clone()).or_default();
                    if told.states.last() != Some(&gpu.state()) {
                        told.states.push(gpu.state());
                    }
                    told.is = (gpu.state(), gpu.reason);
                    (told.message, told.cleared_by) = (gpu.message, gpu.cleared_by);
                }
            }
            Some(Body::Samples(_)) => self.samples += 1,
            Some(Body::Events(events)) => {
                for event in events.events {
                    if let (Some(gpu), Some(Kind::Xid(xid))) = (event.uuid.or(event.pci_address), event.kind) {
                        *self.xids.entry((gpu, xid)).or_default() += 1;
                    }
                }
            }
            _ => {}
        }
    }
}
