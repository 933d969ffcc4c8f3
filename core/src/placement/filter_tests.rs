use std::time::Duration;

use super::*;
use crate::facts::NvmlStatus;
use crate::health::GpuState;
use crate::labels::GPU_CLASS;
use crate::placement::Resources;
use crate::placement::ask::{Operator, Requirement, Term, Toleration};
use crate::placement::fleet::COMPUTE_LABELS;
use crate::placement::node::{GpuView, SliceView, Taint};

const GI: u64 = 1 << 30;

fn resources(amounts: &[(&str, i64)]) -> Resources {
    Resources(
        amounts
            .iter()
            .map(|(n, whole)| ((*n).to_owned(), whole * 1000))
            .collect(),
    )
}

fn gpu(n: usize, class: &str, free: u64) -> GpuView {
    GpuView {
        uuid: format!("GPU-{n}"),
        class: class.into(),
        memory_total: Some(80 * GI),
        memory_free: Some(free * GI),
        compute_capability: Some((9, 0)),
        ..GpuView::default()
    }
}

/// A node with 8 GPUs of class h100, 3 of them in use.
fn node() -> NodeView {
    NodeView {
        name: "h100-0".into(),
        labels: [("zone", "a"), ("rank", "7"), (GPU_CLASS, "h100")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        allocatable: resources(&[("cpu", 64), ("memory", 1 << 40), ("nvidia.com/gpu", 8), ("pods", 110)]),
        used: resources(&[("cpu", 60), ("nvidia.com/gpu", 3), ("pods", 5)]),
        host_ports: [("TCP".to_owned(), "0.0.0.0".to_owned(), 8000)].into(),
        hardware: Some(Hardware {
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            gpus: (0..8).map(|n| gpu(n, "h100", if n < 3 { 2 } else { 79 })).collect(),
            ..Hardware::default()
        }),
        ..NodeView::default()
    }
}

fn ask() -> Ask {
    Ask {
        pod: "ns/p".into(),
        requests: resources(&[("cpu", 2), ("memory", 1 << 30), ("nvidia.com/gpu", 2), ("pods", 1)]),
        ..Ask::default()
    }
}

fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement {
        key: key.into(),
        operator,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    }
}

/// Changes node or ask.
type Change = fn(&mut NodeView, &mut Ask);

fn check(cases: &[(&str, Change, Option<&str>)]) {
    for (name, change, want) in cases {
        let (mut node, mut ask) = (node(), ask());
        change(&mut node, &mut ask);
        let fleet = Fleet::new(vec![node]);
        let miss = Asked::new(&ask, &fleet).first_miss(0).map(|m| m.to_string());
        assert_eq!(miss.as_deref(), *want, "{name}");
    }
}

