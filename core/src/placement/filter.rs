//! Whether a node can take a pod: the first reason why not.
//!
//! ```text
//! nodeSelector ► affinity ► cordon ► taints ► class ► compute capability ► resources ► host ports ► health ► live facts ► refused
//! ```
//!
//! Which GPU the kubelet will hand out, and which it has handed out, is not known here. So class and health are asked of **every** GPU of
//! the node. Free memory is asked of as many GPUs as are still to be handed out (allocatable − in use), those with the most free memory:
//! the others are taken to be the ones in use.

use std::cmp::Reverse;

use super::ask::Ask;
use super::miss::{Classes, Miss};
use super::node::{Hardware, NodeView};
use super::selector::{ports_clash, tolerates_cordon, untolerated};
use crate::facts::NvmlState;
use crate::freshness::NODE_SILENT;

/// Node label with a node's one GPU class, read where no agent reports.
pub const CLASS_LABEL: &str = "berth.dev/gpu-class";
/// Labels with the compute capability, read where no agent reports it.
const COMPUTE_LABELS: [&str; 2] = ["nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"];

/// The first reason why the pod cannot go to the node; `None`: it can.
pub fn first_miss<'a>(ask: &'a Ask, node: &'a NodeView) -> Option<Miss<'a>> {
    selector(ask, node)
        .or_else(|| cordon_and_taints(ask, node))
        .or_else(|| class(ask, node))
        .or_else(|| compute_capability(ask, node))
        .or_else(|| resources(ask, node))
        .or_else(|| host_ports(ask, node))
        .or_else(|| health(ask, node))
        .or_else(|| live_facts(ask, node))
        .or_else(|| ask.refused.get(&node.name).map(|words| Miss::Refused(words)))
}

fn selector<'a>(ask: &'a Ask, node: &NodeView) -> Option<Miss<'a>> {
    let lacking = ask.node_selector.iter().find(|(k, v)| node.labels.get(*k) != Some(*v));
    if let Some((key, value)) = lacking {
        return Some(Miss::NodeSelector { key, value });
    }
    let terms = ask.affinity.as_ref()?;
    let matches = terms.iter().any(|t| t.matches(&node.name, &node.labels));
    (!matches).then_some(Miss::NodeAffinity)
}

fn cordon_and_taints<'a>(ask: &Ask, node: &'a NodeView) -> Option<Miss<'a>> {
    if node.unschedulable && !tolerates_cordon(&ask.tolerations) {
        return Some(Miss::Cordoned);
    }
    untolerated(&node.taints, &ask.tolerations).map(Miss::Taint)
}

/// GPU classes of a node: its agent's where that knows GPUs, else its label.
pub fn classes(node: &NodeView) -> Classes<'_> {
    match &node.hardware {
        Some(hardware) if !hardware.gpus.is_empty() => Classes::Gpus(&hardware.gpus),
        _ => Classes::Label(node.labels.get(CLASS_LABEL).map(String::as_str)),
    }
}

fn class<'a>(ask: &'a Ask, node: &'a NodeView) -> Option<Miss<'a>> {
    if ask.classes.is_empty() {
        return None;
    }
    let has = classes(node);
    has.rank(&ask.classes).is_none().then_some(Miss::Class {
        has,
        wanted: &ask.classes,
    })
}

fn compute_capability<'a>(ask: &Ask, node: &NodeView) -> Option<Miss<'a>> {
    let wanted = ask.compute_capability?;
    let has = least_compute_capability(node);
    has.is_none_or(|has| has < wanted)
        .then_some(Miss::ComputeCapability { has, wanted })
}

/// The least among the GPUs of a node, since any of them may be handed out.
fn least_compute_capability(node: &NodeView) -> Option<(u32, u32)> {
    let gpus = node.hardware.as_ref().map_or(&[][..], |h| &h.gpus);
    let of_gpus = gpus.iter().map(|g| g.compute_capability).min().flatten();
    of_gpus.or_else(|| {
        let [major, minor] = COMPUTE_LABELS.map(|key| node.labels.get(key)?.parse().ok());
        Some((major?, minor?))
    })
}

