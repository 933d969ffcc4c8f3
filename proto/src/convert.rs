//! Wire messages to core types and back.
//!
//! To core is total where the wire allows nothing wrong, and fails with the field's name where it does. Unknown enum values of a newer
//! peer become the cautious known one.

mod pods;

use std::time::Duration;

use berth_core::facts;
use berth_core::health;

use crate::probe::v1 as probe;
use crate::v1;

/// A message that a peer of this protocol cannot have meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("field {field}: {problem}")]
pub struct Malformed {
    /// Path of the field in the message.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn narrow<T: TryFrom<u32>>(field: &'static str, value: u32) -> Result<T, Malformed> {
    T::try_from(value).map_err(|_| Malformed {
        field,
        problem: format!("{value:#x} is out of range"),
    })
}

/// Most PCI functions, and GPUs known by PCI alone, of one node: far above any machine, virtual functions included.
pub const MOST_FUNCTIONS: usize = 4096;
/// Most GPUs that NVML lists on one node.
pub const MOST_GPUS: usize = 256;
/// Most MIG devices of one GPU; seven is what there is.
pub const MOST_MIG_DEVICES: usize = 64;

/// A list that is longer than any machine makes it is refused whole: whoever sends it is not to fill memory, nor to make work that grows
/// with its square.
fn at_most<T>(field: &'static str, list: Vec<T>, most: usize) -> Result<Vec<T>, Malformed> {
    if list.len() > most {
        return Err(Malformed {
            field,
            problem: format!("has {} entries, at most {most} can be meant", list.len()),
        });
    }
    Ok(list)
}

