use std::time::Duration;

use berth_core::facts::{GpuSample, Mig, MigDevice, NvmlState, NvmlStatus};
use berth_core::health::{GpuHealth, GpuState, NodeHealth};
use berth_core::placement::Resources;

use super::*;
use crate::cluster::Scheduling;

const GI: u64 = 1 << 30;

fn gpus(n: i64) -> Resources {
    Resources([(names::NVIDIA_GPU.to_owned(), n * 1000)].into())
}

/// A node with 4 GPUs: 70, 60, 50 and 40 Gi free, sampled a second ago.
fn picture(allocatable: i64, now: Instant) -> Picture {
    let mut picture = Picture::default();
    let node = Node {
        name: "n".into(),
        uid: "node-uid".into(),
        allocatable: gpus(allocatable),
        ..Node::default()
    };
    let uuid = |n: u32| format!("GPU-{n}");
    let agent = Agent {
        node_uid: "node-uid".into(),
        connected: true,
        heard: now.checked_sub(Duration::from_secs(2)).unwrap(),
        facts: Some(NodeFacts {
            gpus: (0..4)
                .map(|n| Gpu {
                    uuid: uuid(n),
                    product: Some("NVIDIA H100 80GB HBM3".into()),
                    ..Gpu::default()
                })
                .collect(),
            ..NodeFacts::default()
        }),
        facts_at: Some(now),
        memory: Vec::new(),
        health: Some(NodeHealth {
            gpus: vec![GpuHealth {
                uuid: uuid(3),
                state: GpuState::Unhealthy,
                reason: "XidFatal".into(),
                message: String::new(),
                since: Duration::ZERO,
                cleared_by: None,
                gpu: None,
            }],
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            missing_gpus: 1,
        }),
        samples: (0..4)
            .map(|n| {
                let sample = GpuSample {
                    memory_free_bytes: Some(u64::from(70 - 10 * n) * GI),
                    ..GpuSample::default()
                };
                (uuid(n), (sample, now.checked_sub(Duration::from_secs(1)).unwrap()))
            })
            .collect(),
        version: String::new(),
    };
    picture.nodes.insert("n".into(), node);
    picture.agents.insert("n".into(), agent);
    picture
}

fn pod(uid: &str, held: i64) -> Pod {
    Pod {
        uid: uid.into(),
        requests: gpus(held),
        ready: true,
        ..Pod::default()
    }
}

fn free(view: &NodeView) -> Vec<Option<u64>> {
    let gpus = &view.hardware.as_ref().unwrap().gpus;
    gpus.iter().map(|g| g.memory_free.map(|f| f / GI)).collect()
}

#[test]
fn a_pod_holds_its_requests_from_its_promise_on() {
    let now = Instant::now();
    let ours = |p: &mut Pod| drop(p.annotations.insert(names::PLACED_BECAUSE.into(), String::new()));
    let unschedulable = || {
        Some(Scheduling {
            reason: "Unschedulable".into(),
            ..Scheduling::default()
        })
    };
    for (what, change, in_flight, want) in [
        ("somewhere else", (|_| {}) as fn(&mut Pod), None, 0),
        ("bound", |p| p.node = Some("n".into()), None, 2),
        (
            "bound and going",
            |p| (p.node, p.terminating) = (Some("n".into()), true),
            None,
            2,
        ),
        ("pinned", |p| p.pinned_to = Some("n".into()), None, 2),
        ("in flight", |_| {}, Some("n"), 2),
        ("in flight to another node", |_| {}, Some("m"), 0),
        (
            "pinned and seen, while its patch is in flight",
            |p| p.pinned_to = Some("n".into()),
            Some("n"),
            2,
        ),
        (
            "pinned by its author and still gated",
            |p| (p.pinned_to, p.gates) = (Some("n".into()), vec!["g".into()]),
            None,
            0,
        ),
        (
            "pinned and going",
            |p| (p.pinned_to, p.terminating) = (Some("n".into()), true),
            None,
            0,
        ),
    ] {
        let mut picture = picture(4, now);
        let mut pod = pod("u", 2);
        change(&mut pod);
        picture.pods.insert("u".into(), pod);
        let promises = Promises {
            in_flight: in_flight.map(|n| ("u".to_owned(), n.to_owned())).into_iter().collect(),
            ..Promises::default()
        };
        let views = nodes(Vec::new(), &picture, &promises, now);
        assert_eq!(views[0].used.whole(names::NVIDIA_GPU), want, "{what}");
    }
    for (what, placed_by_us, given_up, want) in [
        ("a DaemonSet's pod that the scheduler refuses", false, false, 0),
        ("ours", true, false, 2),
        ("ours, refused for too long", true, true, 0),
    ] {
        let mut picture = picture(4, now);
        let mut pod = pod("u", 2);
        (pod.pinned_to, pod.unscheduled) = (Some("n".into()), unschedulable());
        if placed_by_us {
            ours(&mut pod);
        }
        picture.pods.insert("u".into(), pod);
        let promises = Promises {
            given_up: given_up.then(|| "u".to_owned()).into_iter().collect(),
            ..Promises::default()
        };
        let views = nodes(Vec::new(), &picture, &promises, now);
        assert_eq!(views[0].used.whole(names::NVIDIA_GPU), want, "{what}");
    }
}