fn resources<'a>(ask: &'a Ask, node: &NodeView) -> Option<Miss<'a>> {
    let short = |(name, wanted): (&'a String, &i64)| {
        // As kube-scheduler: what is not asked is not looked at, even where a node is overcommitted.
        if *wanted <= 0 {
            return None;
        }
        let allocatable = node.allocatable.0.get(name).copied();
        let used = node.used.milli(name);
        (*wanted > allocatable.unwrap_or(0).saturating_sub(used)).then_some(Miss::Resource {
            name,
            wanted: *wanted,
            allocatable,
            used,
        })
    };
    let mut first = None;
    for miss in ask.requests.0.iter().filter_map(short) {
        // Where CPU and GPUs are both short, GPUs are what people ask about. Extended resources have a domain.
        if matches!(miss, Miss::Resource { name, .. } if name.contains('/')) {
            return Some(miss);
        }
        first.get_or_insert(miss);
    }
    first
}

fn host_ports<'a>(ask: &'a Ask, node: &NodeView) -> Option<Miss<'a>> {
    let taken = |wanted: &&_| node.host_ports.iter().any(|used| ports_clash(wanted, used));
    ask.host_ports.iter().find(taken).map(Miss::HostPort)
}

fn health<'a>(ask: &Ask, node: &'a NodeView) -> Option<Miss<'a>> {
    let hardware = node.hardware.as_ref()?;
    if !ask.asks_gpu() {
        return None;
    }
    // NVML tells nothing about the GPUs of other vendors.
    let nvidia = ask.gpus().next().is_none() || ask.gpus().any(|(name, _)| name.starts_with("nvidia.com/"));
    if nvidia && !may_work(hardware) {
        return Some(Miss::Nvml(&hardware.nvml));
    }
    let bad = hardware.gpus.iter().find(|g| !g.state.may_be_handed_out());
    bad.map(Miss::UnhealthyGpu)
        .or_else(|| (hardware.missing_gpus > 0).then_some(Miss::MissingGpus(hardware.missing_gpus)))
}

/// Whether NVIDIA GPUs may work as far as NVML's state tells. Where nobody can ask NVML the node counts like one without an agent.
fn may_work(hardware: &Hardware) -> bool {
    match hardware.nvml.state {
        NvmlState::Ready | NvmlState::Unknown | NvmlState::ProbeUnavailable => true,
        NvmlState::NoLibrary
        | NvmlState::NoDriver
        | NvmlState::VersionMismatch
        | NvmlState::Hung
        | NvmlState::Released
        | NvmlState::Error => false,
    }
}

fn live_facts<'a>(ask: &Ask, node: &'a NodeView) -> Option<Miss<'a>> {
    let wanted = ask.gpu_memory?;
    let Some(hardware) = node.hardware.as_ref().filter(|h| !h.gpus.is_empty()) else {
        return Some(Miss::NoAgent);
    };
    if hardware.silent > NODE_SILENT {
        return Some(Miss::AgentSilent(hardware.silent));
    }
    // One GPU unknown, and nobody can say which ones have the most free memory.
    if let Some(gpu) = hardware.gpus.iter().find(|g| g.memory_free.is_none()) {
        return Some(Miss::NoSample(gpu));
    }
    let frees = hardware
        .gpus
        .iter()
        .map(|g| (g.memory_free.unwrap_or(0), g.uuid.as_str()));
    let enough = frees.clone().filter(|(free, _)| *free >= wanted).count();
    if enough >= to_hand_out(ask, node, hardware.gpus.len()) {
        return None;
    }
    let nearest = frees
        .filter(|(free, _)| *free < wanted)
        .min_by_key(|(free, _)| Reverse(*free));
    nearest.map(|(free, uuid)| Miss::GpuMemory { uuid, free, wanted })
}

/// How many of a node's GPUs may still be handed out. Several pods may share one GPU, so it can be as many as there are.
fn to_hand_out(ask: &Ask, node: &NodeView, gpus: usize) -> usize {
    let left: i64 = ask
        .gpus()
        .map(|(name, _)| node.allocatable.whole(name).saturating_sub(node.used.whole(name)))
        .sum();
    match ask.gpus().next() {
        None => gpus,
        Some(_) => usize::try_from(left).unwrap_or(0).min(gpus),
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