#[test]
fn kubernetes_rules() {
    check(&[
        ("it fits as it is", |_, _| {}, None),
        (
            "selector that holds",
            |_, a| {
                a.node_selector.insert("zone".into(), "a".into());
            },
            None,
        ),
        (
            "selector that does not",
            |_, a| {
                a.node_selector.insert("zone".into(), "b".into());
            },
            Some("lacks node label zone=b"),
        ),
        (
            "one of two terms holds",
            |_, a| {
                let term = |value: &str| Term {
                    expressions: vec![requirement("zone", Operator::In, &[value])],
                    ..Term::default()
                };
                a.affinity = Some(vec![term("b"), term("a")]);
            },
            None,
        ),
        (
            "no term at all matches nothing",
            |_, a| a.affinity = Some(vec![]),
            Some("matches no term of the required node affinity"),
        ),
        (
            "an empty term matches nothing",
            |_, a| a.affinity = Some(vec![Term::default()]),
            Some("matches no term of the required node affinity"),
        ),
        ("cordoned", |n, _| n.unschedulable = true, Some("is cordoned")),
        (
            "cordoned, tolerated",
            |n, a| {
                n.unschedulable = true;
                a.tolerations.push(Toleration {
                    key: Some("node.kubernetes.io/unschedulable".into()),
                    ..Toleration::default()
                });
            },
            None,
        ),
        (
            "tainted",
            |n, _| {
                n.taints.push(Taint {
                    key: "gpu".into(),
                    value: "yes".into(),
                    effect: "NoSchedule".into(),
                });
            },
            Some("taint gpu=yes:NoSchedule is not tolerated"),
        ),
        (
            "tainted to run nothing",
            |n, _| {
                n.taints.push(Taint {
                    key: "k".into(),
                    effect: "NoExecute".into(),
                    ..Taint::default()
                });
            },
            Some("taint k:NoExecute is not tolerated"),
        ),
        (
            "tainted, tolerated",
            |n, a| {
                n.taints.push(Taint {
                    key: "gpu".into(),
                    value: "yes".into(),
                    effect: "NoSchedule".into(),
                });
                a.tolerations.push(Toleration {
                    key: Some("gpu".into()),
                    ..Toleration::default()
                });
            },
            None,
        ),
        (
            "host port taken",
            |_, a| {
                a.host_ports.insert(("TCP".into(), "10.0.0.1".into(), 8000));
            },
            Some("host port 10.0.0.1:8000/TCP is taken"),
        ),
    ]);
}

#[test]
fn resources_are_those_left() {
    check(&[
        (
            "exactly what is left",
            |_, a| a.requests = resources(&[("nvidia.com/gpu", 5), ("cpu", 4)]),
            None,
        ),
        (
            "one GPU too many",
            |_, a| a.requests = resources(&[("nvidia.com/gpu", 6)]),
            Some("has 5 of 6 nvidia.com/gpu free (8 allocatable, 3 in use or promised)"),
        ),
        (
            "cpu and GPUs short: GPUs are named",
            |_, a| a.requests = resources(&[("cpu", 9), ("nvidia.com/gpu", 6)]),
            Some("has 5 of 6 nvidia.com/gpu free (8 allocatable, 3 in use or promised)"),
        ),
        (
            "memory",
            |n, a| {
                n.used = resources(&[("memory", 1 << 39)]);
                a.requests = resources(&[("memory", 3 << 38)]);
            },
            Some("has 512Gi of 768Gi memory free (1Ti allocatable, 512Gi in use or promised)"),
        ),
        (
            "the pod itself counts",
            |n, _| {
                n.used.0.insert("pods".into(), 110_000);
            },
            Some("has 0 of 1 pods free (110 allocatable, 110 in use or promised)"),
        ),
        (
            "a resource that the node does not have",
            |_, a| a.requests = resources(&[("rdma/ib", 1)]),
            Some("has no rdma/ib, 1 wanted"),
        ),
        (
            "overcommitted in what is not asked",
            |n, a| {
                n.used.0.insert("memory".into(), i64::MAX);
                a.requests.0.insert("memory".into(), 0);
            },
            None,
        ),
    ]);
}

