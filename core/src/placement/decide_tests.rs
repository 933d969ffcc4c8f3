use proptest::prelude::*;

use super::*;
use crate::placement::Resources;
use crate::placement::node::{GpuView, Hardware, Taint};

fn resources(amounts: &[(&str, i64)]) -> Resources {
    Resources(
        amounts
            .iter()
            .map(|(n, whole)| ((*n).to_owned(), whole * 1000))
            .collect(),
    )
}

fn node(name: &str, class: Option<&str>, gpus: i64, used: i64) -> NodeView {
    let mut allocatable = resources(&[("cpu", 64), ("pods", 110)]);
    if class.is_some() {
        allocatable.add(&resources(&[("nvidia.com/gpu", gpus)]));
    }
    NodeView {
        name: name.into(),
        labels: class
            .map(|c| (crate::labels::GPU_CLASS.to_owned(), c.to_owned()))
            .into_iter()
            .collect(),
        allocatable,
        used: resources(&[("nvidia.com/gpu", used)]),
        ..NodeView::default()
    }
}

fn ask(gpus: i64, classes: &[&str]) -> Ask {
    Ask {
        requests: resources(&[("cpu", 1), ("nvidia.com/gpu", gpus), ("pods", 1)]),
        classes: classes.iter().map(|c| (*c).to_owned()).collect(),
        ..Ask::default()
    }
}

fn fleet() -> Vec<NodeView> {
    vec![
        node("h100-0", Some("h100"), 8, 3),
        node("h100-1", Some("h100"), 8, 7),
        node("a100-0", Some("a100"), 8, 0),
        node("t4-0", Some("t4"), 4, 0),
        node("cpu-0", None, 0, 0),
    ]
}

#[test]
fn a_pod_goes_to_the_best_node_and_the_sentence_says_why() {
    for (what, ask, want) in [
        (
            "best fit",
            ask(1, &["h100"]),
            "h100-1: class h100, 1 of 8 GPUs free, tightest of 2 nodes that fit",
        ),
        (
            "the other has too few",
            ask(2, &["h100"]),
            "h100-0: class h100, 5 of 8 GPUs free, the only one of 5 nodes that fits",
        ),
        (
            "order of preference beats best fit",
            ask(1, &["a100", "h100"]),
            "a100-0: class a100, 8 of 8 GPUs free, of the most wanted class among 3 nodes that fit",
        ),
        (
            "no class: best fit over all",
            ask(1, &[]),
            "h100-1: class h100, 1 of 8 GPUs free, tightest of 4 nodes that fit",
        ),
        (
            "who asks no GPU leaves GPU nodes alone",
            ask(0, &[]),
            "cpu-0: spares the GPU nodes among 5 nodes that fit",
        ),
    ] {
        match decide(&ask, &Fleet::new(fleet())) {
            Decision::Place { because, .. } => assert_eq!(because, want, "{what}"),
            Decision::NoFit { message, .. } => panic!("{what}: {message}"),
        }
    }
}

#[test]
fn equal_nodes_go_by_name() {
    let nodes = [node("b", Some("t4"), 4, 0), node("a", Some("t4"), 4, 0)];
    let ask = ask(1, &[]);
    let fleet = Fleet::new(nodes.into());
    let Decision::Place { node, because, .. } = decide(&ask, &fleet) else {
        panic!("both fit")
    };
    assert_eq!(node, "a");
    assert!(
        because.ends_with("first by name of the equal ones among 2 nodes that fit"),
        "{because}"
    );
}

#[test]
fn a_node_with_two_wanted_classes_counts_as_the_less_wanted() {
    let mut mixed = node("mixed", Some("a100"), 2, 0);
    let gpus = ["a100", "t4"].map(|class| GpuView {
        class: class.into(),
        ..GpuView::default()
    });
    mixed.hardware = Some(Hardware {
        gpus: gpus.into(),
        ..Hardware::default()
    });
    let fleet = Fleet::new(vec![mixed, node("pure", Some("a100"), 8, 0)]);
    for (classes, want) in [(["a100", "t4"], "pure"), (["t4", "a100"], "mixed")] {
        let ask = ask(1, &classes);
        let Decision::Place { node, .. } = decide(&ask, &fleet) else {
            panic!("both fit")
        };
        assert_eq!(node, want, "{classes:?}");
    }
}

#[test]
fn avoidable_taints_are_avoided() {
    let mut nodes = [node("a", Some("t4"), 4, 3), node("b", Some("t4"), 4, 0)];
    nodes[0].taints.push(Taint {
        key: "k".into(),
        effect: "PreferNoSchedule".into(),
        ..Taint::default()
    });
    assert!(matches!(
        decide(&ask(1, &[]), &Fleet::new(nodes.into())),
        Decision::Place { node: "b", .. }
    ));
}

