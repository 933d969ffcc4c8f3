//! A node's hardware, whole.

use std::time::Duration;

use berth_core::facts;

use super::{MOST_FUNCTIONS, Malformed, at_most, gpus, ms, narrow, nvml_status};
use crate::v1;

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
            amd_driver: f.amd_driver.map(Into::into),
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
            amd_driver: f.amd_driver.map(Into::into),
            intel_gpus: at_most("intel_gpus", f.intel_gpus, MOST_FUNCTIONS)?
                .into_iter()
                .map(Into::into)
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MOST_GPUS, MOST_MIG_DEVICES};
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
