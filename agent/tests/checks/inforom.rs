//! The infoROM: its validation takes the driver long, and is made once an hour.

use std::time::Duration;

use berth_proto::v1::NvmlState;
use nvidia_ml::state::{Effect, Fault, Utilization};

use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{SUSPECT, UNHEALTHY, sound};

/// NVML was ready all the time since it first was.
fn was_ready_throughout(node: &Watched) {
    node.heard(|heard| {
        let ready = heard.nvml.iter().position(|s| *s == NvmlState::Ready).unwrap();
        assert_eq!(heard.nvml[ready..], [NvmlState::Ready]);
    });
}

async fn new_readings(node: &Watched, before: u64) {
    node.eventually(|heard| match heard.samples > before {
        true => Vec::new(),
        false => vec!["no readings".into()],
    })
    .await;
}

#[tokio::test]
async fn a_corrupted_inforom_is_found_and_validated_anew_an_hour_later() {
    let machine = sound(3, |state| state.gpus[1].checks.inforom_valid = Some(false));
    let node = Watched::start(machine, &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let want = |n: usize| match n {
        0 => (UNHEALTHY, "InforomCorrupted"),
        _ => HEALTHY,
    };
    // A round asks for it, and a later one has what was found.
    node.round(|_| (), &[], |_| HEALTHY).await;
    node.round(|_| (), &gpus, want).await;
    node.round(|state| state.gpus[1].checks.inforom_valid = Some(true), &gpus, want)
        .await;
    node.pass(Duration::from_secs(1800)).await;
    node.round(|_| (), &gpus, want).await;
    node.round(|_| (), &gpus, want).await;
    node.pass(Duration::from_secs(1801)).await;
    node.round(|_| (), &[], |_| HEALTHY).await;
    node.edit(|_| ());
    node.verified(&gpus, |n| want(n).0).await;
    node.until(&gpus, |_| HEALTHY).await;
}

#[tokio::test]
async fn a_slow_validation_is_no_hang_and_readings_go_on() {
    let machine = sound(2, |state| {
        state.gpus[1].checks.inforom_valid = Some(false);
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::DelayMs(6000))];
    });
    // A validation takes three times what any other call may.
    let node = Watched::start(machine, &["--call-timeout=2s"]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    let before = node.heard(|heard| heard.samples);
    node.edit(|state| state.gpus[0].utilization = Some(Utilization { gpu: 87, memory: 40 }));
    new_readings(&node, before).await;
    node.until(&gpus, |n| match n {
        1 => (UNHEALTHY, "InforomCorrupted"),
        _ => HEALTHY,
    })
    .await;
    was_ready_throughout(&node);
}

#[tokio::test]
async fn a_validation_that_never_ends_is_no_hang_either() {
    let machine = sound(1, |state| {
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::Hang(true))];
    });
    let node = Watched::start(machine, &["--slow-call-timeout=1s"]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    // Long past the deadline the checks still find what there is.
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.edit(|state| state.gpus[0].checks.persistence_mode = Some(false));
    node.until(&gpus, |_| (SUSPECT, "PersistenceModeOff")).await;
    was_ready_throughout(&node);
}

#[tokio::test]
async fn calls_that_the_driver_makes_wait_for_a_slow_one_are_no_hang() {
    let machine = sound(1, |state| {
        state.faults = vec![Fault::of("nvmlDeviceValidateInforom", Effect::Hang(true))];
    });
    let node = Watched::start(machine, &["--call-timeout=1s", "--slow-call-timeout=600s"]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    // The validation is under way once a round of checks was read.
    node.edit(|state| state.gpus[0].checks.persistence_mode = Some(false));
    node.until(&gpus, |_| (SUSPECT, "PersistenceModeOff")).await;
    let before = node.heard(|heard| heard.samples);
    node.edit(|state| {
        state
            .faults
            .push(Fault::of("nvmlDeviceGetPowerUsage", Effect::DelayMs(3000)));
        state.gpus[0].utilization = Some(Utilization { gpu: 87, memory: 40 });
    });
    new_readings(&node, before).await;
    was_ready_throughout(&node);
}
