//! `helm uninstall` leaves no gate and no taint behind and restarts nothing; a cluster without a device plugin gets told.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use berth_crds::access::UNHEALTHY_TAINT;
use berth_crds::names;
use berth_tests::{Fixture, NAMESPACE, Suite, eventually};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

/// A node that is tainted for its health.
const ILL: &str = "t4-0";
/// A pod that may not be changed, and the policy that says so.
const STUBBORN: &str = "stubborn";

fn main() -> ExitCode {
    Suite::new("uninstall")
        .values(json!({"health": {"taint": "any"}}))
        .trial(
            "without a device plugin anywhere the message says that one is required",
            |c| no_device_plugin(Fixture::new(c)),
        )
        .trial(
            "uninstall releases nodes, waiting pods and templates and restarts nothing, what stands in its way is tried again",
            |c| uninstall(Fixture::new(c)),
        )
        .run()
}

async fn no_device_plugin(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    let mut had = Vec::new();
    for node in nodes.list(&Default::default()).await? {
        let gpus = node
            .status
            .as_ref()
            .and_then(|s| s.allocatable.as_ref()?.get("nvidia.com/gpu").cloned());
        if let Some(gpus) = gpus {
            let gone =
                json!({"status": {"allocatable": {"nvidia.com/gpu": null}, "capacity": {"nvidia.com/gpu": null}}});
            nodes
                .patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(&gone))
                .await?;
            had.push((node.name_any(), gpus));
        }
    }
    ensure!(!had.is_empty(), "nothing was advertised to begin with");
    let ns = f.namespace("plugin").await?;
    f.apply_vllm(&ns, "needy", json!({"accelerator": {"interface": "CUDA"}}))
        .await?;
    let message = f
        .expect_condition(&ns, "needy", "Placed", ("False", "NoDevicePlugin"))
        .await?;
    ensure!(message.contains("device plugin"), "{message}");
    for (name, gpus) in had {
        let back = json!({"status": {"allocatable": {"nvidia.com/gpu": gpus}, "capacity": {"nvidia.com/gpu": gpus}}});
        nodes
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(&back))
            .await?;
    }
    f.expect_condition(&ns, "needy", "Placed", ("True", "AllPlaced"))
        .await?;
    f.delete_namespace(&ns).await
}

async fn expect_taint(f: &Fixture, wanted: bool) -> anyhow::Result<()> {
    eventually(
        &format!("taint on {ILL}: {wanted}"),
        Duration::from_secs(90),
        async || {
            let taints = Api::<Node>::all(f.client()).get(ILL).await?.spec.and_then(|s| s.taints);
            let is = taints.iter().flatten().any(|t| t.key == UNHEALTHY_TAINT);
            ensure!(is == wanted, "{taints:?}");
            Ok(())
        },
    )
    .await
}

/// A waiting pod that nobody may change.
async fn stand_in_the_way(f: &Fixture, ns: &str) -> anyhow::Result<()> {
    let policy = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
         "metadata": {"name": STUBBORN},
         "spec": {
             "matchConstraints": {"resourceRules": [
                 {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["UPDATE"]}]},
             "validations": [{"expression": format!("object.metadata.name != '{STUBBORN}'")}]}},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
         "metadata": {"name": STUBBORN},
         "spec": {"policyName": STUBBORN, "validationActions": ["Deny"]}},
    ]});
    f.cluster.apply(&policy.to_string()).await?;
    let pod = json!({
        "metadata": {"name": STUBBORN, "annotations": {"berth.dev/gpu-class": "b200"}},
        "spec": {"schedulingGates": [{"name": names::GATE}], "containers": [
            {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
    });
    let pods = Api::<Pod>::namespaced(f.client(), ns);
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    eventually("nobody may change it", Duration::from_secs(30), async || {
        let change = json!({"metadata": {"annotations": {"test": "x"}}});
        let changed = pods
            .patch(STUBBORN, &PatchParams::default(), &Patch::Merge(&change))
            .await;
        ensure!(changed.is_err(), "it was changed");
        Ok(())
    })
    .await
}

async fn uninstall(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("leaving").await?;
    f.apply_vllm(
        &ns,
        "runs",
        json!({"accelerator": {"interface": "CUDA", "class": "h100"}, "replicas": 2}),
    )
    .await?;
    f.expect_condition(&ns, "runs", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    f.expect_condition(&ns, "runs", "Placed", ("True", "AllPlaced")).await?;
    f.apply_vllm(
        &ns,
        "waits",
        json!({"accelerator": {"interface": "CUDA", "class": "b200"}}),
    )
    .await?;
    f.expect_condition(&ns, "waits", "Placed", ("False", "NoFit")).await?;

    let pods = Api::<Pod>::namespaced(f.client(), &ns);
    let running = async || -> anyhow::Result<BTreeSet<String>> {
        let list = pods
            .list(&kube::api::ListParams::default().labels("mlcontroller.premlabs.io/ai-deployment=runs"))
            .await?;
        Ok(list.iter().filter_map(ResourceExt::uid).collect())
    };
    let before = running().await?;
    ensure!(before.len() == 2);
    f.cluster.node(ILL)?.nvml().change(|state| {
        state.gpus[0].push_xid(62);
        Ok(())
    })?;
    expect_taint(&f, true).await?;
    stand_in_the_way(&f, &ns).await?;
    let uninstalled = async {
        let words = ["uninstall", "berth", "-n", NAMESPACE, "--wait", "--timeout", "180s"];
        f.helm(&words).await
    };
    let out_of_the_way = async {
        // Pods that cannot be released keep no node tainted.
        expect_taint(&f, false).await?;
        f.kubectl(&["delete", "validatingadmissionpolicybindings", STUBBORN])
            .await
    };
    tokio::try_join!(uninstalled, out_of_the_way)?;

    for deployment in Api::<Deployment>::namespaced(f.client(), &ns)
        .list(&Default::default())
        .await?
    {
        let spec = deployment.spec.clone().unwrap_or_default();
        let gates = spec.template.spec.and_then(|s| s.scheduling_gates).unwrap_or_default();
        ensure!(
            gates.is_empty() && spec.paused != Some(true),
            "{}: {gates:?}",
            deployment.name_any()
        );
    }
    for set in Api::<ReplicaSet>::namespaced(f.client(), &ns)
        .list(&Default::default())
        .await?
    {
        let gates = set
            .spec
            .clone()
            .and_then(|s| s.template?.spec?.scheduling_gates)
            .unwrap_or_default();
        ensure!(
            gates.is_empty() || set.spec.as_ref().and_then(|s| s.replicas) == Some(0),
            "{}: {gates:?}",
            set.name_any()
        );
    }
    for pod in pods.list(&Default::default()).await? {
        let gates = pod
            .spec
            .as_ref()
            .and_then(|s| s.scheduling_gates.clone())
            .unwrap_or_default();
        ensure!(gates.iter().all(|g| g.name != names::GATE), "{}", pod.name_any());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(running().await? == before, "running pods were restarted");
    // The users' objects are still there, and nothing of ours runs.
    f.kubectl(&["get", "aid", "-n", &ns, "runs"]).await?;
    eventually("no pod of ours", Duration::from_secs(30), async || {
        let left = Api::<Pod>::namespaced(f.client(), NAMESPACE)
            .list(&Default::default())
            .await?;
        ensure!(
            left.items.is_empty(),
            "{:?}",
            left.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        );
        Ok(())
    })
    .await
}
