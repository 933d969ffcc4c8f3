//! Labels from PCI alone: NFD's `pci-*` keys in both forms in use, and `nvidia.com/gpu.present`. They need no driver.

use std::collections::BTreeMap;

use crate::facts::{NodeFacts, PciFunction, VENDOR_AMD, VENDOR_INTEL, VENDOR_NVIDIA};

const NFD: &str = "feature.node.kubernetes.io/pci-";

/// Adds them. NFD's default names class and vendor, NVIDIA's charts configure the vendor alone; consumers select by either.
pub(super) fn add(labels: &mut BTreeMap<String, String>, facts: &NodeFacts) {
    for function in facts.pci.iter().filter(|f| is_gpu(f)) {
        let (class, vendor) = (function.class >> 8, function.vendor);
        for form in [format!("{class:04x}_{vendor:04x}"), format!("{vendor:04x}")] {
            labels.insert(format!("{NFD}{form}.present"), "true".into());
            if function.sriov_total_vfs.is_some_and(|vfs| vfs > 0) {
                labels.insert(format!("{NFD}{form}.sriov.capable"), "true".into());
            }
        }
    }
    if has_nvidia(facts) {
        labels.insert("nvidia.com/gpu.present".into(), "true".into());
    }
}

/// Whether the node has an NVIDIA GPU, by PCI or by NVML.
pub(super) fn has_nvidia(facts: &NodeFacts) -> bool {
    !facts.gpus.is_empty() || facts.pci.iter().any(|f| f.vendor == VENDOR_NVIDIA && is_gpu(f))
}

/// Display (03) and processing accelerator (12) functions of GPU vendors. Co-processors (0b40) are mostly crypto engines of the
/// CPU, and other vendors' display functions belong to the board's management controller.
fn is_gpu(function: &PciFunction) -> bool {
    matches!(function.vendor, VENDOR_NVIDIA | VENDOR_AMD | VENDOR_INTEL) && matches!(function.class >> 16, 0x03 | 0x12)
}
