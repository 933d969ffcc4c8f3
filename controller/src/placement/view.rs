//! The picture as placement sees it: what each node has left.
//!
//! A pod holds its requests on a node from the moment it is promised there: bound, pinned and not bound yet, or in flight (decided, the
//! patch not seen by the watch). A GPU pod that is not ready has not shown its memory yet, so that the GPU it got looks free:
//!
//! - whole GPUs: as many GPUs as it holds, those with the most free memory, count as full, less those that show a use already;
//! - shared GPUs: the memory it asks is taken off every GPU, since any of them may be its.
//!
//! Where the kubelet tells which pods hold which GPU ([`holders`]), a GPU that is all held is no candidate, whatever its state.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use berth_core::facts::{Gpu, NodeFacts, PodShare};
use berth_core::freshness::SAMPLE_STALE;
use berth_core::health::{GpuState, NodeHealth, is_of_hardware};
use berth_core::labels::class_of;
use berth_core::placement::NodeView;
use berth_core::placement::node::{GpuView, Hardware, SliceView};
use berth_core::placement::resources::{is_gpu, mig_resource};
use berth_crds::names;

use super::holders::{self, Holders, OnNode};
use crate::cluster::{Agent, Node, Picture, Pod, PodKey};

/// From this much memory in use on a GPU it shows that something runs there. An idle GPU has a few hundred MiB set aside for the driver,
/// by model and driver version; a model takes more.
const SHOWS_USE: u64 = 1 << 30;

/// What pods hold, or hold no more, beside what the picture shows.
#[derive(Debug, Default)]
pub struct Promises {
    /// Pods whose pin is on its way, with their node.
    pub in_flight: HashMap<PodKey, String>,
    /// Pods that the scheduler has refused for so long on their node that nobody expects them there any more.
    pub given_up: HashSet<PodKey>,
}

/// All nodes, sorted by name. `before` is the last answer: what has not changed is taken over instead of copied.
pub fn nodes(before: Vec<NodeView>, picture: &Picture, promises: &Promises, now: Instant) -> Vec<NodeView> {
    let mut before: HashMap<String, NodeView> = before.into_iter().map(|n| (n.name.clone(), n)).collect();
    let holders = Holders::of(picture, &HashSet::new());
    let mut views: BTreeMap<&str, NodeView> = picture
        .nodes
        .values()
        .map(|node| {
            let agent = agent_of(node, picture);
            let mut view = before.remove(&node.name).unwrap_or_default();
            refresh(&mut view, node, agent, (&holders, picture), now);
            (node.name.as_str(), view)
        })
        .collect();
    holders::forget_where_counts_differ(&mut views, picture, |pod| held_on(pod, promises), now);
    // Those first whose memory is seen: the GPUs that show a use are theirs.
    for seen in [true, false] {
        for pod in picture.pods.values().filter(|p| has_shown_its_memory(p) == seen) {
            if let Some(view) = held_on(pod, promises).and_then(|node| views.get_mut(node)) {
                hold(view, pod);
            }
        }
    }
    views.into_values().collect()
}

/// The nodes on which `without` are, as they would be if those were gone: what they hold is free, and as many GPUs as they hold are empty.
pub fn nodes_without(without: &[&Pod], picture: &Picture, now: Instant) -> Vec<NodeView> {
    let promises = Promises::default();
    let gone: HashSet<&PodKey> = without.iter().map(|p| &p.uid).collect();
    let holders = Holders::of(picture, &gone);
    let mut views: BTreeMap<&str, NodeView> = without
        .iter()
        .filter_map(|pod| picture.nodes.get(held_on(pod, &promises)?))
        .map(|node| {
            let mut view = NodeView::default();
            refresh(&mut view, node, agent_of(node, picture), (&holders, picture), now);
            (node.name.as_str(), view)
        })
        .collect();
    holders::forget_where_counts_differ(&mut views, picture, |pod| held_on(pod, &promises), now);
    for pod in picture.pods.values().filter(|p| !gone.contains(&p.uid)) {
        if let Some(view) = held_on(pod, &promises).and_then(|node| views.get_mut(node)) {
            hold(view, pod);
        }
    }
    for pod in without {
        if let Some(view) = held_on(pod, &promises).and_then(|node| views.get_mut(node)) {
            let agent = picture.agents.get(&view.name);
            empty(view, pod, agent);
        }
    }
    views.into_values().collect()
}

