//! What holds for the node counts for all its GPUs.

use std::time::Duration;

use crate::machine::Machine;
use crate::node::watched::{HEALTHY, Watched};
use crate::rows::{SUSPECT, UNHEALTHY, sound};

#[tokio::test]
async fn confidential_compute_is_ready_or_not() {
    let machine = sound(2, |state| state.driver.confidential_compute_ready = Some(true));
    let node = Watched::start(machine, &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    node.edit(|state| state.driver.confidential_compute_ready = Some(false));
    node.until(&gpus, |_| (UNHEALTHY, "ConfidentialComputeNotReady")).await;
    node.edit(|state| state.driver.confidential_compute_ready = Some(true));
    node.verified(&gpus, |_| UNHEALTHY).await;
    node.until(&gpus, |_| HEALTHY).await;
}

fn with_nvswitch() -> Machine {
    let machine = sound(2, |_| ());
    machine.pci_file("0000:07:00.0", "class", "0x068000\n");
    machine.pci_file("0000:07:00.0", "vendor", "0x10de\n");
    // A process table that is the machine's.
    machine.put("proc/2/comm", "kthreadd\n");
    machine
}

#[tokio::test]
async fn nvswitches_need_a_fabric_manager() {
    let mut node = Watched::start(with_nvswitch(), &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| (SUSPECT, "FabricManagerDown")).await;
    node.kill_probe();
    node.start_probe_by_clock();
    node.until(&gpus, |_| (SUSPECT, "FabricManagerDown")).await;
    // The kernel cuts names.
    node.node.machine.put("proc/77/comm", "nv-fabricmanage\n");
    // A table without it is looked through once a minute.
    node.clock.turn(Duration::from_secs(61));
    node.edit(|_| ());
    node.until(&gpus, |_| HEALTHY).await;
    std::fs::remove_dir_all(node.node.path("proc/77")).unwrap();
    node.edit(|_| ());
    node.until(&gpus, |_| (SUSPECT, "FabricManagerDown")).await;
}

#[tokio::test]
async fn the_gpus_of_a_node_are_in_one_clique() {
    let node = Watched::start(sound(2, |_| ()), &[]).await;
    let gpus = node.node.state().gpus;
    node.until(&gpus, |_| HEALTHY).await;
    let clique = gpus[1].fabric.as_ref().unwrap().clique_id;
    for (clique, is) in [(clique + 7, (SUSPECT, "CliqueMismatch")), (clique, HEALTHY)] {
        node.edit(|state| state.gpus[1].fabric.as_mut().unwrap().clique_id = clique);
        // It is part of the inventory, which is read once a minute.
        node.clock.turn(Duration::from_secs(61));
        node.until(&gpus, |_| is).await;
    }
}
