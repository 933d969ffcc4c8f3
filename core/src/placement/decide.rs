//! One pod against all nodes: the decision, with everything needed to explain it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::ask::Ask;
use super::filter::Asked;
use super::fleet::Fleet;
use super::miss::Miss;
use super::node::NodeView;
use super::resources::is_gpu;
use super::score::{DecidedBy, Terms};

/// A node that fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Node name.
    pub node: &'a str,
    /// Its score.
    pub terms: Terms,
}

/// A node that does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected<'a> {
    /// Node name.
    pub node: &'a str,
    /// Why, and by how much.
    pub miss: Miss<'a>,
}

/// Why no node fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFitReason {
    /// Every node is out for a reason of its own.
    NoFit,
    /// No node has the GPU resource that the pod asks for: there is no device plugin.
    NoDevicePlugin,
}

/// What becomes of a pod. Lists are in the order of the nodes that were given.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision<'a> {
    /// It goes to a node.
    Place {
        /// The node.
        node: &'a str,
        /// One sentence for people.
        because: String,
        /// All nodes that fit.
        candidates: Vec<Candidate<'a>>,
        /// All others.
        rejected: Vec<Rejected<'a>>,
    },
    /// No node fits.
    NoFit {
        /// Whether it is for want of a device plugin.
        reason: NoFitReason,
        /// The node that came nearest; `None`: there are no nodes.
        nearest: Option<Rejected<'a>>,
        /// One or two sentences for people.
        message: String,
        /// All nodes.
        rejected: Vec<Rejected<'a>>,
    },
}

/// Decides where a pod goes. The answer does not depend on the order of the nodes.
pub fn decide<'a>(ask: &'a Ask, fleet: &'a Fleet) -> Decision<'a> {
    let asked = Asked::new(ask, fleet);
    let mut rejected = Vec::new();
    let mut candidates = Vec::new();
    let mut best: Option<(Candidate<'a>, usize)> = None;
    for (place, node) in fleet.nodes().iter().enumerate() {
        if let Some(miss) = asked.first_miss(place) {
            rejected.push(Rejected { node: &node.name, miss });
            continue;
        }
        let candidate = Candidate {
            node: &node.name,
            terms: Terms::of(&asked, node, place),
        };
        if best.is_none_or(|(b, _)| candidate.compare(&b).is_lt()) {
            best = Some((candidate, place));
        }
        candidates.push(candidate);
    }
    match best {
        Some((best, place)) => Decision::Place {
            node: best.node,
            because: because(ask, fleet, place, &best, &candidates),
            candidates,
            rejected,
        },
        None => no_fit(ask, fleet.nodes(), rejected),
    }
}

impl Candidate<'_> {
    /// The better one is `Less`.
    pub fn compare(&self, other: &Self) -> Ordering {
        self.terms.compare(&other.terms).then_with(|| self.node.cmp(other.node))
    }
}

impl Rejected<'_> {
    /// The nearer one is `Less`: it failed later, or was short of less.
    pub fn compare(&self, other: &Self) -> Ordering {
        let stage = other.miss.stage().cmp(&self.miss.stage());
        let shortfall = || self.miss.shortfall().total_cmp(&other.miss.shortfall());
        stage.then_with(shortfall).then_with(|| self.node.cmp(other.node))
    }
}

