//! Devices × what the kubelet handed out × processes → who uses each device.

use std::collections::{BTreeMap, BTreeSet};

use super::device::{self, mig_devices};
use super::{Held, HeldDevice, Kubelet, PluginDevice, Process, is_surely_gpu};
use crate::facts::{Gpu, PodName, PodShare, PodUse};

/// Who uses a node's devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// Every GPU and MIG device that NVML knows, by UUID.
    pub devices: BTreeMap<String, Device>,
    /// Names in use that cannot be told to a device.
    pub unresolved: BTreeSet<String>,
}

/// Who uses one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Pods, by name, each once.
    pub pods: Vec<PodUse>,
    /// As [`crate::facts::GpuSample::units_left`].
    pub units_left: Option<u32>,
}

/// A pod, by whichever of the two is known.
type Who = (Option<PodName>, Option<String>);

/// Joins what is known. `kubelet`: `None` where it is not asked or does not answer; then only processes tell.
pub fn join(gpus: &[Gpu], kubelet: Option<&Kubelet>, processes: &[Process]) -> Joined {
    let mut unresolved = BTreeSet::new();
    let mut uses: BTreeMap<&str, BTreeMap<Who, PodUse>> = BTreeMap::new();
    for held in kubelet.iter().flat_map(|k| &k.held) {
        match found(gpus, held) {
            Ok((uuid, share)) => {
                let who = (Some(held.pod.clone()), None);
                hold(uses.entry(uuid).or_default().entry(who).or_default(), held, share);
            }
            Err(Some(name)) => drop(unresolved.insert(name)),
            Err(None) => {}
        }
    }
    for (uuid, who, memory) in memory_by_pod(gpus, processes) {
        let device = uses.entry(uuid).or_default();
        // The kubelet's list has names alone.
        let by_name = (who.0.clone(), None);
        let key = if who.0.is_some() && device.contains_key(&by_name) {
            by_name
        } else {
            who.clone()
        };
        let entry = device.entry(key).or_default();
        entry.pod.clone_from(&who.0);
        entry.uid = who.1;
        entry.memory_bytes = memory;
    }
    let left = kubelet.and_then(|kubelet| units_left(gpus, kubelet));
    let devices = gpus.iter().flat_map(|gpu| {
        let mig = mig_devices(gpu).iter().map(|d| d.uuid.as_str());
        std::iter::once(gpu.uuid.as_str()).chain(mig)
    });
    let devices = devices.map(|uuid| {
        let pods = uses.remove(uuid).unwrap_or_default().into_values().collect();
        let units_left = left
            .as_ref()
            .map(|of_each| of_each.get(uuid).copied().unwrap_or_default());
        (uuid.to_owned(), Device { pods, units_left })
    });
    Joined {
        devices: devices.collect(),
        unresolved,
    }
}

/// The device that a container was given, and how. `Err`: its name, where it must be a GPU.
fn found<'a>(gpus: &'a [Gpu], held: &Held) -> Result<(&'a str, PodShare), Option<String>> {
    match &held.device {
        HeldDevice::Plugin(plugin) => match device::resolve(gpus, plugin) {
            Some(found) if found.replica => Ok((found.uuid, PodShare::Replica)),
            Some(found) => Ok((found.uuid, PodShare::Whole)),
            None => Err(is_surely_gpu(&plugin.resource).then(|| format!("{} {}", plugin.resource, plugin.id))),
        },
        HeldDevice::Claim(claim) => match device::resolve_claim(gpus, claim) {
            Some(uuid) => Ok((uuid, PodShare::Claim)),
            None => Err(Some(format!("{} {}/{}", claim.driver, claim.pool, claim.device))),
        },
    }
}

fn hold(pod: &mut PodUse, held: &Held, share: PodShare) {
    pod.pod = Some(held.pod.clone());
    pod.share = share;
    if let Err(at) = pod.containers.binary_search(&held.container) {
        pod.containers.insert(at, held.container.clone());
    }
}

/// Memory of each pod on each device. A process whose memory is not known makes the pod's not known.
fn memory_by_pod<'a>(gpus: &'a [Gpu], processes: &[Process]) -> Vec<(&'a str, Who, Option<u64>)> {
    let mut sums: BTreeMap<(&str, Who), Option<u64>> = BTreeMap::new();
    for process in processes {
        let Some(gpu) = gpus.iter().find(|g| g.uuid == process.gpu) else {
            continue;
        };
        let of_instance = process.instance.and_then(|(gi, ci)| device::mig_device(gpu, gi, ci));
        let who = (process.pod.clone(), Some(process.pod_uid.clone()));
        let sum = sums.entry((of_instance.unwrap_or(&gpu.uuid), who)).or_insert(Some(0));
        *sum = sum.zip(process.memory_bytes).map(|(a, b)| a.saturating_add(b));
    }
    sums.into_iter().map(|((uuid, who), sum)| (uuid, who, sum)).collect()
}

/// Units that nobody holds, on each device that has any; a GPU's include those of its MIG devices. `None`: one name is no device that is
/// known, or no device is offered at all, as while a device plugin starts.
fn units_left<'a>(gpus: &'a [Gpu], kubelet: &Kubelet) -> Option<BTreeMap<&'a str, u32>> {
    let held: BTreeSet<&PluginDevice> = kubelet
        .held
        .iter()
        .filter_map(|held| match &held.device {
            HeldDevice::Plugin(plugin) => Some(plugin),
            HeldDevice::Claim(_) => None,
        })
        .collect();
    let mut left: BTreeMap<&str, u32> = BTreeMap::new();
    let mut offered = false;
    for unit in kubelet.allocatable.as_ref()?.iter().chain(held.iter().copied()) {
        let found = match device::resolve(gpus, unit) {
            Some(found) => found,
            None if is_surely_gpu(&unit.resource) => return None,
            None => continue,
        };
        offered = true;
        if held.contains(unit) {
            continue;
        }
        *left.entry(found.uuid).or_default() += 1;
        let parent = gpus
            .iter()
            .find(|g| g.uuid != found.uuid && mig_devices(g).iter().any(|d| d.uuid == found.uuid));
        if let Some(parent) = parent {
            *left.entry(&parent.uuid).or_default() += 1;
        }
    }
    offered.then_some(left)
}
