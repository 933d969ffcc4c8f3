//! Node labels tell the truth about the hardware: real API server, real agents, real probes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

fn main() -> ExitCode {
    Suite::new("labels")
        .trial("homogeneous nodes carry the whole GFD key set", |c| {
            homogeneous_nodes(Fixture::new(c))
        })
        .trial("a node without driver has its PCI labels and no GFD product", |c| {
            driverless_node(Fixture::new(c))
        })
        .trial("a CPU-only node gets no hardware label", |c| {
            cpu_only_node(Fixture::new(c))
        })
        .trial("a mixed node counts each class and has no class of its own", |c| {
            mixed_node(Fixture::new(c))
        })
        .trial("labels of other managers are left to them and said so once", |c| {
            other_managers(Fixture::new(c))
        })
        .trial("an agent restart and a controller restart write nothing", |c| {
            restarts_write_nothing(Fixture::new(c))
        })
        .trial("full labels follow by themselves when the driver appears", |c| {
            driver_appears(Fixture::new(c))
        })
        .run()
}

type Labels = BTreeMap<String, String>;

async fn node(f: &Fixture, name: &str) -> anyhow::Result<Node> {
    Ok(Api::<Node>::all(f.client()).get(name).await?)
}

/// The labels of a node that hardware facts produce.
async fn hardware(f: &Fixture, name: &str) -> anyhow::Result<Labels> {
    let ours = ["nvidia.com/", "berth.dev/", "feature.node.kubernetes.io/"];
    let labels = node(f, name).await?.metadata.labels.unwrap_or_default();
    Ok(labels
        .into_iter()
        .filter(|(k, _)| ours.iter().any(|p| k.starts_with(p)))
        .collect())
}

fn expect(labels: &Labels, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    for (key, value) in wanted {
        let is = labels.get(*key).map(String::as_str);
        ensure!(
            is == Some(*value),
            "{key} is {is:?}, wanted {value:?}; all: {labels:#?}"
        );
    }
    Ok(())
}

/// GFD's keys on a homogeneous node without MIG and sharing, timestamp apart (gpu-feature-discovery v0.20).
const GFD_KEYS: &[&str] = &[
    "cuda.driver.major",
    "cuda.driver.minor",
    "cuda.driver.rev",
    "cuda.runtime.major",
    "cuda.runtime.minor",
    "cuda.driver-version.major",
    "cuda.driver-version.minor",
    "cuda.driver-version.revision",
    "cuda.driver-version.full",
    "cuda.runtime-version.major",
    "cuda.runtime-version.minor",
    "cuda.runtime-version.full",
    "gpu.machine",
    "gpu.count",
    "gpu.replicas",
    "gpu.sharing-strategy",
    "gpu.product",
    "gpu.memory",
    "gpu.family",
    "gpu.compute.major",
    "gpu.compute.minor",
    "gpu.mode",
    "mig.capable",
    "mps.capable",
    "vgpu.present",
];