#[test]
fn gpus_are_all_of_a_wanted_class_and_ready() {
    check(&[
        ("class", |_, a| a.classes = vec!["h100".into()], None),
        (
            "another class",
            |_, a| a.classes = vec!["a100".into(), "t4".into()],
            Some("is of class h100, not a100 or t4"),
        ),
        (
            "one GPU of another class, though most fit",
            |n, a| {
                a.classes = vec!["h100".into()];
                n.hardware.as_mut().unwrap().gpus[7].class = "t4".into();
            },
            Some("has GPUs of class h100 and t4, not only h100"),
        ),
        (
            "both classes wanted",
            |n, a| {
                a.classes = vec!["t4".into(), "h100".into()];
                n.hardware.as_mut().unwrap().gpus[7].class = "t4".into();
            },
            None,
        ),
        (
            "no agent: by label",
            |n, a| {
                n.hardware = None;
                a.classes = vec!["h100".into()];
            },
            None,
        ),
        (
            "the agent's GPUs win over a label",
            |n, a| {
                n.labels.insert(GPU_CLASS.into(), "a100".into());
                a.classes = vec!["a100".into()];
            },
            Some("is of class h100, not a100"),
        ),
        (
            "no agent, no label",
            |n, a| {
                n.hardware = None;
                n.labels.remove(GPU_CLASS);
                a.classes = vec!["h100".into()];
            },
            Some("has no GPU of class h100"),
        ),
        ("capability", |_, a| a.compute_capability = Some((9, 0)), None),
        (
            "too old",
            |n, a| {
                a.compute_capability = Some((8, 0));
                n.hardware.as_mut().unwrap().gpus[2].compute_capability = Some((7, 5));
            },
            Some("has compute capability 7.5, 8.0 wanted"),
        ),
        (
            "capability by labels",
            |n, a| {
                n.hardware = None;
                a.compute_capability = Some((8, 0));
                n.labels.insert(COMPUTE_LABELS[0].into(), "8".into());
                n.labels.insert(COMPUTE_LABELS[1].into(), "9".into());
            },
            None,
        ),
        (
            "capability unknown is not enough",
            |n, a| {
                n.hardware = None;
                a.compute_capability = Some((7, 0));
            },
            Some("has no known compute capability, 7.0 wanted"),
        ),
        (
            "one sick GPU",
            |n, _| {
                let gpu = &mut n.hardware.as_mut().unwrap().gpus[4];
                gpu.state = GpuState::Unhealthy;
                gpu.reason = "XID 79".into();
            },
            Some("GPU-4 is Unhealthy (XID 79)"),
        ),
        (
            "one that is being verified",
            |n, _| n.hardware.as_mut().unwrap().gpus[4].state = GpuState::Verifying,
            Some("GPU-4 is Verifying"),
        ),
        (
            "a suspect one may be handed out",
            |n, _| n.hardware.as_mut().unwrap().gpus[4].state = GpuState::Suspect,
            None,
        ),
        (
            "one missing",
            |n, _| n.hardware.as_mut().unwrap().missing_gpus = 1,
            Some("1 GPU is on the PCI bus that NVML does not show"),
        ),
        (
            "driver being replaced",
            |n, _| {
                n.hardware.as_mut().unwrap().nvml = NvmlStatus {
                    state: NvmlState::Released,
                    message: "driver upgrade".into(),
                };
            },
            Some("NVML is not ready (Released: driver upgrade)"),
        ),
        (
            "nobody can ask NVML: like a node without an agent",
            |n, _| n.hardware.as_mut().unwrap().nvml.state = NvmlState::ProbeUnavailable,
            None,
        ),
        (
            "NVML does not speak for other vendors",
            |n, a| {
                n.hardware.as_mut().unwrap().nvml.state = NvmlState::NoLibrary;
                n.hardware.as_mut().unwrap().gpus.clear();
                n.allocatable.0.insert("amd.com/gpu".into(), 4000);
                a.requests = resources(&[("amd.com/gpu", 4)]);
            },
            None,
        ),
        (
            "who asks no GPU does not care",
            |n, a| {
                let hardware = n.hardware.as_mut().unwrap();
                hardware.gpus[0].state = GpuState::Unhealthy;
                hardware.missing_gpus = 3;
                hardware.nvml.state = NvmlState::Hung;
                hardware.silent = Duration::from_secs(600);
                a.requests = resources(&[("cpu", 1), ("pods", 1)]);
            },
            None,
        ),
    ]);
}

