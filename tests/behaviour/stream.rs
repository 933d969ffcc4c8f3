//! The stream between agent and controller: how often readings come, and what is left of a time without it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, NAMESPACE, Suite, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(90);
const AGENT_HTTP: u16 = 9401;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("t4-0", "t4", 2), NodeSpec::new("l40s-0", "l40s", 1)],
    };
    Suite::new("stream")
        .fleet(fleet)
        .trial(
            "an idle node is read less often, and models find their way to it",
            |c| rates(Fixture::new(c)),
        )
        .trial("faults of a time without a controller are told when it is back", |c| {
            controller_away(Fixture::new(c))
        })
        .run()
}

/// A metric of a node's agent.
async fn metric(f: &Fixture, node: &str, name: &str) -> anyhow::Result<f64> {
    let pods = f.cluster.pods_of("agent", Some(node)).await?;
    let pod = pods.first().context("no agent pod")?.name_any();
    let address = f.cluster.services().pod_address(NAMESPACE, &pod, AGENT_HTTP);
    let mut stream = TcpStream::connect(address.context("the agent does not listen")?).await?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("{name} is not in {text}"))?.parse()?)
}

async fn expect_metric(f: &Fixture, node: &str, name: &str, wanted: f64) -> anyhow::Result<()> {
    eventually(&format!("{name} of {node} is {wanted}"), SOON, async || {
        let is = metric(f, node, name).await?;
        ensure!((is - wanted).abs() < 1e-9, "it is {is}");
        Ok(())
    })
    .await
}

async fn rates(f: Fixture) -> anyhow::Result<()> {
    const INTERVAL: &str = "berth_agent_sample_interval_seconds";
    f.all_agents_connected().await?;
    for node in ["t4-0", "l40s-0"] {
        expect_metric(&f, node, INTERVAL, 3.0).await?;
    }
    // Only a fresh reading says how much memory is free.
    let ns = f.namespace("rates").await?;
    let wanted = json!({"accelerator": {"interface": "CUDA", "class": "t4", "memory": "8Gi"}});
    f.apply_vllm(&ns, "model", wanted).await?;
    f.expect_condition(&ns, "model", "Placed", ("True", "AllPlaced"))
        .await?;
    expect_metric(&f, "t4-0", INTERVAL, 1.0).await?;
    expect_metric(&f, "l40s-0", INTERVAL, 3.0).await?;
    f.delete_namespace(&ns).await?;
    expect_metric(&f, "t4-0", INTERVAL, 3.0).await
}

async fn controller_away(f: Fixture) -> anyhow::Result<()> {
    const TAKEN: &str = "berth_agent_gpu_events_total";
    /// What the agent keeps.
    const RING: u64 = 256;
    /// More than that.
    const XIDS: u64 = 280;
    f.all_agents_connected().await?;
    let scale = async |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        f.kubectl(&["scale", "-n", NAMESPACE, "deployment/berth-controller", &replicas])
            .await
            .map(drop)
    };
    let taken = metric(&f, "t4-0", TAKEN).await?;
    scale("0").await?;
    expect_metric(&f, "t4-0", "berth_agent_connected", 0.0).await?;
    let node = f.cluster.node("t4-0")?;
    for first in (1..=XIDS).step_by(20) {
        node.nvml().change(|state| {
            // Numbers that are in no table: each is an event, and none the end of the GPU.
            (first..first + 20).for_each(|n| state.gpus[0].push_xid(1000 + n));
            Ok(())
        })?;
        // A driver's own queue is short as well.
        expect_metric(&f, "t4-0", TAKEN, taken + (first + 19) as f64).await?;
    }
    node.nvml().change(|state| {
        state.gpus[1].push_xid(79);
        Ok(())
    })?;
    expect_metric(&f, "t4-0", TAKEN, taken + (XIDS + 1) as f64).await?;
    expect_metric(&f, "t4-0", "berth_agent_events_waiting", RING as f64).await?;

    scale("2").await?;
    eventually("the node's condition", SOON, async || {
        let status = Api::<Node>::all(f.client()).get("t4-0").await?.status;
        let conditions = status.and_then(|s| s.conditions).unwrap_or_default();
        let is = conditions.into_iter().find(|c| c.type_ == "nvidia.com/GPUReady");
        ensure!(
            is.as_ref().and_then(|c| c.reason.as_deref()) == Some("FallenOffBus"),
            "{is:?}"
        );
        Ok(())
    })
    .await?;
    expect_metric(&f, "t4-0", "berth_agent_events_waiting", 0.0).await?;
    let told = f.metric_sum("berth_gpu_events_total").await?;
    let lost = f.metric_sum("berth_gpu_events_lost_total").await?;
    ensure!(
        (told, lost) == (RING as f64, (XIDS + 1 - RING) as f64),
        "{told} told, {lost} lost"
    );
    Ok(())
}
