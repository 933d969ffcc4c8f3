//! Whether a node can take a pod: the first reason why not.
//!
//! ```text
//! nodeSelector ► affinity ► cordon ► taints ► agent ► class ► compute capability ► resources ► host ports ► health ► live facts ► refused
//! ```
//!
//! Which GPU the kubelet will hand out is not known here. So class and health are asked of **every** GPU of the node, but for those that
//! pods are known to hold. Free memory is asked of as many GPUs as are still to be handed out (allocatable − in use), those with the most
//! free memory: the others are taken to be the ones in use, where it is not known which are. A MIG slice that is ill alone keeps away
//! those pods that may get it.

use super::ask::Ask;
use super::fleet::{Digest, Fleet};
use super::miss::Miss;
use super::node::{Hardware, NodeView, SliceView};
use super::resources::{is_gpu, is_mig, mig_memory};
use super::selector::{ports_clash, tolerates_cordon, untolerated};
use crate::facts::NvmlState;
use crate::freshness::NODE_SILENT;

/// One ask, worked out for a fleet once a decision.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub ask: &'a Ask,
    fleet: &'a Fleet,
    /// What is asked more than nothing of, extended resources first: where CPU and GPUs are both short, people ask about GPUs.
    requests: Vec<Request<'a>>,
    /// Something in it is about GPUs.
    asks_gpu: bool,
    /// NVML speaks for the GPUs that are asked.
    nvidia: bool,
    /// For each class set of the fleet its place in the order of preference; `None`: not wanted.
    class_ranks: Vec<Option<usize>>,
    /// What is asked of labels by `nodeSelector`, and for each node whether it holds.
    selector: Vec<(&'a str, &'a str, Vec<bool>)>,
    /// For each node whether a term of the required node affinity matches; `None`: there is no such affinity.
    affine: Option<Vec<bool>>,
    /// Weight and, for each node, whether it matches, of each preferred term.
    preferred: Vec<(i64, Vec<bool>)>,
    /// What is left of `cpu` on each node.
    cpu_left: Option<&'a [i64]>,
}

#[derive(Debug)]
struct Request<'a> {
    name: &'a str,
    /// Thousandths.
    wanted: i64,
    is_gpu: bool,
    /// On each node; `None`: no node has it.
    left: Option<&'a [i64]>,
}

impl Request<'_> {
    fn left(&self, place: usize) -> i64 {
        self.left.map_or(0, |column| column[place])
    }
}

impl<'a> Asked<'a> {
    pub fn new(ask: &'a Ask, fleet: &'a Fleet) -> Self {
        let mut requests: Vec<Request<'a>> = ask
            .requests
            .0
            .iter()
            // As kube-scheduler: what is not asked is not looked at, even where a node is overcommitted.
            .filter(|(_, wanted)| **wanted > 0)
            .map(|(name, wanted)| Request {
                name,
                wanted: *wanted,
                is_gpu: is_gpu(name),
                left: fleet.left(name),
            })
            .collect();
        requests.sort_by_key(|r| !r.name.contains('/'));
        let gpus = |r: &&Request<'_>| r.is_gpu;
        let place = |class: &String| ask.classes.iter().position(|wanted| wanted == class);
        Self {
            ask,
            fleet,
            asks_gpu: ask.asks_gpu(),
            nvidia: requests.iter().find(gpus).is_none()
                || requests.iter().filter(gpus).any(|r| r.name.starts_with("nvidia.com/")),
            class_ranks: fleet
                .class_sets()
                .iter()
                .map(|set| match ask.classes.is_empty() {
                    true => Some(0),
                    // Any GPU of the node may be handed out, so that all must be wanted and the least wanted one counts.
                    false => set
                        .iter()
                        .map(place)
                        .try_fold(None, |worst, p| Some(worst.max(Some(p?))))?,
                })
                .collect(),
            selector: ask
                .node_selector
                .iter()
                .map(|(key, value)| (&**key, &**value, fleet.labelled(key, |has| has == Some(value))))
                .collect(),
            affine: ask.affinity.as_ref().map(|terms| {
                let mut affine = vec![false; fleet.nodes().len()];
                for term in terms {
                    let matching = fleet.matching(term);
                    affine.iter_mut().zip(matching).for_each(|(any, one)| *any |= one);
                }
                affine
            }),
            preferred: ask
                .preferred
                .iter()
                .map(|(weight, term)| (i64::from(*weight), fleet.matching(term)))
                .collect(),
            cpu_left: fleet.left("cpu"),
            requests,
        }
    }

