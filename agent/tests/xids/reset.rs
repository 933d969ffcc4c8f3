//! A reset of one GPU while its driver stays.

use std::time::Duration;

use berth_proto::v1::{self, GpuState};
use nvidia_ml::state::{Effect, Fault, code};

use crate::node::{Controller, Node};
use crate::{Watch, gpus, seen};

/// `nvidia-smi --gpu-reset` as a client sees it: the GPU has to be reset, is not there, and is there again with its counters at zero.
#[tokio::test]
async fn a_gpu_that_is_reset_while_its_driver_stays_is_verified() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    std::fs::write(node.path("kmsg"), "").unwrap();
    let state = gpus(2);
    state.write(&node.path("nvml.json")).unwrap();
    let ill = state.gpus[1].uuid.clone();
    let _probe = node.probe();
    let _agent = node.agent(&controller);
    let mut watch = Watch::start(&mut controller).await;
    let is = |state: GpuState, reason: &'static str| {
        let ill = ill.clone();
        move |health: &v1::NodeHealth| match seen(health).get(&ill) {
            Some((s, r)) if *s == state && r == reason => String::new(),
            other => format!("{other:?}"),
        }
    };
    watch.until("well", is(GpuState::Healthy, "")).await;
    node.edit(|state| {
        let gpu = &mut state.gpus[1];
        gpu.recovery_action = Some(1);
        gpu.checks.ecc_uncorrected_volatile = Some(1);
        gpu.push_xid(48);
        // That it is seen says that the counters were read.
        state.gpus[0].checks.persistence_mode = Some(false);
    });
    let canary = state.gpus[0].uuid.clone();
    watch
        .until("double bit, and a round of checks", |health| {
            let read = seen(health)
                .get(&canary)
                .is_some_and(|(_, r)| r == "PersistenceModeOff");
            match read {
                true => is(GpuState::Unhealthy, "DoubleBitError")(health),
                false => "the counters were not read".into(),
            }
        })
        .await;
    // The driver withdraws its advice: that alone proves nothing.
    node.edit(|state| {
        state.faults = vec![Fault::of_gpu(1, Effect::Error(code::GPU_IS_LOST))];
        state.gpus[1].recovery_action = Some(0);
    });
    watch.until("lost", is(GpuState::Unhealthy, "DoubleBitError")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(is(GpuState::Unhealthy, "DoubleBitError")(&watch.health), "");
    node.edit(|state| {
        state.faults.clear();
        state.gpus[1].checks.ecc_uncorrected_volatile = Some(0);
    });
    watch.until("reset", is(GpuState::Verifying, "Recovering")).await;
    watch.until("quiet", is(GpuState::Healthy, "")).await;
    let cleared_by = watch.health.gpus[1].cleared_by.as_deref();
    assert_eq!(cleared_by, Some("the GPU was reset"));
    assert_eq!(watch.health.gpus[0].cleared_by, None);
}
