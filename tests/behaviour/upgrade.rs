//! A driver is upgraded in place: its users let go of it in time, nothing that was known is lost, and all comes back by itself.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

/// Restarts of containers and leaders are part of it.
const SOON: Duration = Duration::from_secs(90);
const STATE: &str = "nvidia.com/gpu-driver-upgrade-state";

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("t4-0", "t4", 2), NodeSpec::new("l40s-0", "l40s", 1)],
    };
    Suite::new("upgrade")
        .fleet(fleet)
        .trial(
            "the driver is let go of while it is unloaded, whatever restarts, and taken again",
            |c| whole_upgrade(Fixture::new(c)),
        )
        .trial("an upgrade that ends while no controller runs is noticed", |c| {
            controller_away(Fixture::new(c))
        })
        .trial("a call that is stuck in the driver is named as what holds it", |c| {
            blocked(Fixture::new(c))
        })
        .trial("the driver manager's pause is enough", |c| {
            driver_manager(Fixture::new(c))
        })
        .run()
}

async fn label(f: &Fixture, node: &str, key: &str, value: Option<&str>) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"labels": {key: value}}});
    Api::<Node>::all(f.client())
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

async fn expect(f: &Fixture, node: &str, status: &str, reason: &str) -> anyhow::Result<NodeCondition> {
    eventually(&format!("{node} is {status}, {reason}"), SOON, async || {
        let conditions = Api::<Node>::all(f.client()).get(node).await?.status;
        let conditions = conditions.and_then(|s| s.conditions).unwrap_or_default();
        let is = conditions.into_iter().find(|c| c.type_ == "nvidia.com/GPUReady");
        let is = is.context("no such condition")?;
        ensure!((&*is.status, is.reason.as_deref()) == (status, Some(reason)), "{is:?}");
        Ok(is)
    })
    .await
}

async fn agent_of(f: &Fixture, node: &str) -> anyhow::Result<Value> {
    Ok(f.controller_json("/nodes").await?[node]["agent"].clone())
}

async fn expect_nvml(f: &Fixture, node: &str, state: &str) -> anyhow::Result<Value> {
    eventually(&format!("NVML of {node} is {state}"), SOON, async || {
        let agent = agent_of(f, node).await?;
        ensure!(agent["nvml"] == state && agent["connected"] == true, "{agent}");
        Ok(agent)
    })
    .await
}

/// Whether the node's probe has the driver's library mapped, or its devices open.
async fn holds_the_driver(f: &Fixture, node: &str) -> anyhow::Result<bool> {
    let pods = f.cluster.pods_of("agent", Some(node)).await?;
    let pod = pods.first().context("no agent pod")?.name_any();
    let pid = f.cluster.process(&pod, "probe")?.pid();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let mut targets = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    // The fake's descriptors on its state file stand for those on /dev/nvidiactl.
    Ok(maps.contains("libnvidia-ml") || targets.any(|t| t.to_string_lossy().contains("nvml.json")))
}

/// Labels that follow from the hardware.
async fn hardware_labels(f: &Fixture, node: &str) -> anyhow::Result<Vec<(String, String)>> {
    let labels = Api::<Node>::all(f.client()).get(node).await?.metadata.labels;
    let ours = labels.unwrap_or_default().into_iter();
    Ok(ours
        .filter(|(key, _)| key.starts_with("berth.dev/") || key.starts_with("nvidia.com/gpu."))
        .collect())
}