#[test]
fn memory_that_has_not_shown_up_is_not_free() {
    let now = Instant::now();
    for (what, allocatable, held, ready, asked, want) in [
        ("ready: what is free is free", 4, 2, true, Some(8), [70, 60, 50, 40]),
        ("two whole GPUs, the freest", 4, 2, false, None, [0, 0, 50, 40]),
        ("shared: from every GPU", 16, 2, false, Some(45), [25, 15, 5, 0]),
        ("shared, nothing asked", 16, 2, false, None, [70, 60, 50, 40]),
        ("no GPU held", 4, 0, false, None, [70, 60, 50, 40]),
    ] {
        let mut picture = picture(allocatable, now);
        let mut pod = pod("u", held);
        (pod.node, pod.ready, pod.ask.gpu_memory) = (Some("n".into()), ready, asked.map(|a: u64| a * GI));
        picture.pods.insert("u".into(), pod);
        let views = nodes(Vec::new(), &picture, &Promises::default(), now);
        assert_eq!(free(&views[0]), want.map(Some), "{what}");
    }
}

#[test]
fn slices_that_are_ill_alone_are_known_by_their_resource() {
    let now = Instant::now();
    let mut picture = picture(4, now);
    let agent = picture.agents.get_mut("n").unwrap();
    let uuid = |n: u32| format!("GPU-{n}");
    let facts = agent.facts.as_mut().unwrap();
    let device = |uuid: &str, profile: &str| MigDevice {
        uuid: uuid.into(),
        profile: profile.into(),
        ..MigDevice::default()
    };
    for n in [0, 3] {
        facts.gpus[n].mig = Some(Mig {
            enabled: true,
            pending: true,
            devices: vec![
                device(&format!("MIG-{n}a"), "1g.10gb+me"),
                device(&format!("MIG-{n}b"), "3g.40gb"),
            ],
        });
    }
    let health = agent.health.as_mut().unwrap();
    let like = health.gpus[0].clone();
    health.gpus.insert(
        0,
        GpuHealth {
            uuid: uuid(0),
            state: GpuState::Suspect,
            ..like.clone()
        },
    );
    for (slice, gpu, state) in [
        ("MIG-0a", 0, GpuState::Unhealthy),
        ("MIG-0b", 0, GpuState::Suspect),
        // As its GPU is.
        ("MIG-3a", 3, GpuState::Unhealthy),
    ] {
        health.gpus.push(GpuHealth {
            uuid: slice.into(),
            state,
            gpu: Some(uuid(gpu)),
            ..like.clone()
        });
    }
    let views = nodes(Vec::new(), &picture, &Promises::default(), now);
    let sick = &views[0].hardware.as_ref().unwrap().sick_slices;
    let seen: Vec<_> = sick
        .iter()
        .map(|s| (&*s.uuid, s.resource.as_deref(), s.state))
        .collect();
    assert_eq!(
        seen,
        [("MIG-0a", Some("nvidia.com/mig-1g.10gb.me"), GpuState::Unhealthy)]
    );
}

