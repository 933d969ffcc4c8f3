//! What is known of the node: the kernel's view now, NVML's view as last read.

use std::time::Duration;

use berth_core::facts::{Gpu, NodeFacts, NvidiaDriver, NvmlState, NvmlStatus, PciFunction, PciReadings, Vgpu};

use crate::sysfs::Sysfs;

/// NVML's view, as the probe reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// The driver.
    pub driver: Option<NvidiaDriver>,
    /// GPUs in NVML order.
    pub gpus: Vec<Gpu>,
}

/// Everything known, from which [`NodeFacts`] are made. Each `on_` says whether anything changed.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    sysfs: Sysfs,
    nvml: NvmlStatus,
    last: Option<(Inventory, Duration)>,
    vgpus: Vec<Vgpu>,
}

impl Facts {
    /// A scan of sysfs.
    pub fn on_sysfs(&mut self, sysfs: Sysfs) -> bool {
        let changed = self.sysfs != sysfs;
        self.sysfs = sysfs;
        changed
    }

    /// What the functions of the last scan say now.
    pub fn on_pci(&mut self, read: &PciReadings) -> bool {
        let mut changed = false;
        for gpu in &mut self.sysfs.amd_gpus {
            let function = read.functions.iter().find(|f| f.address == gpu.pci_address);
            if let Some(answers) = function.map(|f| f.answers) {
                changed |= std::mem::replace(&mut gpu.answers, answers) != answers;
            }
        }
        changed
    }

    /// PCI functions of the last scan.
    pub fn pci(&self) -> &[PciFunction] {
        &self.sysfs.pci
    }

    /// NVML's state; what was read before is kept.
    pub fn on_nvml(&mut self, nvml: NvmlStatus) -> bool {
        let changed = self.nvml != nvml;
        self.nvml = nvml;
        changed
    }

    /// Virtual GPUs by PCI, whatever NVML's state.
    pub fn on_vgpus(&mut self, vgpus: Vec<Vgpu>) -> bool {
        let changed = self.vgpus != vgpus;
        self.vgpus = vgpus;
        changed
    }

    /// NVML answered at `now`.
    pub fn on_inventory(&mut self, inventory: Inventory, now: Duration) -> bool {
        let ready = NvmlStatus {
            state: NvmlState::Ready,
            message: String::new(),
        };
        let changed = self.nvml != ready || self.last.as_ref().is_none_or(|(last, _)| *last != inventory);
        self.nvml = ready;
        self.last = Some((inventory, now));
        changed
    }

    /// NVML's state.
    pub fn nvml(&self) -> &NvmlStatus {
        &self.nvml
    }

    /// The driver as last read.
    pub fn driver(&self) -> Option<&NvidiaDriver> {
        self.last.as_ref().and_then(|(inventory, _)| inventory.driver.as_ref())
    }

    /// GPUs as last read, in NVML order.
    pub fn gpus(&self) -> &[Gpu] {
        self.last.as_ref().map_or(&[], |(inventory, _)| &inventory.gpus)
    }

    /// When that was.
    pub fn read_at(&self) -> Option<Duration> {
        self.last.as_ref().map(|(_, at)| *at)
    }

    /// All of it, with ages as of `now`.
    pub fn at(&self, now: Duration) -> NodeFacts {
        let last = self.last.as_ref();
        NodeFacts {
            machine: self.sysfs.machine.clone(),
            pci: self.sysfs.pci.clone(),
            nvml: self.nvml.clone(),
            driver: last.and_then(|(i, _)| i.driver.clone()),
            gpus: last.map(|(i, _)| i.gpus.clone()).unwrap_or_default(),
            gpus_age: last.map(|(_, at)| now.saturating_sub(*at)),
            kernel_driver_version: self.sysfs.kernel_driver_version.clone(),
            vgpus: self.vgpus.clone(),
            amd_gpus: self.sysfs.amd_gpus.clone(),
            amd_driver: self.sysfs.amd_driver.clone(),
            intel_gpus: self.sysfs.intel_gpus.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{AmdGpu, PciChecks};

    fn inventory(uuid: &str) -> Inventory {
        Inventory {
            driver: Some(NvidiaDriver {
                version: "550.163.01".into(),
                cuda_version: None,
                nvml_version: None,
                excluded_gpus: None,
            }),
            gpus: vec![Gpu {
                uuid: uuid.into(),
                ..Gpu::default()
            }],
        }
    }

    #[test]
    fn what_nvml_said_last_outlives_it() {
        let s = Duration::from_secs;
        let mut facts = Facts::default();
        assert!(facts.on_sysfs(Sysfs {
            machine: Some("DGX".into()),
            ..Sysfs::default()
        }));
        assert_eq!(facts.at(s(1)).gpus_age, None);
        assert!(facts.on_inventory(inventory("GPU-1"), s(1)));
        assert!(
            !facts.on_inventory(inventory("GPU-1"), s(5)),
            "the same again is no change"
        );
        let gone = NvmlStatus {
            state: NvmlState::ProbeUnavailable,
            message: "no probe".into(),
        };
        assert!(facts.on_nvml(gone.clone()));
        assert!(!facts.on_nvml(gone));
        let now = facts.at(s(35));
        assert_eq!(now.nvml.state, NvmlState::ProbeUnavailable);
        assert_eq!((now.gpus.len(), now.gpus_age), (1, Some(s(30))));
        assert!(now.driver.is_some());
        assert!(facts.on_inventory(inventory("GPU-1"), s(40)), "back is a change");
        assert!(facts.on_inventory(inventory("GPU-2"), s(41)));
    }

    #[test]
    fn an_amd_gpu_that_no_longer_answers_shows_without_a_scan() {
        let mut facts = Facts::default();
        facts.on_sysfs(Sysfs {
            amd_gpus: vec![AmdGpu {
                pci_address: "0000:05:00.0".into(),
                answers: Some(true),
                ..AmdGpu::default()
            }],
            ..Sysfs::default()
        });
        let read = |address: &str, answers| PciReadings {
            functions: vec![PciChecks {
                address: address.into(),
                answers,
                ..PciChecks::default()
            }],
            nvswitches: 0,
        };
        for (address, answers, changed, want) in [
            ("0000:05:00.0", Some(true), false, Some(true)),
            ("0000:06:00.0", Some(false), false, Some(true)),
            ("0000:05:00.0", Some(false), true, Some(false)),
            ("0000:05:00.0", None, true, None),
        ] {
            assert_eq!(facts.on_pci(&read(address, answers)), changed, "{address} {answers:?}");
            assert_eq!(facts.at(Duration::ZERO).amd_gpus[0].answers, want);
        }
    }
}