fn because(ask: &Ask, fleet: &Fleet, place: usize, best: &Candidate<'_>, candidates: &[Candidate<'_>]) -> String {
    let (node, nodes) = (&fleet.nodes()[place], fleet.nodes().len());
    let mut facts = Vec::new();
    let classes = &fleet.class_sets()[fleet.digests()[place].class_set];
    if ask.asks_gpu() && !classes.is_empty() {
        let list: Vec<&str> = classes.iter().map(String::as_str).collect();
        facts.push(format!("class {}", list.join(" and ")));
    }
    if ask.gpus().next().is_some() {
        let (mut free, mut all) = (0, 0);
        for (name, _) in ask.gpus() {
            all += node.allocatable.whole(name);
            free += node.allocatable.whole(name) - node.used.whole(name);
        }
        facts.push(format!("{free} of {all} GPUs free"));
    }
    let runner_up = candidates
        .iter()
        .filter(|c| c.node != best.node)
        .min_by(|a, b| a.compare(b));
    let n = candidates.len();
    facts.push(match runner_up.map(|r| best.terms.decided_by(&r.terms)) {
        None => format!("the only one of {nodes} nodes that fits"),
        Some(DecidedBy::Class) => format!("of the most wanted class among {n} nodes that fit"),
        Some(DecidedBy::Preference) => format!("most preferred by the pod's affinity of {n} nodes that fit"),
        Some(DecidedBy::Taints) => format!("with the fewest taints to avoid of {n} nodes that fit"),
        Some(DecidedBy::SparesGpus) => format!("spares the GPU nodes among {n} nodes that fit"),
        Some(DecidedBy::BestFit) => format!("tightest of {n} nodes that fit"),
        Some(DecidedBy::Name) => format!("first by name of the equal ones among {n} nodes that fit"),
    });
    format!("{}: {}", best.node, facts.join(", "))
}

fn no_fit<'a>(ask: &Ask, nodes: &[NodeView], rejected: Vec<Rejected<'a>>) -> Decision<'a> {
    let nearest = rejected.iter().min_by(|a, b| a.compare(b)).cloned();
    let absent = |name: &&str| !nodes.is_empty() && nodes.iter().all(|n| !n.allocatable.0.contains_key(*name));
    let unadvertised = ask.gpus().map(|(name, _)| name).find(absent);
    let (reason, message) = match (unadvertised, &nearest) {
        (Some(resource), _) => (NoFitReason::NoDevicePlugin, no_device_plugin(resource, nodes)),
        (None, None) => (NoFitReason::NoFit, "no node fits: the cluster has no nodes".to_owned()),
        (None, Some(nearest)) => (NoFitReason::NoFit, no_node_fits(nearest, &rejected)),
    };
    Decision::NoFit {
        reason,
        nearest,
        message,
        rejected,
    }
}

fn no_device_plugin(resource: &str, nodes: &[NodeView]) -> String {
    let n = nodes.len();
    // A node may well advertise another GPU resource: then the pod asks for the wrong one.
    let others: BTreeMap<&str, ()> = nodes
        .iter()
        .flat_map(|node| node.allocatable.0.keys())
        .filter(|name| is_gpu(name))
        .map(|name| (name.as_str(), ()))
        .collect();
    let seen = nodes
        .iter()
        .filter(|node| node.hardware.as_ref().is_some_and(|h| !h.gpus.is_empty()))
        .count();
    let mut message = format!("a device plugin that offers {resource} is required: none of {n} nodes advertises it");
    if !others.is_empty() {
        let names = others.into_keys().collect::<Vec<_>>().join(", ");
        message += &format!(" (advertised: {names})");
    }
    if seen > 0 {
        message += &format!("; agents see GPUs on {seen} of them");
    }
    message
}

fn no_node_fits(nearest: &Rejected<'_>, rejected: &[Rejected<'_>]) -> String {
    let n = rejected.len();
    let plural = if n == 1 { "" } else { "s" };
    let mut message = format!(
        "no node fits: {n} node{plural} looked at; nearest is {}: {}",
        nearest.node, nearest.miss
    );
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for other in rejected.iter().filter(|r| r.node != nearest.node) {
        *counts.entry(other.miss.in_common()).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    // The most frequent first, equal ones by text; a handful says enough.
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let more = counts.len().saturating_sub(KINDS_NAMED);
    counts.truncate(KINDS_NAMED);
    if !counts.is_empty() {
        let list: Vec<String> = counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
        message += &format!("; of the others {}", list.join(", "));
    }
    if more > 0 {
        message += " and more";
    }
    message
}

/// Kinds of misses that a message counts.
const KINDS_NAMED: usize = 4;

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
