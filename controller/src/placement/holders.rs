//! Which GPUs of a node pods hold, as the kubelet says there: what of it may be relied on.
//!
//! The kubelet's word is some seconds old, and has names for pods, not UIDs. So a GPU counts as held only if every holder is a pod that the
//! API server knows to be bound to that very node, that is not about to go, and that was there when the kubelet was asked: a StatefulSet's pod
//! that is made anew has the name of the one before. Anything else may be handed out next.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use berth_core::facts::{Gpu, GpuSample, PodName, PodShare, PodUse, PodsState};
use berth_core::freshness::{PODS_STALE, SAMPLE_STALE};
use berth_core::placement::resources::is_gpu;
use berth_core::placement::{NodeView, Resources};
use berth_core::pods::is_ours;

use crate::cluster::{Agent, Clock, Picture, Pod, PodKey};

/// How far the API server's clock, which creation times are of, may be ahead of ours or behind it. They are whole seconds besides: a pod may
/// be younger by one than it says.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// Pods that are there to stay, by node.
pub struct Holders<'a> {
    by_node: HashMap<&'a str, OnNode<'a>>,
    none: OnNode<'a>,
}

/// Those of one node.
#[derive(Default)]
pub struct OnNode<'a> {
    /// By namespace and name.
    pods: HashMap<(&'a str, &'a str), &'a Pod>,
    /// `None` where there are no pods.
    clock: Option<&'a Clock>,
}

impl<'a> Holders<'a> {
    /// Those of all nodes whose kubelets are asked, without the pods in `gone`.
    pub fn of(picture: &'a Picture, gone: &HashSet<&PodKey>) -> Self {
        let asked = |agent: &&Agent| agent.samples.values().any(|(s, _)| s.pods_state == PodsState::Known);
        let mut by_node: HashMap<&str, OnNode<'_>> = picture
            .agents
            .iter()
            .filter(|(_, agent)| asked(agent))
            .map(|(name, _)| (name.as_str(), OnNode::default()))
            .collect();
        if !by_node.is_empty() {
            for pod in picture
                .pods
                .values()
                .filter(|p| !p.terminating && !gone.contains(&p.uid))
            {
                if let Some(there) = pod.node.as_deref().and_then(|node| by_node.get_mut(node)) {
                    there.pods.insert((&pod.namespace, &pod.name), pod);
                    there.clock = Some(&picture.clock);
                }
            }
        }
        Self {
            by_node,
            none: OnNode::default(),
        }
    }

    /// Those of one node.
    pub fn on(&self, node: &str) -> &OnNode<'a> {
        self.by_node.get(node).unwrap_or(&self.none)
    }
}

impl OnNode<'_> {
    /// Whether they hold all of a GPU: it, each of its MIG devices, each replica.
    pub fn hold_all_of(&self, agent: &Agent, gpu: &Gpu, now: Instant) -> bool {
        if self.pods.is_empty() || units_left(agent, gpu, now) != Some(0) {
            return false;
        }
        let mut handed_out = devices(gpu)
            .filter_map(|uuid| agent.samples.get(uuid))
            .flat_map(|(sample, taken)| {
                let asked = self.asked(sample, now.saturating_duration_since(*taken), now);
                sample.pods.iter().map(move |used| (used, asked))
            })
            .filter(|(used, _)| matches!(used.share, PodShare::Whole | PodShare::Replica))
            .peekable();
        handed_out.peek().is_some() && handed_out.all(|(used, asked)| self.has(used, asked))
    }

    /// When the kubelet was asked for what a reading of this age says, since 1970.
    fn asked(&self, sample: &GpuSample, age: Duration, now: Instant) -> Option<Duration> {
        self.clock?.at(now).checked_sub(sample.pods_age? + age)
    }

    fn has(&self, used: &PodUse, asked: Option<Duration>) -> bool {
        let pod = used.pod.as_ref();
        let pod = pod.and_then(|p| self.pods.get(&(p.namespace.as_str(), p.name.as_str())));
        pod.is_some_and(|pod| is_of(used, pod) && (used.uid.is_some() || was_there(pod, asked)))
    }
}

