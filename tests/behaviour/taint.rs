//! The taint of unhealthy GPUs, and the fleet breaker that limits it and placement alike.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, NAMESPACE, Suite, eventually};
use k8s_openapi::api::core::v1::{Event, Node, NodeCondition, Taint};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

/// Generous: what is waited for takes a fraction of a second, or ten where a GPU has to prove itself.
const SOON: Duration = Duration::from_secs(60);
const TAINT: &str = "berth.dev/gpu-unhealthy";
const REPAIR: &str = "AcceleratedHardwareReady";

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: (0..4).map(|n| NodeSpec::new(&format!("t4-{n}"), "t4", 2)).collect(),
    };
    Suite::new("taint")
        .fleet(fleet)
        .values(values("any"))
        .trial(
            "a fault of the hardware taints the node, beside the taints of others, until it is gone",
            |c| hardware(Fixture::new(c)),
        )
        .trial(
            "what is no fault of the hardware neither puts the taint nor takes it",
            |c| software(Fixture::new(c)),
        )
        .trial(
            "others write the node all the time, and no taint of theirs is lost",
            |c| conflicts(Fixture::new(c)),
        )
        .trial(
            "beyond the share ill nodes still count, what is gone does not, and a restart changes nothing",
            |c| breaker(Fixture::new(c)),
        )
        .trial(
            "with all, the taint is for nodes without a GPU that may be handed out",
            |c| all(Fixture::new(c)),
        )
        .trial("turned off, the taint goes", |c| turned_off(Fixture::new(c)))
        .trial(
            "an observer writes nothing, and the last one out takes the taint along",
            |c| observe_and_uninstall(Fixture::new(c)),
        )
        .run()
}

/// As the suite installs them.
fn values(taint: &str) -> Value {
    json!({
        "runtimeClass": {"create": true},
        "nodes": {"conditions": {"extra": {REPAIR: "auto"}}},
        "health": {"taint": taint, "breaker": {
            "maxSharePercent": 50, "maxNewIn10Minutes": 100, "maxSameCauseIn10Minutes": 100}},
    })
}

async fn node(f: &Fixture, name: &str) -> anyhow::Result<Node> {
    Ok(Api::<Node>::all(f.client()).get(name).await?)
}

async fn taints(f: &Fixture, name: &str) -> anyhow::Result<Vec<Taint>> {
    Ok(node(f, name).await?.spec.and_then(|s| s.taints).unwrap_or_default())
}

async fn is_tainted(f: &Fixture, name: &str) -> anyhow::Result<bool> {
    let ours: Vec<Taint> = taints(f, name).await?.into_iter().filter(|t| t.key == TAINT).collect();
    ensure!(
        ours.iter().all(|t| t.effect == "NoSchedule") && ours.len() < 2,
        "{ours:?}"
    );
    Ok(!ours.is_empty())
}

async fn expect_taint(f: &Fixture, name: &str, wanted: bool) -> anyhow::Result<()> {
    eventually(&format!("taint on {name}: {wanted}"), SOON, async || {
        ensure!(is_tainted(f, name).await? == wanted, "{:?}", taints(f, name).await?);
        Ok(())
    })
    .await
}

async fn condition(f: &Fixture, name: &str, type_: &str) -> anyhow::Result<NodeCondition> {
    let conditions = node(f, name).await?.status.and_then(|s| s.conditions);
    let found = conditions.into_iter().flatten().find(|c| c.type_ == type_);
    found.with_context(|| format!("no {type_} on {name}"))
}

async fn expect_condition(f: &Fixture, name: &str, type_: &str, status: &str) -> anyhow::Result<NodeCondition> {
    eventually(&format!("{type_} of {name} is {status}"), SOON, async || {
        let is = condition(f, name, type_).await?;
        ensure!(is.status == status, "{is:?}");
        Ok(is)
    })
    .await
}

/// `Excluded`, `HeldBack share`, or nothing.
async fn decision(f: &Fixture, name: &str) -> anyhow::Result<String> {
    let nodes = f.controller_json("/nodes").await?;
    let health = &nodes[name]["health"];
    let word = |key: &str| health[key].as_str().unwrap_or_default();
    Ok(format!("{} {}", word("decision"), word("limit")).trim().to_owned())
}