    /// The first reason why the pod cannot go to the node at this place; `None`: it can.
    pub fn first_miss(&self, place: usize) -> Option<Miss<'a>> {
        let (node, digest) = (&self.fleet.nodes()[place], &self.fleet.digests()[place]);
        self.selector(place)
            .or_else(|| self.cordon_and_taints(node))
            .or_else(|| self.agent(node))
            .or_else(|| self.class(digest))
            .or_else(|| self.compute_capability(digest))
            .or_else(|| self.resources(node, place))
            .or_else(|| self.host_ports(node))
            .or_else(|| self.health(node, digest))
            .or_else(|| self.live_facts(node, digest, place))
            .or_else(|| self.refused(node))
    }

    /// Place of a node's class in the order of preference; 0 where the pod names none.
    pub fn class_rank(&self, place: usize) -> usize {
        self.class_ranks[self.fleet.digests()[place].class_set].unwrap_or(0)
    }

    /// Weights of the preferred terms that match a node.
    pub fn preference(&self, place: usize) -> i64 {
        let matching = self.preferred.iter().filter(|(_, matching)| matching[place]);
        matching.map(|(weight, _)| weight).sum()
    }

    /// Whether the pod would take a GPU node without asking a GPU.
    pub fn wastes_gpus(&self, place: usize) -> bool {
        self.fleet.digests()[place].has_gpus && self.gpus().next().is_none()
    }

    /// GPUs that would be left after the pod, in thousandths; 0 where it asks none.
    pub fn gpus_left(&self, place: usize) -> i64 {
        self.gpus().map(|r| r.left(place).saturating_sub(r.wanted)).sum()
    }

    /// CPU that would be left after the pod, in millionths of what is allocatable.
    pub fn cpu_left(&self, place: usize) -> i64 {
        let allocatable = self.fleet.digests()[place].cpu.max(1);
        let left = self.cpu_left.map_or(0, |column| column[place]);
        // A million cores stay far below the range of 64 bits.
        left.saturating_sub(self.ask.requests.milli("cpu"))
            .saturating_mul(1_000_000)
            / allocatable
    }

    fn gpus(&self) -> impl Iterator<Item = &Request<'a>> {
        self.requests.iter().filter(|r| r.is_gpu)
    }

    fn selector(&self, place: usize) -> Option<Miss<'a>> {
        if let Some((key, value, _)) = self.selector.iter().find(|(.., held)| !held[place]) {
            return Some(Miss::NodeSelector { key, value });
        }
        let affine = self.affine.as_ref().is_none_or(|affine| affine[place]);
        (!affine).then_some(Miss::NodeAffinity)
    }

    fn cordon_and_taints(&self, node: &'a NodeView) -> Option<Miss<'a>> {
        if node.unschedulable && !tolerates_cordon(&self.ask.tolerations) {
            return Some(Miss::Cordoned);
        }
        untolerated(&node.taints, &self.ask.tolerations).map(Miss::Taint)
    }

    fn agent(&self, node: &NodeView) -> Option<Miss<'a>> {
        (self.asks_gpu && node.awaits_agent).then_some(Miss::AgentAwaited)
    }

    fn class(&self, digest: &Digest) -> Option<Miss<'a>> {
        self.class_ranks[digest.class_set].is_none().then(|| Miss::Class {
            has: &self.fleet.class_sets()[digest.class_set],
            wanted: &self.ask.classes,
        })
    }

    fn compute_capability(&self, digest: &Digest) -> Option<Miss<'a>> {
        let wanted = self.ask.compute_capability?;
        let has = digest.compute_capability;
        has.is_none_or(|has| has < wanted)
            .then_some(Miss::ComputeCapability { has, wanted })
    }

    fn resources(&self, node: &'a NodeView, place: usize) -> Option<Miss<'a>> {
        let short = self.requests.iter().find(|r| r.wanted > r.left(place))?;
        Some(Miss::Resource {
            name: short.name,
            wanted: short.wanted,
            left: short.left(place),
            node,
        })
    }

    fn host_ports(&self, node: &NodeView) -> Option<Miss<'a>> {
        let taken = |wanted: &&_| node.host_ports.iter().any(|used| ports_clash(wanted, used));
        self.ask.host_ports.iter().find(taken).map(Miss::HostPort)
    }

    fn health(&self, node: &'a NodeView, digest: &Digest) -> Option<Miss<'a>> {
        let hardware = node.hardware.as_ref()?;
        if !self.asks_gpu {
            return None;
        }
        if self.nvidia && !may_work(hardware) {
            return Some(Miss::Nvml(&hardware.nvml));
        }
        match (digest.sick, hardware.missing_gpus) {
            (Some(gpu), _) => Some(Miss::UnhealthyGpu(&hardware.gpus[gpu])),
            (None, 0) => {
                let mut slices = hardware.sick_slices.iter();
                slices.find(|slice| self.may_get(slice, node)).map(Miss::UnhealthySlice)
            }
            (None, missing) => Some(Miss::MissingGpus(missing)),
        }
    }

    /// Whether the kubelet may hand the slice to the pod: to one that asks for slices of its profile, or for GPUs where the node calls its
    /// slices so. Those of other profiles are left alone.
    fn may_get(&self, slice: &SliceView, node: &NodeView) -> bool {
        let by_profile = node
            .allocatable
            .0
            .iter()
            .any(|(name, milli)| *milli > 0 && is_mig(name));
        self.gpus().any(|asked| match is_mig(asked.name) {
            true => slice.resource.as_deref().is_none_or(|resource| resource == asked.name),
            false => !by_profile,
        })
    }

    fn live_facts(&self, node: &'a NodeView, digest: &Digest, place: usize) -> Option<Miss<'a>> {
        let wanted = self.ask.gpu_memory?;
        if self.ask.asks_slices_alone() {
            let too_small = |r: &&Request<'_>| mig_memory(r.name).is_some_and(|has| has < wanted);
            let short = self.gpus().find(too_small)?;
            return Some(Miss::SliceMemory {
                resource: short.name,
                has: mig_memory(short.name)?,
                wanted,
            });
        }
        let Some(hardware) = node.hardware.as_ref().filter(|h| !h.gpus.is_empty()) else {
            return Some(Miss::NoAgent);
        };
        if hardware.silent > NODE_SILENT {
            return Some(Miss::AgentSilent(hardware.silent));
        }
        // One GPU unknown, and nobody can say which ones have the most free memory.
        if let Some(gpu) = hardware.gpus.iter().find(|g| !g.held && g.memory_free.is_none()) {
            return Some(Miss::NoSample(gpu));
        }
        let to_hand_out = &digest.free_memory[..self.to_hand_out(place, digest.free_memory.len())];
        let free = *to_hand_out.iter().find(|free| **free < wanted)?;
        let gpu = hardware.gpus.iter().find(|g| !g.held && g.memory_free == Some(free))?;
        Some(Miss::GpuMemory {
            uuid: &gpu.uuid,
            free,
            wanted,
        })
    }

    /// How many of a node's GPUs may still be handed out. Several pods may share one GPU, so it can be as many as there are.
    fn to_hand_out(&self, place: usize, gpus: usize) -> usize {
        if self.gpus().next().is_none() {
            return gpus;
        }
        let left: i64 = self.gpus().map(|r| r.left(place).div_euclid(1000)).sum();
        usize::try_from(left).unwrap_or(0).min(gpus)
    }

    fn refused(&self, node: &NodeView) -> Option<Miss<'a>> {
        self.ask.refused.get(&node.name).map(|words| Miss::Refused(words))
    }
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
        | NvmlState::ReleaseBlocked
        | NvmlState::Error => false,
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