#[test]
fn hardware_is_what_the_agent_of_this_very_node_said() {
    let now = Instant::now();
    let mut picture = picture(4, now);
    let views = nodes(Vec::new(), &picture, &Promises::default(), now);
    let hardware = views[0].hardware.as_ref().unwrap();
    assert_eq!(hardware.silent, Duration::from_secs(2));
    assert_eq!((hardware.nvml.state, hardware.missing_gpus), (NvmlState::Ready, 1));
    assert_eq!(
        (hardware.gpus[0].class.as_str(), hardware.gpus[0].state),
        ("h100", GpuState::Healthy)
    );
    assert_eq!(
        (hardware.gpus[3].state, hardware.gpus[3].reason.as_str()),
        (GpuState::Unhealthy, "XidFatal")
    );

    // Five seconds later the samples are stale, which is not the same as nothing free.
    let later = now + SAMPLE_STALE;
    let views = nodes(views, &picture, &Promises::default(), later);
    assert_eq!(free(&views[0]), [None; 4]);

    picture.nodes.get_mut("n").unwrap().uid = "another".into();
    assert_eq!(
        nodes(views, &picture, &Promises::default(), now)[0].hardware,
        None,
        "a node of the same name"
    );
}

#[test]
fn an_old_view_made_new_equals_a_new_one() {
    let now = Instant::now();
    let mut picture = picture(4, now);
    let mut held = pod("u", 2);
    (held.node, held.ready) = (Some("n".into()), false);
    held.host_ports.insert(("TCP".into(), "0.0.0.0".into(), 80));
    picture.pods.insert("u".into(), held);
    let before = nodes(Vec::new(), &picture, &Promises::default(), now);
    picture.pods.clear();
    picture
        .nodes
        .get_mut("n")
        .unwrap()
        .labels
        .insert("a".into(), "b".into());
    let mut reused = nodes(before, &picture, &Promises::default(), now);
    assert_eq!(reused[0].used.whole(names::NVIDIA_GPU), 0);
    reused[0].used.0.clear();
    assert_eq!(reused, nodes(Vec::new(), &picture, &Promises::default(), now));
}

#[test]
fn a_verdict_counts_at_once_and_one_that_is_held_back_does_not() {
    use crate::cluster::{AgentChange, Cluster};
    use berth_core::health::breaker::Limits;
    let now = Instant::now();
    // Of a fleet of two, one node may be out.
    let cluster = Cluster::with(Limits::default(), Vec::new());
    let say = |name: &str, state: GpuState, missing_gpus: u32| {
        let Agent { facts, health, .. } = picture(4, now).agents.remove("n").unwrap();
        cluster.apply_node(Node {
            name: name.into(),
            uid: name.into(),
            allocatable: gpus(4),
            ..Node::default()
        });
        cluster.update_agent(name, name, now, |agent| {
            agent.facts = facts;
            agent.health = health.map(|mut health| {
                health.gpus[0].state = state;
                health.missing_gpus = missing_gpus;
                health
            });
            AgentChange::Live
        });
    };
    let seen = || -> Vec<(GpuState, u32)> {
        let views = nodes(Vec::new(), &cluster.read(), &Promises::default(), now);
        let hardware = views.iter().map(|v| v.hardware.as_ref().unwrap());
        hardware.map(|h| (h.gpus[3].state, h.missing_gpus)).collect()
    };
    say("a", GpuState::Healthy, 0);
    say("b", GpuState::Healthy, 0);
    say("b", GpuState::Unhealthy, 0);
    assert_eq!(seen(), [(GpuState::Healthy, 0), (GpuState::Unhealthy, 0)]);
    say("a", GpuState::Verifying, 0);
    assert_eq!(seen(), [(GpuState::Suspect, 0), (GpuState::Unhealthy, 0)]);
    // A GPU of it is missing: there is nothing to hold back.
    say("a", GpuState::Unhealthy, 1);
    assert_eq!(seen(), [(GpuState::Unhealthy, 1), (GpuState::Unhealthy, 0)]);
}

#[test]
fn what_is_no_verdict_keeps_pods_away_from_a_node_that_is_held_back() {
    use GpuState::{Suspect, Unhealthy};
    let gpu = |reason: &str| GpuView {
        state: Unhealthy,
        reason: reason.into(),
        ..GpuView::default()
    };
    let slice = |reason: &str| SliceView {
        state: Unhealthy,
        reason: reason.into(),
        ..SliceView::default()
    };
    let mut view = NodeView {
        hardware: Some(Hardware {
            gpus: vec![gpu("ResetRequired"), gpu("ConfidentialComputeNotReady")],
            sick_slices: vec![slice("ResetRequired"), slice("ConfidentialComputeNotReady")],
            ..Hardware::default()
        }),
        ..NodeView::default()
    };
    count_all_the_same(&mut view);
    let hardware = view.hardware.unwrap();
    assert_eq!(
        hardware.gpus.iter().map(|g| g.state).collect::<Vec<_>>(),
        [Suspect, Unhealthy]
    );
    assert_eq!(hardware.sick_slices, [slice("ConfidentialComputeNotReady")]);
}