#[test]
fn live_facts_are_asked_of_the_gpus_still_to_hand_out() {
    check(&[
        (
            "five to hand out, five with room",
            |_, a| a.gpu_memory = Some(24 * GI),
            None,
        ),
        (
            "six to hand out, five with room",
            |n, a| {
                a.gpu_memory = Some(24 * GI);
                n.used = resources(&[("nvidia.com/gpu", 2)]);
            },
            Some("GPU-0 has 2Gi free, 24Gi wanted"),
        ),
        (
            "the nearest of several is named",
            |n, a| {
                a.gpu_memory = Some(24 * GI);
                n.hardware.as_mut().unwrap().gpus[5].memory_free = Some(12_026_116_506);
            },
            Some("GPU-5 has 11.2Gi free, 24Gi wanted"),
        ),
        (
            "one GPU without a fresh sample",
            |n, a| {
                a.gpu_memory = Some(GI);
                n.hardware.as_mut().unwrap().gpus[1].memory_free = None;
            },
            Some("GPU-1 has no fresh sample of its free memory"),
        ),
        (
            "without a sample, nobody asked",
            |n, _| n.hardware.as_mut().unwrap().gpus[1].memory_free = None,
            None,
        ),
        (
            "silent",
            |n, a| {
                a.gpu_memory = Some(GI);
                n.hardware.as_mut().unwrap().silent = Duration::from_secs(20);
            },
            Some("agent silent for 20 s, and the pod asks live facts"),
        ),
        (
            "silent, nobody asked",
            |n, _| n.hardware.as_mut().unwrap().silent = Duration::from_secs(20),
            None,
        ),
        (
            "not silent for long enough",
            |n, a| {
                a.gpu_memory = Some(GI);
                n.hardware.as_mut().unwrap().silent = NODE_SILENT;
            },
            None,
        ),
        (
            "no agent",
            |n, a| {
                a.gpu_memory = Some(GI);
                n.hardware = None;
            },
            Some("no agent reports from it, and the pod asks live facts"),
        ),
        (
            "shared GPUs: more to hand out than there are",
            |n, a| {
                a.gpu_memory = Some(GI);
                n.allocatable = resources(&[("cpu", 64), ("memory", 1 << 40), ("nvidia.com/gpu", 32), ("pods", 110)]);
            },
            None,
        ),
        (
            "refused there lately",
            |n, a| {
                a.refused.insert(n.name.clone(), "0/1 nodes are available".into());
            },
            Some("refused a pod of the same owner: 0/1 nodes are available"),
        ),
    ]);
}

#[test]
fn a_slice_that_is_ill_alone_keeps_those_away_that_may_get_it() {
    const SMALL: &str = "nvidia.com/mig-1g.10gb";
    const LARGE: &str = "nvidia.com/mig-3g.40gb";
    let by_profile: &[(&str, i64)] = &[(SMALL, 7), (LARGE, 2), ("nvidia.com/gpu", 4)];
    let as_gpus: &[(&str, i64)] = &[("nvidia.com/gpu", 7)];
    for (what, has, resource, asks, taken) in [
        ("its profile", by_profile, Some(SMALL), SMALL, true),
        ("another profile", by_profile, Some(SMALL), LARGE, false),
        (
            "a whole GPU beside it",
            by_profile,
            Some(SMALL),
            "nvidia.com/gpu",
            false,
        ),
        (
            "a slice by the name of a GPU",
            as_gpus,
            Some(SMALL),
            "nvidia.com/gpu",
            true,
        ),
        ("of a profile that is not known", by_profile, None, LARGE, true),
        ("no GPU at all", by_profile, Some(SMALL), "cpu", false),
    ] {
        let mut node = node();
        (node.allocatable, node.used) = (resources(has), Resources::default());
        node.allocatable.0.insert("cpu".into(), 64_000);
        node.hardware.as_mut().unwrap().sick_slices = vec![SliceView {
            uuid: "MIG-1".into(),
            resource: resource.map(str::to_owned),
            state: GpuState::Unhealthy,
            reason: "ResetRequired".into(),
        }];
        let ask = Ask {
            requests: resources(&[(asks, 1)]),
            ..Ask::default()
        };
        let fleet = Fleet::new(vec![node]);
        let miss = Asked::new(&ask, &fleet).first_miss(0);
        let want = taken.then_some("MIG-1 is Unhealthy (ResetRequired)");
        assert_eq!(miss.as_ref().map(ToString::to_string).as_deref(), want, "{what}");
        assert!(
            miss.is_none_or(|m| m.stage() == crate::placement::Stage::Health),
            "{what}"
        );
    }
}