async fn whole_upgrade(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    expect(&f, "t4-0", "True", "AllGPUsReady").await?;
    ensure!(
        holds_the_driver(&f, "t4-0").await?,
        "the probe is not seen to hold the driver"
    );
    let before = eventually("labels", SOON, async || {
        let labels = hardware_labels(&f, "t4-0").await?;
        ensure!(labels.iter().any(|(k, _)| k == "nvidia.com/gpu.product"), "{labels:?}");
        Ok(labels)
    })
    .await?;

    // Models run on until they are taken off, and so does their health.
    for state in ["upgrade-required", "cordon-required", "wait-for-jobs-required"] {
        label(&f, "t4-0", STATE, Some(state)).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(holds_the_driver(&f, "t4-0").await?, "let go of too early");
    expect(&f, "t4-0", "True", "AllGPUsReady").await?;

    label(&f, "t4-0", STATE, Some("pod-deletion-required")).await?;
    let is = expect(&f, "t4-0", "False", "DriverUpgrading").await?;
    ensure!(is.message.as_deref().unwrap_or_default().contains("let go"), "{is:?}");
    let agent = expect_nvml(&f, "t4-0", "Released").await?;
    let old = agent["driver"].as_str().context("the driver is forgotten")?.to_owned();
    ensure!(!holds_the_driver(&f, "t4-0").await?, "the driver is still held");

    let ns = f.namespace("upgrade").await?;
    let wanted = json!({"accelerator": {"interface": "CUDA", "class": "t4"}});
    f.apply_vllm(&ns, "waits", wanted).await?;
    f.expect_condition(&ns, "waits", "Placed", ("False", "NoFit")).await?;

    for state in ["drain-required", "pod-restart-required"] {
        label(&f, "t4-0", STATE, Some(state)).await?;
    }
    f.restart_agent("t4-0").await?;
    expect_nvml(&f, "t4-0", "Released").await?;
    f.kill_probe("t4-0").await?;
    expect_nvml(&f, "t4-0", "ProbeUnavailable").await?;
    expect_nvml(&f, "t4-0", "Released").await?;
    ensure!(
        !holds_the_driver(&f, "t4-0").await?,
        "a probe that started anew took the driver"
    );
    f.restart_controller().await?;
    expect_nvml(&f, "t4-0", "Released").await?;
    expect(&f, "t4-0", "False", "DriverUpgrading").await?;
    ensure!(
        !holds_the_driver(&f, "t4-0").await?,
        "another leader gave the driver back"
    );
    let meanwhile = hardware_labels(&f, "t4-0").await?;
    ensure!(meanwhile == before, "labels changed: {before:?} to {meanwhile:?}");

    f.cluster.node("t4-0")?.nvml().change(|state| {
        state.driver.version = "580.95.05".into();
        Ok(())
    })?;
    label(&f, "t4-0", STATE, Some("validation-required")).await?;
    label(&f, "t4-0", STATE, Some("uncordon-required")).await?;
    let agent = expect_nvml(&f, "t4-0", "Ready").await?;
    expect(&f, "t4-0", "True", "AllGPUsReady").await?;
    ensure!(
        old != "580.95.05" && agent["driver"] == "580.95.05",
        "{old}, then {agent}"
    );
    f.expect_condition(&ns, "waits", "Placed", ("True", "AllPlaced"))
        .await?;
    label(&f, "t4-0", STATE, Some("upgrade-done")).await?;
    f.delete_namespace(&ns).await
}

async fn controller_away(f: Fixture) -> anyhow::Result<()> {
    expect(&f, "t4-0", "True", "AllGPUsReady").await?;
    label(&f, "t4-0", STATE, Some("drain-required")).await?;
    expect_nvml(&f, "t4-0", "Released").await?;
    let scale = async |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        f.kubectl(&["scale", "-n", "berth-system", "deployment/berth-controller", &replicas])
            .await
            .map(drop)
    };
    scale("0").await?;
    eventually("no controller", SOON, async || {
        let pods = f.cluster.pods_of("controller", None).await?;
        ensure!(pods.is_empty(), "{} pods", pods.len());
        Ok(())
    })
    .await?;
    label(&f, "t4-0", STATE, Some("upgrade-done")).await?;
    ensure!(!holds_the_driver(&f, "t4-0").await?, "nobody told the agent");
    scale("2").await?;
    expect_nvml(&f, "t4-0", "Ready").await?;
    expect(&f, "t4-0", "True", "AllGPUsReady").await.map(drop)
}

async fn blocked(f: Fixture) -> anyhow::Result<()> {
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    f.set_faults(
        "l40s-0",
        vec![json!({"function": "nvmlDeviceGetTemperature", "stall": true})],
    )?;
    expect(&f, "l40s-0", "False", "GPUDriverHung").await?;
    label(&f, "l40s-0", STATE, Some("pod-restart-required")).await?;
    let is = expect(&f, "l40s-0", "False", "DriverReleaseBlocked").await?;
    let message = is.message.unwrap_or_default();
    ensure!(message.contains("nvmlDeviceGetTemperature"), "{message}");
    ensure!(holds_the_driver(&f, "l40s-0").await?, "and yet it is not held");
    f.set_faults("l40s-0", vec![])?;
    expect(&f, "l40s-0", "False", "DriverUpgrading").await?;
    ensure!(!holds_the_driver(&f, "l40s-0").await?, "the driver is still held");
    // The operator is uninstalled in the middle of it.
    label(&f, "l40s-0", STATE, None).await?;
    expect(&f, "l40s-0", "True", "AllGPUsReady").await.map(drop)
}

async fn driver_manager(f: Fixture) -> anyhow::Result<()> {
    let key = "nvidia.com/gpu.deploy.device-plugin";
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    label(&f, "l40s-0", key, Some("paused-for-driver-upgrade")).await?;
    // As the documentation has people wait for it.
    let reason = r#"--for=jsonpath={.status.conditions[?(@.type=="nvidia.com/GPUReady")].reason}=DriverUpgrading"#;
    f.kubectl(&["wait", "node", "l40s-0", reason, "--timeout=60s"]).await?;
    expect(&f, "l40s-0", "False", "DriverUpgrading").await?;
    ensure!(!holds_the_driver(&f, "l40s-0").await?, "the driver is still held");
    label(&f, "l40s-0", key, Some("true")).await?;
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    label(&f, "l40s-0", key, None).await
}