async fn homogeneous_nodes(f: Fixture) -> anyhow::Result<()> {
    let table = [
        (
            "h100-0",
            "h100",
            "NVIDIA-H100-80GB-HBM3",
            "8",
            "81920",
            "hopper",
            "9",
            "0",
            "true",
        ),
        (
            "h100-1",
            "h100",
            "NVIDIA-H100-80GB-HBM3",
            "8",
            "81920",
            "hopper",
            "9",
            "0",
            "true",
        ),
        (
            "a100-0",
            "a100",
            "NVIDIA-A100-SXM4-40GB",
            "8",
            "40960",
            "ampere",
            "8",
            "0",
            "true",
        ),
        (
            "l40s-0",
            "l40s",
            "NVIDIA-L40S",
            "4",
            "49152",
            "ada-lovelace",
            "8",
            "9",
            "false",
        ),
        ("t4-0", "t4", "NVIDIA-T4", "4", "16384", "turing", "7", "5", "false"),
    ];
    for (name, class, product, count, memory, family, major, minor, mig) in table {
        let labels = eventually("labels of the node", Duration::from_secs(60), async || {
            let labels = hardware(&f, name).await?;
            ensure!(labels.contains_key("nvidia.com/gpu.product"), "{name}: {labels:?}");
            Ok(labels)
        })
        .await?;
        let missing: Vec<&&str> = GFD_KEYS
            .iter()
            .filter(|k| !labels.contains_key(&format!("nvidia.com/{k}")))
            .collect();
        ensure!(missing.is_empty(), "{name} lacks {missing:?}");
        expect(
            &labels,
            &[
                ("berth.dev/gpu-class", class),
                (&format!("berth.dev/gpu.{class}.count"), count),
                (&format!("berth.dev/gpu.{class}.memory"), memory),
                ("nvidia.com/gpu.product", product),
                ("nvidia.com/gpu.count", count),
                ("nvidia.com/gpu.memory", memory),
                ("nvidia.com/gpu.family", family),
                ("nvidia.com/gpu.compute.major", major),
                ("nvidia.com/gpu.compute.minor", minor),
                ("nvidia.com/gpu.replicas", "1"),
                ("nvidia.com/gpu.sharing-strategy", "none"),
                ("nvidia.com/gpu.mode", "compute"),
                ("nvidia.com/mig.capable", mig),
                ("nvidia.com/mps.capable", "false"),
                ("nvidia.com/vgpu.present", "false"),
                ("nvidia.com/cuda.driver-version.full", "550.163.01"),
                ("nvidia.com/cuda.runtime-version.full", "12.4"),
                ("nvidia.com/cuda.driver.rev", "01"),
                ("nvidia.com/gpu.present", "true"),
                ("feature.node.kubernetes.io/pci-10de.present", "true"),
                ("feature.node.kubernetes.io/pci-0302_10de.present", "true"),
            ],
        )
        .context(name)?;
        let clique = labels.get("nvidia.com/gpu.clique").map(String::as_str);
        let wanted = (class == "h100").then_some("00000000-0000-0000-0000-000000000001.0");
        ensure!(clique == wanted, "{name}: gpu.clique is {clique:?}");
        ensure!(
            labels["nvidia.com/gpu.machine"] != "unknown",
            "{name}: the machine's DMI name is there"
        );
    }
    Ok(())
}

async fn driverless_node(f: Fixture) -> anyhow::Result<()> {
    let labels = eventually("PCI labels", Duration::from_secs(60), async || {
        let labels = hardware(&f, "nodriver-0").await?;
        ensure!(labels.contains_key("nvidia.com/gpu.present"), "{labels:?}");
        Ok(labels)
    })
    .await?;
    expect(
        &labels,
        &[
            ("nvidia.com/gpu.present", "true"),
            ("feature.node.kubernetes.io/pci-10de.present", "true"),
            ("feature.node.kubernetes.io/pci-0302_10de.present", "true"),
        ],
    )?;
    for key in [
        "nvidia.com/gpu.product",
        "nvidia.com/gpu.count",
        "nvidia.com/cuda.driver-version.full",
        "berth.dev/gpu-class",
    ] {
        ensure!(!labels.contains_key(key), "{key} without a driver: {labels:?}");
    }
    Ok(())
}

async fn cpu_only_node(f: Fixture) -> anyhow::Result<()> {
    // Only once the others have theirs does "none" mean anything.
    eventually("labels elsewhere", Duration::from_secs(60), async || {
        ensure!(hardware(&f, "t4-0").await?.contains_key("nvidia.com/gpu.product"));
        Ok(())
    })
    .await?;
    let labels = hardware(&f, "cpu-0").await?;
    ensure!(labels.is_empty(), "{labels:?}");
    Ok(())
}