#[test]
fn the_first_reason_is_the_one_given() {
    // Each change breaks one more stage, latest first; the answer must move to the earlier one every time.
    let (mut node, mut ask) = (node(), ask());
    let mut seen = Vec::new();
    let breaks: [Change; 11] = [
        |n, a| {
            a.refused.insert(n.name.clone(), String::new());
        },
        |_, a| a.gpu_memory = Some(200 * GI),
        |n, _| n.hardware.as_mut().unwrap().missing_gpus = 1,
        |_, a| {
            a.host_ports.insert(("TCP".into(), "0.0.0.0".into(), 8000));
        },
        |_, a| {
            a.requests.0.insert("cpu".into(), i64::MAX);
        },
        |_, a| a.compute_capability = Some((10, 0)),
        |_, a| a.classes = vec!["b200".into()],
        |n, _| {
            n.taints.push(Taint {
                key: "k".into(),
                effect: "NoSchedule".into(),
                ..Taint::default()
            });
        },
        |n, _| n.unschedulable = true,
        |_, a| a.affinity = Some(vec![]),
        |_, a| {
            a.node_selector.insert("zone".into(), "b".into());
        },
    ];
    for change in breaks {
        change(&mut node, &mut ask);
        let fleet = Fleet::new(vec![node.clone()]);
        let miss = Asked::new(&ask, &fleet).first_miss(0);
        seen.push(miss.expect("something is broken").stage());
    }
    assert!(seen.windows(2).all(|w| w[1] < w[0]), "{seen:?}");
}

#[test]
fn gpus_that_nobody_has_spoken_for_yet_are_not_handed_out() {
    let awaited = Some("has an agent that has yet to report, and the pod asks for GPUs");
    check(&[
        ("a pod that asks GPUs", |n, _| n.awaits_agent = true, awaited),
        (
            "before its class, which is not known either",
            |n, a| (n.awaits_agent, n.hardware, a.classes) = (true, None, vec!["t4".into()]),
            awaited,
        ),
        (
            "a pod that asks none",
            |n, a| {
                n.awaits_agent = true;
                a.requests.0.remove("nvidia.com/gpu");
            },
            None,
        ),
    ]);
}

/// Slices of the example node: 7 of `1g.10gb`, 2 taken; its GPUs are nearly full, which says nothing about the slices.
fn slices(node: &mut NodeView, ask: &mut Ask) {
    node.allocatable = resources(&[
        ("cpu", 64),
        ("memory", 1 << 40),
        ("nvidia.com/mig-1g.10gb", 7),
        ("pods", 110),
    ]);
    node.used = resources(&[("nvidia.com/mig-1g.10gb", 2)]);
    if let Some(hardware) = &mut node.hardware {
        hardware.gpus.iter_mut().for_each(|g| g.memory_free = Some(GI));
    }
    ask.requests = resources(&[("nvidia.com/mig-1g.10gb", 1), ("pods", 1)]);
}

