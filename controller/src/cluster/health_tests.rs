use berth_core::facts::{NodeFacts, NvmlState, NvmlStatus, PciFunction};
use berth_core::health::breaker::{Breaker, Decision, Limits};
use berth_core::health::{GpuHealth, GpuState, NodeHealth};
use berth_core::placement::Resources;

use super::*;
use crate::cluster::{AgentChange, NodeCondition};

const OURS: &str = managers::NODES_HEALTH;

fn node(condition: Option<(&str, &str, &str, &str)>, tainted: bool, gpus: i64) -> Node {
    let conditions = condition.map(|(status, reason, message, manager)| NodeCondition {
        type_: NVIDIA_READY.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition: Some("2026-01-01T00:00:00Z".into()),
        written: None,
        managers: [manager.to_owned()].into(),
    });
    let taint = Taint {
        key: UNHEALTHY_TAINT.into(),
        effect: TAINT_EFFECT.into(),
        ..Taint::default()
    };
    Node {
        name: "n".into(),
        uid: "u".into(),
        allocatable: Resources([(NVIDIA_GPU.to_owned(), gpus * 1000)].into()),
        conditions: conditions.into_iter().collect(),
        taints: tainted.then_some(taint).into_iter().collect(),
        ..Node::default()
    }
}

#[test]
fn what_an_earlier_process_decided_is_read_from_the_node() {
    let held = format!("GPU-0: XID 62: reset the GPU{HELD}");
    let mut foreign = node(None, true, 0);
    foreign.taints[0].effect = "PreferNoSchedule".into();
    for (what, node, known, excluded) in [
        ("no GPUs", node(None, false, 0), 0, 0),
        ("GPUs", node(None, false, 4), 1, 0),
        ("well", node(Some(("True", "AllGPUsReady", "", OURS)), false, 0), 1, 0),
        ("out", node(Some(("False", "ResetRequired", "m", OURS)), false, 0), 1, 1),
        (
            "held back",
            node(Some(("False", "ResetRequired", &held, OURS)), false, 4),
            1,
            0,
        ),
        (
            "tainted, whatever is said",
            node(Some(("False", "ResetRequired", &held, OURS)), true, 4),
            1,
            1,
        ),
        (
            "no fault of the hardware",
            node(Some(("False", "DriverUpgrading", "m", OURS)), false, 4),
            1,
            0,
        ),
        (
            "tainted before the driver went",
            node(Some(("False", "DriverUpgrading", "m", OURS)), true, 0),
            1,
            1,
        ),
        (
            "silent",
            node(Some(("Unknown", "AgentSilent", "m", OURS)), false, 4),
            1,
            0,
        ),
        (
            "another's word",
            node(Some(("False", "ResetRequired", "m", "other")), false, 4),
            1,
            0,
        ),
        ("only the taint is left", node(None, true, 0), 1, 1),
        ("the same key with another effect", foreign, 0, 0),
    ] {
        let mut picture = Picture {
            breaker: Breaker::new(Limits::default()),
            ..Picture::default()
        };
        picture.node_came(&node, Instant::now());
        let is = (picture.breaker.nodes(), picture.breaker.excluded());
        assert_eq!(is, (known, excluded), "{what}");
    }
}

fn limits(share_percent: u32, same_cause: u32) -> Limits {
    Limits {
        share_percent,
        new: 10,
        same_cause,
    }
}

fn named(name: &str, uid: &str, node: Node) -> Node {
    Node {
        name: name.into(),
        uid: uid.into(),
        ..node
    }
}

/// An agent's word: what PCI shows, and what is judged.
fn speak(cluster: &Cluster, (name, uid): (&str, &str), pci: Option<&[Option<&str>]>, nvml: NvmlState, gpus: &[&str]) {
    let function = |driver: &Option<&str>| PciFunction {
        address: "0000:3b:00.0".into(),
        vendor: 0x10de,
        device: 0x2330,
        class: 0x03_0200,
        subsystem_vendor: None,
        subsystem_device: None,
        driver: driver.map(str::to_owned),
        numa_node: None,
        sriov_total_vfs: None,
    };
    let gpu = |message: &&str| GpuHealth {
        uuid: "GPU-0".into(),
        state: match message.is_empty() {
            true => GpuState::Healthy,
            false => GpuState::Unhealthy,
        },
        reason: "ResetRequired".into(),
        message: (*message).to_owned(),
        since: Duration::ZERO,
        cleared_by: None,
        gpu: None,
    };
    cluster.update_agent(name, uid, Instant::now(), |agent| {
        agent.facts = pci.map(|drivers| NodeFacts {
            pci: drivers.iter().map(function).collect(),
            ..NodeFacts::default()
        });
        agent.health = Some(NodeHealth {
            gpus: gpus.iter().map(gpu).collect(),
            nvml: NvmlStatus {
                state: nvml,
                message: String::new(),
            },
            missing_gpus: 0,
        });
        AgentChange::Live
    });
}

fn speak_sick(cluster: &Cluster, of: (&str, &str)) {
    speak(
        cluster,
        of,
        Some(&[Some("nvidia")]),
        NvmlState::Ready,
        &["XID 62: reset the GPU"],
    );
}

fn out() -> Node {
    node(
        Some(("False", "ResetRequired", "GPU-0: XID 62: reset the GPU", OURS)),
        false,
        4,
    )
}

