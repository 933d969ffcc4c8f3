//! XIDs through the real probe and the real agent: the fault goes into the fake driver or the kernel log, the verdict comes out, and what
//! ends it ends it. On a node of a real cluster, with condition and Event: `tests/behaviour/xids.rs`.
//!
//! | file | of docs/health.md |
//! |---|---|
//! | `rows`, `catalogue` | the table of XIDs, NVLink, and NVML's other events |
//! | `patterns` | what several events say and one does not |
//! | `slices` | MIG slices |
//! | `reset` | what proves a reset |
#![allow(clippy::unwrap_used)]

#[path = "../machine/mod.rs"]
mod machine;
#[path = "../node/mod.rs"]
mod node;

mod catalogue;
mod patterns;
mod reset;
mod rows;
mod slices;

use std::collections::BTreeMap;
use std::time::Duration;

use berth_proto::v1::agent_message::Body;
use berth_proto::v1::{self, GpuState};
use node::Controller;
use node::controller::Session;
use nvidia_ml::state::State;

/// Far beyond anything expected.
const PATIENCE: Duration = Duration::from_secs(120);

type Seen = BTreeMap<String, (GpuState, String)>;

fn seen(health: &v1::NodeHealth) -> Seen {
    let entry = |gpu: &v1::GpuHealth| (gpu.uuid.clone(), (gpu.state(), gpu.reason.clone()));
    health.gpus.iter().map(entry).collect()
}

/// Follows one session: the health as last told.
struct Watch {
    session: Session,
    health: v1::NodeHealth,
}

impl Watch {
    async fn start(controller: &mut Controller) -> Self {
        Self {
            session: controller.session().await,
            health: v1::NodeHealth::default(),
        }
    }

    /// Until `wrong` has nothing to say.
    async fn until(&mut self, what: &str, wrong: impl Fn(&v1::NodeHealth) -> String) {
        let all = async {
            while !wrong(&self.health).is_empty() || self.health.gpus.is_empty() {
                if let Some(Body::Health(health)) = self.session.message().await.body {
                    self.health = health;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            panic!("{what}:\n{}", wrong(&self.health));
        }
    }
}

/// GPUs that have counted something already, under a driver with the newer layout of NVLink 5.
fn gpus(count: u32) -> State {
    let mut state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
    state.driver.version = "580.95.05".into();
    for gpu in &mut state.gpus {
        // Without links their errors are not read.
        gpu.checks.nvlinks = Some(vec![true; 18]);
        gpu.checks.pcie_replays = Some(5);
        gpu.checks.nvlink_crc_errors = Some(7);
    }
    state
}