async fn expect_decision(f: &Fixture, name: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} is {wanted:?}"), SOON, async || {
        let is = decision(f, name).await?;
        ensure!(is == wanted, "{is:?}");
        Ok(())
    })
    .await
}

fn xid(f: &Fixture, name: &str, gpu: usize, number: u64) -> anyhow::Result<()> {
    Ok(f.cluster.node(name)?.nvml().change(|state| {
        state.gpus[gpu].push_xid(number);
        Ok(())
    })?)
}

async fn nvml(f: &Fixture, name: &str, state: &str) -> anyhow::Result<()> {
    eventually(&format!("NVML of {name} is {state}"), SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        let is = &nodes[name]["agent"]["nvml"];
        ensure!(is == state, "{is}");
        Ok(())
    })
    .await
}

/// The driver is loaded anew: whatever was wrong is gone.
async fn reset(f: &Fixture, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        f.set_faults(name, vec![])?;
        f.cluster.node(name)?.set_driver(false).await?;
        nvml(f, name, "NoLibrary").await?;
        f.cluster.node(name)?.set_driver(true).await?;
    }
    for name in names {
        expect_condition(f, name, "nvidia.com/GPUReady", "True").await?;
        expect_decision(f, name, "").await?;
    }
    Ok(())
}

/// How often an Event of this reason was reported about an object, repeats counted.
async fn told(f: &Fixture, namespace: &str, object: &str, reason: &str) -> anyhow::Result<i32> {
    let selector = format!("involvedObject.name={object},reason={reason}");
    let list = Api::<Event>::namespaced(f.client(), namespace)
        .list(&ListParams::default().fields(&selector))
        .await?;
    Ok(list
        .iter()
        .map(|e| e.series.as_ref().and_then(|s| s.count).unwrap_or(1))
        .sum())
}

async fn expect_told(f: &Fixture, namespace: &str, object: &str, reason: &str, times: i32) -> anyhow::Result<()> {
    eventually(&format!("{reason} on {object}"), SOON, async || {
        let is = told(f, namespace, object, reason).await?;
        ensure!(is == times, "{is} times");
        Ok(())
    })
    .await
}