/// Whether a pod existed at a time since 1970. Where that is not known, or the clocks may differ by more: no.
fn was_there(pod: &Pod, at: Option<Duration>) -> bool {
    let created = pod.created.and_then(|t| Duration::try_from(t.as_duration()).ok());
    let surely = created.map(|created| created + Duration::from_secs(1) + CLOCK_SKEW);
    surely.zip(at).is_some_and(|(surely, at)| surely <= at)
}

/// Whether a use is this pod's.
pub fn is_of(used: &PodUse, pod: &Pod) -> bool {
    let same_name = |p: &PodName| p.namespace == pod.namespace && p.name == pod.name;
    let same_uid = used.uid.as_ref().map(|uid| *uid == pod.uid);
    same_uid.unwrap_or_else(|| used.pod.as_ref().is_some_and(same_name))
}

/// How many units of a GPU nobody holds, where that is known now of it and its MIG devices.
pub fn units_left(agent: &Agent, gpu: &Gpu, now: Instant) -> Option<i64> {
    let known_now = |uuid: &str| {
        let (sample, taken) = agent.samples.get(uuid)?;
        let age = now.saturating_duration_since(*taken);
        (age <= SAMPLE_STALE && pods_known(sample, age)).then_some(sample)
    };
    devices(gpu).all(|uuid| known_now(uuid).is_some()).then_some(())?;
    known_now(&gpu.uuid)?.units_left.map(i64::from)
}

/// Where the API server knows of more GPUs that are left than the kubelet, a pod has gone since the kubelet was asked: then nobody knows
/// which are held.
pub fn forget_where_counts_differ<'a>(
    views: &mut BTreeMap<&str, NodeView>,
    picture: &'a Picture,
    held_on: impl Fn(&'a Pod) -> Option<&'a str>,
    now: Instant,
) {
    // In most rounds no GPU is known to be held, and pods are not added up twice.
    let mut left: HashMap<&str, i64> = views
        .values()
        .filter(|view| view.hardware.iter().flat_map(|h| &h.gpus).any(|g| g.held))
        .filter_map(|view| picture.nodes.get(&view.name))
        .map(|node| (node.name.as_str(), nvidia_gpus(&node.allocatable)))
        .collect();
    if left.is_empty() {
        return;
    }
    for pod in picture.pods.values() {
        if let Some(left) = held_on(pod).and_then(|node| left.get_mut(node)) {
            *left -= nvidia_gpus(&pod.requests);
        }
    }
    for (name, left) in left {
        let agent = picture.agents.get(name);
        let gpus = agent.and_then(|a| Some((a, &a.facts.as_ref()?.gpus)));
        let told: Option<i64> = gpus.and_then(|(agent, gpus)| gpus.iter().map(|gpu| units_left(agent, gpu, now)).sum());
        let agree = told.is_some_and(|told| told >= left);
        if let (false, Some(hardware)) = (agree, views.get_mut(name).and_then(|v| v.hardware.as_mut())) {
            hardware.gpus.iter_mut().for_each(|gpu| gpu.held = false);
        }
    }
}

fn nvidia_gpus(resources: &Resources) -> i64 {
    let ours = resources.0.iter().filter(|(name, _)| is_ours(name) && is_gpu(name));
    ours.map(|(_, milli)| milli / 1000).sum()
}

/// Whether a reading that is this old still tells who holds the device.
pub fn pods_known(sample: &GpuSample, age: Duration) -> bool {
    sample.pods_state == PodsState::Known && sample.pods_age.is_some_and(|at| at + age <= PODS_STALE)
}

/// UUIDs of a GPU and its MIG devices.
fn devices(gpu: &Gpu) -> impl Iterator<Item = &str> {
    let mig = gpu.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str());
    std::iter::once(gpu.uuid.as_str()).chain(mig)
}

#[cfg(test)]
#[path = "holders_tests.rs"]
mod tests;
