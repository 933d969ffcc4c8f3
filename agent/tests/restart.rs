//! An agent and a probe that are replaced, as a DaemonSet's roll does: what was held against a GPU is held until what it needs is proven,
//! whoever looks. There is no kernel log here.
#![allow(clippy::unwrap_used)]

mod machine;
mod node;

use std::os::unix::fs::symlink;

use berth_proto::v1::GpuState::{self, Healthy, Unhealthy, Verifying};
use berth_proto::v1::agent_message::Body;
use node::controller::Session;
use node::{Controller, Node, Process};

/// The GPUs' states, in NVML's order, of each report of a session.
struct Reports(Session);

impl Reports {
    async fn next(&mut self) -> Vec<(GpuState, String)> {
        self.0
            .next(|message| match &message.body {
                Some(Body::Health(health)) => Some(health.gpus.iter().map(|g| (g.state(), g.reason.clone())).collect()),
                _ => None,
            })
            .await
    }

    async fn until(&mut self, wanted: [GpuState; 3]) {
        while self.next().await.iter().map(|(state, _)| *state).ne(wanted) {}
    }

    /// The first report that knows GPUs.
    async fn first(&mut self) -> Vec<(GpuState, String)> {
        loop {
            let report = self.next().await;
            if !report.is_empty() {
                return report;
            }
        }
    }
}

/// As a driver does that takes the GPU: another link each time.
fn bind(node: &Node, address: &str) {
    let link = node.path("sys/bus/pci/devices").join(address).join("driver");
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    let new = link.with_extension("new");
    symlink("../../drivers/nvidia", &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

/// The two containers of the agent's pod.
fn pod(node: &Node, controller: &Controller) -> [Process; 2] {
    [node.probe(), node.agent(controller)]
}

#[tokio::test]
async fn a_fault_outlives_agent_and_probe_until_what_it_needs_is_proven() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    let first = node.gpus(3).gpus[0].pci_address.clone();
    bind(&node, &first);
    let mut running = pod(&node, &controller);
    let mut reports = Reports(controller.session().await);
    reports.until([Healthy; 3]).await;
    node.edit(|state| {
        state.gpus[0].push_xid(48);
        state.gpus[1].push_xid(79);
    });
    reports.until([Unhealthy, Unhealthy, Healthy]).await;

    for roll in 1..=2 {
        drop(running);
        running = pod(&node, &controller);
        reports = Reports(controller.session().await);
        let held = [
            (Unhealthy, "DoubleBitError".to_owned()),
            (Unhealthy, "FallenOffBus".to_owned()),
            (Healthy, String::new()),
        ];
        assert_eq!(reports.first().await, held, "roll {roll}");
    }

    // A driver takes the first anew while nobody looks.
    drop(running);
    bind(&node, &first);
    running = pod(&node, &controller);
    reports = Reports(controller.session().await);
    let states: Vec<_> = reports.first().await.into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [Healthy, Unhealthy, Healthy]);
    // What ends it for this agent ends it for the next.
    node.edit(|state| state.driver.loaded = false);
    reports.until([Unhealthy; 3]).await;
    node.edit(|state| state.driver.loaded = true);
    reports.until([Healthy, Verifying, Healthy]).await;
    reports.until([Healthy; 3]).await;
    drop(running);
    let _running = pod(&node, &controller);
    reports = Reports(controller.session().await);
    assert_eq!(reports.first().await, vec![(Healthy, String::new()); 3]);
}

#[tokio::test]
async fn a_controller_that_does_not_welcome_is_asked_again() {
    let mut controller = Controller::that_does_not_welcome(1).await;
    let node = Node::new();
    node.identity(&controller, "token");
    node.gpus(3);
    let _running = pod(&node, &controller);
    let mut unwelcome = controller.session().await;
    let mut reports = Reports(controller.session().await);
    reports.until([Healthy; 3]).await;
    assert!(unwelcome.heard.recv().await.is_none(), "nothing before the welcome");
}