/// The GPUs that the pod is known to have for itself; where they are not known, the fullest are taken to be its.
fn empty(view: &mut NodeView, pod: &Pod, agent: Option<&Agent>) {
    let held: i64 = pod.ask.gpus().map(|(_, milli)| milli / 1000).sum();
    let Some(hardware) = &mut view.hardware else { return };
    let is_its = |uuid: &str| {
        let sample = agent.and_then(|a| a.samples.get(uuid));
        sample.is_some_and(|(sample, _)| {
            let [only] = sample.pods.as_slice() else { return false };
            only.share == PodShare::Whole && holders::is_of(only, pod)
        })
    };
    let its: Vec<&mut GpuView> = hardware.gpus.iter_mut().filter(|g| is_its(&g.uuid)).collect();
    if i64::try_from(its.len()) == Ok(held) {
        its.into_iter().for_each(|gpu| gpu.memory_free = gpu.memory_total);
        return;
    }
    for _ in 0..held {
        let full = hardware
            .gpus
            .iter_mut()
            .filter(|g| g.memory_free.is_some() && g.memory_free != g.memory_total);
        match full.min_by_key(|g| g.memory_free) {
            Some(gpu) => gpu.memory_free = gpu.memory_total,
            None => return,
        }
    }
}

/// Marks the nodes that offer GPUs and whose agents have yet to say how those are.
pub fn await_agents(views: &mut [NodeView], picture: &Picture) {
    for view in views {
        let node = picture.nodes.get(&view.name).filter(|n| offers_gpus(n));
        view.awaits_agent =
            node.is_some_and(|n| agent_of(n, picture).is_none_or(|a| a.facts.is_none() || a.health.is_none()));
    }
}

/// Whether every node that offers GPUs has an agent that reported facts, health and a sample.
pub fn agents_reported(picture: &Picture) -> bool {
    let gpu_nodes = picture.nodes.values().filter(|n| offers_gpus(n));
    gpu_nodes
        .map(|n| agent_of(n, picture))
        .all(|agent| agent.is_some_and(|a| a.facts.is_some() && a.health.is_some() && !a.samples.is_empty()))
}

fn offers_gpus(node: &Node) -> bool {
    node.allocatable.0.iter().any(|(n, milli)| *milli > 0 && is_gpu(n))
}

fn agent_of<'a>(node: &Node, picture: &'a Picture) -> Option<&'a Agent> {
    picture.agents.get(&node.name).filter(|a| a.node_uid == node.uid)
}

fn has_shown_its_memory(pod: &Pod) -> bool {
    pod.ready || pod.terminating
}

/// Takes what a pod holds off a node.
pub fn hold(view: &mut NodeView, pod: &Pod) {
    view.used.add(&pod.requests);
    view.host_ports.extend(pod.host_ports.iter().cloned());
    if !has_shown_its_memory(pod) {
        take_memory(view, pod);
    }
}

/// The node where a pod holds its requests.
fn held_on<'a>(pod: &'a Pod, promises: &'a Promises) -> Option<&'a str> {
    // Pods that others pin (DaemonSets do) and the scheduler refuses hold nothing.
    let waits_for_the_scheduler = || {
        let refused = pod.unscheduled.as_ref().is_some_and(|u| u.reason == "Unschedulable");
        let expected = pod.annotations.contains_key(names::PLACED_BECAUSE) && !promises.given_up.contains(&pod.uid);
        pod.gates.is_empty() && !pod.terminating && (!refused || expected)
    };
    pod.node
        .as_deref()
        .or_else(|| pod.pinned_to.as_deref().filter(|_| waits_for_the_scheduler()))
        .or_else(|| promises.in_flight.get(&pod.uid).map(String::as_str))
}