#[test]
fn memory_that_shows_is_not_taken_twice() {
    let now = Instant::now();
    // Free of 80 Gi each; pods as (GPUs held, ready).
    for (what, frees, pods, want) in [
        ("loading on both", [79, 80, 60, 50], &[(2, false)][..], [79, 80, 60, 50]),
        ("loading on one", [80, 80, 80, 50], &[(2, false)], [80, 80, 0, 50]),
        (
            "what shows is the ready one's",
            [80, 80, 60, 50],
            &[(1, false), (2, true)],
            [80, 0, 60, 50],
        ),
        (
            "two of them",
            [80, 80, 80, 50],
            &[(1, false), (1, false)],
            [80, 80, 0, 50],
        ),
        (
            "the driver's own is no use",
            [80, 80, 80, 80],
            &[(1, false)],
            [80, 80, 80, 0],
        ),
    ] {
        let mut picture = picture(4, now);
        let agent = picture.agents.get_mut("n").unwrap();
        for (gpu, free) in agent.facts.as_mut().unwrap().gpus.iter_mut().zip(frees) {
            gpu.memory_bytes = Some(80 * GI + (600 << 20));
            agent.samples.get_mut(&gpu.uuid).unwrap().0.memory_free_bytes = Some(free * GI);
        }
        for (n, (held, ready)) in pods.iter().enumerate() {
            let mut pod = pod(&n.to_string(), *held);
            (pod.node, pod.ready) = (Some("n".into()), *ready);
            picture.pods.insert(pod.uid.clone(), pod);
        }
        let views = nodes(Vec::new(), &picture, &Promises::default(), now);
        assert_eq!(free(&views[0]), want.map(Some), "{what}");
    }
}

#[test]
fn a_class_that_was_not_known_is_looked_at_again() {
    let now = Instant::now();
    let mut picture = picture(4, now);
    let product = |picture: &mut Picture, name: Option<&str>| {
        let agent = picture.agents.get_mut("n").unwrap();
        agent.facts.as_mut().unwrap().gpus[0].product = name.map(str::to_owned);
    };
    let class = |views: &[NodeView]| views[0].hardware.as_ref().unwrap().gpus[0].class.clone();
    product(&mut picture, None);
    let views = nodes(Vec::new(), &picture, &Promises::default(), now);
    assert_eq!(class(&views), "");
    product(&mut picture, Some("NVIDIA H100 80GB HBM3"));
    let views = nodes(views, &picture, &Promises::default(), now);
    assert_eq!(class(&views), "h100");
    product(&mut picture, None);
    assert_eq!(class(&nodes(views, &picture, &Promises::default(), now)), "h100");
}

#[test]
fn a_new_leader_awaits_the_agents_of_gpu_nodes() {
    let now = Instant::now();
    for (what, change, want) in [
        ("reported", (|_| {}) as fn(&mut Picture), false),
        ("no agent yet", |p| p.agents.clear(), true),
        ("no health yet", |p| p.agents.get_mut("n").unwrap().health = None, true),
        (
            "another node's",
            |p| p.agents.get_mut("n").unwrap().node_uid = "old".into(),
            true,
        ),
        (
            "no GPUs to hand out",
            |p| {
                p.agents.clear();
                p.nodes.get_mut("n").unwrap().allocatable.0.clear();
            },
            false,
        ),
    ] {
        let mut picture = picture(4, now);
        change(&mut picture);
        let mut views = nodes(Vec::new(), &picture, &Promises::default(), now);
        await_agents(&mut views, &picture);
        assert_eq!(views[0].awaits_agent, want, "{what}");
        assert_eq!(!agents_reported(&picture), want, "{what}");
        let views = nodes(views, &picture, &Promises::default(), now);
        assert!(!views[0].awaits_agent, "{what}: not for longer than the leader is new");
    }
}
