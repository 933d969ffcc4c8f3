//! The optional fields of AIDeployments on a real control plane: rollouts on full nodes, MIG slices, autoscalers, Gateways.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::Fleet;
use berth_tests::{Fixture, Suite, eventually, vllm};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

// Trials that take nothing which another one needs leave their namespace to the end of the cluster.
const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let fleet: Fleet = serde_json::from_value(json!({"nodes": [
        {"name": "one-0", "gpus": [{"model": "t4", "count": 1}]},
        {"name": "two-0", "gpus": [{"model": "l40s", "count": 2}]},
    ]}))
    .unwrap_or_else(|error| panic!("{error}"));
    Suite::new("aideployment_fields")
        .fleet(fleet)
        .values(json!({"aiDeployment": {
            "gpuTolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "engineImages": {"vllm": {"repository": "registry.example.com:5000/vllm", "tag": "v1"}},
        }}))
        .trial("a rollout on a full node drains first, and nobody has to help", |c| {
            full_node(Fixture::new(c))
        })
        .trial("with a free GPU the old pod stays until the new one is Ready", |c| {
            free_gpu(Fixture::new(c))
        })
        .trial("an edit that fits nowhere takes no running pod away", |c| {
            hopeless_edit(Fixture::new(c))
        })
        .trial("a MIG slice is asked by profile and placed where there is one", |c| {
            mig(Fixture::new(c))
        })
        .trial("replicas are left to an autoscaler without falling back to 1", |c| {
            autoscaler(Fixture::new(c))
        })
        .trial("kubectl scale works on the AIDeployment", |c| scale(Fixture::new(c)))
        .trial(
            "a Gateway API that is not there is a condition, and one that comes is used",
            |c| gateway(Fixture::new(c)),
        )
        .run()
}

fn deployments(f: &Fixture, ns: &str) -> Api<Deployment> {
    Api::namespaced(f.client(), ns)
}

/// An edit of the AIDeployment's spec, as a merge patch.
async fn edit(f: &Fixture, ns: &str, name: &str, spec: Value) -> anyhow::Result<()> {
    let api = Api::<berth_crds::premlabs::AIDeployment>::namespaced(f.client(), ns);
    api.patch(name, &PatchParams::default(), &Patch::Merge(&json!({"spec": spec})))
        .await?;
    Ok(())
}

/// Image and readiness of the pods that are not being deleted.
async fn pods(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<Vec<(String, bool)>> {
    let selector = format!("mlcontroller.premlabs.io/ai-deployment={name}");
    let list = Api::<Pod>::namespaced(f.client(), ns)
        .list(&ListParams::default().labels(&selector))
        .await?;
    let alive = list.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    Ok(alive
        .map(|p| {
            let image = p.spec.and_then(|s| s.containers[0].image.clone()).unwrap_or_default();
            let conditions = p.status.and_then(|s| s.conditions).unwrap_or_default();
            let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            (image, ready)
        })
        .collect())
}

async fn max_unavailable(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<Option<IntOrString>> {
    let spec = deployments(f, ns).get(name).await?.spec.context("spec")?;
    Ok(spec
        .strategy
        .and_then(|s| s.rolling_update)
        .and_then(|r| r.max_unavailable))
}

fn the_apis() -> Option<IntOrString> {
    Some(IntOrString::String("25%".into()))
}

async fn ready_with(f: &Fixture, ns: &str, name: &str, image: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} runs {image} alone"), SOON, async || {
        let pods = pods(f, ns, name).await?;
        ensure!(pods == [(image.to_owned(), true)], "{pods:?}");
        Ok(())
    })
    .await
}

