//! Node labels from hardware facts.
//!
//! ```text
//! NodeFacts ─┬─► pci    vendor and class of functions, without any driver
//! Settings ──┼─► gfd    NVIDIA's GPU feature discovery keys, once NVML was read
//!            │    └─ mig   those of MIG devices
//!            ├─► amd    the keys of AMD's node labeller, from sysfs
//!            ├─► intel  the keys of Intel's device plugins, from sysfs
//!            └─► class  berth.dev/gpu-class and the counts per class
//!                grammar: whatever the hardware calls itself becomes a valid label value
//! ```
//!
//! A node without GPUs gets no label at all. While NVML is away the facts keep what was last read, so the labels stay.

mod amd;
mod class;
pub mod device_plugin;
mod gfd;
pub mod grammar;
mod intel;
mod mig;
mod pci;
mod product;
mod settings;

use std::collections::BTreeMap;

pub use class::class_of;
pub use settings::{MigStrategy, Replicated, Settings, SharingStrategy};

use crate::facts::NodeFacts;

/// Label of a node with one GPU product: its class.
pub const GPU_CLASS: &str = "berth.dev/gpu-class";
/// Prefix of the labels per class: `berth.dev/gpu.<class>.count`, `.memory` (MiB).
pub const GPU_PER_CLASS: &str = "berth.dev/gpu.";

/// All labels of a node; every key and value is valid. Depends on its arguments alone, not on the order of their lists.
pub fn labels(facts: &NodeFacts, settings: &Settings) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    pci::add(&mut labels, facts);
    gfd::add(&mut labels, facts, settings);
    amd::add(&mut labels, facts);
    intel::add(&mut labels, facts);
    class::add(&mut labels, facts);
    labels
}

/// Whether NVML was not read yet on a node that has an NVIDIA GPU by PCI: an agent that just started, or a driver that is not there.
/// What an earlier reading said about its GPUs is then the best that is known.
pub fn waits_for_nvml(facts: &NodeFacts) -> bool {
    facts.gpus_age.is_none() && facts.gpus.is_empty() && pci::has_nvidia(facts)
}

#[cfg(test)]
mod any_facts;
#[cfg(test)]
mod documented;
#[cfg(test)]
mod tests;