async fn mixed_node(f: Fixture) -> anyhow::Result<()> {
    let read = async || {
        eventually("labels of the mixed node", Duration::from_secs(60), async || {
            let labels = hardware(&f, "mixed-0").await?;
            ensure!(labels.contains_key("nvidia.com/gpu.product"), "{labels:?}");
            Ok(labels)
        })
        .await
    };
    let first = read().await?;
    ensure!(
        !first.contains_key("berth.dev/gpu-class"),
        "two products, so no class of the node: {first:?}"
    );
    for class in ["a100", "t4"] {
        let count: u32 = first
            .get(&format!("berth.dev/gpu.{class}.count"))
            .context("count of a class")?
            .parse()?;
        ensure!(count > 0, "{class}");
    }
    expect(
        &first,
        &[
            ("berth.dev/gpu.a100.memory", "40960"),
            ("berth.dev/gpu.t4.memory", "16384"),
        ],
    )?;
    for _ in 0..3 {
        f.restart_agent("mixed-0").await?;
        ensure!(read().await? == first, "the same labels on every start");
    }
    Ok(())
}

/// Runs in its own node name so that it cannot disturb the others.
async fn other_managers(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    eventually("labels", Duration::from_secs(60), async || {
        ensure!(hardware(&f, "t4-0").await?.contains_key("nvidia.com/gpu.family"));
        Ok(())
    })
    .await?;
    // Another operator takes one of the keys over, with its own idea of the value.
    let theirs = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "t4-0", "labels": {"nvidia.com/gpu.family": "theirs"}}});
    nodes
        .patch(
            "t4-0",
            &PatchParams::apply("nfd-master").force(),
            &Patch::Apply(&theirs),
        )
        .await?;
    f.restart_agent("t4-0").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let labels = hardware(&f, "t4-0").await?;
    expect(
        &labels,
        &[
            ("nvidia.com/gpu.family", "theirs"),
            ("nvidia.com/gpu.product", "NVIDIA-T4"),
        ],
    )?;
    eventually("an Event that says so", Duration::from_secs(10), async || {
        let events = f.events("Node", "t4-0").await?;
        let said = events.iter().filter(|e| e.reason == "LabelsOwnedByOthers").count();
        ensure!(said == 1, "{events:?}");
        Ok(())
    })
    .await?;
    // They let go; the key is ours again.
    let none = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "t4-0"}});
    nodes
        .patch("t4-0", &PatchParams::apply("nfd-master").force(), &Patch::Apply(&none))
        .await?;
    eventually("our value again", Duration::from_secs(20), async || {
        expect(&hardware(&f, "t4-0").await?, &[("nvidia.com/gpu.family", "turing")])
    })
    .await
}

async fn restarts_write_nothing(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    let ours = |node: &Node| -> Vec<String> {
        let entries = node.metadata.managed_fields.iter().flatten();
        entries
            .filter(|e| e.manager.as_deref().is_some_and(|m| m.starts_with("berth/")))
            .map(|e| format!("{:?} {:?} {:?}", e.manager, e.time, e.fields_v1))
            .collect()
    };
    let snapshot = async || -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        Ok(nodes
            .list(&Default::default())
            .await?
            .iter()
            .map(|n| (n.name_any(), ours(n)))
            .collect())
    };
    let writes_before = f.controller_writes("nodes").await?;
    let before = snapshot().await?;
    ensure!(
        before.values().any(|v| !v.is_empty()),
        "somebody has written labels: {before:?}"
    );
    f.restart_agent("h100-0").await?;
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(snapshot().await? == before, "managed fields of a node moved");
    let writes = f.controller_writes("nodes").await?;
    ensure!(
        writes == writes_before,
        "node writes after the restarts: {:?}",
        &writes[writes_before.len()..]
    );
    Ok(())
}

async fn driver_appears(f: Fixture) -> anyhow::Result<()> {
    f.cluster.node("nodriver-0")?.set_driver(true).await?;
    let started = std::time::Instant::now();
    let labels = eventually("full labels", Duration::from_secs(20), async || {
        let labels = hardware(&f, "nodriver-0").await?;
        ensure!(labels.contains_key("nvidia.com/gpu.product"), "{labels:?}");
        Ok(labels)
    })
    .await?;
    println!(
        "full labels {} ms after the driver appeared",
        started.elapsed().as_millis()
    );
    expect(
        &labels,
        &[
            ("nvidia.com/gpu.count", "4"),
            ("berth.dev/gpu-class", "h100"),
            ("nvidia.com/gpu.present", "true"),
        ],
    )
}