#[test]
fn what_fits_nowhere_is_told_the_nearest_miss() {
    let mut tainted = fleet();
    tainted[3].taints.push(Taint {
        key: "k".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    });
    for (what, ask, nodes, reason, want) in [
        (
            "too many GPUs of a class",
            ask(6, &["h100"]),
            fleet(),
            NoFitReason::NoFit,
            "no node fits: 5 nodes looked at; nearest is h100-0: has 5 of 6 nvidia.com/gpu free (8 allocatable, 3 in use or \
             promised); of the others 3 not of class h100, 1 short of nvidia.com/gpu",
        ),
        (
            "a class that nobody has",
            ask(1, &["b200"]),
            tainted,
            NoFitReason::NoFit,
            "no node fits: 5 nodes looked at; nearest is a100-0: is of class a100, not b200; of the others 3 not of class b200, \
             1 tainted k:NoSchedule",
        ),
        (
            "no device plugin anywhere",
            ask(1, &["h100"]),
            vec![node("cpu-0", None, 0, 0), node("cpu-1", None, 0, 0)],
            NoFitReason::NoDevicePlugin,
            "a device plugin that offers nvidia.com/gpu is required: none of 2 nodes advertises it",
        ),
        (
            "no nodes",
            ask(1, &[]),
            vec![],
            NoFitReason::NoFit,
            "no node fits: the cluster has no nodes",
        ),
        (
            "a device plugin whose GPUs are all gone is there",
            ask(1, &[]),
            vec![node("n", Some("t4"), 0, 0)],
            NoFitReason::NoFit,
            "no node fits: 1 node looked at; nearest is n: has 0 of 1 nvidia.com/gpu free (0 allocatable, 0 in use or promised)",
        ),
    ] {
        match &decide(&ask, &Fleet::new(nodes.clone())) {
            Decision::NoFit { reason: r, message, .. } => assert_eq!((*r, message.as_str()), (reason, want), "{what}"),
            Decision::Place { because, .. } => panic!("{what}: {because}"),
        };
    }
}

#[test]
fn a_missing_device_plugin_is_told_with_what_is_there() {
    let mut nodes = vec![node("n", None, 0, 0)];
    nodes[0].allocatable.add(&resources(&[("nvidia.com/mig-1g.10gb", 7)]));
    nodes[0].hardware = Some(Hardware {
        gpus: vec![GpuView::default()],
        ..Hardware::default()
    });
    let ask = ask(1, &[]);
    let fleet = Fleet::new(nodes);
    let Decision::NoFit { message, .. } = decide(&ask, &fleet) else {
        panic!("nothing fits")
    };
    assert_eq!(
        message,
        "a device plugin that offers nvidia.com/gpu is required: none of 1 nodes advertises it (advertised: \
         nvidia.com/mig-1g.10gb); agents see GPUs on 1 of them"
    );
}

prop_compose! {
    fn any_node()(n in 0..1000u32, class in prop::sample::select(vec![None, Some("h100"), Some("a100"), Some("t4")]),
                  gpus in 0..9i64, used in 0..10i64, cpu in 0..80i64, cordoned in prop::bool::weighted(0.1)) -> NodeView {
        let mut node = node(&format!("n-{n}"), class, gpus, used);
        node.used.0.insert("cpu".into(), cpu * 1000);
        node.unschedulable = cordoned;
        node
    }
}

prop_compose! {
    fn any_ask()(gpus in 0..9i64, cpu in 0..70_000i64,
                 classes in prop::sample::subsequence(vec!["h100", "a100", "t4"], 0..=3)) -> Ask {
        let mut ask = ask(gpus, &classes);
        ask.requests.0.insert("cpu".into(), cpu);
        ask
    }
}

proptest! {
    #[test]
    fn never_where_something_lacks_and_always_where_something_fits(
        nodes in prop::collection::vec(any_node(), 0..20), ask in any_ask()
    ) {
        let fits = |n: &NodeView| {
            let left = |name: &str| n.allocatable.milli(name) - n.used.milli(name);
            let class = n.labels.values().next();
            !n.unschedulable
                && ask.requests.0.iter().all(|(name, wanted)| *wanted == 0 || *wanted <= left(name))
                && (ask.classes.is_empty() || class.is_some_and(|c| ask.classes.contains(c)))
        };
        let fleet = Fleet::new(nodes.clone());
        match decide(&ask, &fleet) {
            Decision::Place { node, candidates, rejected, .. } => {
                prop_assert!(nodes.iter().any(|n| n.name == node && fits(n)));
                prop_assert_eq!(candidates.len() + rejected.len(), nodes.len());
            }
            Decision::NoFit { rejected, .. } => {
                prop_assert!(!nodes.iter().any(fits));
                prop_assert_eq!(rejected.len(), nodes.len());
            }
        }
    }

    #[test]
    fn the_order_of_the_nodes_changes_nothing(
        nodes in prop::collection::btree_map("[a-z]{1,6}", any_node(), 0..20), ask in any_ask(), seed in any::<u64>()
    ) {
        let nodes: Vec<NodeView> =
            nodes.into_iter().map(|(name, node)| NodeView { name, ..node }).collect();
        let mut shuffled = nodes.clone();
        let mut state = seed;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(i, usize::try_from(state >> 33).unwrap() % (i + 1));
        }
        let told = |d: Decision<'_>| match d {
            Decision::Place { because, .. } => because,
            Decision::NoFit { message, .. } => message,
        };
        let (one, other) = (Fleet::new(nodes), Fleet::new(shuffled));
        prop_assert_eq!(told(decide(&ask, &one)), told(decide(&ask, &other)));
    }
}