/// The GPUs of an inventory, from the agent or the probe.
pub fn gpus(list: Vec<v1::Gpu>) -> Result<Vec<facts::Gpu>, Malformed> {
    let list = at_most("gpus", list, MOST_GPUS)?;
    list.into_iter().map(TryInto::try_into).collect()
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl From<facts::NvmlState> for v1::NvmlState {
    fn from(s: facts::NvmlState) -> Self {
        match s {
            facts::NvmlState::Unknown => Self::Unspecified,
            facts::NvmlState::Ready => Self::Ready,
            facts::NvmlState::NoLibrary => Self::NoLibrary,
            facts::NvmlState::NoDriver => Self::NoDriver,
            facts::NvmlState::VersionMismatch => Self::VersionMismatch,
            facts::NvmlState::Hung => Self::Hung,
            facts::NvmlState::Released => Self::Released,
            facts::NvmlState::ProbeUnavailable => Self::ProbeUnavailable,
            facts::NvmlState::Error => Self::Error,
            facts::NvmlState::ReleaseBlocked => Self::ReleaseBlocked,
        }
    }
}

impl From<v1::NvmlState> for facts::NvmlState {
    fn from(s: v1::NvmlState) -> Self {
        match s {
            v1::NvmlState::Unspecified => Self::Unknown,
            v1::NvmlState::Ready => Self::Ready,
            v1::NvmlState::NoLibrary => Self::NoLibrary,
            v1::NvmlState::NoDriver => Self::NoDriver,
            v1::NvmlState::VersionMismatch => Self::VersionMismatch,
            v1::NvmlState::Hung => Self::Hung,
            v1::NvmlState::Released => Self::Released,
            v1::NvmlState::ProbeUnavailable => Self::ProbeUnavailable,
            v1::NvmlState::Error => Self::Error,
            v1::NvmlState::ReleaseBlocked => Self::ReleaseBlocked,
        }
    }
}

/// State and message of a wire message as one status; a state this build does not know reads as [`facts::NvmlState::Error`].
pub fn nvml_status(state: i32, message: String) -> facts::NvmlStatus {
    let state = v1::NvmlState::try_from(state).map_or(facts::NvmlState::Error, Into::into);
    facts::NvmlStatus { state, message }
}

impl From<facts::PciFunction> for v1::PciFunction {
    fn from(f: facts::PciFunction) -> Self {
        Self {
            address: f.address,
            vendor: f.vendor.into(),
            device: f.device.into(),
            class: f.class,
            subsystem_vendor: f.subsystem_vendor.map(Into::into),
            subsystem_device: f.subsystem_device.map(Into::into),
            driver: f.driver,
            numa_node: f.numa_node,
            sriov_total_vfs: f.sriov_total_vfs,
        }
    }
}

impl TryFrom<v1::PciFunction> for facts::PciFunction {
    type Error = Malformed;
    fn try_from(f: v1::PciFunction) -> Result<Self, Malformed> {
        Ok(Self {
            address: f.address,
            vendor: narrow("pci.vendor", f.vendor)?,
            device: narrow("pci.device", f.device)?,
            class: f.class,
            subsystem_vendor: f
                .subsystem_vendor
                .map(|v| narrow("pci.subsystem_vendor", v))
                .transpose()?,
            subsystem_device: f
                .subsystem_device
                .map(|v| narrow("pci.subsystem_device", v))
                .transpose()?,
            driver: f.driver,
            numa_node: f.numa_node,
            sriov_total_vfs: f.sriov_total_vfs,
        })
    }
}

impl From<facts::NvidiaDriver> for v1::NvidiaDriver {
    fn from(d: facts::NvidiaDriver) -> Self {
        Self {
            version: d.version,
            cuda_version: d.cuda_version,
            nvml_version: d.nvml_version,
            excluded_gpus: d.excluded_gpus,
        }
    }
}

impl From<v1::NvidiaDriver> for facts::NvidiaDriver {
    fn from(d: v1::NvidiaDriver) -> Self {
        Self {
            version: d.version,
            cuda_version: d.cuda_version,
            nvml_version: d.nvml_version,
            excluded_gpus: d.excluded_gpus,
        }
    }
}

impl From<facts::MigDevice> for v1::MigDevice {
    fn from(d: facts::MigDevice) -> Self {
        Self {
            uuid: d.uuid,
            gpu_instance_id: d.gpu_instance_id,
            compute_instance_id: d.compute_instance_id,
            profile: d.profile,
            memory_bytes: d.memory_bytes,
            multiprocessors: d.multiprocessors,
            gpu_instance_slices: d.gpu_instance_slices,
            compute_instance_slices: d.compute_instance_slices,
            copy_engines: d.copy_engines,
            decoders: d.decoders,
            encoders: d.encoders,
            jpeg_engines: d.jpeg_engines,
            ofa_engines: d.ofa_engines,
        }
    }
}

impl From<v1::MigDevice> for facts::MigDevice {
    fn from(d: v1::MigDevice) -> Self {
        Self {
            uuid: d.uuid,
            gpu_instance_id: d.gpu_instance_id,
            compute_instance_id: d.compute_instance_id,
            profile: d.profile,
            memory_bytes: d.memory_bytes,
            multiprocessors: d.multiprocessors,
            gpu_instance_slices: d.gpu_instance_slices,
            compute_instance_slices: d.compute_instance_slices,
            copy_engines: d.copy_engines,
            decoders: d.decoders,
            encoders: d.encoders,
            jpeg_engines: d.jpeg_engines,
            ofa_engines: d.ofa_engines,
        }
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
            fabric: g.fabric.map(|f| v1::Fabric {
                state: f.state,
                status: f.status,
                cluster_uuid: f.cluster_uuid,
                clique_id: f.clique_id,
            }),
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
            fabric: g.fabric.map(|f| facts::Fabric {
                state: f.state,
                status: f.status,
                cluster_uuid: f.cluster_uuid,
                clique_id: f.clique_id,
            }),
            serial: g.serial,
            vbios: g.vbios,
            minor_number: g.minor_number,
        })
    }
}

impl From<facts::Vgpu> for v1::Vgpu {
    fn from(v: facts::Vgpu) -> Self {
        Self {
            pci_address: v.pci_address,
            host_driver_version: v.host_driver_version,
            host_driver_branch: v.host_driver_branch,
        }
    }
}

