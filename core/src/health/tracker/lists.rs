//! Who is there, by NVML's list and by the drivers that sysfs shows: who is missing, who was taken away, and who is back.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Reason;
use super::super::assess::missing_gpus;
use super::super::clearing::Proof;
use super::super::fault::Fault;
use super::super::xid::{Effect, Part};
use super::{Tracker, Watched};
use crate::facts::{Gpu, NodeFacts, NvmlState, PciFunction};

impl Tracker {
    pub(super) fn know(&mut self, gpus: &[Gpu]) {
        let driver = self.facts.driver.as_ref().map(|driver| &*driver.version);
        let driver_major = driver.and_then(|version| version.split('.').next()?.parse().ok());
        for gpu in gpus {
            let known = self.gpus.entry(gpu.uuid.clone()).or_default();
            known.index = gpu.index;
            known.pci_address.clone_from(&gpu.pci_address);
            known.on_fabric = gpu.fabric.is_some();
            known.part = Part {
                driver_major,
                compute_capability: gpu.compute_capability,
            };
            if self.facts.nvml.state == NvmlState::Ready {
                known.slices.know(gpu.mig.as_ref().map_or(&[], |mig| &mig.devices));
            }
        }
    }

    /// What sysfs says of the driver of each GPU.
    pub(super) fn see_drivers(&mut self) {
        let functions: BTreeMap<&str, bool> = self
            .facts
            .nvidia_display_functions()
            .map(|f| (f.address.as_str(), f.driver.as_deref() == Some("nvidia")))
            .collect();
        for gpu in self.gpus.values_mut() {
            let Some(address) = gpu.pci_address.as_deref() else {
                continue;
            };
            match functions.get(address) {
                Some(held) => {
                    gpu.went |= !held && (gpu.unbound || gpu.held == Some(true));
                    gpu.held = Some(*held);
                }
                None => gpu.went |= gpu.unbound && gpu.held.is_some(),
            }
        }
    }

    /// Whether `facts` say that the kernel driver is gone, or went since it was seen last.
    pub(super) fn driver_is_gone(&self, facts: &NodeFacts) -> bool {
        let Some(last) = &self.driver_version else {
            return facts.nvml.state == NvmlState::NoDriver;
        };
        match &facts.kernel_driver_version {
            // A driver that answers is there, whatever sysfs has.
            None => facts.nvml.state != NvmlState::Ready,
            Some(version) => facts.nvml.state == NvmlState::NoDriver || version != last,
        }
    }

    /// GPUs that are no longer ours to judge: neither NVML nor the vendor's driver has them, and that on purpose; or the driver, as it was told
    /// when it was loaded, keeps them from everybody.
    pub(super) fn drop_removed(&mut self) {
        if self.facts.nvml.state != NvmlState::Ready {
            return;
        }
        let facts = &self.facts;
        let excludes = facts.driver.as_ref().and_then(|d| d.excluded_gpus).unwrap_or(0) > 0;
        let all_are_accounted_for = excludes && missing_gpus(facts) == 0;
        self.gpus.retain(|uuid, gpu| {
            let is_excluded = all_are_accounted_for && !gpu.listed && gpu.held == Some(true);
            facts.gpus.iter().any(|g| g.uuid == *uuid) || !(is_excluded || gpu.was_taken_away(facts))
        });
    }

    /// NVML answers: who is there, who is not, and whose fault a fresh driver or a comeback ends.
    pub(super) fn compare_with_list(&mut self) {
        if self.driver_went {
            self.gpus.values_mut().for_each(|gpu| gpu.listed = false);
        }
        self.drop_removed();
        let listed: BTreeSet<&str> = self.facts.gpus.iter().map(|g| g.uuid.as_str()).collect();
        let driver_went = self.driver_went;
        for (uuid, gpu) in &mut self.gpus {
            if listed.contains(uuid.as_str()) {
                gpu.listed = true;
                if driver_went {
                    gpu.prove(Proof::Rebound, "the driver was loaded anew");
                } else if gpu.went && !gpu.is_let_go(&self.facts) {
                    gpu.prove(Proof::Rebound, "the GPU was reset");
                }
                continue;
            }
            gpu.went = true;
            let message = "NVML no longer lists the GPU: restart the machine".into();
            gpu.record
                .hold(Fault::seen(Effect::Unhealthy, Reason::GpuMissing, message));
        }
    }
}

impl Watched {
    /// Its function among those that sysfs has, where sysfs ever had it.
    fn function<'f>(&self, facts: &'f NodeFacts) -> Option<Option<&'f PciFunction>> {
        self.held?;
        let address = self.pci_address.as_deref()?;
        Some(facts.nvidia_display_functions().find(|f| f.address == address))
    }

    /// Whether sysfs says that the vendor's driver does not have it now.
    fn is_let_go(&self, facts: &NodeFacts) -> bool {
        self.function(facts)
            .is_some_and(|f| f.is_none_or(|f| f.driver.as_deref() != Some("nvidia")))
    }

    /// Whether its function has another driver or none (passthrough), or is gone after it was seen so (an orderly removal). A card that is torn
    /// out is unbound as well, and missed.
    fn was_taken_away(&self, facts: &NodeFacts) -> bool {
        self.is_let_go(facts) && self.held == Some(false)
    }
}
