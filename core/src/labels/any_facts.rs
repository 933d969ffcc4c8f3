//! Any facts and any settings, for tests of what must hold of all labels.

use proptest::prelude::*;

use super::{MigStrategy, Replicated, Settings, SharingStrategy};
use crate::facts::{
    AmdDriver, AmdGpu, Fabric, Gpu, IntelGpu, Mig, MigDevice, NodeFacts, NvidiaDriver, PciFunction, VENDOR_AMD,
    VENDOR_INTEL, VENDOR_NVIDIA, Vgpu,
};

/// Names as hardware has them, and as it should not.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "(NVIDIA|AMD|Intel)? ?[A-Z][A-Z0-9]{1,5}[ -][A-Za-z0-9 ()-]{0,20}",
        "[-_. +A-Za-z0-9()/]{0,90}",
        any::<String>(),
    ]
}

fn option<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(of)
}

/// A GPU without what tells it from others.
fn any_gpu() -> impl Strategy<Value = Gpu> {
    let profile = prop_oneof!["([1-7]c\\.)?[1-7]g\\.[0-9]{1,3}gb(\\+me)?", ".{0,12}"];
    let devices = prop::collection::vec((profile, any::<u64>(), any::<u32>()), 0..3);
    let mig = option((any::<bool>(), devices));
    let fabric = option((
        0..4_u32,
        0..2_u32,
        prop_oneof!["0{8}-[01]{4}", any::<String>()],
        0..2_u32,
    ));
    let capability = option((0..14_u32, 0..10_u32));
    (option(name()), option(any::<u64>()), capability, mig, fabric).prop_map(
        |(product, memory_bytes, compute_capability, mig, fabric)| Gpu {
            product,
            memory_bytes,
            compute_capability,
            mig: mig.map(|(enabled, devices)| Mig {
                enabled,
                pending: enabled,
                devices: devices
                    .into_iter()
                    .map(|(profile, memory_bytes, multiprocessors)| MigDevice {
                        profile,
                        memory_bytes,
                        multiprocessors,
                        ..MigDevice::default()
                    })
                    .collect(),
            }),
            fabric: fabric.map(|(state, status, cluster_uuid, clique_id)| Fabric {
                state,
                status,
                cluster_uuid,
                clique_id,
            }),
            ..Gpu::default()
        },
    )
}

fn any_function() -> impl Strategy<Value = PciFunction> {
    let vendor = prop_oneof![Just(VENDOR_NVIDIA), Just(VENDOR_AMD), Just(VENDOR_INTEL), any::<u16>()];
    let class = prop_oneof![
        Just(0x03_0000),
        Just(0x03_0200),
        Just(0x12_0000),
        Just(0x0b_4000),
        any::<u32>()
    ];
    let device = prop_oneof![Just(0x0bd5), Just(0x56c0), any::<u16>()];
    (vendor, device, class, option(any::<i32>()), option(any::<u32>())).prop_map(
        |(vendor, device, class, numa_node, sriov_total_vfs)| PciFunction {
            class: class & 0xff_ffff,
            numa_node,
            sriov_total_vfs,
            address: String::new(),
            vendor,
            device,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: None,
        },
    )
}

fn any_amd() -> impl Strategy<Value = AmdGpu> {
    let numbers = (
        option(any::<u64>()),
        option(any::<u32>()),
        option(0..9_u32),
        option(0..130_000_u32),
    );
    let firmware = prop::collection::btree_map(prop_oneof!["MEC|SMC|SDMA0", any::<String>()], any::<u32>(), 0..3);
    (any::<u16>(), option(name()), numbers, option(name()), firmware).prop_map(
        |(device, product, (vram_bytes, simd_count, simd_per_cu, gfx_target_version), partition, firmware)| AmdGpu {
            device,
            product,
            vram_bytes,
            simd_count,
            simd_per_cu,
            gfx_target_version,
            compute_partition: partition.clone(),
            memory_partition: partition,
            firmware,
            ..AmdGpu::default()
        },
    )
}

/// Everything there is to know of a node, whatever it is. What tells things apart is unique, as the kernel's and the driver's names are.
pub fn any_facts() -> impl Strategy<Value = NodeFacts> {
    let driver = option((name(), option(any::<u32>())));
    let intel = prop::collection::vec((any::<u32>(), option(any::<u64>())), 0..4);
    (
        option(name()),
        driver,
        prop::collection::vec(any_function(), 0..6),
        prop::collection::vec(any_gpu(), 0..5),
        prop::collection::vec(any_amd(), 0..4),
        intel,
        prop::collection::vec((option(name()), option(name())), 0..3),
    )
        .prop_map(|(machine, driver, mut pci, mut gpus, mut amd_gpus, intel, vgpus)| {
            let address = |n: usize| format!("0000:{n:02x}:00.0");
            for (n, function) in pci.iter_mut().enumerate() {
                function.address = address(n);
            }
            for (index, gpu) in (0..).zip(&mut gpus) {
                (gpu.index, gpu.uuid) = (index, format!("GPU-{index}"));
                gpu.pci_address = Some(address(index as usize));
                for (n, device) in gpu.mig.iter_mut().flat_map(|m| &mut m.devices).enumerate() {
                    device.uuid = format!("MIG-{index}-{n}");
                }
            }
            for (n, gpu) in amd_gpus.iter_mut().enumerate() {
                gpu.pci_address = address(n);
            }
            NodeFacts {
                machine,
                driver: driver.map(|(version, cuda_version)| NvidiaDriver {
                    version,
                    cuda_version,
                    nvml_version: None,
                    excluded_gpus: None,
                }),
                pci,
                gpus,
                amd_driver: (!amd_gpus.is_empty()).then(AmdDriver::default),
                amd_gpus,
                intel_gpus: (0..)
                    .zip(intel)
                    .map(|(card, (tiles, memory_bytes))| IntelGpu {
                        pci_address: address(card as usize),
                        card,
                        tiles,
                        memory_bytes,
                    })
                    .collect(),
                vgpus: vgpus
                    .into_iter()
                    .enumerate()
                    .map(|(n, (host_driver_version, host_driver_branch))| Vgpu {
                        pci_address: address(n),
                        host_driver_version,
                        host_driver_branch,
                    })
                    .collect(),
                ..NodeFacts::default()
            }
        })
}

pub fn any_settings() -> impl Strategy<Value = Settings> {
    let mig = prop_oneof![
        Just(MigStrategy::None),
        Just(MigStrategy::Single),
        Just(MigStrategy::Mixed)
    ];
    let sharing = prop_oneof![
        Just(SharingStrategy::None),
        Just(SharingStrategy::TimeSlicing),
        Just(SharingStrategy::Mps)
    ];
    (mig, sharing, any::<u32>(), any::<bool>(), option(any::<u64>())).prop_map(
        |(mig_strategy, sharing, replicas, renamed, timestamp)| Settings {
            mig_strategy,
            sharing,
            replicated: vec![Replicated {
                resource: "nvidia.com/gpu".into(),
                replicas,
                renamed,
            }],
            timestamp,
        },
    )
}