async fn set_foreign(f: &Fixture, name: &str, list: &Value) -> anyhow::Result<()> {
    let patch = json!({"spec": {"taints": list}});
    Api::<Node>::all(f.client())
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

fn foreign() -> Value {
    json!([
        {"key": "example.com/theirs", "value": "v", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"},
        {"key": "example.com/other", "effect": "PreferNoSchedule"},
    ])
}

async fn others_are(f: &Fixture, name: &str, wanted: &Value) -> anyhow::Result<()> {
    let mut list = taints(f, name).await?;
    list.retain(|t| t.key != TAINT);
    let is = serde_json::to_value(&list)?;
    ensure!(is == *wanted, "{is}");
    Ok(())
}

async fn hardware(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    expect_condition(&f, "t4-0", "nvidia.com/GPUReady", "True").await?;
    expect_condition(&f, "t4-0", REPAIR, "True").await?;
    set_foreign(&f, "t4-0", &foreign()).await?;
    ensure!(!is_tainted(&f, "t4-0").await?);
    // One that may be handed out, and is worth watching.
    xid(&f, "t4-0", 0, 78)?;
    let suspect = eventually("a GPU to watch", SOON, async || {
        let is = condition(&f, "t4-0", "nvidia.com/GPUReady").await?;
        ensure!(is.reason.as_deref() == Some("UpdateSoftware"), "{is:?}");
        Ok(is)
    });
    ensure!(suspect.await?.status == "True");
    ensure!(!is_tainted(&f, "t4-0").await? && decision(&f, "t4-0").await?.is_empty());

    xid(&f, "t4-0", 1, 62)?;
    expect_taint(&f, "t4-0", true).await?;
    others_are(&f, "t4-0", &foreign()).await?;
    expect_decision(&f, "t4-0", "Excluded").await?;
    expect_condition(&f, "t4-0", REPAIR, "False").await?;
    expect_told(&f, "default", "t4-0", "GPUTaintAdded", 1).await?;
    // Taken away by hand while the GPU is ill: it comes back.
    set_foreign(&f, "t4-0", &foreign()).await?;
    expect_taint(&f, "t4-0", true).await?;
    reset(&f, &["t4-0"]).await?;
    expect_taint(&f, "t4-0", false).await?;
    others_are(&f, "t4-0", &foreign()).await?;
    expect_condition(&f, "t4-0", REPAIR, "True").await?;
    expect_told(&f, "default", "t4-0", "GPUTaintRemoved", 1).await?;
    // Put by hand on a node that is well: nobody else may say this.
    set_foreign(&f, "t4-0", &json!([{"key": TAINT, "effect": "NoSchedule"}])).await?;
    expect_taint(&f, "t4-0", false).await
}

async fn software(f: Fixture) -> anyhow::Result<()> {
    expect_condition(&f, "t4-1", "nvidia.com/GPUReady", "True").await?;
    let driver = async |present: bool| -> anyhow::Result<()> {
        f.cluster.node("t4-1")?.set_driver(present).await?;
        nvml(&f, "t4-1", if present { "Ready" } else { "NoLibrary" }).await
    };
    driver(false).await?;
    let is = expect_condition(&f, "t4-1", "nvidia.com/GPUReady", "False").await?;
    ensure!(is.reason.as_deref() == Some("DriverNotLoaded"), "{is:?}");
    // Others would replace the node for that.
    expect_condition(&f, "t4-1", REPAIR, "Unknown").await?;
    ensure!(!is_tainted(&f, "t4-1").await?);
    driver(true).await?;
    expect_condition(&f, "t4-1", "nvidia.com/GPUReady", "True").await?;
    let mismatch = |on: bool| {
        f.cluster.node("t4-1")?.nvml().change(|state| {
            state.driver.version_mismatch = on;
            Ok(())
        })?;
        anyhow::Ok(())
    };
    // A fault first: an upgrade that begins then says nothing of it.
    xid(&f, "t4-1", 0, 62)?;
    expect_taint(&f, "t4-1", true).await?;
    mismatch(true)?;
    f.kill_probe("t4-1").await?;
    nvml(&f, "t4-1", "VersionMismatch").await?;
    // The condition has followed: the other GPU is away for the upgrade.
    eventually("both GPUs in the message", SOON, async || {
        let is = condition(&f, "t4-1", "nvidia.com/GPUReady").await?;
        ensure!(is.message.as_deref().unwrap_or_default().contains("2 of 2"), "{is:?}");
        Ok(())
    })
    .await?;
    ensure!(is_tainted(&f, "t4-1").await?);
    mismatch(false)?;
    nvml(&f, "t4-1", "Ready").await?;
    reset(&f, &["t4-1"]).await?;
    expect_taint(&f, "t4-1", false).await?;
    let written = told(&f, "default", "t4-1", "GPUTaintAdded").await?;
    ensure!(written == 1, "{written} times");
    Ok(())
}

async fn conflicts(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    let stop = tokio_util::sync::CancellationToken::new();
    // Somebody who reads, changes the list of taints and writes it back, again and again.
    let others = tokio::spawn({
        let (nodes, stop) = (nodes.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.is_cancelled() {
                let mut node = nodes.get("t4-2").await?;
                let list = node.spec.get_or_insert_default().taints.get_or_insert_default();
                list.retain(|t| t.key != "example.com/counts");
                list.push(Taint {
                    key: "example.com/counts".into(),
                    value: Some(n.to_string()),
                    effect: "PreferNoSchedule".into(),
                    time_added: None,
                });
                match nodes.replace("t4-2", &Default::default(), &node).await {
                    Ok(_) => n += 1,
                    Err(kube::Error::Api(s)) if s.is_conflict() => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(n)
        }
    });
    let value = async || -> anyhow::Result<i32> {
        let list = taints(&f, "t4-2").await?;
        let theirs = list.iter().find(|t| t.key == "example.com/counts");
        Ok(theirs
            .context("their taint is lost")?
            .value
            .as_deref()
            .unwrap_or("")
            .parse()?)
    };
    eventually("their first", SOON, async || value().await.map(drop)).await?;
    let before = value().await?;
    xid(&f, "t4-2", 0, 62)?;
    expect_taint(&f, "t4-2", true).await?;
    ensure!(value().await? >= before, "their taint went back");
    reset(&f, &["t4-2"]).await?;
    expect_taint(&f, "t4-2", false).await?;
    let last = value().await?;
    ensure!(last > before, "nothing was written meanwhile");
    stop.cancel();
    let written = others.await??;
    ensure!(written > last, "{written} written, {last} seen");
    set_foreign(&f, "t4-2", &json!([])).await
}

/// Patches of nodes, their statuses aside, by whoever writes taints.
async fn taint_writes(f: &Fixture) -> anyhow::Result<usize> {
    let writes = f.controller_writes("nodes").await?;
    let of_health = writes
        .iter()
        .filter(|w| w.contains("nodes-health") && !w.contains("/status"));
    Ok(of_health.count())
}

async fn breaker(f: Fixture) -> anyhow::Result<()> {
    let installation = "berth-controller";
    for (n, number) in [(0, 62), (1, 48), (2, 62)] {
        let name = format!("t4-{n}");
        xid(&f, &name, 0, number)?;
        let wanted = if n < 2 { "Excluded" } else { "HeldBack share" };
        expect_decision(&f, &name, wanted).await?;
    }
    // Two of four are out; the third is ill, says so, and counts.
    let held = expect_condition(&f, "t4-2", "nvidia.com/GPUReady", "False").await?;
    let message = held.message.unwrap_or_default();
    ensure!(
        message.contains("XID 62") && message.ends_with("the fleet breaker is open"),
        "{message}"
    );
    expect_condition(&f, "t4-2", REPAIR, "Unknown").await?;
    expect_told(&f, NAMESPACE, installation, "FleetBreakerOpen", 1).await?;
    let number = f.metric_sum("berth_health_held_back_nodes{limit=\"share\"}").await?;
    ensure!(number == 1.0, "{number}");
    let number = f.metric_sum("berth_health_excluded_nodes").await?;
    ensure!(number == 2.0, "{number}");
    for (name, tainted) in [("t4-0", true), ("t4-1", true), ("t4-2", false)] {
        expect_taint(&f, name, tainted).await?;
    }
    let ns = f.namespace("breaker").await?;
    let on =
        |node: &str| json!({"accelerator": {"interface": "CUDA"}, "nodeSelector": {"kubernetes.io/hostname": node}});
    f.apply_vllm(&ns, "counts", on("t4-2")).await?;
    f.expect_condition(&ns, "counts", "Placed", ("True", "AllPlaced"))
        .await?;
    // What is lost cannot run, however many are out.
    f.set_faults("t4-3", vec![json!({"function": "*", "gpu": 1, "error": 15})])?;
    expect_decision(&f, "t4-3", "Excluded").await?;
    expect_taint(&f, "t4-3", true).await?;
    f.apply_vllm(&ns, "gone", on("t4-3")).await?;
    let said = f.expect_condition(&ns, "gone", "Placed", ("False", "NoFit")).await?;
    ensure!(said.contains("t4-3"), "{said}");

    let before = taint_writes(&f).await?;
    ensure!(before > 0, "the writes of taints are not told from others");
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    for (name, wanted) in [
        ("t4-0", "Excluded"),
        ("t4-1", "Excluded"),
        ("t4-2", "HeldBack share"),
        ("t4-3", "Excluded"),
    ] {
        expect_decision(&f, name, wanted).await?;
        ensure!(is_tainted(&f, name).await? == (wanted == "Excluded"), "{name}");
    }
    // Said by the new leader (each of the two may have led meanwhile), and its look at the nodes is over: it knew all before it spoke.
    eventually("the new leader's word", SOON, async || {
        let times = told(&f, NAMESPACE, installation, "FleetBreakerOpen").await?;
        ensure!(times > 1, "{times}");
        Ok(())
    })
    .await?;
    let after = taint_writes(&f).await?;
    ensure!(after == before, "{} writes by a restart", after - before);

    // One is back, and two are out still: no room yet. Two are back: there is.
    reset(&f, &["t4-0"]).await?;
    ensure!(decision(&f, "t4-2").await? == "HeldBack share");
    ensure!(told(&f, NAMESPACE, installation, "FleetBreakerClosed").await? == 0);
    reset(&f, &["t4-3"]).await?;
    expect_decision(&f, "t4-2", "Excluded").await?;
    expect_taint(&f, "t4-2", true).await?;
    expect_condition(&f, "t4-2", REPAIR, "False").await?;
    let is = condition(&f, "t4-2", "nvidia.com/GPUReady").await?;
    ensure!(!is.message.unwrap_or_default().contains("breaker"));
    expect_told(&f, NAMESPACE, installation, "FleetBreakerClosed", 1).await?;
    f.expect_condition(&ns, "gone", "Placed", ("True", "AllPlaced")).await?;
    f.delete_namespace(&ns).await?;
    reset(&f, &["t4-1", "t4-2"]).await?;
    for n in 0..4 {
        expect_taint(&f, &format!("t4-{n}"), false).await?;
    }
    Ok(())
}

async fn all(f: Fixture) -> anyhow::Result<()> {
    f.cluster.install(&values("all")).await?;
    f.all_agents_connected().await?;
    expect_condition(&f, "t4-0", "nvidia.com/GPUReady", "True").await?;
    xid(&f, "t4-0", 0, 62)?;
    expect_decision(&f, "t4-0", "Excluded").await?;
    expect_condition(&f, "t4-0", REPAIR, "False").await?;
    ensure!(!is_tainted(&f, "t4-0").await?, "one of two may be handed out");
    xid(&f, "t4-0", 1, 62)?;
    expect_taint(&f, "t4-0", true).await
}

async fn turned_off(f: Fixture) -> anyhow::Result<()> {
    xid(&f, "t4-0", 0, 62)?;
    xid(&f, "t4-0", 1, 62)?;
    expect_taint(&f, "t4-0", true).await?;
    set_foreign_beside(&f, "t4-0").await?;
    f.cluster.install(&values("never")).await?;
    expect_taint(&f, "t4-0", false).await?;
    others_are(&f, "t4-0", &foreign()).await?;
    // It is as ill as before.
    expect_decision(&f, "t4-0", "Excluded").await
}

/// The others' taints after ours.
async fn set_foreign_beside(f: &Fixture, name: &str) -> anyhow::Result<()> {
    let mut list = vec![json!({"key": TAINT, "effect": "NoSchedule"})];
    list.extend(foreign().as_array().cloned().unwrap_or_default());
    set_foreign(f, name, &Value::Array(list)).await
}

async fn observe_and_uninstall(f: Fixture) -> anyhow::Result<()> {
    f.cluster.install(&values("any")).await?;
    f.all_agents_connected().await?;
    xid(&f, "t4-0", 0, 62)?;
    expect_taint(&f, "t4-0", true).await?;
    set_foreign_beside(&f, "t4-0").await?;
    let mut observing = values("any");
    observing["nodes"]["mode"] = json!("observe");
    f.cluster.install(&observing).await?;
    f.all_agents_connected().await?;
    let writes = async || f.controller_writes("nodes").await.map(|w| w.len());
    let before = writes().await?;
    xid(&f, "t4-1", 0, 62)?;
    expect_decision(&f, "t4-1", "Excluded").await?;
    eventually("what would be written is told", SOON, async || {
        let log = f.controller_logs().await?;
        let line = log
            .lines()
            .find(|l| l.contains("would change the taint") && l.contains("t4-1"));
        ensure!(line.is_some(), "nothing is said");
        Ok(())
    })
    .await?;
    reset(&f, &[]).await?;
    ensure!(writes().await? == before && !is_tainted(&f, "t4-1").await?);
    ensure!(is_tainted(&f, "t4-0").await?, "an observer takes nothing away");
    f.cluster.uninstall().await?;
    ensure!(!is_tainted(&f, "t4-0").await?, "nobody is left to take it away");
    others_are(&f, "t4-0", &foreign()).await?;
    let all = Api::<Node>::all(f.client()).list(&Default::default()).await?;
    let tainted = all.iter().filter(|n| {
        n.spec
            .iter()
            .flat_map(|s| s.taints.iter().flatten())
            .any(|t| t.key == TAINT)
    });
    ensure!(tainted.map(|n| n.name_any()).next().is_none());
    Ok(())
}
