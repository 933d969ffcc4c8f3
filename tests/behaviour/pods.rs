//! Which pods hold which GPU: the kubelet's word reaches the controller's page and placement, and is not believed for ever.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::fleet::SharingStrategy;
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

/// The kubelet is asked every 5 s.
const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut shared = NodeSpec::new("shared-0", "t4", 1);
    shared.sharing.strategy = SharingStrategy::TimeSlicing;
    shared.sharing.replicas = 4;
    let fleet = Fleet {
        nodes: vec![
            NodeSpec::new("t4-0", "t4", 2),
            shared,
            NodeSpec::new("l40s-0", "l40s", 2),
            NodeSpec::new("a100-0", "a100", 1),
        ],
    };
    Suite::new("pods")
        .fleet(fleet)
        .trial("a pod shows on its GPU within seconds, and goes with it", |c| {
            shows_and_goes(Fixture::new(c))
        })
        .trial("pods that share a GPU show each once", |c| shares(Fixture::new(c)))
        .trial("a sick GPU in a pod's hands does not keep others from its node", |c| {
            sick_but_held(Fixture::new(c))
        })
        .trial(
            "a kubelet that hangs or restarts is a state, and not an empty node",
            |c| kubelet_troubles(Fixture::new(c)),
        )
        .run()
}

/// A pod bound to a node from the start, as kube-scheduler leaves one.
async fn run_pod(f: &Fixture, namespace: &str, name: &str, node: &str, gpus: u32) -> anyhow::Result<()> {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "server", "image": "x", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}},
        }]},
    });
    let api: Api<Pod> = Api::namespaced(f.client(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    Ok(())
}

async fn gpus(f: &Fixture, node: &str) -> anyhow::Result<Vec<Value>> {
    let nodes = f.controller_json("/nodes").await?;
    Ok(nodes[node]["gpus"].as_array().context("no GPUs")?.clone())
}

/// `namespace/name share` of the pods of each GPU; `None`: not known.
fn pods(gpu: &Value) -> Option<Vec<String>> {
    let show = |pod: &Value| {
        let text = |key: &str| pod[key].as_str().unwrap_or("?").to_owned();
        format!("{}/{} {}", text("namespace"), text("name"), text("share"))
    };
    let mut all: Vec<String> = gpu["pods"].as_array()?.iter().map(show).collect();
    all.sort();
    Some(all)
}

async fn expect(f: &Fixture, node: &str, wanted: &[Option<Vec<String>>], left: &[Option<u64>]) -> anyhow::Result<()> {
    eventually(&format!("{wanted:?} on {node}"), SOON, async || {
        let gpus = gpus(f, node).await?;
        let are: Vec<_> = gpus.iter().map(pods).collect();
        let units: Vec<_> = gpus.iter().map(|gpu| gpu["unitsLeft"].as_u64()).collect();
        ensure!(are == wanted && units == left, "{gpus:?}");
        Ok(())
    })
    .await
}

async fn shows_and_goes(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let ns = f.namespace("pods").await?;
    let nobody = || Some(vec![]);
    expect(&f, "t4-0", &[nobody(), nobody()], &[Some(1), Some(1)]).await?;
    run_pod(&f, &ns, "one", "t4-0", 1).await?;
    let one = || Some(vec![format!("{ns}/one Whole")]);
    expect(&f, "t4-0", &[one(), nobody()], &[Some(0), Some(1)]).await?;
    let gpu = gpus(&f, "t4-0").await?.remove(0);
    let pod = &gpu["pods"][0];
    let object = Api::<Pod>::namespaced(f.client(), &ns).get("one").await?;
    ensure!(pod["uid"].as_str() == object.metadata.uid.as_deref(), "{pod}");
    ensure!(pod["containers"] == json!(["server"]), "{pod}");
    ensure!(gpu["podsState"] == "Known", "{gpu}");

    Api::<Pod>::namespaced(f.client(), &ns)
        .delete("one", &DeleteParams::default())
        .await?;
    expect(&f, "t4-0", &[nobody(), nobody()], &[Some(1), Some(1)]).await?;
    f.delete_namespace(&ns).await
}

async fn shares(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("shared").await?;
    for name in ["a", "b", "c"] {
        run_pod(&f, &ns, name, "shared-0", 1).await?;
    }
    let three = ["a", "b", "c"].map(|name| format!("{ns}/{name} Replica"));
    expect(&f, "shared-0", &[Some(three.to_vec())], &[Some(1)]).await?;
    f.delete_namespace(&ns).await
}

async fn sick_but_held(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("sick").await?;
    run_pod(&f, &ns, "first", "l40s-0", 1).await?;
    let first = || Some(vec![format!("{ns}/first Whole")]);
    expect(&f, "l40s-0", &[first(), Some(vec![])], &[Some(0), Some(1)]).await?;
    f.cluster.node("l40s-0")?.nvml().change(|state| {
        state.gpus[0].push_xid(79);
        Ok(())
    })?;
    eventually("the GPU is sick", SOON, async || {
        let gpus = gpus(&f, "l40s-0").await?;
        ensure!(gpus[0]["health"] == "Unhealthy", "{gpus:?}");
        Ok(())
    })
    .await?;
    let accelerator = json!({"accelerator": {"interface": "CUDA", "class": "l40s"}});
    f.apply_vllm(&ns, "second", accelerator).await?;
    f.expect_condition(&ns, "second", "Placed", ("True", "AllPlaced"))
        .await?;
    ensure!(f.nodes_of(&ns, "second").await? == ["l40s-0"]);

    // Its holder gone, the sick one is what the kubelet would hand out next.
    Api::<Pod>::namespaced(f.client(), &ns)
        .delete("first", &DeleteParams::default())
        .await?;
    let accelerator = json!({"accelerator": {"interface": "CUDA", "class": "l40s"}});
    f.apply_vllm(&ns, "third", accelerator).await?;
    let said = f.expect_condition(&ns, "third", "Placed", ("False", "NoFit")).await?;
    ensure!(said.contains("Unhealthy"), "{said}");
    f.delete_namespace(&ns).await
}

async fn kubelet_troubles(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("kubelet").await?;
    run_pod(&f, &ns, "one", "a100-0", 1).await?;
    let one = || Some(vec![format!("{ns}/one Whole")]);
    expect(&f, "a100-0", &[one()], &[Some(0)]).await?;
    let node = f.cluster.node("a100-0")?;
    let silent = async |what: &str| {
        eventually(what, SOON, async || {
            let gpu = gpus(&f, "a100-0").await?.remove(0);
            ensure!(gpu["podsState"] == "NotAvailable", "{gpu}");
            ensure!(gpu.get("pods").is_none() && gpu.get("unitsLeft").is_none(), "{gpu}");
            ensure!(gpu["podsAgeMs"].as_u64().is_some_and(|age| age > 10_000), "{gpu}");
            // The readings go on.
            ensure!(gpu["sampleAgeMs"].as_u64().is_some_and(|age| age < 5_000), "{gpu}");
            Ok(())
        })
        .await
    };
    node.devices().set_hangs(true);
    silent("a kubelet that hangs").await?;
    node.devices().set_hangs(false);
    expect(&f, "a100-0", &[one()], &[Some(0)]).await?;

    node.devices().kill();
    silent("a kubelet that is gone").await?;
    // Another process, another socket.
    node.devices().serve()?;
    expect(&f, "a100-0", &[one()], &[Some(0)]).await?;
    f.delete_namespace(&ns).await
}
