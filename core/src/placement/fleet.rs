//! All nodes, prepared so that thousands of decisions a second read a few numbers a node instead of its maps and strings.

use std::collections::{BTreeMap, BTreeSet};

use crate::labels::GPU_CLASS;

use super::node::{GpuView, NodeView};
use super::resources::is_gpu;

/// Labels with the compute capability, read where no agent reports it.
pub const COMPUTE_LABELS: [&str; 2] = ["nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"];

/// The nodes of one moment, with what decisions ask of each worked out beforehand. Nodes change through [`Fleet::change`] alone.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    nodes: Vec<NodeView>,
    digests: Vec<Digest>,
    /// Resource name → what is left of it on each node, in thousandths; 0 where a node does not have it.
    left: BTreeMap<String, Vec<i64>>,
    /// Every set of GPU classes that a node has, once.
    class_sets: Vec<BTreeSet<String>>,
}

/// What filter and score read of a node, whose `NodeView` stays untouched in most decisions.
#[derive(Debug, Clone, Default)]
pub(super) struct Digest {
    /// Place in `class_sets`.
    pub class_set: usize,
    /// The least among its GPUs that may be handed out.
    pub compute_capability: Option<(u32, u32)>,
    /// Place of the first GPU that must not be handed out, and may be.
    pub sick: Option<usize>,
    /// Free VRAM of its GPUs that may be handed out, largest first. Empty: not known of all of them, or there are none.
    pub free_memory: Vec<u64>,
    /// It has GPUs, by its agent or by its device plugin.
    pub has_gpus: bool,
    /// Allocatable CPU in thousandths.
    pub cpu: i64,
}

impl Fleet {
    /// Prepares nodes.
    pub fn new(nodes: Vec<NodeView>) -> Self {
        let mut fleet = Self {
            digests: vec![Digest::default(); nodes.len()],
            nodes,
            ..Self::default()
        };
        (0..fleet.nodes.len()).for_each(|i| fleet.digest(i));
        fleet
    }

    /// The nodes, in the order in which they were given.
    pub fn nodes(&self) -> &[NodeView] {
        &self.nodes
    }

    /// Changes the node at a place in [`Fleet::nodes`].
    pub fn change(&mut self, place: usize, change: impl FnOnce(&mut NodeView)) {
        if let Some(node) = self.nodes.get_mut(place) {
            change(node);
            self.digest(place);
        }
    }

    /// Hands the nodes back.
    pub fn into_nodes(self) -> Vec<NodeView> {
        self.nodes
    }

    pub(super) fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// What is left of a resource on each node; `None`: no node has it.
    pub(super) fn left(&self, resource: &str) -> Option<&[i64]> {
        self.left.get(resource).map(Vec::as_slice)
    }

    pub(super) fn class_sets(&self) -> &[BTreeSet<String>] {
        &self.class_sets
    }

    fn digest(&mut self, place: usize) {
        let node = &self.nodes[place];
        let classes = classes(node);
        let class_set = self.class_sets.iter().position(|s| *s == classes).unwrap_or_else(|| {
            self.class_sets.push(classes);
            self.class_sets.len() - 1
        });
        let gpus = node.hardware.as_ref().map_or(&[][..], |h| &h.gpus);
        let free: Option<Vec<u64>> = gpus.iter().filter(|g| !g.held).map(|g| g.memory_free).collect();
        let mut free_memory = free.unwrap_or_default();
        free_memory.sort_unstable_by(|a, b| b.cmp(a));
        self.digests[place] = Digest {
            class_set,
            compute_capability: compute_capability(node),
            sick: gpus.iter().position(|g| !g.held && !g.state.may_be_handed_out()),
            free_memory,
            has_gpus: !gpus.is_empty()
                || node
                    .allocatable
                    .0
                    .iter()
                    .any(|(name, milli)| *milli > 0 && is_gpu(name)),
            cpu: node.allocatable.milli("cpu"),
        };
        for (name, allocatable) in &node.allocatable.0 {
            let left = allocatable.saturating_sub(node.used.milli(name));
            match self.left.get_mut(name) {
                Some(column) => column[place] = left,
                None => {
                    let mut column = vec![0; self.nodes.len()];
                    column[place] = left;
                    self.left.insert(name.clone(), column);
                }
            }
        }
        // A resource that the node no longer has.
        for (_, column) in self
            .left
            .iter_mut()
            .filter(|(n, _)| !node.allocatable.0.contains_key(*n))
        {
            column[place] = 0;
        }
    }
}

/// The GPUs that the kubelet may hand out, as far as that is known: all, where it is known of none. Where all are held they are all, too:
/// what is left of the resource says that there is none.
fn to_hand_out(gpus: &[GpuView]) -> impl Iterator<Item = &GpuView> {
    let all_held = gpus.iter().all(|g| g.held);
    gpus.iter().filter(move |g| all_held || !g.held)
}

/// GPU classes of a node: its agent's where that knows GPUs, else its label's.
fn classes(node: &NodeView) -> BTreeSet<String> {
    match &node.hardware {
        Some(hardware) if !hardware.gpus.is_empty() => to_hand_out(&hardware.gpus).map(|g| g.class.clone()).collect(),
        _ => node.labels.get(GPU_CLASS).cloned().into_iter().collect(),
    }
}

fn compute_capability(node: &NodeView) -> Option<(u32, u32)> {
    let gpus = node.hardware.as_ref().map_or(&[][..], |h| &h.gpus);
    let of_gpus = to_hand_out(gpus).map(|g| g.compute_capability).min().flatten();
    of_gpus.or_else(|| {
        let [major, minor] = COMPUTE_LABELS.map(|key| node.labels.get(key)?.parse().ok());
        Some((major?, minor?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Resources;

    #[test]
    fn a_change_is_seen_and_the_other_nodes_keep_theirs() {
        let node = |name: &str, gpus: i64| NodeView {
            name: name.into(),
            allocatable: Resources([("nvidia.com/gpu".to_owned(), gpus * 1000)].into()),
            ..NodeView::default()
        };
        let mut fleet = Fleet::new(vec![node("a", 4), node("b", 8)]);
        assert_eq!(fleet.left("nvidia.com/gpu"), Some(&[4000, 8000][..]));
        fleet.change(1, |n| {
            n.used.add(&Resources([("nvidia.com/gpu".to_owned(), 3000)].into()))
        });
        assert_eq!(fleet.left("nvidia.com/gpu"), Some(&[4000, 5000][..]));
        fleet.change(1, |n| n.allocatable.0.clear());
        assert_eq!(
            fleet.left("nvidia.com/gpu"),
            Some(&[4000, 0][..]),
            "the device plugin is gone"
        );
        assert_eq!(fleet.left("cpu"), None);
    }
}
