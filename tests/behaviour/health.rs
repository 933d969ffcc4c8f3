//! A fault of a GPU: the verdict, placement, the node's condition, the Event, and how it clears.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const NVIDIA: &str = "nvidia.com/GPUReady";

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![
            NodeSpec::new("t4-0", "t4", 2),
            NodeSpec::new("l40s-0", "l40s", 1),
            NodeSpec::new("cpu-0", "", 0),
        ],
    };
    Suite::new("health")
        .fleet(fleet)
        .trial(
            "an XID takes a GPU away, and a driver loaded anew brings it back",
            |c| xid(Fixture::new(c)),
        )
        .trial("what the driver recommends takes a GPU away while it does", |c| {
            recovery_action(Fixture::new(c))
        })
        .trial("the kernel log counts as NVML's events do, and both once", |c| {
            kernel_log(Fixture::new(c))
        })
        .trial("a condition of another manager is left to it", |c| {
            another_owner(Fixture::new(c))
        })
        .run()
}

async fn ready(f: &Fixture, node: &str) -> anyhow::Result<NodeCondition> {
    let node = Api::<Node>::all(f.client()).get(node).await?;
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    let found = conditions.into_iter().find(|c| c.type_ == NVIDIA);
    found.context("no such condition")
}

async fn expect(f: &Fixture, node: &str, status: &str, reason: &str) -> anyhow::Result<NodeCondition> {
    eventually(&format!("{node} is {status}, {reason}"), SOON, async || {
        let is = ready(f, node).await?;
        ensure!((&*is.status, is.reason.as_deref()) == (status, Some(reason)), "{is:?}");
        Ok(is)
    })
    .await
}

async fn gpu(f: &Fixture, node: &str, index: usize) -> anyhow::Result<Value> {
    let nodes = f.controller_json("/nodes").await?;
    Ok(nodes[node]["gpus"][index].clone())
}

async fn events_of(f: &Fixture, node: &str, reason: &str) -> anyhow::Result<usize> {
    let all = f.events_in("default", "Node", node).await?;
    Ok(all.iter().filter(|e| e.reason == reason).count())
}

