use std::time::Duration;

use berth_core::facts::NodeFacts;
use berth_core::placement::node::{GpuView, Hardware};
use berth_crds::names;
use jiff::Timestamp;

use super::*;
use crate::cluster::Node;

const S: Duration = Duration::from_secs(1);
/// Two GPUs, the second cut in two.
const UUIDS: [&str; 4] = ["GPU-0", "GPU-1", "MIG-1", "MIG-2"];

fn gpus() -> Vec<Gpu> {
    let device = |uuid: &str| berth_core::facts::MigDevice {
        uuid: uuid.into(),
        ..Default::default()
    };
    let mig = berth_core::facts::Mig {
        enabled: true,
        pending: true,
        devices: UUIDS[2..].iter().map(|uuid| device(uuid)).collect(),
    };
    let gpu = |uuid: &str, mig| Gpu {
        uuid: uuid.into(),
        mig,
        ..Gpu::default()
    };
    vec![gpu("GPU-0", None), gpu("GPU-1", Some(mig))]
}

fn used(name: &str, share: PodShare) -> PodUse {
    PodUse {
        pod: Some(PodName {
            namespace: "ns".into(),
            name: name.into(),
        }),
        share,
        ..PodUse::default()
    }
}

/// A node `n` where `a` holds GPU-0 and `b`, `c` the two halves of GPU-1; what the kubelet said a second ago.
fn picture(now: Instant) -> Picture {
    let mut picture = Picture::default();
    let sample = |uuid: &str, pods: &[&str]| {
        let sample = GpuSample {
            uuid: uuid.into(),
            pods: pods.iter().map(|name| used(name, PodShare::Whole)).collect(),
            pods_state: PodsState::Known,
            pods_age: Some(S),
            units_left: Some(0),
            ..GpuSample::default()
        };
        (uuid.to_owned(), (sample, now))
    };
    let agent = Agent {
        node_uid: "u".into(),
        connected: true,
        heard: now,
        facts: Some(NodeFacts {
            gpus: gpus(),
            ..NodeFacts::default()
        }),
        facts_at: Some(now),
        health: None,
        memory: Vec::new(),
        samples: [
            sample("GPU-0", &["a"]),
            sample("GPU-1", &[]),
            sample("MIG-1", &["b"]),
            sample("MIG-2", &["c"]),
        ]
        .into(),
        version: String::new(),
    };
    picture.agents.insert("n".into(), agent);
    for name in ["a", "b", "c"] {
        let pod = Pod {
            uid: format!("uid-{name}"),
            namespace: "ns".into(),
            name: name.into(),
            node: Some("n".into()),
            created: Some(created(&picture, now, 60)),
            ..Pod::default()
        };
        picture.pods.insert(pod.uid.clone(), pod);
    }
    picture
}

/// So many seconds before `now`, as the API server writes it.
fn created(picture: &Picture, now: Instant, seconds: i64) -> Timestamp {
    let now = i64::try_from(picture.clock.at(now).as_secs()).unwrap();
    Timestamp::from_second(now - seconds).unwrap()
}

/// Which of the two GPUs are held.
fn held(picture: &Picture, gone: &[&str], now: Instant) -> [bool; 2] {
    let gone: Vec<PodKey> = gone.iter().map(|uid| (*uid).to_owned()).collect();
    let holders = Holders::of(picture, &gone.iter().collect());
    let gpus = gpus();
    [0, 1].map(|n| holders.on("n").hold_all_of(&picture.agents["n"], &gpus[n], now))
}

