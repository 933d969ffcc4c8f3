//! The keys of NVIDIA's GPU feature discovery, deprecated ones included. Those of MIG devices are in [`super::mig`].
//!
//! GFD picks the product of a mixed node at random; here the choice is fixed (see [`described`]) and `gpu.count` is the count of
//! that product.

use std::collections::{BTreeMap, BTreeSet};

use super::pci::has_nvidia;
use super::product::{Product, described};
use super::settings::{Settings, SharingStrategy};
use super::{grammar, mig};
use crate::facts::{Gpu, NodeFacts, NvidiaDriver, Vgpu};

/// `NVML_GPU_FABRIC_STATE_COMPLETED`.
const FABRIC_COMPLETED: u32 = 3;
/// PCI class of a VGA controller, without the programming interface.
const CLASS_VGA: u32 = 0x0300;
/// PCI class of a 3D controller.
const CLASS_3D: u32 = 0x0302;

pub(super) type Labels = BTreeMap<String, String>;

pub(super) fn add(labels: &mut Labels, facts: &NodeFacts, settings: &Settings) {
    if has_nvidia(facts) {
        add_vgpu(labels, facts);
        if let Some(timestamp) = settings.timestamp {
            set(labels, "gfd.timestamp", timestamp);
        }
    }
    let Some(product) = described(&facts.gpus) else { return };
    if let Some(driver) = &facts.driver {
        add_driver(labels, driver);
    }
    add_product(labels, &product, settings);
    set(labels, "gpu.mode", mode(facts));
    let machine = facts.machine.as_deref().and_then(grammar::value);
    set(labels, "gpu.machine", machine.as_deref().unwrap_or("unknown"));
    set(labels, "mig.capable", facts.gpus.iter().any(|g| g.mig.is_some()));
    // GFD gives up on the whole node where MPS meets MIG.
    let mps = settings.sharing == SharingStrategy::Mps && !facts.gpus.iter().any(in_mig_mode);
    set(labels, "mps.capable", mps);
    if let Some(clique) = clique(&facts.gpus) {
        set(labels, "gpu.clique", clique);
    }
    mig::add(labels, facts, settings);
}

pub(super) fn set(labels: &mut Labels, key: &str, value: impl ToString) {
    labels.insert(format!("nvidia.com/{key}"), value.to_string());
}

fn in_mig_mode(gpu: &Gpu) -> bool {
    gpu.mig.as_ref().is_some_and(|mig| mig.enabled)
}

/// A resource of the device plugin, by its name without the domain: how its devices are shared.
pub(super) struct Resource<'a> {
    name: &'a str,
    replicas: u32,
    strategy: SharingStrategy,
    /// Whether the product says that it is shared.
    marked: bool,
}

impl<'a> Resource<'a> {
    /// As the settings have it.
    pub fn shared(name: &'a str, settings: &Settings) -> Self {
        let replicated = settings.replicated(&format!("nvidia.com/{name}"));
        let replicas = replicated.map_or(1, |r| r.replicas.max(1));
        Self {
            name,
            replicas,
            strategy: if replicas > 1 {
                settings.sharing
            } else {
                SharingStrategy::None
            },
            marked: replicas > 1 && !replicated.is_some_and(|r| r.renamed),
        }
    }

    /// Devices that are not handed out as this resource.
    fn withheld(name: &'a str) -> Self {
        Self {
            name,
            replicas: 0,
            strategy: SharingStrategy::None,
            marked: false,
        }
    }

    /// Adds the keys that every resource has.
    pub fn add(&self, labels: &mut Labels, count: usize, product: Option<&str>) {
        let name = self.name;
        set(labels, &format!("{name}.count"), count);
        set(labels, &format!("{name}.replicas"), self.replicas);
        set(labels, &format!("{name}.sharing-strategy"), self.strategy.name());
        let mark = if self.marked { " SHARED" } else { "" };
        if let Some(product) = product.and_then(|p| grammar::value(&format!("{p}{mark}"))) {
            set(labels, &format!("{name}.product"), product);
        }
    }
}

fn add_driver(labels: &mut Labels, driver: &NvidiaDriver) {
    let parts: Vec<&str> = driver.version.split('.').collect();
    let version = match parts.as_slice() {
        [major, minor] => Some((*major, *minor, "")),
        [major, minor, revision] => Some((*major, *minor, *revision)),
        _ => None,
    };
    // Parts of a version that is a value need not be values themselves: `550.-1.2`.
    let valid = |_: &_| grammar::is_value(&driver.version) && parts.iter().all(|part| grammar::is_value(part));
    if let Some((major, minor, revision)) = version.filter(valid) {
        set(labels, "cuda.driver.major", major);
        set(labels, "cuda.driver.minor", minor);
        set(labels, "cuda.driver.rev", revision);
        set(labels, "cuda.driver-version.major", major);
        set(labels, "cuda.driver-version.minor", minor);
        set(labels, "cuda.driver-version.revision", revision);
        set(labels, "cuda.driver-version.full", &driver.version);
    }
    if let Some(cuda) = driver.cuda_version {
        let (major, minor) = (cuda / 1000, cuda % 1000 / 10);
        set(labels, "cuda.runtime.major", major);
        set(labels, "cuda.runtime.minor", minor);
        set(labels, "cuda.runtime-version.major", major);
        set(labels, "cuda.runtime-version.minor", minor);
        set(labels, "cuda.runtime-version.full", format!("{major}.{minor}"));
    }
}