async fn full_node(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("full").await?;
    // The node is tainted for its GPU, as many clusters do; the installation's tolerations are for that.
    let taint = json!({"spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}});
    Api::<Node>::all(f.client())
        .patch("one-0", &PatchParams::default(), &Patch::Merge(&taint))
        .await?;
    let options = json!({"accelerator": {"interface": "CUDA", "class": "t4"}});
    f.apply(&ns, vllm("full", options)).await?;
    ready_with(&f, &ns, "full", "registry.example.com:5000/vllm:v1").await?;
    ensure!(max_unavailable(&f, &ns, "full").await? == the_apis());

    edit(&f, &ns, "full", json!({"engine": {"options": {"imageTag": "v2"}}})).await?;
    ready_with(&f, &ns, "full", "registry.example.com:5000/vllm:v2").await?;
    f.expect_condition(&ns, "full", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    f.expect_condition(&ns, "full", "Placed", ("True", "AllPlaced")).await?;
    eventually("the API's own strategy again", SOON, async || {
        let now = max_unavailable(&f, &ns, "full").await?;
        ensure!(now == the_apis(), "{now:?}");
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}

async fn free_gpu(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("free").await?;
    let options = json!({"accelerator": {"interface": "CUDA", "class": "l40s"}});
    f.apply(&ns, vllm("free", options)).await?;
    ready_with(&f, &ns, "free", "registry.example.com:5000/vllm:v1").await?;
    edit(&f, &ns, "free", json!({"engine": {"options": {"imageTag": "v2"}}})).await?;
    let new = "registry.example.com:5000/vllm:v2";
    eventually("the new version alone", SOON, async || {
        // Asked of every look, so out of reach of the patience around it.
        let pods = pods(&f, &ns, "free").await?;
        if !pods.iter().any(|(_, ready)| *ready) {
            panic!("no pod was Ready: {pods:?}");
        }
        let now = max_unavailable(&f, &ns, "free").await?;
        if now != the_apis() {
            panic!("a rollout that was not stuck was let go: {now:?}");
        }
        ensure!(pods == [(new.to_owned(), true)], "{pods:?}");
        Ok(())
    })
    .await?;
    Ok(())
}

async fn hopeless_edit(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("hopeless").await?;
    let options = json!({"accelerator": {"interface": "CUDA", "class": "t4"}});
    f.apply(&ns, vllm("keep", options)).await?;
    ready_with(&f, &ns, "keep", "registry.example.com:5000/vllm:v1").await?;
    edit(
        &f,
        &ns,
        "keep",
        json!({"deployment": {"accelerator": {"class": "b200"}}}),
    )
    .await?;
    let message = f
        .expect_condition(&ns, "keep", "Placed", ("False", "PartiallyPlaced"))
        .await?;
    ensure!(message.contains("b200"), "{message}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = pods(&f, &ns, "keep")
        .await?
        .into_iter()
        .filter(|(_, ready)| *ready)
        .count();
    ensure!(ready == 1, "the pod that serves went");
    ensure!(max_unavailable(&f, &ns, "keep").await? == the_apis());
    Ok(())
}

async fn mig(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("mig").await?;
    let options = json!({"accelerator": {"interface": "CUDA", "class": "h100", "migProfile": "1g.10gb+me"}});
    f.apply(&ns, vllm("slice", options)).await?;
    f.expect_condition(&ns, "slice", "Placed", ("False", "NoDevicePlugin"))
        .await?;
    f.add_node(
        "slices-0",
        json!({"berth.dev/gpu-class": "h100"}),
        json!({"nvidia.com/mig-1g.10gb.me": "1", "nvidia.com/mig-1g.10gb": "6"}),
    )
    .await?;
    eventually("a pod on slices-0", SOON, async || {
        let nodes = f.nodes_of(&ns, "slice").await?;
        ensure!(nodes == ["slices-0"], "{nodes:?}");
        Ok(())
    })
    .await?;
    f.expect_condition(&ns, "slice", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    Ok(())
}

/// Managers of the number of replicas.
fn owners_of_replicas(deployment: &Deployment) -> Vec<String> {
    let entries = deployment.managed_fields().iter();
    let owns = |fields: &Value| fields.pointer("/f:spec/f:replicas").is_some();
    entries
        .filter(|e| e.fields_v1.as_ref().is_some_and(|f| owns(&f.0)))
        .filter_map(|e| e.manager.clone())
        .collect()
}

async fn autoscaler(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("hpa").await?;
    f.apply(&ns, vllm("auto", json!({"replicas": 3}))).await?;
    let deployments = deployments(&f, &ns);
    let replicas = async || Ok::<_, anyhow::Error>(deployments.get("auto").await?.spec.context("spec")?.replicas);
    eventually("3 replicas", SOON, async || {
        ensure!(replicas().await? == Some(3));
        Ok(())
    })
    .await?;
    // Without metrics it scales only to its bounds: here it has no reason to.
    let autoscaler = json!({"metadata": {"name": "auto"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "auto"},
        "minReplicas": 2, "maxReplicas": 6,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    let autoscalers = Api::<HorizontalPodAutoscaler>::namespaced(f.client(), &ns);
    autoscalers
        .create(&PostParams::default(), &serde_json::from_value(autoscaler)?)
        .await?;
    eventually("the replicas are another's", SOON, async || {
        let deployment = deployments.get("auto").await?;
        let now = deployment.spec.as_ref().and_then(|s| s.replicas);
        if now != Some(3) {
            panic!("fell to {now:?}");
        }
        let owners = owners_of_replicas(&deployment);
        ensure!(owners == ["berth/scaling"], "{owners:?}");
        Ok(())
    })
    .await?;
    // As the autoscaler does it.
    f.kubectl(&["scale", "-n", &ns, "deployment/auto", "--replicas=5"])
        .await?;
    edit(
        &f,
        &ns,
        "auto",
        json!({"deployment": {"annotations": {"note": "changed"}}}),
    )
    .await?;
    eventually("an edit reaches the pods", SOON, async || {
        let deployment = deployments.get("auto").await?;
        let now = deployment.spec.as_ref().and_then(|s| s.replicas);
        if now != Some(5) {
            panic!("taken back to {now:?}");
        }
        let template = deployment.spec.context("spec")?.template.metadata.unwrap_or_default();
        ensure!(template.annotations.unwrap_or_default().contains_key("note"));
        Ok(())
    })
    .await?;
    autoscalers.delete("auto", &DeleteParams::default()).await?;
    eventually("the spec's number again", SOON, async || {
        ensure!(replicas().await? == Some(3));
        Ok(())
    })
    .await?;
    Ok(())
}

async fn scale(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("scale").await?;
    f.apply(&ns, vllm("wide", json!({"replicas": 1}))).await?;
    f.expect_condition(&ns, "wide", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    f.kubectl(&["scale", "-n", &ns, "aid/wide", "--replicas=2"]).await?;
    eventually("2 pods, and the scale subresource says so", SOON, async || {
        let pods = pods(&f, &ns, "wide").await?;
        ensure!(pods.len() == 2, "{pods:?}");
        let text = f
            .kubectl(&[
                "get",
                "-n",
                &ns,
                "aid/wide",
                "--subresource=scale",
                "-o",
                "jsonpath={.status.replicas}",
            ])
            .await?;
        ensure!(text == "2", "{text}");
        Ok(())
    })
    .await?;
    Ok(())
}

/// As much of the Gateway API as it takes: the group, the kind, and a schema that lets all through.
fn http_route_crd() -> Value {
    json!({"metadata": {"name": "httproutes.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {"group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": {"kind": "HTTPRoute", "listKind": "HTTPRouteList", "plural": "httproutes", "singular": "httproute"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}

async fn gateway(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("gateway").await?;
    let mut object = vllm("web", json!({}));
    object["spec"]["endpoint"] = json!([{"domain": "a.example.com"}]);
    f.apply(&ns, object.clone()).await?;
    let ingresses = Api::<Ingress>::namespaced(f.client(), &ns);
    eventually("an Ingress", SOON, async || Ok(ingresses.get("web").await?)).await?;

    object["spec"]["gateway"] = json!({"parentRefs": [{"name": "public"}]});
    object["spec"]["service"] = json!({"type": "NodePort"});
    f.apply(&ns, object.clone()).await?;
    f.expect_condition(&ns, "web", "Accepted", ("False", "ApiNotInstalled"))
        .await?;
    // Everything else is done, and what publishes the model stays.
    let service = Api::<Service>::namespaced(f.client(), &ns).get("web").await?;
    ensure!(service.spec.context("spec")?.type_.as_deref() == Some("NodePort"));
    ingresses.get("web").await?;
    f.expect_condition(&ns, "web", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    let before = f.controller_writes("").await?.len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = f.controller_writes("").await?;
    ensure!(after.len() == before, "still writing: {:?}", &after[before..]);

    let crds = Api::<CustomResourceDefinition>::all(f.client());
    let crd = crds
        .create(&PostParams::default(), &serde_json::from_value(http_route_crd())?)
        .await?;
    let resource = ApiResource {
        group: crd.spec.group.clone(),
        version: "v1".into(),
        api_version: "gateway.networking.k8s.io/v1".into(),
        kind: "HTTPRoute".into(),
        plural: "httproutes".into(),
    };
    let routes = Api::<DynamicObject>::namespaced_with(f.client(), &ns, &resource);
    let route = eventually("an HTTPRoute", Duration::from_secs(60), async || {
        Ok(routes.get("web").await?)
    })
    .await?;
    ensure!(
        route.data["spec"]["hostnames"] == json!(["a.example.com"]),
        "{:?}",
        route.data
    );
    ensure!(route.metadata.owner_references.is_some());
    f.expect_condition(&ns, "web", "Accepted", ("True", "Valid")).await?;
    eventually("no Ingress beside it", SOON, async || {
        ensure!(ingresses.get_opt("web").await?.is_none());
        Ok(())
    })
    .await?;

    // Deleted by hand it is made anew, and it goes with the field.
    routes.delete("web", &DeleteParams::default()).await?;
    eventually("the HTTPRoute again", SOON, async || {
        let uid = routes.get("web").await?.uid();
        ensure!(uid != route.uid());
        Ok(())
    })
    .await?;
    object["spec"].as_object_mut().context("spec")?.remove("gateway");
    f.apply(&ns, object).await?;
    eventually("an Ingress instead of the HTTPRoute", SOON, async || {
        ensure!(routes.get_opt("web").await?.is_none());
        ingresses.get("web").await?;
        Ok(())
    })
    .await?;
    crds.delete(&crd.name_any(), &DeleteParams::default()).await?;
    Ok(())
}
