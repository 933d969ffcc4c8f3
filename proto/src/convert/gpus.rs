//! The GPUs of each vendor.

use berth_core::facts;

use super::{MOST_GPUS, MOST_MIG_DEVICES, Malformed, alike, at_most, narrow};
use crate::v1;

/// The GPUs of an inventory, from the agent or the probe.
pub fn gpus(list: Vec<v1::Gpu>) -> Result<Vec<facts::Gpu>, Malformed> {
    let list = at_most("gpus", list, MOST_GPUS)?;
    list.into_iter().map(TryInto::try_into).collect()
}

alike! {
    facts::NvidiaDriver = v1::NvidiaDriver {
        version,
        cuda_version,
        nvml_version,
        excluded_gpus,
    }
}

alike! {
    facts::MigDevice = v1::MigDevice {
        uuid,
        gpu_instance_id,
        compute_instance_id,
        profile,
        memory_bytes,
        multiprocessors,
        gpu_instance_slices,
        compute_instance_slices,
        copy_engines,
        decoders,
        encoders,
        jpeg_engines,
        ofa_engines,
    }
}

alike! {
    facts::Fabric = v1::Fabric {
        state,
        status,
        cluster_uuid,
        clique_id,
    }
}

alike! {
    facts::Vgpu = v1::Vgpu {
        pci_address,
        host_driver_version,
        host_driver_branch,
    }
}

alike! {
    facts::AmdDriver = v1::AmdDriver {
        version,
        source_version,
    }
}

alike! {
    facts::IntelGpu = v1::IntelGpu {
        pci_address,
        card,
        tiles,
        memory_bytes,
    }
}

impl From<facts::Gpu> for v1::Gpu {
    fn from(g: facts::Gpu) -> Self {
        Self {
            index: g.index,
            uuid: g.uuid,
            pci_address: g.pci_address,
            product: g.product,
            memory_bytes: g.memory_bytes,
            compute_major: g.compute_capability.map(|c| c.0),
            compute_minor: g.compute_capability.map(|c| c.1),
            mig: g.mig.map(|m| v1::Mig {
                enabled: m.enabled,
                pending: m.pending,
                devices: m.devices.into_iter().map(Into::into).collect(),
            }),
            fabric: g.fabric.map(Into::into),
            serial: g.serial,
            vbios: g.vbios,
            minor_number: g.minor_number,
        }
    }
}

impl TryFrom<v1::Gpu> for facts::Gpu {
    type Error = Malformed;
    fn try_from(g: v1::Gpu) -> Result<Self, Malformed> {
        if g.uuid.is_empty() {
            return Err(Malformed {
                field: "gpu.uuid",
                problem: "is empty".into(),
            });
        }
        let mig = g.mig.map(|m| {
            let devices = at_most("gpu.mig.devices", m.devices, MOST_MIG_DEVICES)?;
            Ok(facts::Mig {
                enabled: m.enabled,
                pending: m.pending,
                devices: devices.into_iter().map(Into::into).collect(),
            })
        });
        Ok(Self {
            index: g.index,
            uuid: g.uuid,
            pci_address: g.pci_address,
            product: g.product,
            memory_bytes: g.memory_bytes,
            compute_capability: g.compute_major.zip(g.compute_minor),
            mig: mig.transpose()?,
            fabric: g.fabric.map(Into::into),
            serial: g.serial,
            vbios: g.vbios,
            minor_number: g.minor_number,
        })
    }
}

impl From<facts::AmdGpu> for v1::AmdGpu {
    fn from(g: facts::AmdGpu) -> Self {
        Self {
            pci_address: g.pci_address,
            device: g.device.into(),
            product: g.product,
            vram_bytes: g.vram_bytes,
            simd_count: g.simd_count,
            simd_per_cu: g.simd_per_cu,
            gfx_target_version: g.gfx_target_version,
            compute_partition: g.compute_partition,
            memory_partition: g.memory_partition,
            compute_partitioning: g.compute_partitioning,
            memory_partitioning: g.memory_partitioning,
            uncorrectable_errors: g.uncorrectable_errors,
            answers: g.answers,
            firmware: g.firmware.into_iter().collect(),
        }
    }
}

impl TryFrom<v1::AmdGpu> for facts::AmdGpu {
    type Error = Malformed;
    fn try_from(g: v1::AmdGpu) -> Result<Self, Malformed> {
        Ok(Self {
            pci_address: g.pci_address,
            device: narrow("amd_gpu.device", g.device)?,
            product: g.product,
            vram_bytes: g.vram_bytes,
            simd_count: g.simd_count,
            simd_per_cu: g.simd_per_cu,
            gfx_target_version: g.gfx_target_version,
            compute_partition: g.compute_partition,
            memory_partition: g.memory_partition,
            compute_partitioning: g.compute_partitioning,
            memory_partitioning: g.memory_partitioning,
            uncorrectable_errors: g.uncorrectable_errors,
            answers: g.answers,
            firmware: g.firmware.into_iter().collect(),
        })
    }
}
