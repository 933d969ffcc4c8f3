//! Placement decisions a second over 1,213 nodes with 51 labels each, by what the pod asks of labels.
//!
//! `cargo bench -p berth-core --bench placement`. The columns to compare are those of one run: the pod that asks nothing of labels is the
//! measure of what the machine gives at the moment.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use berth_core::placement::ask::{Operator, Requirement, Term};
use berth_core::placement::node::{GpuView, Hardware};
use berth_core::placement::{Ask, Decision, Fleet, NodeView, Resources, decide};

const NODES: usize = 1213;
/// What a GPU node of a cloud carries: the device labels, those of the features of CPU and kernel, zone, type and name.
const LABELS: usize = 51;
const CLASSES: [&str; 6] = ["a10", "a100", "h100", "l40s", "t4", "v100"];
/// Each round decides for this long; the best of the rounds is the least disturbed.
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 7;

fn main() {
    let fleet = Fleet::new((0..NODES).map(node).collect());
    let asks = [
        ("nothing of labels", ask()),
        (
            "nodeSelector, 1 label",
            selecting(&[("node.example.com/pool", "pool-3")]),
        ),
        (
            "nodeSelector, 3 labels",
            selecting(&[
                ("kubernetes.io/arch", "amd64"),
                ("nvidia.com/gpu.present", "true"),
                ("topology.kubernetes.io/zone", "zone-2"),
            ]),
        ),
        (
            "nodeSelector, the node's name",
            selecting(&[("kubernetes.io/hostname", "node-0777")]),
        ),
        ("node affinity, 2 terms of 2", affine()),
    ];
    let mut best = vec![0.0_f64; asks.len()];
    for _ in 0..ROUNDS {
        for (rate, (_, ask)) in best.iter_mut().zip(&asks) {
            *rate = rate.max(decisions_a_second(ask, &fleet));
        }
    }
    println!("| the pod asks | decisions a second | of those without |");
    println!("|---|---|---|");
    for ((name, _), rate) in asks.iter().zip(&best) {
        println!("| {name} | {rate:.0} | {:.2} |", rate / best[0]);
    }
}

fn decisions_a_second(ask: &Ask, fleet: &Fleet) -> f64 {
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < ROUND {
        for _ in 0..20 {
            assert!(matches!(
                black_box(decide(black_box(ask), fleet)),
                Decision::Place { .. }
            ));
        }
        count += 20;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

fn ask() -> Ask {
    Ask {
        pod: "bench/pod".into(),
        requests: resources(&[("cpu", 4), ("memory", 16 << 30), ("nvidia.com/gpu", 1), ("pods", 1)]),
        ..Ask::default()
    }
}

fn selecting(labels: &[(&str, &str)]) -> Ask {
    let pairs = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Ask {
        node_selector: pairs.collect(),
        ..ask()
    }
}

fn affine() -> Ask {
    let requirement = |key: &str, operator, values: &[&str]| Requirement {
        key: key.into(),
        operator,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    };
    let term = |zone: &str| Term {
        expressions: vec![
            requirement("topology.kubernetes.io/zone", Operator::In, &[zone]),
            requirement("node.example.com/pool", Operator::NotIn, &["pool-1", "pool-2"]),
        ],
        fields: Vec::new(),
    };
    Ask {
        affinity: Some(vec![term("zone-0"), term("zone-1")]),
        ..ask()
    }
}

fn resources(whole: &[(&str, i64)]) -> Resources {
    Resources(whole.iter().map(|(n, whole)| ((*n).to_owned(), whole * 1000)).collect())
}

fn node(i: usize) -> NodeView {
    let gpus = [1, 2, 4, 8][i % 4];
    let class = CLASSES[i % CLASSES.len()];
    let used = (i % 3).min(gpus);
    NodeView {
        name: format!("node-{i:04}"),
        labels: labels(i, class),
        allocatable: resources(&[
            ("cpu", 96),
            ("ephemeral-storage", 400 << 30),
            ("memory", 768 << 30),
            ("nvidia.com/gpu", gpus as i64),
            ("pods", 110),
        ]),
        used: resources(&[
            ("cpu", 8 * used as i64),
            ("memory", (64 << 30) * used as i64),
            ("nvidia.com/gpu", used as i64),
            ("pods", 10),
        ]),
        hardware: Some(Hardware {
            gpus: (0..gpus).map(|g| gpu(i, g, class)).collect(),
            ..Hardware::default()
        }),
        ..NodeView::default()
    }
}

fn gpu(node: usize, place: usize, class: &str) -> GpuView {
    GpuView {
        uuid: format!("GPU-{node:08x}-{place:04x}"),
        class: class.into(),
        memory_total: Some(80 << 30),
        memory_free: Some(79 << 30),
        compute_capability: Some((8, 0)),
        ..GpuView::default()
    }
}

fn labels(i: usize, class: &str) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("berth.dev/gpu-class", class.to_owned()),
        ("kubernetes.io/arch", "amd64".into()),
        ("kubernetes.io/hostname", format!("node-{i:04}")),
        ("kubernetes.io/os", "linux".into()),
        ("node.example.com/pool", format!("pool-{}", i % 8)),
        ("node.kubernetes.io/instance-type", format!("type-{}", i % 12)),
        ("nvidia.com/gpu.count", (1 + i % 8).to_string()),
        ("nvidia.com/gpu.present", "true".into()),
        ("nvidia.com/gpu.product", format!("NVIDIA-{class}")),
        ("topology.kubernetes.io/region", "region-0".into()),
        ("topology.kubernetes.io/zone", format!("zone-{}", i % 3)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    // Keys that begin alike, as those of features do.
    for n in labels.len()..LABELS {
        labels.insert(
            format!("feature.node.kubernetes.io/cpu-cpuid.FEATURE{n:02}"),
            "true".into(),
        );
    }
    labels
}