async fn xid(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let before = expect(&f, "t4-0", "True", "AllGPUsReady").await?;
    ensure!(
        ready(&f, "cpu-0").await.is_err(),
        "a node without GPUs has no condition"
    );
    // Times of transition are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    f.cluster.node("t4-0")?.nvml().change(|state| {
        state.gpus[1].push_xid(79);
        Ok(())
    })?;
    let ill = expect(&f, "t4-0", "False", "FallenOffBus").await?;
    let sick = gpu(&f, "t4-0", 1).await?;
    ensure!(sick["health"] == "Unhealthy", "{sick}");
    let message = ill.message.clone().unwrap_or_default();
    let uuid = sick["uuid"].as_str().context("no UUID")?;
    ensure!(
        message.contains(uuid) && message.contains("restart the machine"),
        "{message}"
    );
    ensure!(ill.last_transition_time != before.last_transition_time, "it turned");
    eventually("an Event", SOON, async || {
        let n = events_of(&f, "t4-0", "GPUsNotReady").await?;
        ensure!(n == 1, "{n}");
        Ok(())
    })
    .await?;
    let ns = f.namespace("xid").await?;
    f.apply_vllm(
        &ns,
        "away",
        json!({"accelerator": {"interface": "CUDA", "class": "t4"}}),
    )
    .await?;
    let said = f.expect_condition(&ns, "away", "Placed", ("False", "NoFit")).await?;
    ensure!(said.contains("t4-0"), "{said}");

    // Another fault is another reason at most, and no transition.
    f.cluster.node("t4-0")?.nvml().change(|state| {
        state.gpus[0].push_xid(48);
        Ok(())
    })?;
    let both = eventually("two GPUs in the message", SOON, async || {
        let is = ready(&f, "t4-0").await?;
        ensure!(is.message.as_deref().unwrap_or_default().contains("2 of 2"), "{is:?}");
        Ok(is)
    })
    .await?;
    ensure!(
        both.status == "False" && both.last_transition_time == ill.last_transition_time,
        "{both:?}"
    );
    ensure!(
        events_of(&f, "t4-0", "GPUsNotReady").await? == 1,
        "one Event a transition"
    );

    // Another agent heard neither, and nothing was cleared.
    f.restart_agent("t4-0").await?;
    // What the one before could not tell: its reports come in order, health before readings.
    let before = gpu(&f, "t4-0", 0).await?["memoryFreeBytes"].clone();
    f.cluster.node("t4-0")?.nvml().change(|state| {
        state.gpus[0].memory_used_bytes += 1 << 30;
        Ok(())
    })?;
    eventually("a reading of another agent", SOON, async || {
        let free = &gpu(&f, "t4-0", 0).await?["memoryFreeBytes"];
        ensure!(*free != before, "{free}");
        Ok(())
    })
    .await?;
    for (index, cause) in [(0, "XID 48:"), (1, "XID 79:")] {
        let sick = gpu(&f, "t4-0", index).await?;
        let message = sick["healthMessage"].as_str().unwrap_or_default();
        ensure!(sick["health"] == "Unhealthy" && message.starts_with(cause), "{sick}");
    }
    ensure!(
        events_of(&f, "t4-0", "GPUsReady").await? == 0,
        "a restart of the agent is no recovery"
    );

    f.cluster.node("t4-0")?.set_driver(false).await?;
    eventually("the driver to be gone", SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        let nvml = &nodes["t4-0"]["agent"]["nvml"];
        ensure!(nvml == "NoLibrary", "{nvml}");
        Ok(())
    })
    .await?;
    f.cluster.node("t4-0")?.set_driver(true).await?;
    expect(&f, "t4-0", "False", "Recovering").await?;
    expect(&f, "t4-0", "True", "AllGPUsReady").await?;
    f.expect_condition(&ns, "away", "Placed", ("True", "AllPlaced")).await?;
    eventually("an Event", SOON, async || {
        let n = events_of(&f, "t4-0", "GPUsReady").await?;
        ensure!(n == 1, "{n}");
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}

async fn recovery_action(f: Fixture) -> anyhow::Result<()> {
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    let set = |action: u32, xid: Option<u64>| {
        f.cluster.node("l40s-0")?.nvml().change(|state| {
            state.gpus[0].recovery_action = Some(action);
            if let Some(xid) = xid {
                state.gpus[0].push_xid(xid);
            }
            Ok(())
        })?;
        anyhow::Ok(())
    };
    // The XID only says that there is something to read.
    set(1, Some(154))?;
    let ill = expect(&f, "l40s-0", "False", "RecoveryAction").await?;
    ensure!(ill.message.as_deref().unwrap_or_default().contains("reset"), "{ill:?}");
    set(0, Some(154))?;
    expect(&f, "l40s-0", "True", "AllGPUsReady").await.map(drop)
}

async fn kernel_log(f: Fixture) -> anyhow::Result<()> {
    let node = f.cluster.node("l40s-0")?;
    let log = node.host_path("/dev/kmsg");
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&log, "")?;
    // The probe finds it within a second, and takes what comes after that for new.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut address = String::new();
    node.nvml().change(|state| {
        address = state.gpus[0].pci_address.trim_end_matches(".0").to_owned();
        Ok(())
    })?;
    let now = std::fs::read_to_string("/proc/uptime")?;
    let micros = now.split('.').next().unwrap_or("0").to_owned() + "000000";
    let before = f.metric_sum("berth_gpu_events_total").await?;
    std::fs::write(
        &log,
        format!("4,1,{micros},-;NVRM: Xid (PCI:{address}): 62, pid=1, halted\n"),
    )?;
    node.nvml().change(|state| {
        state.gpus[0].push_xid(62);
        Ok(())
    })?;
    let ill = expect(&f, "l40s-0", "False", "ResetRequired").await?;
    ensure!(ill.message.as_deref().unwrap_or_default().contains("XID 62"), "{ill:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let counted = f.metric_sum("berth_gpu_events_total").await? - before;
    ensure!(counted == 1.0, "counted {counted} times");
    Ok(())
}

async fn another_owner(f: Fixture) -> anyhow::Result<()> {
    let theirs = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cpu-0"}, "status": {"conditions": [
        {"type": NVIDIA, "status": "True", "reason": "Theirs", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let nodes = Api::<Node>::all(f.client());
    nodes
        .patch_status(
            "cpu-0",
            &PatchParams::apply("node-problem-detector"),
            &Patch::Apply(theirs),
        )
        .await?;
    // A GPU comes whose driver is not there: that would be said, were the condition ours.
    let function = f.cluster.node("cpu-0")?.sys().join("bus/pci/devices/0000:3b:00.0");
    std::fs::create_dir_all(&function)?;
    for (file, content) in [("class", "0x030200\n"), ("vendor", "0x10de\n"), ("device", "0x2330\n")] {
        std::fs::write(function.join(file), content)?;
    }
    eventually("an Event", SOON, async || {
        let n = events_of(&f, "cpu-0", "ConditionOwnedByOthers").await?;
        ensure!(n == 1, "{n}");
        Ok(())
    })
    .await?;
    let is = ready(&f, "cpu-0").await?;
    ensure!(is.reason.as_deref() == Some("Theirs"), "{is:?}");
    Ok(())
}
