//! A node of two GPUs, and what is told of it.

mod ends;
mod events;
mod findings;
mod lists;
mod memory;
mod slices;

use super::*;
use crate::facts::{GpuEventKind, Mig, MigDevice, MigInstance, NvidiaDriver, NvmlStatus, PciFunction};
use crate::health::GpuState;

fn facts(state: NvmlState, gpus: &[u32]) -> NodeFacts {
    NodeFacts {
        nvml: NvmlStatus {
            state,
            message: String::new(),
        },
        gpus: gpus
            .iter()
            .map(|i| Gpu {
                index: *i,
                uuid: format!("GPU-{i}"),
                pci_address: Some(format!("0000:0{i}:00.0")),
                ..Gpu::default()
            })
            .collect(),
        pci: [0, 1]
            .map(|i| PciFunction {
                address: format!("0000:0{i}:00.0"),
                vendor: 0x10de,
                device: 0x2330,
                class: 0x03_0200,
                subsystem_vendor: None,
                subsystem_device: None,
                driver: Some("nvidia".into()),
                numa_node: None,
                sriov_total_vfs: None,
            })
            .into(),
        kernel_driver_version: (state != NvmlState::NoDriver).then(|| "550.1".into()),
        ..NodeFacts::default()
    }
}

fn xid(number: u64, gpu: Option<u32>) -> GpuEvent {
    GpuEvent {
        kind: GpuEventKind::Xid(number),
        uuid: gpu.map(|i| format!("GPU-{i}")),
        pci_address: None,
        age: Duration::from_secs(1),
        source: "nvml".into(),
        detail: String::new(),
        instance: None,
    }
}

/// XID, with the words of the kernel log where there are any; the source is as that says.
fn event(number: u64, gpu: u32, words: &str) -> GpuEvent {
    GpuEvent {
        source: if words.is_empty() { "nvml" } else { "kmsg" }.into(),
        detail: words.into(),
        age: Duration::ZERO,
        ..xid(number, Some(gpu))
    }
}

fn checks(gpu: u32, change: impl FnOnce(&mut GpuChecks)) -> Vec<GpuChecks> {
    let mut checks = GpuChecks {
        uuid: format!("GPU-{gpu}"),
        ..GpuChecks::default()
    };
    change(&mut checks);
    vec![checks]
}

/// What the kernel tells of the driver of a GPU.
fn binding(name: &str, gpu: u32) -> GpuEvent {
    GpuEvent {
        kind: GpuEventKind::Other(name.into()),
        uuid: None,
        pci_address: Some(format!("0000:0{gpu}:00.0")),
        ..xid(0, None)
    }
}

/// GPU 0 in MIG mode with slices of the GPU instances 1 and 2 (two compute instances).
fn sliced(names: &[(&str, u32, u32)]) -> NodeFacts {
    let mut facts = facts(NvmlState::Ready, &[0, 1]);
    let device = |(uuid, gpu_instance_id, compute_instance_id): &(&str, u32, u32)| MigDevice {
        uuid: (*uuid).into(),
        gpu_instance_id: *gpu_instance_id,
        compute_instance_id: *compute_instance_id,
        ..MigDevice::default()
    };
    facts.gpus[0].mig = Some(Mig {
        enabled: true,
        pending: true,
        devices: names.iter().map(device).collect(),
    });
    facts
}

const SLICES: [(&str, u32, u32); 3] = [("MIG-a", 1, 0), ("MIG-b", 2, 0), ("MIG-c", 2, 1)];

fn of_instance(number: u64, gpu: u32, compute: Option<u32>) -> GpuEvent {
    GpuEvent {
        instance: Some(MigInstance { gpu, compute }),
        ..event(number, 0, "")
    }
}

fn ready() -> Tracker {
    let mut tracker = Tracker::new();
    tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
    tracker
}

fn states(tracker: &Tracker, now: u64) -> Vec<(GpuState, String)> {
    let health = tracker.health(Duration::from_secs(now));
    health.gpus.into_iter().map(|g| (g.state, g.reason)).collect()
}

fn is(tracker: &Tracker, uuid: &str, now: u64) -> (GpuState, String) {
    let health = tracker.health(s(now));
    let found = health.gpus.into_iter().find(|g| g.uuid == uuid).expect("it is known");
    (found.state, found.reason)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