#[test]
fn a_gpu_is_held_only_by_pods_that_are_there_to_stay() {
    type Change = fn(&mut Picture);
    fn sample<'a>(p: &'a mut Picture, uuid: &str) -> &'a mut GpuSample {
        &mut p.agents.get_mut("n").unwrap().samples.get_mut(uuid).unwrap().0
    }
    let table: [(&str, [bool; 2], Change); 15] = [
        ("as it is", [true, true], |_| ()),
        ("a holder is about to go", [false, true], |p| {
            p.pods.get_mut("uid-a").unwrap().terminating = true;
        }),
        ("a holder is gone", [true, false], |p| drop(p.pods.remove("uid-c"))),
        ("a namesake on another node", [false, true], |p| {
            p.pods.get_mut("uid-a").unwrap().node = Some("m".into());
        }),
        ("a namesake in another namespace", [false, true], |p| {
            p.pods.get_mut("uid-a").unwrap().namespace = "other".into();
        }),
        ("a namesake, by UID", [false, true], |p| {
            sample(p, "GPU-0").pods[0].uid = Some("uid-before".into());
        }),
        ("the same, by UID", [true, true], |p| {
            sample(p, "GPU-0").pods[0].uid = Some("uid-a".into());
        }),
        ("a unit is left", [false, true], |p| {
            sample(p, "GPU-0").units_left = Some(1)
        }),
        ("units are not known", [false, true], |p| {
            sample(p, "GPU-0").units_left = None
        }),
        ("nobody holds it, and nothing is left", [false, true], |p| {
            sample(p, "GPU-0").pods.clear();
        }),
        ("only a process is seen", [false, true], |p| {
            sample(p, "GPU-0").pods = vec![used("a", PodShare::Process)];
        }),
        ("a process beside its holder", [true, true], |p| {
            sample(p, "GPU-0").pods.push(used("host", PodShare::Process));
        }),
        ("the kubelet does not answer", [false, true], |p| {
            sample(p, "GPU-0").pods_state = PodsState::NotAvailable;
        }),
        ("of half of it nothing is known", [true, false], |p| {
            sample(p, "MIG-2").pods_state = PodsState::NotAvailable;
        }),
        ("its word is too old", [true, false], |p| {
            sample(p, "GPU-1").pods_age = Some(PODS_STALE + S);
        }),
    ];
    let now = Instant::now();
    for (what, want, change) in table {
        let mut picture = picture(now);
        change(&mut picture);
        assert_eq!(held(&picture, &[], now), want, "{what}");
    }
    assert_eq!(
        held(&picture(now), &["uid-b"], now),
        [true, false],
        "as if one were gone"
    );
    assert_eq!(
        held(&picture(now), &[], now + SAMPLE_STALE + S),
        [false, false],
        "old readings"
    );
}

#[test]
fn a_pod_that_was_made_since_the_kubelet_was_asked_is_not_the_one_it_names() {
    let now = Instant::now();
    let later = now + 2 * S;
    // Asked 3 s before `later`; the clocks may differ by 5 s, and creations are told in whole seconds.
    for (what, age, by_uid, want) in [
        ("made since", Some(2), false, false),
        ("maybe made since", Some(8), false, false),
        ("before", Some(11), false, true),
        ("not known", None, false, false),
        ("made since, and named by its UID", Some(2), true, true),
        ("of a clock that is ahead", Some(-30), false, false),
    ] {
        let mut picture = picture(now);
        let made = age.map(|age| created(&picture, later, age));
        picture.pods.get_mut("uid-a").unwrap().created = made;
        let sample = &mut picture.agents.get_mut("n").unwrap().samples.get_mut("GPU-0").unwrap().0;
        sample.pods[0].uid = by_uid.then(|| "uid-a".into());
        assert_eq!(held(&picture, &[], later), [want, true], "{what}");
    }
}

#[test]
fn where_the_api_server_knows_of_more_that_is_left_nothing_is_held() {
    let now = Instant::now();
    let gpus = |n: i64| Resources([(names::NVIDIA_GPU.to_owned(), n * 1000)].into());
    // Three units by the kubelet, none of them left.
    for (allocatable, in_use, want) in [(3, 3, true), (3, 2, false), (4, 3, false), (4, 4, true), (3, 4, true)] {
        let mut picture = picture(now);
        let node = Node {
            name: "n".into(),
            allocatable: gpus(allocatable),
            ..Node::default()
        };
        picture.nodes.insert("n".into(), node);
        picture.pods.get_mut("uid-a").unwrap().requests = gpus(in_use);
        let view = NodeView {
            name: "n".into(),
            hardware: Some(Hardware {
                gpus: vec![GpuView {
                    held: true,
                    ..GpuView::default()
                }],
                ..Hardware::default()
            }),
            ..NodeView::default()
        };
        let mut views = BTreeMap::from([("n", view)]);
        forget_where_counts_differ(&mut views, &picture, |pod| pod.node.as_deref(), now);
        let held = views["n"].hardware.as_ref().unwrap().gpus[0].held;
        assert_eq!(held, want, "{in_use} of {allocatable} in use by the API server");
    }
}