#[test]
fn slices_are_counted_by_profile_and_their_memory_is_that_of_the_profile() {
    check(&[
        ("a slice is free", slices, None),
        (
            "more than are left",
            |n, a| {
                slices(n, a);
                a.requests = resources(&[("nvidia.com/mig-1g.10gb", 6)]);
            },
            Some("has 5 of 6 nvidia.com/mig-1g.10gb free (7 allocatable, 2 in use or promised)"),
        ),
        (
            "another profile",
            |n, a| {
                slices(n, a);
                a.requests = resources(&[("nvidia.com/mig-2g.20gb", 1)]);
            },
            Some("has no nvidia.com/mig-2g.20gb, 1 wanted"),
        ),
        (
            "of a class",
            |n, a| {
                slices(n, a);
                a.classes = vec!["h100".into()];
            },
            None,
        ),
        (
            "of another class",
            |n, a| {
                slices(n, a);
                a.classes = vec!["a100".into()];
            },
            Some("is of class h100, not a100"),
        ),
        (
            "memory that a slice has, on full GPUs and without fresh samples",
            |n, a| {
                slices(n, a);
                a.gpu_memory = Some(8 * GI);
                if let Some(hardware) = &mut n.hardware {
                    hardware.gpus[0].memory_free = None;
                }
            },
            None,
        ),
        (
            "memory that it does not have",
            |n, a| {
                slices(n, a);
                a.gpu_memory = Some(12 * GI);
            },
            Some("nvidia.com/mig-1g.10gb has 10Gi of memory, 12Gi wanted"),
        ),
        (
            "on a GPU that is not well",
            |n, a| {
                slices(n, a);
                if let Some(hardware) = &mut n.hardware {
                    hardware.gpus[0].state = GpuState::Unhealthy;
                }
            },
            Some("GPU-0 is Unhealthy"),
        ),
    ]);
}

#[test]
fn gpus_that_pods_are_known_to_hold_are_no_candidates() {
    /// Those of the first three, which 3 pods have.
    fn hold_three(node: &mut NodeView) -> &mut Vec<GpuView> {
        let gpus = &mut node.hardware.as_mut().unwrap().gpus;
        gpus[..3].iter_mut().for_each(|gpu| gpu.held = true);
        gpus
    }
    check(&[
        (
            "a sick GPU that is in use",
            |n, _| hold_three(n)[1].state = GpuState::Unhealthy,
            None,
        ),
        (
            "a sick GPU that may be handed out",
            |n, _| hold_three(n)[3].state = GpuState::Unhealthy,
            Some("GPU-3 is Unhealthy"),
        ),
        (
            "in use, as far as nobody knows",
            |n, _| {
                hold_three(n)[1].state = GpuState::Unhealthy;
                hold_three(n)[1].held = false;
            },
            Some("GPU-1 is Unhealthy"),
        ),
        (
            "another class, in use",
            |n, a| {
                a.classes = vec!["h100".into()];
                hold_three(n)[0].class = "t4".into();
            },
            None,
        ),
        (
            "the class that is asked is all in use",
            |n, a| {
                a.classes = vec!["t4".into()];
                hold_three(n)[..3].iter_mut().for_each(|gpu| gpu.class = "t4".into());
            },
            Some("is of class h100, not t4"),
        ),
        (
            "an older capability, in use",
            |n, a| {
                a.compute_capability = Some((9, 0));
                hold_three(n)[0].compute_capability = Some((7, 5));
            },
            None,
        ),
        (
            "no reading of a GPU in use",
            |n, a| {
                a.gpu_memory = Some(40 * GI);
                hold_three(n)[0].memory_free = None;
            },
            None,
        ),
        (
            "one that is idle in its pod's hands does not stand for one that is full",
            |n, a| {
                a.gpu_memory = Some(40 * GI);
                let gpus = hold_three(n);
                gpus[0].memory_free = Some(80 * GI);
                gpus[3].memory_free = Some(GI);
            },
            Some("GPU-3 has 1Gi free, 40Gi wanted"),
        ),
        (
            "all in use",
            |n, _| {
                hold_three(n).iter_mut().for_each(|gpu| gpu.held = true);
                n.used = resources(&[("nvidia.com/gpu", 8)]);
            },
            Some("has 0 of 2 nvidia.com/gpu free (8 allocatable, 8 in use or promised)"),
        ),
    ]);
}