fn refresh(
    view: &mut NodeView,
    node: &Node,
    agent: Option<&Agent>,
    (holders, picture): (&Holders<'_>, &Picture),
    now: Instant,
) {
    fn follow<T: Clone + PartialEq>(ours: &mut T, theirs: &T) {
        if ours != theirs {
            ours.clone_from(theirs);
        }
    }
    follow(&mut view.name, &node.name);
    follow(&mut view.labels, &node.labels);
    follow(&mut view.taints, &node.taints);
    follow(&mut view.allocatable, &node.allocatable);
    view.unschedulable = node.unschedulable;
    view.awaits_agent = false;
    // Names stay for the next pods to be added up under.
    view.used.0.values_mut().for_each(|milli| *milli = 0);
    view.host_ports.clear();
    let gpus = view.hardware.take().map(|h| h.gpus).unwrap_or_default();
    view.hardware = agent.and_then(|agent| hardware(agent, gpus, holders.on(&node.name), now));
    if picture.breaker.is_held(&node.name) {
        count_all_the_same(view);
    }
}

/// The fleet breaker is open: what was judged of this node's GPUs does not take them away. What is no verdict does.
fn count_all_the_same(view: &mut NodeView) {
    let Some(hardware) = &mut view.hardware else { return };
    hardware.sick_slices.retain(|s| !is_of_hardware(&s.reason));
    let gpus = hardware.gpus.iter_mut();
    gpus.filter(|g| !g.state.may_be_handed_out() && is_of_hardware(&g.reason))
        .for_each(|g| g.state = GpuState::Suspect);
}

fn hardware(agent: &Agent, before: Vec<GpuView>, holders: &OnNode<'_>, now: Instant) -> Option<Hardware> {
    let facts = agent.facts.as_ref()?;
    let mut before: HashMap<String, GpuView> = before.into_iter().map(|g| (g.uuid.clone(), g)).collect();
    Some(Hardware {
        silent: now.saturating_duration_since(agent.heard),
        // Health is sent when it changes, facts more rarely.
        nvml: agent.health.as_ref().map_or(&facts.nvml, |h| &h.nvml).clone(),
        gpus: facts
            .gpus
            .iter()
            .map(|gpu| GpuView {
                held: holders.hold_all_of(agent, gpu, now),
                ..gpu_view(before.remove(&gpu.uuid), gpu, agent, now)
            })
            .collect(),
        missing_gpus: agent.health.as_ref().map_or(0, |h| h.missing_gpus),
        sick_slices: agent
            .health
            .iter()
            .flat_map(|health| sick_slices(facts, health))
            .collect(),
    })
}

/// Slices whose GPU is well enough: a GPU that is not keeps everybody away by itself.
fn sick_slices(facts: &NodeFacts, health: &NodeHealth) -> impl Iterator<Item = SliceView> {
    let devices = || facts.gpus.iter().flat_map(|gpu| &gpu.mig).flat_map(|mig| &mig.devices);
    let sick = health
        .troubles()
        .filter(|h| h.gpu.is_some() && !h.state.may_be_handed_out());
    sick.map(move |slice| SliceView {
        uuid: slice.uuid.clone(),
        resource: devices()
            .find(|d| d.uuid == slice.uuid)
            .and_then(|d| mig_resource(&d.profile)),
        state: slice.state,
        reason: slice.reason.clone(),
    })
}

fn gpu_view(before: Option<GpuView>, gpu: &Gpu, agent: &Agent, now: Instant) -> GpuView {
    let health = agent.health.iter().flat_map(|h| &h.gpus).find(|h| h.uuid == gpu.uuid);
    let sample = agent.samples.get(&gpu.uuid);
    let fresh = sample.filter(|(_, taken)| now.saturating_duration_since(*taken) <= SAMPLE_STALE);
    GpuView {
        // What a UUID is of never changes, once it is known.
        class: before
            .map(|g| g.class)
            .filter(|class| !class.is_empty())
            .or_else(|| gpu.product.as_deref().map(class_of))
            .unwrap_or_default(),
        uuid: gpu.uuid.clone(),
        state: health.map(|h| h.state).unwrap_or_default(),
        reason: health.map(|h| h.reason.clone()).unwrap_or_default(),
        memory_total: gpu.memory_bytes,
        memory_free: fresh.and_then(|(sample, _)| sample.memory_free_bytes),
        compute_capability: gpu.compute_capability,
        held: false,
    }
}

fn take_memory(view: &mut NodeView, pod: &Pod) {
    let held: i64 = pod
        .requests
        .0
        .iter()
        .filter(|(n, _)| is_gpu(n))
        .map(|(_, milli)| milli / 1000)
        .sum();
    let Some(hardware) = view.hardware.as_mut().filter(|_| held > 0) else {
        return;
    };
    let allocatable = usize::try_from(view.allocatable.whole(names::NVIDIA_GPU)).unwrap_or(0);
    let whole = pod.requests.whole(names::NVIDIA_GPU) == held && allocatable <= hardware.gpus.len();
    if whole {
        let in_use = hardware.gpus.iter().filter(|g| shows_use(g)).count();
        let unseen = view.used.whole(names::NVIDIA_GPU) - i64::try_from(in_use).unwrap_or(i64::MAX);
        for _ in 0..unseen.min(held) {
            let idle = hardware.gpus.iter_mut().filter(|g| !shows_use(g));
            let freest = idle.max_by_key(|g| g.memory_free);
            if let Some(free) = freest.and_then(|g| g.memory_free.as_mut()) {
                *free = 0;
            }
        }
    } else if let Some(memory) = pod.ask.gpu_memory {
        let frees = hardware.gpus.iter_mut().filter_map(|g| g.memory_free.as_mut());
        frees.for_each(|free| *free = free.saturating_sub(memory));
    }
}

fn shows_use(gpu: &GpuView) -> bool {
    if gpu.held {
        return true;
    }
    let used = gpu
        .memory_total
        .zip(gpu.memory_free)
        .map(|(total, free)| total.saturating_sub(free));
    gpu.memory_free == Some(0) || used.is_some_and(|used| used >= SHOWS_USE)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
