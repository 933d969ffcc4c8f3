//! Whose processes run on which GPU, where the chart's `nvml.processes` is on: memory of each pod, and pods that were given nothing.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::fleet::{Node, SharingStrategy};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

/// Whoever holds the GPUs is asked for every 5 s.
const SOON: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;
const SHARED: &str = "shared-0";

fn main() -> ExitCode {
    let mut shared = NodeSpec::new(SHARED, "t4", 1);
    shared.sharing.strategy = SharingStrategy::TimeSlicing;
    shared.sharing.replicas = 4;
    Suite::new("processes")
        .fleet(Fleet { nodes: vec![shared] })
        .values(json!({"nvml": {"processes": true}}))
        .trial(
            "pods that share a GPU show their own memory, and who was given nothing shows, too",
            |c| own_memory(Fixture::new(c)),
        )
        .run()
}

/// A pod bound to the node, as kube-scheduler leaves one.
async fn run_pod(f: &Fixture, namespace: &str, name: &str, gpus: u32) -> anyhow::Result<Pod> {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": SHARED, "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "server", "image": "x", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}},
        }]},
    });
    let api: Api<Pod> = Api::namespaced(f.client(), namespace);
    Ok(api
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?)
}

/// What the driver lists on the one GPU from now on.
fn on_gpu(node: &Node, processes: &[(u32, u64)]) -> anyhow::Result<()> {
    let list = json!(
        processes
            .iter()
            .map(|(pid, gib)| json!({"pid": pid, "memory_bytes": gib * GIB}))
            .collect::<Vec<_>>()
    );
    let list = serde_json::from_value(list)?;
    Ok(node.nvml().change(|state| {
        state.gpus[0].processes = list;
        Ok(())
    })?)
}

/// `name share GiB` of each pod on the GPU; `?`: its memory is not known.
async fn expect(f: &Fixture, wanted: &[String]) -> anyhow::Result<()> {
    eventually(&format!("{wanted:?}"), SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        let gpu = &nodes[SHARED]["gpus"][0];
        let show = |pod: &Value| {
            let text = |key: &str| pod[key].as_str().unwrap_or("?").to_owned();
            let memory = pod["memoryBytes"].as_u64();
            let memory = memory.map_or_else(|| "?".to_owned(), |bytes| (bytes / GIB).to_string());
            format!("{}/{} {} {memory}", text("namespace"), text("name"), text("share"))
        };
        let mut is: Vec<String> = gpu["pods"]
            .as_array()
            .context("no pods are known")?
            .iter()
            .map(show)
            .collect();
        is.sort();
        ensure!(is == wanted, "{gpu}");
        Ok(())
    })
    .await
}

async fn own_memory(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let ns = f.namespace("processes").await?;
    let node = f.cluster.node(SHARED)?;
    let (a, b) = (run_pod(&f, &ns, "a", 1).await?, run_pod(&f, &ns, "b", 1).await?);
    let thief = run_pod(&f, &ns, "thief", 0).await?;
    for (pid, pod) in [(100, &a), (101, &a), (200, &b), (300, &thief)] {
        node.processes().run(pid, pod)?;
    }
    // The last one is the machine's own.
    on_gpu(&node, &[(100, 1), (101, 2), (200, 4), (300, 5), (1, 1)])?;
    let shown = |memory: [&str; 2]| {
        let [a, b] = memory;
        vec![
            format!("{ns}/a Replica {a}"),
            format!("{ns}/b Replica {b}"),
            format!("{ns}/thief Process 5"),
        ]
    };
    expect(&f, &shown(["3", "4"])).await?;

    // One that ends takes its memory along. What one is left with is its own, and who has no process has a GPU and no memory that is known.
    node.processes().end(101)?;
    node.processes().end(200)?;
    on_gpu(&node, &[(100, 1), (300, 5)])?;
    expect(&f, &shown(["1", "?"])).await?;
    f.delete_namespace(&ns).await
}
