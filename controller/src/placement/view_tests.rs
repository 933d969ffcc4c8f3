use std::time::Duration;

use berth_core::facts::{GpuSample, NodeFacts, NvmlState, NvmlStatus};
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
        health: Some(NodeHealth {
            gpus: vec![GpuHealth {
                uuid: uuid(3),
                state: GpuState::Unhealthy,
                reason: "XidFatal".into(),
                message: String::new(),
                since: Duration::ZERO,
                cleared_by: None,
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
        let in_flight = in_flight.map(|n| ("u".to_owned(), n.to_owned())).into_iter().collect();
        let views = nodes(Vec::new(), &picture, &in_flight, now);
        assert_eq!(views[0].used.whole(names::NVIDIA_GPU), want, "{what}");
    }
    for (what, placed_by_us, want) in [
        ("a DaemonSet's pod that the scheduler refuses", false, 0),
        ("ours", true, 2),
    ] {
        let mut picture = picture(4, now);
        let mut pod = pod("u", 2);
        (pod.pinned_to, pod.unscheduled) = (Some("n".into()), unschedulable());
        if placed_by_us {
            ours(&mut pod);
        }
        picture.pods.insert("u".into(), pod);
        let views = nodes(Vec::new(), &picture, &HashMap::new(), now);
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
        let views = nodes(Vec::new(), &picture, &HashMap::new(), now);
        assert_eq!(free(&views[0]), want.map(Some), "{what}");
    }
}

#[test]
fn hardware_is_what_the_agent_of_this_very_node_said() {
    let now = Instant::now();
    let mut picture = picture(4, now);
    let views = nodes(Vec::new(), &picture, &HashMap::new(), now);
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
    let views = nodes(views, &picture, &HashMap::new(), later);
    assert_eq!(free(&views[0]), [None; 4]);

    picture.nodes.get_mut("n").unwrap().uid = "another".into();
    assert_eq!(
        nodes(views, &picture, &HashMap::new(), now)[0].hardware,
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
    let before = nodes(Vec::new(), &picture, &HashMap::new(), now);
    picture.pods.clear();
    picture
        .nodes
        .get_mut("n")
        .unwrap()
        .labels
        .insert("a".into(), "b".into());
    let mut reused = nodes(before, &picture, &HashMap::new(), now);
    assert_eq!(reused[0].used.whole(names::NVIDIA_GPU), 0);
    reused[0].used.0.clear();
    assert_eq!(reused, nodes(Vec::new(), &picture, &HashMap::new(), now));
}
