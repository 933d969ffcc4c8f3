//! What to write on one node: wanted labels and observed owners in, at most one write out.

use std::collections::BTreeMap;

use berth_core::labels::grammar;
use berth_crds::access::HARDWARE_KEY_PREFIXES;
use berth_crds::names::managers;

use super::Labels;
use crate::args::{KeyFamily, Settings};
use crate::cluster::Node;

/// When the labels changed last.
pub(super) const TIMESTAMP: &str = "nvidia.com/gfd.timestamp";

/// What the administrator decided for each family of keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Families {
    nvidia: KeyFamily,
    nfd: KeyFamily,
    amd: KeyFamily,
    intel: KeyFamily,
}

impl Families {
    pub fn of(settings: &Settings) -> Self {
        Self {
            nvidia: settings.nvidia_labels,
            nfd: settings.nfd_labels,
            amd: settings.amd_labels,
            intel: settings.intel_labels,
        }
    }

    fn rule(self, key: &str) -> KeyFamily {
        if key.starts_with("feature.node.kubernetes.io/") {
            self.nfd
        } else if key.starts_with("nvidia.com/") {
            self.nvidia
        } else if key.starts_with("amd.com/") || key.starts_with("beta.amd.com/") {
            self.amd
        } else if key.starts_with("gpu.intel.com/") {
            self.intel
        } else {
            // Our own domain: nobody else has a say.
            KeyFamily::Always
        }
    }
}

/// What becomes of one node's labels.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// The whole set to apply; `None`: the node has it already.
    pub write: Option<Labels>,
    /// Keys that are left to another manager, by manager.
    pub left: BTreeMap<String, Vec<String>>,
    /// Keys that may not be written at all: a defect of whoever computed them.
    pub refused: Vec<String>,
}

/// `keep_gpu_keys`: NVML was not read yet; what is on the node from an earlier reading stays.
pub(super) fn plan(computed: Labels, keep_gpu_keys: bool, node: &Node, families: Families) -> Plan {
    let owned = owned(node, managers::NODES_HARDWARE);
    let mut wanted = computed;
    if keep_gpu_keys {
        let kept = owned.iter().filter(|(k, _)| is_gpu_key(k));
        wanted.extend(kept.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    }
    let mut plan = Plan::default();
    wanted.retain(|key, value| {
        if !may_be_written(key, value) {
            plan.refused.push(key.clone());
            return false;
        }
        match families.rule(key) {
            KeyFamily::Always => true,
            KeyFamily::Never => false,
            KeyFamily::Auto => {
                let owner = other_owner(node, key, managers::NODES_HARDWARE);
                if let (Some(owner), false) = (owner, owned.contains_key(key.as_str())) {
                    plan.left.entry(owner.to_owned()).or_default().push(key.clone());
                    return false;
                }
                true
            }
        }
    });
    // A timestamp alone is no reason to write.
    let same = wanted.len() == owned.len()
        && wanted
            .iter()
            .all(|(k, v)| owned.get(k.as_str()).is_some_and(|now| k == TIMESTAMP || now == v));
    plan.write = (!same).then_some(wanted);
    plan
}

/// Labels that `manager` owns on the node, with the values that they have now.
pub fn owned<'n>(node: &'n Node, manager: &str) -> BTreeMap<&'n str, &'n str> {
    node.label_managers
        .iter()
        .filter(|(_, managers)| managers.contains(manager))
        .map(|(key, _)| (key.as_str(), node.labels.get(key).map_or("", String::as_str)))
        .collect()
}

/// The first manager other than `ours` that owns a label.
fn other_owner<'n>(node: &'n Node, key: &str, ours: &str) -> Option<&'n str> {
    let managers = node.label_managers.get(key)?;
    managers.iter().map(String::as_str).find(|m| *m != ours)
}

/// Keys that only NVML can tell.
fn is_gpu_key(key: &str) -> bool {
    key.starts_with("nvidia.com/") || key.starts_with("berth.dev/gpu")
}

