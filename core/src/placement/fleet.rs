//! All nodes, prepared so that thousands of decisions a second read a few numbers a node instead of its maps and strings.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::labels::GPU_CLASS;

use super::ask::Term;
use super::column::Column;
use super::node::{GpuView, NodeView};
use super::resources::is_gpu;

/// Labels with the compute capability, read where no agent reports it.
pub const COMPUTE_LABELS: [&str; 2] = ["nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"];

/// The only field of nodes that node-selector terms know.
const NAME_FIELD: &str = "metadata.name";

/// The nodes of one moment, with what decisions ask of each worked out beforehand. Nodes change through [`Fleet::change`] alone.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    nodes: Vec<NodeView>,
    digests: Vec<Digest>,
    /// Resource name → what is left of it on each node, in thousandths; 0 where a node does not have it.
    left: BTreeMap<String, Vec<i64>>,
    /// Every set of GPU classes that a node has, once.
    class_sets: Vec<BTreeSet<String>>,
    /// Labels that something was asked of, by key: most are never asked for. Keys that no node has are not kept, since anybody can make them up.
    columns: RefCell<BTreeMap<String, Column>>,
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

    /// For each node whether its label of this key is as asked; `None`: it has none.
    pub(super) fn labelled(&self, key: &str, holds: impl Fn(Option<&str>) -> bool) -> Vec<bool> {
        if let Some(column) = self.columns.borrow().get(key) {
            return column.answers(holds);
        }
        let values = self.nodes.iter().map(|node| node.labels.get(key).map(String::as_str));
        let column = Column::new(values);
        let answers = column.answers(holds);
        if !column.is_empty() {
            self.columns.borrow_mut().insert(key.to_owned(), column);
        }
        answers
    }

    /// For each node whether all requirements of a node-selector term hold. An empty term matches nothing.
    pub(super) fn matching(&self, term: &Term) -> Vec<bool> {
        let is_empty = term.expressions.is_empty() && term.fields.is_empty();
        let mut matching = vec![!is_empty; self.nodes.len()];
        for requirement in &term.expressions {
            let held = self.labelled(&requirement.key, |value| requirement.holds(value));
            matching.iter_mut().zip(held).for_each(|(all, held)| *all &= held);
        }
        for requirement in &term.fields {
            let is_name = requirement.key == NAME_FIELD;
            let held = |node: &NodeView| requirement.holds(is_name.then_some(node.name.as_str()));
            let nodes = self.nodes.iter();
            matching
                .iter_mut()
                .zip(nodes)
                .for_each(|(all, node)| *all = *all && held(node));
        }
        matching
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
        for (key, column) in self.columns.get_mut() {
            column.set(place, node.labels.get(key).map(String::as_str));
        }
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
    use crate::placement::ask::{Operator, Requirement};

    #[test]
    fn a_label_that_was_asked_for_follows_its_node() {
        let node = |labels: &[(&str, &str)]| NodeView {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NodeView::default()
        };
        let mut fleet = Fleet::new(vec![node(&[("zone", "a")]), node(&[("zone", "b")]), node(&[])]);
        let is_b = |fleet: &Fleet| fleet.labelled("zone", |value| value == Some("b"));
        assert_eq!(is_b(&fleet), [false, true, false]);
        fleet.change(0, |n| drop(n.labels.insert("zone".into(), "b".into())));
        fleet.change(1, |n| n.labels.clear());
        fleet.change(2, |n| drop(n.labels.insert("zone".into(), "c".into())));
        assert_eq!(is_b(&fleet), [true, false, false]);
        assert_eq!(fleet.labelled("zone", |value| value.is_none()), [false, true, false]);

        assert_eq!(fleet.labelled("rack", |value| value.is_some()), [false; 3]);
        assert_eq!(
            fleet.columns.borrow().len(),
            1,
            "a key that nobody has takes up no room"
        );
        fleet.change(0, |n| drop(n.labels.insert("rack".into(), "1".into())));
        assert_eq!(fleet.labelled("rack", |value| value.is_some()), [true, false, false]);
    }

    #[test]
    fn requirements_of_a_term_are_anded_and_an_empty_term_matches_nothing() {
        let requirement = |key: &str, operator, values: &[&str]| Requirement {
            key: key.into(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        let fleet = Fleet::new(vec![NodeView {
            name: "n".into(),
            labels: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]),
            ..NodeView::default()
        }]);
        let term = |expressions: Vec<Requirement>, fields: Vec<Requirement>| Term { expressions, fields };
        let a = || requirement("a", Operator::In, &["1"]);
        let not_b = || requirement("b", Operator::DoesNotExist, &[]);
        let named = |n: &str| requirement("metadata.name", Operator::In, &[n]);
        let other_field = || requirement("metadata.uid", Operator::In, &["n"]);
        for (term, want) in [
            (term(vec![], vec![]), false),
            (term(vec![a()], vec![]), true),
            (term(vec![a(), not_b()], vec![]), false),
            (term(vec![a()], vec![named("n")]), true),
            (term(vec![a()], vec![named("m")]), false),
            (term(vec![], vec![other_field()]), false),
            (
                term(vec![], vec![requirement("metadata.name", Operator::NotIn, &["n"])]),
                false,
            ),
        ] {
            assert_eq!(fleet.matching(&term), [want], "{term:?}");
        }
    }

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