fn add_product(labels: &mut Labels, product: &Product<'_>, settings: &Settings) {
    // A GPU in MIG mode is not handed out whole; one whole GPU of the product is enough for its sharing to count.
    let resource = if product.gpus.iter().any(|g| !in_mig_mode(g)) {
        Resource::shared("gpu", settings)
    } else {
        Resource::withheld("gpu")
    };
    resource.add(labels, product.gpus.len(), product.name);
    if let Some(mib) = product.memory_mib() {
        set(labels, "gpu.memory", mib);
    }
    if let Some((major, minor)) = product.compute_capability() {
        set(labels, "gpu.family", family(major, minor));
        set(labels, "gpu.compute.major", major);
        set(labels, "gpu.compute.minor", minor);
    }
}

/// GFD's architecture name of a compute capability.
fn family(major: u32, minor: u32) -> &'static str {
    match (major, minor) {
        (1, _) => "tesla",
        (2, _) => "fermi",
        (3, _) => "kepler",
        (5, _) => "maxwell",
        (6, _) => "pascal",
        (7, 0..=4) => "volta",
        (7, _) => "turing",
        (8, 0..=8) => "ampere",
        (8, _) => "ada-lovelace",
        (9, _) => "hopper",
        (10 | 12, _) => "blackwell",
        (13, _) => "rubin",
        _ => "undefined",
    }
}

/// `graphics` or `compute` where the PCI class of every GPU says the same.
fn mode(facts: &NodeFacts) -> &'static str {
    let by_address: BTreeMap<&str, u32> = facts.pci.iter().map(|f| (f.address.as_str(), f.class >> 8)).collect();
    let classes: BTreeSet<Option<u32>> = facts
        .gpus
        .iter()
        .map(|gpu| by_address.get(gpu.pci_address.as_deref()?).copied())
        .collect();
    match Vec::from_iter(classes).as_slice() {
        [Some(CLASS_VGA)] => "graphics",
        [Some(CLASS_3D)] => "compute",
        _ => "unknown",
    }
}

/// `<cluster>.<clique>` where all GPUs that completed their fabric registration agree.
fn clique(gpus: &[Gpu]) -> Option<String> {
    let cliques: BTreeSet<(&str, u32)> = gpus
        .iter()
        .filter_map(|g| g.fabric.as_ref())
        .filter(|f| f.state == FABRIC_COMPLETED && f.status == 0)
        .filter(|f| f.cluster_uuid.chars().any(|c| c.is_ascii_alphanumeric() && c != '0'))
        .map(|f| (f.cluster_uuid.as_str(), f.clique_id))
        .collect();
    match Vec::from_iter(cliques).as_slice() {
        [(cluster, clique)] => Some(format!("{cluster}.{clique}")).filter(|c| grammar::is_value(c)),
        _ => None,
    }
}

/// Whether GPUs are virtual, and what their host says of its driver. The capability that tells needs privilege to be read; a vGPU's name
/// tells as well.
fn add_vgpu(labels: &mut Labels, facts: &NodeFacts) {
    let present = !facts.vgpus.is_empty() || facts.gpus.iter().any(is_vgpu);
    set(labels, "vgpu.present", present);
    let first = |what: fn(&Vgpu) -> Option<&String>| {
        let mut vgpus: Vec<&Vgpu> = facts.vgpus.iter().collect();
        vgpus.sort_by_key(|v| &v.pci_address);
        vgpus.into_iter().find_map(what).and_then(|text| grammar::value(text))
    };
    if let Some(version) = first(|v| v.host_driver_version.as_ref()) {
        set(labels, "vgpu.host-driver-version", version);
    }
    if let Some(branch) = first(|v| v.host_driver_branch.as_ref()) {
        set(labels, "vgpu.host-driver-branch", branch);
    }
}

/// vGPU types end in their profile: memory in GB and a series letter (`GRID T4-16Q`, `NVIDIA A100-1-5C`).
fn is_vgpu(gpu: &Gpu) -> bool {
    let Some((_, profile)) = gpu.product.as_deref().and_then(|p| p.rsplit_once('-')) else {
        return false;
    };
    let Some(size) = profile.strip_suffix(['A', 'B', 'C', 'Q']) else {
        return false;
    };
    !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit())
}