fn may_be_written(key: &str, value: &str) -> bool {
    HARDWARE_KEY_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        && grammar::is_key(key)
        && grammar::is_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = managers::NODES_HARDWARE;

    fn families(rule: KeyFamily) -> Families {
        Families {
            nvidia: rule,
            nfd: rule,
            amd: rule,
            intel: rule,
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    /// Key, value, managers.
    fn node(labels: &[(&str, &str, &[&str])]) -> Node {
        Node {
            name: "n".into(),
            labels: labels.iter().map(|(k, v, _)| ((*k).into(), (*v).into())).collect(),
            label_managers: labels
                .iter()
                .filter(|(_, _, m)| !m.is_empty())
                .map(|(k, _, m)| ((*k).into(), m.iter().map(|m| (*m).into()).collect()))
                .collect(),
            ..Node::default()
        }
    }

    fn auto(computed: &[(&str, &str)], node: &Node) -> Plan {
        plan(labels(computed), false, node, families(KeyFamily::Auto))
    }

    #[test]
    fn writes_only_what_differs() {
        const COUNT: (&str, &str) = ("nvidia.com/gpu.count", "8");
        for (what, computed, observed, written) in [
            (
                "a fresh node",
                &[COUNT][..],
                node(&[("a", "b", &["kubelet"])]),
                Some(&[COUNT][..]),
            ),
            ("a converged node", &[COUNT], node(&[(COUNT.0, "8", &[OURS])]), None),
            (
                "another value",
                &[COUNT],
                node(&[(COUNT.0, "7", &[OURS])]),
                Some(&[COUNT]),
            ),
            (
                "without an owner",
                &[COUNT],
                node(&[(COUNT.0, "8", &[])]),
                Some(&[COUNT]),
            ),
            (
                "a key of ours that is no longer computed",
                &[COUNT],
                node(&[(COUNT.0, "8", &[OURS]), ("nvidia.com/gpu.memory", "1", &[OURS])]),
                Some(&[COUNT]),
            ),
            ("all of ours goes", &[], node(&[(COUNT.0, "8", &[OURS])]), Some(&[])),
            ("a node without GPUs", &[], node(&[("a", "b", &["kubelet"])]), None),
        ] {
            let plan = auto(computed, &observed);
            assert_eq!(plan.write, written.map(labels), "{what}");
            assert!(plan.left.is_empty() && plan.refused.is_empty(), "{what}: {plan:?}");
        }
    }

    #[test]
    fn keys_of_others_follow_the_familys_rule() {
        let computed = [("nvidia.com/gpu.count", "8"), ("berth.dev/gpu-class", "h100")];
        let theirs = node(&[("nvidia.com/gpu.count", "7", &["nfd-master"])]);
        let plan_with = |rule, node: &Node| plan(labels(&computed), false, node, families(rule));

        let auto = plan_with(KeyFamily::Auto, &theirs);
        assert_eq!(auto.write, Some(labels(&[("berth.dev/gpu-class", "h100")])));
        assert_eq!(auto.left["nfd-master"], ["nvidia.com/gpu.count"]);

        let always = plan_with(KeyFamily::Always, &theirs);
        assert_eq!((always.write, always.left.len()), (Some(labels(&computed)), 0));

        let never = plan_with(KeyFamily::Never, &node(&[]));
        assert_eq!(never.write, Some(labels(&[("berth.dev/gpu-class", "h100")])));

        // Co-owned: somebody applied the same value later; ours stays ours.
        let both = node(&[
            ("nvidia.com/gpu.count", "8", &[OURS, "nfd-master"]),
            ("berth.dev/gpu-class", "h100", &[OURS]),
        ]);
        assert_eq!(plan_with(KeyFamily::Auto, &both), Plan::default());
    }

    #[test]
    fn each_vendor_has_its_own_rule() {
        let families = Families {
            nvidia: KeyFamily::Always,
            nfd: KeyFamily::Always,
            amd: KeyFamily::Never,
            intel: KeyFamily::Auto,
        };
        let computed = [
            ("amd.com/compute-partitioning-supported", "true"),
            ("amd.com/gpu.vram", "192G"),
            ("beta.amd.com/gpu.vram.192G", "8"),
            ("gpu.intel.com/tiles", "8"),
            ("gpu.intel.com/product", "Max_1550"),
            ("nvidia.com/gpu.count", "8"),
        ];
        let observed = node(&[("gpu.intel.com/tiles", "4", &["nfd-master"])]);
        let plan = plan(labels(&computed), false, &observed, families);
        assert_eq!(plan.write, Some(labels(&computed[4..])));
        assert_eq!(plan.left["nfd-master"], ["gpu.intel.com/tiles"]);
        assert!(plan.refused.is_empty(), "{plan:?}");
    }

    #[test]
    fn a_timestamp_goes_along_with_other_changes() {
        let computed = [(TIMESTAMP, "200"), ("nvidia.com/gpu.count", "8")];
        for (stamped, count, write) in [
            (Some("100"), "8", None),
            (Some("100"), "7", Some(labels(&computed))),
            (None, "8", Some(labels(&computed))),
        ] {
            let mut observed = vec![("nvidia.com/gpu.count", count, &[OURS][..])];
            observed.extend(stamped.map(|s| (TIMESTAMP, s, &[OURS][..])));
            assert_eq!(auto(&computed, &node(&observed)).write, write, "{stamped:?} {count}");
        }
    }

    #[test]
    fn nobody_else_has_a_say_in_our_domain() {
        let observed = node(&[("berth.dev/gpu-class", "t4", &["kubectl"])]);
        let computed = [("berth.dev/gpu-class", "h100")];
        assert_eq!(auto(&computed, &observed).write, Some(labels(&computed)));
    }

    #[test]
    fn keys_and_values_outside_of_the_allow_list_are_refused() {
        let computed = [
            ("nvidia.com/gpu.count", "8"),
            ("kubernetes.io/hostname", "x"),
            ("berth.dev/leader", "true"),
            ("nvidia.com/bad key", "1"),
            ("nvidia.com/bad-value", "-"),
        ];
        let plan = auto(&computed, &node(&[]));
        assert_eq!(plan.write, Some(labels(&computed[..1])));
        assert_eq!(plan.refused.len(), 4, "{plan:?}");
    }

    #[test]
    fn until_nvml_was_read_what_an_earlier_reading_wrote_stays() {
        let observed = node(&[
            ("feature.node.kubernetes.io/pci-10de.present", "true", &[OURS]),
            ("feature.node.kubernetes.io/pci-1002.present", "true", &[OURS]),
            ("nvidia.com/gpu.count", "8", &[OURS]),
            ("nvidia.com/vgpu.present", "true", &[OURS]),
        ]);
        let computed = [
            ("feature.node.kubernetes.io/pci-10de.present", "true"),
            ("nvidia.com/vgpu.present", "false"),
        ];
        let plan = plan(labels(&computed), true, &observed, families(KeyFamily::Auto));
        let want = [
            ("feature.node.kubernetes.io/pci-10de.present", "true"),
            ("nvidia.com/gpu.count", "8"),
            ("nvidia.com/vgpu.present", "true"),
        ];
        assert_eq!(plan.write, Some(labels(&want)), "only what PCI tells is taken away");
    }
}
