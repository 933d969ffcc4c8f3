//! The PCIe link, by NVML and by the kernel.

use std::time::Duration;

use nvidia_ml::state::{Clocks, Gpu};

use crate::node::watched::{HEALTHY, Is, Watched};
use crate::rows::{Counter, SUSPECT, come_and_go, rise_and_rest, row, sound};

#[tokio::test]
async fn few_lanes() {
    come_and_go(vec![row(
        "8 of 16",
        |g| g.checks.pcie_width = Some(8),
        SUSPECT,
        "PcieWidth",
    )])
    .await;
}

#[tokio::test]
async fn replays_by_their_number_in_a_minute() {
    rise_and_rest(&[Counter {
        set: |gpu, count| gpu.checks.pcie_replays = Some(count),
        most: 8,
        reason: "PcieReplays",
    }])
    .await;
}

#[tokio::test]
async fn a_slow_link_counts_while_the_gpu_is_busy_and_until_it_was_fast() {
    let node = Watched::start(sound(3, |_| ()), &[]).await;
    // The second idles all the time, with a link of the first generation.
    let gpus = node.node.state().gpus.split_off(1);
    let link = |gpu: &mut Gpu, generation: u32, sm: u32| {
        gpu.checks.pcie_generation = Some(generation);
        gpu.clocks = Some(Clocks { sm, memory: 2619 });
    };
    let slow = |n: usize| match n {
        0 => (SUSPECT, "PcieGeneration"),
        _ => HEALTHY,
    };
    node.round(|_| (), &gpus, |_| HEALTHY).await;
    node.clock.turn(Duration::from_secs(60));
    // It may just have woken.
    node.round(|state| link(&mut state.gpus[1], 3, 1800), &gpus, |_| HEALTHY)
        .await;
    node.clock.turn(Duration::from_secs(11));
    node.round(|_| (), &gpus, slow).await;
    node.round(|state| link(&mut state.gpus[1], 1, 345), &gpus, slow).await;
    node.clock.turn(Duration::from_secs(60));
    node.round(|_| (), &gpus, slow).await;
    node.round(|state| link(&mut state.gpus[1], 5, 1800), &gpus, |_| HEALTHY)
        .await;
}

/// GPUs of which NVML does not tell the width, and the kernel does.
async fn read_by_the_kernel(count: usize) -> (Watched, Vec<Gpu>) {
    let machine = sound(count, |state| {
        for gpu in &mut state.gpus {
            gpu.checks.pcie_width = None;
        }
    });
    let node = Watched::start(machine, &[]).await;
    let gpus = node.node.state().gpus;
    for gpu in &gpus {
        node.node.machine.pci_file(&gpu.pci_address, "max_link_width", "16\n");
        node.node
            .machine
            .pci_file(&gpu.pci_address, "current_link_width", "16\n");
    }
    node.until(&gpus, |_| HEALTHY).await;
    (node, gpus)
}

/// Waits until all functions were read after this was called, and the other GPUs are as `want` has it. The first one's width shows it:
/// once a look at it in a scan that may have begun before, once in one that did not.
async fn scanned(node: &Watched, gpus: &[Gpu], want: impl Fn(usize) -> Is) {
    for (width, marker) in [("8\n", (SUSPECT, "PcieWidth")), ("16\n", HEALTHY)] {
        let machine = &node.node.machine;
        machine.pci_file(&gpus[0].pci_address, "current_link_width", width);
        node.until(&gpus[..1], |_| marker).await;
    }
    node.until(&gpus[1..], want).await;
}

#[tokio::test]
async fn errors_that_the_kernel_counts() {
    let (node, gpus) = read_by_the_kernel(6).await;
    let count = |n: usize, file: &str, name: &str, count: u32| {
        let text = format!("Undefined 0\n{name} {count}\n");
        node.node.machine.pci_file(&gpus[n].pci_address, file, text);
    };
    let [nonfatal, fatal, many, as_many_as_may_be] = [1, 2, 3, 4];
    // What was counted before anybody looked says nothing.
    let all = |grown: u32, corrected: u32| {
        count(nonfatal, "aer_dev_nonfatal", "TOTAL_ERR_NONFATAL", 7 + grown);
        count(fatal, "aer_dev_fatal", "TOTAL_ERR_FATAL", 7 + grown);
        count(many, "aer_dev_correctable", "TOTAL_ERR_COR", 9000 + corrected);
    };
    let few = |more: u32| count(as_many_as_may_be, "aer_dev_correctable", "TOTAL_ERR_COR", 9000 + more);
    all(0, 0);
    few(0);
    scanned(&node, &gpus, |_| HEALTHY).await;
    let uncorrected = |n: usize| match n + 1 {
        n if n == nonfatal || n == fatal => (SUSPECT, "PcieErrors"),
        _ => HEALTHY,
    };
    all(1, 600);
    few(60);
    scanned(&node, &gpus, uncorrected).await;
    node.clock.turn(Duration::from_secs(61));
    // They go on, as the minute may have ended before this is read.
    all(1, 1200);
    scanned(&node, &gpus, |n| match n + 1 == many {
        true => (SUSPECT, "PcieErrors"),
        false => uncorrected(n),
    })
    .await;
    for _ in 0..2 {
        node.clock.turn(Duration::from_secs(61));
        scanned(&node, &gpus[..1], |_| HEALTHY).await;
    }
    node.until(&gpus[1..], uncorrected).await;
    // Ten minutes after they came.
    node.clock.turn(Duration::from_secs(300));
    scanned(&node, &gpus, uncorrected).await;
    node.clock.turn(Duration::from_secs(150));
    scanned(&node, &gpus, |_| HEALTHY).await;
}
