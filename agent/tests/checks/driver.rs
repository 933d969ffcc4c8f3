//! The driver: whether it answers, what it is, and what it asks for.

use std::time::Duration;

use nvidia_ml::state::{Effect, Fault, code};

use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{SUSPECT, UNHEALTHY, come_and_go, row, sound};

#[tokio::test]
#[rustfmt::skip]
async fn each_thing_that_the_driver_says_of_a_gpu() {
    come_and_go(vec![
        row("asks for a reset", |g| g.recovery_action = Some(1), UNHEALTHY, "RecoveryAction"),
        row("for a restart", |g| g.recovery_action = Some(2), UNHEALTHY, "RecoveryAction"),
        row("to drain peers", |g| g.recovery_action = Some(3), UNHEALTHY, "RecoveryAction"),
        row("to drain and reset", |g| g.recovery_action = Some(4), UNHEALTHY, "RecoveryAction"),
        row("to recover IMEX", |g| g.recovery_action = Some(5), SUSPECT, "RecoveryAction"),
        row("for a reset of the bus", |g| g.recovery_action = Some(6), UNHEALTHY, "RecoveryAction"),
        row("for a restart of the system", |g| g.recovery_action = Some(7), UNHEALTHY, "RecoveryAction"),
        row("for what nobody knows", |g| g.recovery_action = Some(99), UNHEALTHY, "RecoveryAction"),
        row("persistence mode off", |g| g.checks.persistence_mode = Some(false), SUSPECT, "PersistenceModeOff"),
    ])
    .await;
}

#[tokio::test]
async fn a_driver_that_hangs_is_away_or_is_another_one_is_that_of_all_gpus() {
    let node = Watched::start(sound(2, |_| ()), &["--call-timeout=500ms"]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;

    node.edit(|state| state.faults = vec![Fault::of("nvmlDeviceGetPowerUsage", Effect::Stall(true))]);
    node.until(&gpus, |_| (UNHEALTHY, "GPUDriverHung")).await;
    node.edit(|state| state.faults.clear());
    node.until(&gpus, |_| HEALTHY).await;

    node.edit(|state| state.driver.loaded = false);
    node.until(&gpus, |_| (UNHEALTHY, "DriverNotLoaded")).await;
    node.edit(|state| (state.driver.loaded, state.driver.version_mismatch) = (true, true));
    node.until(&gpus, |_| (UNHEALTHY, "DriverUpgrading")).await;
    node.edit(|state| {
        state.driver.version_mismatch = false;
        state.faults = vec![Fault::of("nvmlInit_v2", Effect::Error(code::UNKNOWN))];
    });
    node.until(&gpus, |_| (UNHEALTHY, "NvmlError")).await;
    node.edit(|state| state.faults.clear());
    node.until(&gpus, |_| HEALTHY).await;
}

/// Another kernel module than the library's, and not for a moment only.
#[tokio::test]
async fn driver_and_library_are_of_one_version() {
    let machine = sound(2, |_| ());
    let version = |machine: &crate::machine::Machine, version: &str| {
        machine.put("sys/module/nvidia/version", version);
    };
    version(&machine, "550.163.01\n");
    let node = Watched::start(machine, &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    version(&node.node.machine, "570.00\n");
    // Once, and once more when that is more than a moment ago.
    node.edit(|_| ());
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.clock.turn(Duration::from_secs(16));
    node.until(&gpus, |_| (UNHEALTHY, "DriverUpgrading")).await;
    version(&node.node.machine, "550.163.01\n");
    node.until(&gpus, |_| HEALTHY).await;
}

#[tokio::test]
async fn without_a_probe_nothing_is_known() {
    let mut node = Watched::start(sound(3, |_| ()), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let ill = |n: usize| match n {
        0 => (UNHEALTHY, "DoubleBitError"),
        _ => HEALTHY,
    };
    node.round(
        |state| state.gpus[1].checks.ecc_uncorrected_volatile = Some(1),
        &gpus,
        ill,
    )
    .await;
    node.kill_probe();
    // What was known to be ill still is.
    node.until(&gpus, |n| match n {
        0 => ill(0),
        _ => (SUSPECT, "ProbeUnavailable"),
    })
    .await;
    node.clock.turn(Duration::from_secs(3600));
    node.start_probe();
    node.until(&gpus, ill).await;
}