impl From<v1::Vgpu> for facts::Vgpu {
    fn from(v: v1::Vgpu) -> Self {
        Self {
            pci_address: v.pci_address,
            host_driver_version: v.host_driver_version,
            host_driver_branch: v.host_driver_branch,
        }
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

impl From<facts::IntelGpu> for v1::IntelGpu {
    fn from(g: facts::IntelGpu) -> Self {
        Self {
            pci_address: g.pci_address,
            card: g.card,
            tiles: g.tiles,
            memory_bytes: g.memory_bytes,
        }
    }
}

impl From<v1::IntelGpu> for facts::IntelGpu {
    fn from(g: v1::IntelGpu) -> Self {
        Self {
            pci_address: g.pci_address,
            card: g.card,
            tiles: g.tiles,
            memory_bytes: g.memory_bytes,
        }
    }
}

impl From<facts::NodeFacts> for v1::NodeFacts {
    fn from(f: facts::NodeFacts) -> Self {
        Self {
            machine: f.machine,
            pci: f.pci.into_iter().map(Into::into).collect(),
            nvml_state: v1::NvmlState::from(f.nvml.state).into(),
            nvml_message: f.nvml.message,
            driver: f.driver.map(Into::into),
            gpus: f.gpus.into_iter().map(Into::into).collect(),
            gpus_age_ms: f.gpus_age.map(ms),
            kernel_driver_version: f.kernel_driver_version,
            vgpus: f.vgpus.into_iter().map(Into::into).collect(),
            amd_gpus: f.amd_gpus.into_iter().map(Into::into).collect(),
            amd_driver: f.amd_driver.map(|d| v1::AmdDriver {
                version: d.version,
                source_version: d.source_version,
            }),
            intel_gpus: f.intel_gpus.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::NodeFacts> for facts::NodeFacts {
    type Error = Malformed;
    fn try_from(f: v1::NodeFacts) -> Result<Self, Malformed> {
        Ok(Self {
            machine: f.machine,
            pci: at_most("pci", f.pci, MOST_FUNCTIONS)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            nvml: nvml_status(f.nvml_state, f.nvml_message),
            driver: f.driver.map(Into::into),
            gpus: gpus(f.gpus)?,
            gpus_age: f.gpus_age_ms.map(Duration::from_millis),
            kernel_driver_version: f.kernel_driver_version,
            vgpus: at_most("vgpus", f.vgpus, MOST_FUNCTIONS)?
                .into_iter()
                .map(Into::into)
                .collect(),
            amd_gpus: at_most("amd_gpus", f.amd_gpus, MOST_FUNCTIONS)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            amd_driver: f.amd_driver.map(|d| facts::AmdDriver {
                version: d.version,
                source_version: d.source_version,
            }),
            intel_gpus: at_most("intel_gpus", f.intel_gpus, MOST_FUNCTIONS)?
                .into_iter()
                .map(Into::into)
                .collect(),
        })
    }
}

impl From<health::GpuHealth> for v1::GpuHealth {
    fn from(h: health::GpuHealth) -> Self {
        let state = match h.state {
            health::GpuState::Healthy => v1::GpuState::Healthy,
            health::GpuState::Suspect => v1::GpuState::Suspect,
            health::GpuState::Unhealthy => v1::GpuState::Unhealthy,
            health::GpuState::Verifying => v1::GpuState::Verifying,
        };
        Self {
            uuid: h.uuid,
            state: state.into(),
            reason: h.reason,
            message: h.message,
            since_ms: ms(h.since),
            cleared_by: h.cleared_by,
            gpu: h.gpu,
        }
    }
}

impl From<v1::GpuHealth> for health::GpuHealth {
    fn from(h: v1::GpuHealth) -> Self {
        let state = match v1::GpuState::try_from(h.state) {
            Ok(v1::GpuState::Healthy) => health::GpuState::Healthy,
            Ok(v1::GpuState::Suspect) => health::GpuState::Suspect,
            Ok(v1::GpuState::Verifying) => health::GpuState::Verifying,
            // A state of a newer agent, or none: do not hand the GPU out on a guess.
            Ok(v1::GpuState::Unhealthy | v1::GpuState::Unspecified) | Err(_) => health::GpuState::Unhealthy,
        };
        Self {
            uuid: h.uuid,
            state,
            reason: h.reason,
            message: h.message,
            since: Duration::from_millis(h.since_ms),
            cleared_by: h.cleared_by,
            gpu: h.gpu,
        }
    }
}

impl From<health::NodeHealth> for v1::NodeHealth {
    fn from(h: health::NodeHealth) -> Self {
        Self {
            gpus: h.gpus.into_iter().map(Into::into).collect(),
            nvml_state: v1::NvmlState::from(h.nvml.state).into(),
            message: h.nvml.message,
            missing_gpus: h.missing_gpus,
            // Goes past the types of core: it is the agents' own.
            memory: Vec::new(),
        }
    }
}

impl From<v1::NodeHealth> for health::NodeHealth {
    fn from(h: v1::NodeHealth) -> Self {
        Self {
            gpus: h.gpus.into_iter().map(Into::into).collect(),
            nvml: nvml_status(h.nvml_state, h.message),
            missing_gpus: h.missing_gpus,
        }
    }
}

impl From<facts::GpuSample> for v1::GpuSample {
    fn from(s: facts::GpuSample) -> Self {
        Self {
            uuid: s.uuid,
            age_ms: ms(s.age),
            gpu_utilization: s.gpu_utilization,
            memory_utilization: s.memory_utilization,
            memory_used_bytes: s.memory_used_bytes,
            memory_free_bytes: s.memory_free_bytes,
            memory_total_bytes: s.memory_total_bytes,
            power_mw: s.power_mw,
            temperature_c: s.temperature_c,
            sm_clock_mhz: s.sm_clock_mhz,
            memory_clock_mhz: s.memory_clock_mhz,
            clocks_event_reasons: s.clocks_event_reasons,
            compute_processes: s.compute_processes,
            pods: s.pods.into_iter().map(Into::into).collect(),
            pods_state: pods::state(s.pods_state).into(),
            pods_age_ms: s.pods_age.map(ms),
            units_left: s.units_left,
            memory_reserved_bytes: s.memory_reserved_bytes,
            memory_temperature_c: s.memory_temperature_c,
            energy_mj: s.energy_mj,
            nvlink_bytes_per_second: s.nvlink_bytes_per_second,
            graphics_active_ppm: s.graphics_active_ppm,
            sm_active_ppm: s.sm_active_ppm,
            sm_occupancy_ppm: s.sm_occupancy_ppm,
            tensor_active_ppm: s.tensor_active_ppm,
            dram_active_ppm: s.dram_active_ppm,
            pcie_tx_bytes_per_second: s.pcie_tx_bytes_per_second,
            pcie_rx_bytes_per_second: s.pcie_rx_bytes_per_second,
        }
    }
}

impl From<v1::GpuSample> for facts::GpuSample {
    fn from(s: v1::GpuSample) -> Self {
        let pods_state = pods::read_state(s.pods_state());
        Self {
            uuid: s.uuid,
            age: Duration::from_millis(s.age_ms),
            gpu_utilization: s.gpu_utilization,
            memory_utilization: s.memory_utilization,
            memory_used_bytes: s.memory_used_bytes,
            memory_free_bytes: s.memory_free_bytes,
            memory_total_bytes: s.memory_total_bytes,
            power_mw: s.power_mw,
            temperature_c: s.temperature_c,
            sm_clock_mhz: s.sm_clock_mhz,
            memory_clock_mhz: s.memory_clock_mhz,
            clocks_event_reasons: s.clocks_event_reasons,
            compute_processes: s.compute_processes,
            pods_state,
            pods: s.pods.into_iter().map(Into::into).collect(),
            pods_age: s.pods_age_ms.map(Duration::from_millis),
            units_left: s.units_left,
            memory_reserved_bytes: s.memory_reserved_bytes,
            memory_temperature_c: s.memory_temperature_c,
            energy_mj: s.energy_mj,
            nvlink_bytes_per_second: s.nvlink_bytes_per_second,
            graphics_active_ppm: s.graphics_active_ppm,
            sm_active_ppm: s.sm_active_ppm,
            sm_occupancy_ppm: s.sm_occupancy_ppm,
            tensor_active_ppm: s.tensor_active_ppm,
            dram_active_ppm: s.dram_active_ppm,
            pcie_tx_bytes_per_second: s.pcie_tx_bytes_per_second,
            pcie_rx_bytes_per_second: s.pcie_rx_bytes_per_second,
        }
    }
}

impl From<facts::GpuChecks> for probe::GpuChecks {
    fn from(c: facts::GpuChecks) -> Self {
        Self {
            uuid: c.uuid,
            recovery_action: c.recovery_action,
            ecc_uncorrected_volatile: c.ecc_uncorrected_volatile,
            sram_threshold_exceeded: c.sram_threshold_exceeded,
            retired_pages: c.retired_pages,
            retired_pages_pending: c.retired_pages_pending,
            nvlinks_up: c.nvlinks_up,
            nvlink_crc_errors: c.nvlink_crc_errors,
            pcie_width: c.pcie_width,
            pcie_max_width: c.pcie_max_width,
            pcie_replays: c.pcie_replays,
            inforom_valid: c.inforom_valid,
            ecc_corrected_volatile: c.ecc_corrected_volatile,
            repair_pending: c.repair_pending,
            nvlink_recoveries: c.nvlink_recoveries,
            nvlink_failed_recoveries: c.nvlink_failed_recoveries,
            pcie_generation: c.pcie_generation,
            pcie_max_generation: c.pcie_max_generation,
            sm_clock_mhz: c.sm_clock_mhz,
            sm_clock_max_mhz: c.sm_clock_max_mhz,
            temperature_margin_c: c.temperature_margin_c,
            thermal_violation_ns: c.thermal_violation_ns,
            persistence_mode: c.persistence_mode,
            unclear: c.unclear,
            encoder_utilization: c.encoder_utilization,
            decoder_utilization: c.decoder_utilization,
            vgpu_licensed: c.vgpu_licensed,
            remapped_rows: c.remapped_rows.map(|r| probe::RemappedRows {
                correctable: r.correctable,
                uncorrectable: r.uncorrectable,
                pending: r.pending,
                failure: r.failure,
            }),
            row_remap_histogram: c.row_remap_histogram.map(|h| probe::RowRemapHistogram {
                max: h.max,
                high: h.high,
                partial: h.partial,
                low: h.low,
                none: h.none,
            }),
            fabric: c.fabric.map(|f| probe::FabricHealth {
                state: f.state,
                status: f.status,
                health_mask: f.health_mask,
                health_summary: f.health_summary,
            }),
        }
    }
}

impl From<probe::GpuChecks> for facts::GpuChecks {
    fn from(c: probe::GpuChecks) -> Self {
        Self {
            uuid: c.uuid,
            recovery_action: c.recovery_action,
            ecc_uncorrected_volatile: c.ecc_uncorrected_volatile,
            sram_threshold_exceeded: c.sram_threshold_exceeded,
            retired_pages: c.retired_pages,
            retired_pages_pending: c.retired_pages_pending,
            nvlinks_up: c.nvlinks_up,
            nvlink_crc_errors: c.nvlink_crc_errors,
            pcie_width: c.pcie_width,
            pcie_max_width: c.pcie_max_width,
            pcie_replays: c.pcie_replays,
            inforom_valid: c.inforom_valid,
            ecc_corrected_volatile: c.ecc_corrected_volatile,
            repair_pending: c.repair_pending,
            nvlink_recoveries: c.nvlink_recoveries,
            nvlink_failed_recoveries: c.nvlink_failed_recoveries,
            pcie_generation: c.pcie_generation,
            pcie_max_generation: c.pcie_max_generation,
            sm_clock_mhz: c.sm_clock_mhz,
            sm_clock_max_mhz: c.sm_clock_max_mhz,
            temperature_margin_c: c.temperature_margin_c,
            thermal_violation_ns: c.thermal_violation_ns,
            persistence_mode: c.persistence_mode,
            unclear: c.unclear,
            encoder_utilization: c.encoder_utilization,
            decoder_utilization: c.decoder_utilization,
            vgpu_licensed: c.vgpu_licensed,
            remapped_rows: c.remapped_rows.map(|r| facts::RemappedRows {
                correctable: r.correctable,
                uncorrectable: r.uncorrectable,
                pending: r.pending,
                failure: r.failure,
            }),
            row_remap_histogram: c.row_remap_histogram.map(|h| facts::RowRemapHistogram {
                max: h.max,
                high: h.high,
                partial: h.partial,
                low: h.low,
                none: h.none,
            }),
            fabric: c.fabric.map(|f| facts::FabricHealth {
                state: f.state,
                status: f.status,
                health_mask: f.health_mask,
                health_summary: f.health_summary,
            }),
        }
    }
}

impl From<facts::NodeChecks> for probe::NodeChecks {
    fn from(c: facts::NodeChecks) -> Self {
        Self {
            confidential_compute_ready: c.confidential_compute_ready,
            fabric_manager_running: c.fabric_manager_running,
            slow_pending: c.slow_pending,
            unclear: c.unclear,
            lost: c
                .lost
                .into_iter()
                .map(|(uuid, error)| probe::LostGpu { uuid, error })
                .collect(),
        }
    }
}

impl From<probe::NodeChecks> for facts::NodeChecks {
    fn from(c: probe::NodeChecks) -> Self {
        Self {
            confidential_compute_ready: c.confidential_compute_ready,
            fabric_manager_running: c.fabric_manager_running,
            slow_pending: c.slow_pending,
            unclear: c.unclear,
            lost: c.lost.into_iter().map(|l| (l.uuid, l.error)).collect(),
        }
    }
}

impl From<facts::GpuEvent> for v1::GpuEvent {
    fn from(e: facts::GpuEvent) -> Self {
        let kind = match e.kind {
            facts::GpuEventKind::Xid(n) => v1::gpu_event::Kind::Xid(n),
            facts::GpuEventKind::Other(name) => v1::gpu_event::Kind::Other(name),
        };
        Self {
            kind: Some(kind),
            uuid: e.uuid,
            pci_address: e.pci_address,
            age_ms: ms(e.age),
            source: e.source,
            detail: e.detail,
            gpu_instance_id: e.instance.map(|i| i.gpu),
            compute_instance_id: e.instance.and_then(|i| i.compute),
        }
    }
}

impl TryFrom<v1::GpuEvent> for facts::GpuEvent {
    type Error = Malformed;
    fn try_from(e: v1::GpuEvent) -> Result<Self, Malformed> {
        let kind = match e.kind {
            Some(v1::gpu_event::Kind::Xid(n)) => facts::GpuEventKind::Xid(n),
            Some(v1::gpu_event::Kind::Other(name)) => facts::GpuEventKind::Other(name),
            None => {
                return Err(Malformed {
                    field: "event.kind",
                    problem: "is missing".into(),
                });
            }
        };
        Ok(Self {
            kind,
            uuid: e.uuid,
            pci_address: e.pci_address,
            age: Duration::from_millis(e.age_ms),
            source: e.source,
            detail: e.detail,
            instance: e.gpu_instance_id.map(|gpu| facts::MigInstance {
                gpu,
                compute: e.compute_instance_id,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> facts::NodeFacts {
        facts::NodeFacts {
            vgpus: vec![facts::Vgpu {
                pci_address: "0000:10:00.0".into(),
                host_driver_version: Some("550.90.05".into()),
                host_driver_branch: None,
            }],
            amd_gpus: vec![facts::AmdGpu {
                pci_address: "0000:05:00.0".into(),
                device: 0x74a1,
                product: Some("AMD Instinct MI300X OAM".into()),
                vram_bytes: Some(192 << 30),
                simd_count: Some(1216),
                simd_per_cu: Some(4),
                gfx_target_version: Some(90402),
                compute_partition: Some("SPX".into()),
                memory_partition: Some("NPS1".into()),
                compute_partitioning: true,
                memory_partitioning: false,
                uncorrectable_errors: Some(3),
                answers: Some(true),
                firmware: [("MEC".to_owned(), 163), ("SDMA0".to_owned(), 18)].into(),
            }],
            amd_driver: Some(facts::AmdDriver {
                version: None,
                source_version: Some("1F2A".into()),
            }),
            intel_gpus: vec![facts::IntelGpu {
                pci_address: "0000:3a:00.0".into(),
                card: 1,
                tiles: 2,
                memory_bytes: Some(128 << 30),
            }],
            ..facts::NodeFacts::default()
        }
    }

    #[test]
    fn facts_of_all_vendors_arrive_as_they_were_sent() {
        assert_eq!(facts::NodeFacts::try_from(v1::NodeFacts::from(facts())), Ok(facts()));
    }

    #[test]
    fn an_agent_that_does_not_know_a_vendor_says_nothing_of_it() {
        let of_older = facts::NodeFacts::try_from(v1::NodeFacts::default());
        assert_eq!(of_older, Ok(facts::NodeFacts::default()));
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        let mut message = v1::NodeFacts::from(facts());
        message.amd_gpus[0].device = 0x1_0000;
        let refused = facts::NodeFacts::try_from(message).unwrap_err();
        assert_eq!(refused.field, "amd_gpu.device");
    }

    #[test]
    fn lists_longer_than_any_machine_has_are_refused() {
        let refused = |message: v1::NodeFacts| facts::NodeFacts::try_from(message).map_err(|m| m.field);
        let gpu = v1::Gpu {
            uuid: "GPU-1".into(),
            ..v1::Gpu::default()
        };
        let of = |gpus| v1::NodeFacts {
            gpus,
            ..v1::NodeFacts::default()
        };
        assert!(refused(of(vec![gpu.clone(); MOST_GPUS])).is_ok());
        assert_eq!(refused(of(vec![gpu.clone(); MOST_GPUS + 1])), Err("gpus"));
        let mig = v1::Mig {
            devices: vec![v1::MigDevice::default(); MOST_MIG_DEVICES + 1],
            ..v1::Mig::default()
        };
        let sliced = v1::Gpu { mig: Some(mig), ..gpu };
        assert_eq!(refused(of(vec![sliced])), Err("gpu.mig.devices"));
        let pci = vec![v1::PciFunction::default(); MOST_FUNCTIONS + 1];
        assert_eq!(
            refused(v1::NodeFacts {
                pci,
                ..v1::NodeFacts::default()
            }),
            Err("pci")
        );
    }
}