/// Nodes that the breaker knows, and how many of them are out.
fn counts(cluster: &Cluster) -> (usize, usize) {
    let picture = cluster.read();
    (picture.breaker.nodes(), picture.breaker.excluded())
}

#[test]
fn an_agent_that_is_heard_before_its_node_is_seen_loses_nothing() {
    // One of two may be out, and an earlier process took out both.
    let cluster = Cluster::with(limits(25, 10), Vec::new());
    for name in ["a", "b"] {
        speak_sick(&cluster, (name, name));
    }
    assert_eq!(counts(&cluster), (0, 0), "nothing is decided before");
    cluster.reset_nodes(vec![named("a", "a", out()), named("b", "b", out())]);
    assert_eq!(counts(&cluster), (2, 2));
    let excluded = Decision::Excluded { cause: "XID 62" };
    assert_eq!(
        cluster.read().breaker.decision("b"),
        excluded,
        "what the agents said counts"
    );
}

#[test]
fn an_agent_that_outlives_its_node_leaves_nothing_behind() {
    let cluster = Cluster::with(limits(25, 10), Vec::new());
    cluster.apply_node(named("a", "a", node(None, false, 4)));
    speak_sick(&cluster, ("a", "a"));
    assert_eq!(counts(&cluster), (1, 1));
    cluster.delete_node("a");
    speak_sick(&cluster, ("a", "a"));
    assert_eq!(counts(&cluster), (0, 0));
}

#[test]
fn a_node_made_anew_under_its_name_inherits_no_verdict() {
    let cluster = Cluster::with(limits(100, 10), Vec::new());
    cluster.apply_node(named("a", "old", node(None, false, 4)));
    speak_sick(&cluster, ("a", "old"));
    assert_eq!(counts(&cluster), (1, 1));
    cluster.reset_nodes(vec![named("a", "new", node(None, false, 0))]);
    assert_eq!(counts(&cluster), (0, 0));
    assert_eq!(cluster.read().breaker.decision("a"), Decision::Ready);
    // Its agent is faster than the watch.
    speak_sick(&cluster, ("a", "newer"));
    assert_eq!(counts(&cluster), (0, 0));
    cluster.apply_node(named("a", "newer", node(None, false, 0)));
    assert_eq!(counts(&cluster), (1, 1));
}

#[test]
fn what_was_decided_stays_until_the_hardware_is_seen() {
    let card = |driver| [Some(driver)];
    let (nvidia, nouveau, vfio) = (card("nvidia"), card("nouveau"), card("vfio-pci"));
    let cause = "GPUDriverHung";
    for (what, pci, nvml, gpus, decision, want) in [
        (
            "facts have not come",
            None,
            NvmlState::Unknown,
            &[][..],
            Decision::Unknown,
            (1, 1),
        ),
        (
            "not read yet",
            Some(&nvidia[..]),
            NvmlState::Unknown,
            &[],
            Decision::Unknown,
            (1, 1),
        ),
        (
            "no driver",
            Some(&[None]),
            NvmlState::NoDriver,
            &[],
            Decision::Unknown,
            (1, 1),
        ),
        (
            "another's driver",
            Some(&nouveau),
            NvmlState::Ready,
            &[],
            Decision::Unknown,
            (1, 1),
        ),
        (
            "hangs from the first",
            Some(&nvidia),
            NvmlState::Hung,
            &[],
            Decision::Excluded { cause },
            (1, 1),
        ),
        (
            "read, and well",
            Some(&nvidia),
            NvmlState::Ready,
            &[""],
            Decision::Ready,
            (1, 0),
        ),
        (
            "given to virtual machines",
            Some(&vfio),
            NvmlState::NoDriver,
            &[],
            Decision::Ready,
            (0, 0),
        ),
        (
            "no cards",
            Some(&[]),
            NvmlState::NoLibrary,
            &[],
            Decision::Ready,
            (0, 0),
        ),
    ] {
        let seen = named("a", "a", out());
        // Heard before the node is seen, and after.
        for first in [true, false] {
            let cluster = Cluster::with(limits(100, 10), Vec::new());
            let hear = || speak(&cluster, ("a", "a"), pci, nvml, gpus);
            if first {
                hear();
                cluster.apply_node(seen.clone());
            } else {
                cluster.apply_node(seen.clone());
                hear();
            }
            assert_eq!(cluster.read().breaker.decision("a"), decision, "{what}");
            assert_eq!(counts(&cluster), want, "{what}");
        }
    }
}

#[test]
fn a_node_that_was_held_back_first_is_out_since_that_was_written() {
    let another_out = |written: Option<Timestamp>| {
        let cluster = Cluster::with(limits(100, 1), Vec::new());
        let mut first = named("a", "a", out());
        first.conditions[0].written = written;
        cluster.apply_node(first);
        cluster.apply_node(named("b", "b", node(None, false, 4)));
        speak_sick(&cluster, ("b", "b"));
        counts(&cluster).1 == 2
    };
    assert!(another_out(None), "since long");
    assert!(!another_out(Some(Timestamp::now())), "its status turned long before");
}

#[test]
fn the_clock_goes_there_and_back() {
    let clock = Clock::default();
    let later = Instant::now() + Duration::from_secs(90);
    assert_eq!(clock.moment(clock.at(later)), later);
    assert_eq!(transition(Some("1970-01-01T00:01:30Z")), Some(Duration::from_secs(90)));
    assert_eq!(transition(Some("never")), None);
}
