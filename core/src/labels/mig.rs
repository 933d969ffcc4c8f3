//! The keys of MIG devices under the device plugin's strategies `single` and `mixed`.

use std::collections::BTreeMap;

use super::gfd::{Labels, Resource, set};
use super::grammar;
use super::product::{Product, described};
use super::settings::{MigStrategy, Settings};
use crate::facts::{Gpu, MigDevice, NodeFacts};

/// MIG devices of one profile, with the GPU that each is on.
type Devices<'a> = Vec<(&'a Gpu, &'a MigDevice)>;

/// Adds them; those of `single` take the place of the whole GPUs' values.
pub(super) fn add(labels: &mut Labels, facts: &NodeFacts, settings: &Settings) {
    match settings.mig_strategy {
        MigStrategy::None => {}
        MigStrategy::Single => {
            set(labels, "mig.strategy", "single");
            single(labels, facts, settings);
        }
        MigStrategy::Mixed => {
            set(labels, "mig.strategy", "mixed");
            for (profile, devices) in by_profile(&facts.gpus) {
                let name = format!("mig-{}", profile.replace('+', "."));
                if !profile.is_empty() && grammar::is_key(&format!("nvidia.com/{name}.sharing-strategy")) {
                    add_devices(labels, &name, &devices, settings);
                }
            }
        }
    }
}

fn is_enabled(gpu: &Gpu) -> bool {
    gpu.mig.as_ref().is_some_and(|mig| mig.enabled)
}

/// `single` needs MIG on all GPUs, devices on each of them, and one profile. Without MIG on any GPU it is `none`.
fn single(labels: &mut Labels, facts: &NodeFacts, settings: &Settings) {
    let enabled: Vec<&Gpu> = facts.gpus.iter().filter(|g| is_enabled(g)).collect();
    if enabled.is_empty() {
        return;
    }
    let empty = |gpu: &&Gpu| gpu.mig.as_ref().is_none_or(|mig| mig.devices.is_empty());
    let profiles = by_profile(&facts.gpus);
    let mut profiles = profiles.values();
    let valid = enabled.len() == facts.gpus.len() && !enabled.iter().any(empty);
    if let (true, Some(devices), None) = (valid, profiles.next(), profiles.next()) {
        add_devices(labels, "gpu", devices, settings);
        return;
    }
    if let Some(name) = described(enabled).and_then(|p| p.name)
        && let Some(product) = grammar::value(&format!("{name} MIG INVALID"))
    {
        set(labels, "gpu.product", product);
    }
    for key in ["gpu.count", "gpu.replicas", "gpu.memory"] {
        set(labels, key, 0);
    }
}

fn by_profile(gpus: &[Gpu]) -> BTreeMap<&str, Devices<'_>> {
    let mut profiles: BTreeMap<&str, Devices<'_>> = BTreeMap::new();
    for gpu in gpus.iter().filter(|g| is_enabled(g)) {
        for device in gpu.mig.iter().flat_map(|mig| &mig.devices) {
            profiles.entry(&device.profile).or_default().push((gpu, device));
        }
    }
    profiles
}

fn add_devices(labels: &mut Labels, name: &str, devices: &Devices<'_>, settings: &Settings) {
    // Two products may have a profile of the same name; the keys have room for one.
    let product: Option<Product<'_>> = described(devices.iter().map(|(gpu, _)| *gpu));
    let model = product.and_then(|p| p.name);
    let Some((_, device)) = devices
        .iter()
        .filter(|(gpu, _)| gpu.product.as_deref() == model)
        .min_by_key(|(_, d)| (d.memory_bytes, d.multiprocessors, &d.uuid))
    else {
        return;
    };
    let resource = Resource::shared(name, settings);
    resource.add(
        labels,
        devices.len(),
        model.map(|m| format!("{m} MIG {}", device.profile)).as_deref(),
    );
    for (key, value) in [
        ("memory", device.memory_bytes >> 20),
        ("multiprocessors", device.multiprocessors.into()),
        ("slices.gi", device.gpu_instance_slices.into()),
        ("slices.ci", device.compute_instance_slices.into()),
        ("engines.copy", device.copy_engines.into()),
        ("engines.decoder", device.decoders.into()),
        ("engines.encoder", device.encoders.into()),
        ("engines.jpeg", device.jpeg_engines.into()),
        ("engines.ofa", device.ofa_engines.into()),
    ] {
        set(labels, &format!("{name}.{key}"), value);
    }
}
