//! XIDs on a node of a real cluster: the condition, the Event, and what a MIG slice that is ill alone keeps away.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const NVIDIA: &str = "nvidia.com/GPUReady";

fn main() -> ExitCode {
    let mut sliced = NodeSpec::new("h100-0", "h100", 1);
    sliced.mig = ["1g.10gb", "1g.10gb", "3g.40gb"].map(str::to_owned).into();
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("l40s-0", "l40s", 2), sliced],
    };
    Suite::new("xids")
        .fleet(fleet)
        .trial("an XID makes condition and Event by its row of the catalogue", |c| {
            rows(Fixture::new(c))
        })
        .trial("a MIG slice that is ill alone keeps those away that may get it", |c| {
            slice(Fixture::new(c))
        })
        .run()
}

async fn expect(f: &Fixture, node: &str, status: &str, reason: &str) -> anyhow::Result<NodeCondition> {
    eventually(&format!("{node} is {status}, {reason}"), SOON, async || {
        let node = Api::<Node>::all(f.client()).get(node).await?;
        let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
        let is = conditions
            .into_iter()
            .find(|c| c.type_ == NVIDIA)
            .context("no such condition")?;
        ensure!((&*is.status, is.reason.as_deref()) == (status, Some(reason)), "{is:?}");
        Ok(is)
    })
    .await
}

async fn expect_event(f: &Fixture, node: &str, reason: &str, words: &str) -> anyhow::Result<()> {
    eventually(&format!("an Event {reason} of {words}"), SOON, async || {
        let all = f.events_in("default", "Node", node).await?;
        ensure!(
            all.iter().any(|e| e.reason == reason && e.message.contains(words)),
            "{all:?}"
        );
        Ok(())
    })
    .await
}

async fn rows(f: Fixture) -> anyhow::Result<()> {
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    let nvml = |xid: u64| {
        f.cluster.node("l40s-0")?.nvml().change(|state| {
            state.gpus[0].push_xid(xid);
            Ok(())
        })?;
        anyhow::Ok(())
    };
    // From the least to the most: each is worse than the one before, and what is only counted changes nothing.
    for (xid, status, reason, event) in [
        (94, "True", "AllGPUsReady", None),
        (999, "True", "XidUnlisted", Some("GPUsSuspect")),
        (43, "True", "XidUnlisted", None),
        (109, "False", "ResetRequired", Some("GPUsNotReady")),
        (31, "False", "ResetRequired", None),
    ] {
        nvml(xid)?;
        eventually(&format!("XID {xid} is counted"), SOON, async || {
            let metrics = f.metric_sum("berth_gpu_events_total").await?;
            ensure!(metrics >= 1.0, "{metrics}");
            Ok(())
        })
        .await?;
        let is = expect(&f, "l40s-0", status, reason).await?;
        if let Some(event) = event {
            let words = format!("XID {xid}: ");
            ensure!(is.message.as_deref().unwrap_or_default().contains(&words), "{is:?}");
            expect_event(&f, "l40s-0", event, &words).await?;
        }
    }
    f.cluster.node("l40s-0")?.set_driver(false).await?;
    eventually("the driver to be gone", SOON, async || {
        let nodes = f.controller_json("/nodes").await?;
        let nvml = &nodes["l40s-0"]["agent"]["nvml"];
        ensure!(nvml == "NoLibrary", "{nvml}");
        Ok(())
    })
    .await?;
    f.cluster.node("l40s-0")?.set_driver(true).await?;
    expect(&f, "l40s-0", "True", "AllGPUsReady").await?;
    expect_event(&f, "l40s-0", "GPUsReady", "").await
}

async fn slice(f: Fixture) -> anyhow::Result<()> {
    expect(&f, "h100-0", "True", "AllGPUsReady").await?;
    let mut ill = String::new();
    f.cluster.node("h100-0")?.nvml().change(|state| {
        let device = state.gpus[0].mig_devices()[1].clone();
        ill.clone_from(&device.uuid);
        state.gpus[0].push_xid_of(110, device.gpu_instance, Some(device.compute_instance));
        Ok(())
    })?;
    let is = expect(&f, "h100-0", "False", "ResetRequired").await?;
    let message = is.message.unwrap_or_default();
    ensure!(message.contains(&ill) && !message.contains("GPU-"), "{message}");

    // As a device plugin with a resource for each profile does.
    let slices = json!({"nvidia.com/mig-1g.10gb": "2", "nvidia.com/mig-3g.40gb": "1"});
    let status = json!({"status": {"capacity": slices, "allocatable": slices}});
    let nodes = Api::<Node>::all(f.client());
    nodes
        .patch_status("h100-0", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    let ns = f.namespace("slices").await?;
    let of_profile =
        |profile: &str| json!({"accelerator": {"interface": "CUDA", "class": "h100", "migProfile": profile}});
    f.apply_vllm(&ns, "large", of_profile("3g.40gb")).await?;
    f.apply_vllm(&ns, "small", of_profile("1g.10gb")).await?;
    f.expect_condition(&ns, "large", "Placed", ("True", "AllPlaced"))
        .await?;
    let said = f.expect_condition(&ns, "small", "Placed", ("False", "NoFit")).await?;
    ensure!(said.contains(&ill), "{said}");

    // It is destroyed, and made anew.
    let node = f.cluster.node("h100-0")?;
    let mut device = None;
    node.nvml().change(|state| {
        device = state.gpus[0].mig.as_mut().map(|mig| mig.devices.remove(1));
        state.gpus[0].push_mig_change();
        Ok(())
    })?;
    expect(&f, "h100-0", "True", "AllGPUsReady").await?;
    node.nvml().change(|state| {
        let mig = state.gpus[0].mig.as_mut();
        mig.into_iter().for_each(|mig| mig.devices.extend(device.clone()));
        state.gpus[0].push_mig_change();
        Ok(())
    })?;
    f.expect_condition(&ns, "small", "Placed", ("True", "AllPlaced"))
        .await?;
    f.delete_namespace(&ns).await
}
