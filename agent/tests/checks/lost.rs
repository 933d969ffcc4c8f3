//! A GPU that is lost to NVML, to the bus, or to NVML's list.

use std::time::Duration;

use nvidia_ml::state::{Effect, Fault, State, code};

use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{UNHEALTHY, sound};

const LOST: [u32; 3] = [code::GPU_IS_LOST, code::RESET_REQUIRED, code::GPU_NOT_FOUND];

/// NVML has three words for it, and any call may have them.
#[tokio::test]
async fn what_nvml_lost_is_lost_until_it_was_reset() {
    let count = |replays: u32| {
        move |state: &mut State| {
            for gpu in &mut state.gpus[1..] {
                gpu.checks.pcie_replays = Some(replays);
            }
        }
    };
    let node = Watched::start(sound(2 + LOST.len(), count(5)), &[]).await;
    let gpus = node.node.state().gpus.split_off(1);
    let want = |n: usize| match n {
        n if n < LOST.len() => (UNHEALTHY, "GpuLost"),
        _ => HEALTHY,
    };
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    let faults = (1..).zip(LOST).map(|(gpu, error)| Fault {
        gpu: Some(gpu),
        ..Fault::of("nvmlDeviceGetTotalEccErrors", Effect::Error(error))
    });
    node.round(|state| state.faults = faults.collect(), &gpus, want).await;
    // It answers again: that alone proves nothing.
    node.round(|state| state.faults.clear(), &gpus, want).await;
    node.clock.turn(Duration::from_secs(60));
    node.round(|_| (), &gpus, want).await;
    node.edit(count(0));
    node.verified(&gpus, |n| want(n).0).await;
    node.until(&gpus, |_| HEALTHY).await;
    for gpu in &gpus[..LOST.len()] {
        node.told(gpu, |told| {
            assert_eq!(told.cleared_by.as_deref(), Some("the GPU was reset"));
        });
    }
}

#[tokio::test]
async fn a_function_that_reads_all_ones_or_is_gone_is_lost_and_one_that_sleeps_is_not() {
    let node = Watched::start(sound(4, |_| ()), &[]).await;
    let gpus = node.node.state().gpus;
    let [all_ones, gone, asleep] = [0, 1, 2];
    node.until(&gpus, |_| HEALTHY).await;
    let address = |n: usize| &*gpus[n].pci_address;
    let machine = &node.node.machine;
    let folder = |n: usize| machine.path(&format!("sys/bus/pci/devices/{}", address(n)));
    let aside = machine.path("aside");

    machine.pci_file(address(asleep), "power/runtime_status", "suspended\n");
    machine.pci_config(address(asleep), [0xff, 0xff]);
    machine.pci_config(address(all_ones), [0xff, 0xff]);
    node.until(&gpus, |n| match n {
        n if n == all_ones => (UNHEALTHY, "GpuLost"),
        _ => HEALTHY,
    })
    .await;
    // Its function was seen by now.
    std::fs::rename(folder(gone), &aside).unwrap();
    let want = |n: usize| match n {
        n if n == all_ones || n == gone => (UNHEALTHY, "GpuLost"),
        _ => HEALTHY,
    };
    node.until(&gpus, want).await;

    machine.pci_config(address(all_ones), [0xde, 0x10]);
    std::fs::rename(&aside, folder(gone)).unwrap();
    node.verified(&gpus, |n| want(n).0).await;
    node.until(&gpus, |_| HEALTHY).await;
}

/// A driver that was loaded anew lists what it found.
#[tokio::test]
async fn a_gpu_that_pci_has_and_nvml_does_not_list_is_missing() {
    let node = Watched::start(sound(2, |_| ()), &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    let missing = |n: usize| match n {
        1 => (UNHEALTHY, "GpuMissing"),
        _ => HEALTHY,
    };
    for is_listed in [false, true] {
        node.edit(|state| state.driver.loaded = false);
        node.until(&gpus[..1], |_| (UNHEALTHY, "DriverNotLoaded")).await;
        node.edit(|state| {
            state.gpus = gpus[..if is_listed { 2 } else { 1 }].to_vec();
            state.driver.loaded = true;
        });
        if is_listed {
            node.verified(&gpus, |n| missing(n).0).await;
        }
        node.until(&gpus, |n| if is_listed { HEALTHY } else { missing(n) })
            .await;
        node.heard(|heard| assert_eq!(heard.missing, u32::from(!is_listed)));
    }
}
