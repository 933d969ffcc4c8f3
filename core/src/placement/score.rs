//! Which of the nodes that fit is best.
//!
//! Compared in this order, the first difference decides:
//!
//! 1. the class that stands earlier in the pod's list;
//! 2. more weight of the pod's preferred node affinity;
//! 3. fewer `PreferNoSchedule` taints that the pod does not tolerate;
//! 4. for a pod that asks no GPU: a node without any;
//! 5. best fit: fewer GPUs left, then a smaller share of CPU left, so that large free blocks stay whole;
//! 6. the node's name.

use std::cmp::{Ordering, Reverse};

use serde::Serialize;

use super::filter::Asked;
use super::node::NodeView;
use super::selector::avoidable;

/// Terms of one node's score, in the order in which they are compared; smaller is better, preferences aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Place of the node's class in the pod's list; 0 where the pod names none.
    pub class: usize,
    /// Weights of the preferred terms that match.
    pub preferred: i64,
    /// `PreferNoSchedule` taints that are not tolerated.
    pub taints: usize,
    /// A node with GPUs for a pod that asks none.
    pub wastes_gpus: bool,
    /// GPUs left after the pod, in thousandths; 0 where the pod asks none.
    pub gpus_left: i64,
    /// CPU left after the pod, in millionths of what is allocatable.
    pub cpu_left: i64,
}

/// What decided between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DecidedBy {
    Class,
    Preference,
    Taints,
    SparesGpus,
    BestFit,
    Name,
}

impl Terms {
    /// Of a node that fits, at its place in the fleet.
    pub(super) fn of(asked: &Asked<'_>, node: &NodeView, place: usize) -> Self {
        Self {
            class: asked.class_rank(place),
            preferred: asked.preference(place),
            taints: avoidable(&node.taints, &asked.ask.tolerations),
            wastes_gpus: asked.wastes_gpus(place),
            gpus_left: asked.gpus_left(place),
            cpu_left: asked.cpu_left(place),
        }
    }

    /// The better one is `Less`.
    pub fn compare(&self, other: &Self) -> Ordering {
        let key = |t: &Self| {
            let soft = (t.class, Reverse(t.preferred), t.taints, t.wastes_gpus);
            (soft, t.gpus_left, t.cpu_left)
        };
        key(self).cmp(&key(other))
    }

    /// The first term in which the better of two nodes differs from the other.
    pub fn decided_by(&self, other: &Self) -> DecidedBy {
        if self.class != other.class {
            DecidedBy::Class
        } else if self.preferred != other.preferred {
            DecidedBy::Preference
        } else if self.taints != other.taints {
            DecidedBy::Taints
        } else if self.wastes_gpus != other.wastes_gpus {
            DecidedBy::SparesGpus
        } else if (self.gpus_left, self.cpu_left) != (other.gpus_left, other.cpu_left) {
            DecidedBy::BestFit
        } else {
            DecidedBy::Name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_decides() {
        let base = Terms {
            class: 1,
            preferred: 10,
            taints: 1,
            wastes_gpus: true,
            gpus_left: 2000,
            cpu_left: 500_000,
        };
        let better = [
            (
                Terms {
                    class: 0,
                    preferred: 0,
                    gpus_left: 9000,
                    ..base
                },
                DecidedBy::Class,
            ),
            (
                Terms {
                    preferred: 11,
                    taints: 9,
                    ..base
                },
                DecidedBy::Preference,
            ),
            (
                Terms {
                    taints: 0,
                    gpus_left: 9000,
                    ..base
                },
                DecidedBy::Taints,
            ),
            (
                Terms {
                    wastes_gpus: false,
                    cpu_left: 900_000,
                    ..base
                },
                DecidedBy::SparesGpus,
            ),
            (
                Terms {
                    gpus_left: 1000,
                    cpu_left: 900_000,
                    ..base
                },
                DecidedBy::BestFit,
            ),
            (
                Terms {
                    cpu_left: 400_000,
                    ..base
                },
                DecidedBy::BestFit,
            ),
        ];
        for (terms, by) in better {
            assert_eq!(terms.compare(&base), Ordering::Less, "{by:?}");
            assert_eq!(terms.decided_by(&base), by);
        }
        assert_eq!(base.decided_by(&base), DecidedBy::Name);
    }
}
