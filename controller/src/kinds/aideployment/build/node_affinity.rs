//! GPU class and compute capability as node selector and node affinity, for pods that kube-scheduler places.

use berth_crds::names;
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};

/// Major part of a node's CUDA compute capability.
const COMPUTE_MAJOR: &str = "nvidia.com/gpu.compute.major";
/// Minor part of a node's CUDA compute capability.
const COMPUTE_MINOR: &str = "nvidia.com/gpu.compute.minor";
/// Highest weight of a preference.
const TOP_WEIGHT: i32 = 100;
/// From one class to the next.
const WEIGHT_STEP: i32 = 10;

/// Binds the pod to nodes of one of the classes (the first ones rather) and of the capability.
pub fn require(spec: &mut PodSpec, classes: &[String], capability: Option<(i32, i32)>) {
    let mut every = Vec::new();
    match classes {
        [] => {}
        [class] => {
            let selector = spec.node_selector.get_or_insert_default();
            selector.insert(names::GPU_CLASS.into(), class.clone());
        }
        several => {
            every.push(requirement(names::GPU_CLASS, "In", several.to_vec()));
            prefer_in_order(spec, several);
        }
    }
    let alternatives = capability.map_or_else(|| vec![vec![]], at_least);
    if every.is_empty() && capability.is_none() {
        return;
    }
    // Terms are alternatives, so what is required goes into each of them.
    let affinity = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default();
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    let terms = match required.take() {
        Some(given) => given.node_selector_terms,
        None => vec![NodeSelectorTerm::default()],
    };
    let combined = terms.iter().flat_map(|term| {
        alternatives.iter().map(|alternative| {
            let mut term = term.clone();
            let expressions = term.match_expressions.get_or_insert_default();
            expressions.extend(every.iter().chain(alternative).cloned());
            term
        })
    });
    *required = Some(NodeSelector {
        node_selector_terms: combined.collect(),
    });
}

/// Rather a node of this compute capability.
pub fn prefer_capability(spec: &mut PodSpec, version: (i32, i32)) {
    let preferred = preferred(spec);
    for alternative in at_least(version) {
        preferred.push(PreferredSchedulingTerm {
            weight: TOP_WEIGHT,
            preference: NodeSelectorTerm {
                match_expressions: Some(alternative),
                match_fields: None,
            },
        });
    }
}

/// Requirements for a compute capability, as alternatives: a node selector cannot compare two labels at once.
fn at_least((major, minor): (i32, i32)) -> Vec<Vec<NodeSelectorRequirement>> {
    let from = |key, n: i32| requirement(key, "Gt", vec![(i64::from(n) - 1).to_string()]);
    if minor <= 0 {
        return vec![vec![from(COMPUTE_MAJOR, major)]];
    }
    let same_major = requirement(COMPUTE_MAJOR, "In", vec![major.to_string()]);
    vec![
        vec![from(COMPUTE_MAJOR, major.saturating_add(1))],
        vec![same_major, from(COMPUTE_MINOR, minor)],
    ]
}

fn preferred(spec: &mut PodSpec) -> &mut Vec<PreferredSchedulingTerm> {
    let affinity = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default();
    affinity
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default()
}

fn prefer_in_order(spec: &mut PodSpec, classes: &[String]) {
    let preferred = preferred(spec);
    let mut weight = TOP_WEIGHT;
    for class in classes {
        preferred.push(PreferredSchedulingTerm {
            weight,
            preference: NodeSelectorTerm {
                match_expressions: Some(vec![requirement(names::GPU_CLASS, "In", vec![class.clone()])]),
                match_fields: None,
            },
        });
        weight = (weight - WEIGHT_STEP).max(1);
    }
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: Some(values),
    }
}
