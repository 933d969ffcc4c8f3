//! A model lands on the right GPU: AIDeployment to pods on nodes, on the real scheduler.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::names;
use berth_crds::premlabs::AIDeployment;
use berth_tests::{Fixture, Suite, condition, eventually, vllm};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new("aideployment")
        .trial(
            "the pinned example lands on a free GPU of its class and becomes Ready",
            |c| pinned_example(Fixture::new(c)),
        )
        .trial("engine generic without GPU carries no gate and runs", |c| {
            generic_without_gpu(Fixture::new(c))
        })
        .trial("a plain nodeSelector pin works as upstream", |c| {
            node_selector_pin(Fixture::new(c))
        })
        .trial(
            "a class that no node has waits with the nearest miss and is placed when a node appears",
            |c| no_class_then_node(Fixture::new(c)),
        )
        .trial(
            "more GPUs than any node has free waits and says by how much it misses",
            |c| too_many_gpus(Fixture::new(c)),
        )
        .trial("many pods at once never overfill a node", |c| burst(Fixture::new(c)))
        .trial("a child edited or deleted by hand is repaired", |c| {
            repair(Fixture::new(c))
        })
        .trial("endpoints that go take the Ingress with them", |c| {
            ingress_goes(Fixture::new(c))
        })
        .trial("a converged object costs no write, also after a restart", |c| {
            converged(Fixture::new(c))
        })
        .trial(
            "bad specs get a condition that names the field, and good ones go on",
            |c| bad_specs(Fixture::new(c)),
        )
        .trial("a same-named foreign child is never taken over", |c| {
            name_taken(Fixture::new(c))
        })
        .trial("a missing RuntimeClass is said clearly", |c| {
            runtime_class_missing(Fixture::new(c))
        })
        .trial("a pinned pod that the scheduler refuses is recovered elsewhere", |c| {
            refused_pin(Fixture::new(c))
        })
        .trial("every example is accepted with strict validation", |c| {
            examples(Fixture::new(c))
        })
        .run()
}

const SOON: Duration = Duration::from_secs(30);

async fn aid(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<AIDeployment> {
    Ok(Api::<AIDeployment>::namespaced(f.client(), ns).get(name).await?)
}

/// `(status, reason, message)` of a condition that is about the present generation.
async fn now(f: &Fixture, ns: &str, name: &str, type_: &str) -> anyhow::Result<(String, String, String)> {
    let object = aid(f, ns, name).await?;
    let status = object.status.clone().unwrap_or_default();
    condition(&status.conditions, type_, object.metadata.generation)
}

async fn pods(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<Vec<Pod>> {
    let selector = format!("mlcontroller.premlabs.io/ai-deployment={name}");
    let list = Api::<Pod>::namespaced(f.client(), ns)
        .list(&ListParams::default().labels(&selector))
        .await?;
    Ok(list
        .items
        .into_iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .collect())
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref().and_then(|s| s.node_name.clone())
}

fn gates(pod: &Pod) -> Vec<String> {
    pod.spec
        .iter()
        .flat_map(|s| s.scheduling_gates.iter().flatten())
        .map(|g| g.name.clone())
        .collect()
}

async fn pinned_example(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("pinned").await?;
    f.kubectl(&[
        "apply",
        "-n",
        &ns,
        "--validate=strict",
        "-f",
        &f.repo("examples/vllm-h100.yaml"),
    ])
    .await?;
    let pod = eventually("a running pod", SOON, async || {
        let pods = pods(&f, &ns, "vllm-h100").await?;
        ensure!(
            pods.len() == 1 && node_of(&pods[0]).is_some(),
            "{:?}",
            pods.iter().map(|p| (p.name_any(), node_of(p))).collect::<Vec<_>>()
        );
        Ok(pods[0].clone())
    })
    .await?;
    let node = Api::<Node>::all(f.client())
        .get(&node_of(&pod).context("bound")?)
        .await?;
    ensure!(
        node.labels().get(names::GPU_CLASS).map(String::as_str) == Some("h100"),
        "{:?}",
        node.labels()
    );
    ensure!(gates(&pod).is_empty());
    ensure!(
        pod.annotations().contains_key(names::PLACED_BECAUSE),
        "{:?}",
        pod.annotations()
    );
    eventually("Ready", SOON, async || {
        let status = aid(&f, &ns, "vllm-h100").await?.status.unwrap_or_default();
        ensure!(
            status.status.as_deref() == Some("Ready") && status.err_msg.is_none(),
            "{status:?}"
        );
        ensure!(
            status.ready_replicas == Some(1) && status.placements.len() == 1,
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    for (type_, reason) in [
        ("Accepted", "Valid"),
        ("Placed", "AllPlaced"),
        ("Available", "MinimumReplicasAvailable"),
    ] {
        f.expect_condition(&ns, "vllm-h100", type_, ("True", reason)).await?;
    }
    // The template keeps its gate for the pods to come.
    let deployment = Api::<Deployment>::namespaced(f.client(), &ns).get("vllm-h100").await?;
    let template = deployment.spec.context("spec")?.template.spec.context("pod spec")?;
    ensure!(
        template
            .scheduling_gates
            .iter()
            .flatten()
            .any(|g| g.name == names::GATE)
    );
    ensure!(template.runtime_class_name.as_deref() == Some("nvidia"));
    Api::<Service>::namespaced(f.client(), &ns).get("vllm-h100").await?;
    Api::<Ingress>::namespaced(f.client(), &ns).get("vllm-h100").await?;
    f.kubectl(&[
        "wait",
        "-n",
        &ns,
        "--for=condition=Available",
        "aid/vllm-h100",
        "--timeout=10s",
    ])
    .await?;
    // Events tell the story.
    let events = f.events_in(&ns, "Pod", &pod.name_any()).await?;
    ensure!(events.iter().any(|e| e.reason == "Placed"), "{events:?}");
    f.delete_namespace(&ns).await
}

async fn generic_without_gpu(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("generic").await?;
    let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": "plain"}, "spec": {
        "engine": {"name": "generic"}, "endpoint": [{"domain": "plain.example.com", "port": 8081}],
        "deployment": {"template": {"spec": {"containers": [{"name": "bun", "image": "oven/bun:latest"}]}}}}});
    f.apply(&ns, object).await?;
    f.expect_condition(&ns, "plain", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    let status = aid(&f, &ns, "plain").await?.status.unwrap_or_default();
    ensure!(
        status.conditions.iter().all(|c| c.type_ != "Placed"),
        "Placed is absent where nothing is placed: {status:?}"
    );
    let pod = pods(&f, &ns, "plain").await?.remove(0);
    ensure!(
        gates(&pod).is_empty() && pod.annotations().keys().all(|k| !k.starts_with(names::DOMAIN)),
        "{pod:?}"
    );
    let service = Api::<Service>::namespaced(f.client(), &ns).get("plain").await?;
    ensure!(service.spec.context("spec")?.ports.unwrap_or_default()[0].port == 8081);
    f.delete_namespace(&ns).await
}

async fn node_selector_pin(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("selector").await?;
    f.apply(
        &ns,
        vllm(
            "sel",
            json!({"accelerator": {"interface": "CUDA"}, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}),
        ),
    )
    .await?;
    eventually("a pod on l40s-0", SOON, async || {
        let nodes: Vec<_> = pods(&f, &ns, "sel").await?.iter().filter_map(node_of).collect();
        ensure!(nodes == ["l40s-0"], "{nodes:?}");
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}

async fn no_class_then_node(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("later").await?;
    f.apply(
        &ns,
        vllm("later", json!({"accelerator": {"interface": "CUDA", "class": "b200"}})),
    )
    .await?;
    let message = f.expect_condition(&ns, "later", "Placed", ("False", "NoFit")).await?;
    ensure!(message.contains("b200"), "names the class: {message}");
    let pod = pods(&f, &ns, "later").await?.remove(0);
    ensure!(gates(&pod) == [names::GATE], "still gated");
    eventually("an Event on the pod", SOON, async || {
        let events = f.events_in(&ns, "Pod", &pod.name_any()).await?;
        ensure!(
            events.iter().any(|e| e.reason == "NoFit" && e.message.contains("b200")),
            "{events:?}"
        );
        Ok(())
    })
    .await?;
    // A node with the class label and a device plugin, but no agent: counts by allocatable alone.
    f.add_node(
        "b200-0",
        json!({"berth.dev/gpu-class": "b200"}),
        json!({"nvidia.com/gpu": "8"}),
    )
    .await?;
    eventually("a pod on b200-0", SOON, async || {
        let nodes: Vec<_> = pods(&f, &ns, "later").await?.iter().filter_map(node_of).collect();
        ensure!(nodes == ["b200-0"], "{nodes:?}");
        Ok(())
    })
    .await?;
    f.expect_condition(&ns, "later", "Placed", ("True", "AllPlaced"))
        .await?;
    f.delete_namespace(&ns).await?;
    Api::<Node>::all(f.client())
        .delete("b200-0", &DeleteParams::default())
        .await?;
    Ok(())
}

async fn too_many_gpus(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("many").await?;
    f.apply(
        &ns,
        vllm(
            "many",
            json!({"accelerator": {"interface": "CUDA", "class": "l40s", "count": 6}}),
        ),
    )
    .await?;
    let message = f.expect_condition(&ns, "many", "Placed", ("False", "NoFit")).await?;
    ensure!(
        message.contains("l40s-0") && message.contains('6') && message.contains('4'),
        "says by how much it misses: {message}"
    );
    // The user asks for less; the pod is made anew and fits.
    let less = json!({"spec": {"deployment": {"accelerator": {"count": 4}}}});
    Api::<AIDeployment>::namespaced(f.client(), &ns)
        .patch("many", &PatchParams::default(), &Patch::Merge(&less))
        .await?;
    f.expect_condition(&ns, "many", "Placed", ("True", "AllPlaced")).await?;
    f.delete_namespace(&ns).await
}

async fn burst(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("burst").await?;
    // 6 T4s are free in the whole fleet at least; 40 replicas want one each.
    let mut object = vllm(
        "burst",
        json!({"accelerator": {"interface": "CUDA", "class": "t4"}, "replicas": 40}),
    );
    object["spec"]["deployment"]["placement"] = json!({"policy": "Managed"});
    f.apply(&ns, object).await?;
    eventually("all GPUs of t4-0 taken", SOON, async || {
        let on = pods(&f, &ns, "burst")
            .await?
            .iter()
            .filter(|p| node_of(p).as_deref() == Some("t4-0"))
            .count();
        ensure!(on == 4, "{on} on t4-0");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = pods(&f, &ns, "burst").await?;
    ensure!(all.len() == 40);
    for node in Api::<Node>::all(f.client()).list(&ListParams::default()).await? {
        let gpus = node
            .status
            .as_ref()
            .and_then(|s| s.allocatable.as_ref()?.get("nvidia.com/gpu").cloned());
        let gpus: usize = gpus.map_or(0, |q| q.0.parse().unwrap_or(0));
        let on = all.iter().filter(|p| node_of(p) == Some(node.name_any())).count();
        ensure!(on <= gpus, "{on} pods on {} with {gpus} GPUs", node.name_any());
    }
    let refused = all
        .iter()
        .filter(|p| gates(p).is_empty() && node_of(p).is_none())
        .count();
    ensure!(refused == 0, "{refused} pods were pinned to a node that has no room");
    let message = f
        .expect_condition(&ns, "burst", "Placed", ("False", "PartiallyPlaced"))
        .await?;
    ensure!(message.contains("40"), "{message}");
    f.delete_namespace(&ns).await
}

async fn repair(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("repair").await?;
    f.apply(&ns, vllm("fix", json!({"replicas": 1}))).await?;
    f.expect_condition(&ns, "fix", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    let services = Api::<Service>::namespaced(f.client(), &ns);
    let uid = services.get("fix").await?.uid();
    services.delete("fix", &DeleteParams::default()).await?;
    eventually("the Service again", SOON, async || {
        ensure!(services.get("fix").await?.uid() != uid);
        Ok(())
    })
    .await?;
    let deployments = Api::<Deployment>::namespaced(f.client(), &ns);
    let edit = json!({"spec": {"template": {"spec": {"containers": [{"name": "serving", "image": "evil:latest"}]}}}});
    deployments
        .patch("fix", &PatchParams::default(), &Patch::Strategic(&edit))
        .await?;
    eventually("the image again", SOON, async || {
        let spec = deployments
            .get("fix")
            .await?
            .spec
            .context("spec")?
            .template
            .spec
            .context("pod spec")?;
        ensure!(
            spec.containers[0].image.as_deref() == Some("vllm/vllm-openai:latest"),
            "{:?}",
            spec.containers[0].image
        );
        Ok(())
    })
    .await?;
    // What Berth does not set belongs to others and stays.
    let note = json!({"metadata": {"annotations": {"example.com/note": "mine"}}});
    deployments
        .patch("fix", &PatchParams::default(), &Patch::Merge(&note))
        .await?;
    f.apply(&ns, vllm("fix", json!({"replicas": 2}))).await?;
    eventually("two replicas", SOON, async || {
        ensure!(deployments.get("fix").await?.spec.context("spec")?.replicas == Some(2));
        Ok(())
    })
    .await?;
    ensure!(
        deployments
            .get("fix")
            .await?
            .annotations()
            .contains_key("example.com/note")
    );
    f.delete_namespace(&ns).await
}

async fn ingress_goes(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("ingress").await?;
    let mut object = vllm("web", json!({}));
    object["spec"]["endpoint"] = json!([{"domain": "a.example.com"}]);
    f.apply(&ns, object).await?;
    let ingresses = Api::<Ingress>::namespaced(f.client(), &ns);
    eventually("an Ingress", SOON, async || Ok(ingresses.get("web").await?)).await?;
    f.apply(&ns, vllm("web", json!({}))).await?;
    eventually("no Ingress", SOON, async || {
        ensure!(ingresses.get_opt("web").await?.is_none());
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}

async fn converged(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("converged").await?;
    let mut object = vllm(
        "calm",
        json!({"accelerator": {"interface": "CUDA"}, "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}}}),
    );
    object["spec"]["endpoint"] = json!([{"domain": "calm.example.com"}]);
    f.apply(&ns, object).await?;
    f.expect_condition(&ns, "calm", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = async || -> anyhow::Result<Vec<String>> {
        let all = f.controller_writes("").await?;
        Ok(all
            .into_iter()
            .filter(|w| w.contains(&format!("/namespaces/{ns}/")))
            .collect())
    };
    let before = writes().await?;
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = writes().await?;
    ensure!(after == before, "written after a restart: {:?}", &after[before.len()..]);
    f.delete_namespace(&ns).await
}

async fn bad_specs(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("bad").await?;
    let engine = |spec: Value| json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": "x"}, "spec": spec});
    let table = [
        ("empty", engine(json!({})), "engine"),
        ("unknown-engine", engine(json!({"engine": {"name": "warp"}})), "warp"),
        ("no-model", engine(json!({"engine": {"name": "vllm"}})), "models"),
        (
            "no-uri",
            engine(json!({"engine": {"name": "vllm"}, "models": [{}]})),
            "models[0]",
        ),
        (
            "opencl",
            vllm("x", json!({"accelerator": {"interface": "OpenCL"}})),
            "accelerator.interface",
        ),
        (
            "both",
            vllm(
                "x",
                json!({"accelerator": {"interface": "CUDA", "class": "h100", "classes": ["a100"]}}),
            ),
            "class",
        ),
        (
            "no-template",
            engine(json!({"engine": {"name": "generic"}})),
            "template",
        ),
        (
            "no-containers",
            engine(json!({"engine": {"name": "generic"}, "deployment": {"template": {"spec": {"containers": []}}}})),
            "containers",
        ),
        ("dotted.name", vllm("x", json!({})), "name"),
    ];
    for (name, object, _) in &table {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        f.apply(&ns, object).await?;
    }
    f.apply(&ns, vllm("good", json!({}))).await?;
    f.expect_condition(&ns, "good", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    for (name, _, names) in &table {
        let message = eventually(&format!("{name} is refused"), SOON, async || {
            let (status, reason, message) = now(&f, &ns, name, "Accepted").await?;
            ensure!(status == "False", "{status} {reason} {message}");
            Ok(message)
        })
        .await?;
        ensure!(message.contains(names), "{name}: {message:?} does not name {names:?}");
        let status = aid(&f, &ns, name).await?.status.unwrap_or_default();
        ensure!(
            status.status.as_deref() == Some("Failed") && status.err_msg.is_some(),
            "{name}: {status:?}"
        );
        ensure!(
            Api::<Deployment>::namespaced(f.client(), &ns)
                .get_opt(name)
                .await?
                .is_none(),
            "{name} has a Deployment"
        );
    }
    f.delete_namespace(&ns).await
}

async fn name_taken(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("taken").await?;
    let services = Api::<Service>::namespaced(f.client(), &ns);
    let foreign = json!({"metadata": {"name": "mine"}, "spec": {"ports": [{"port": 1}]}});
    services
        .create(&PostParams::default(), &serde_json::from_value(foreign)?)
        .await?;
    f.apply(&ns, vllm("mine", json!({}))).await?;
    let message = f
        .expect_condition(&ns, "mine", "Accepted", ("False", "NameTaken"))
        .await?;
    ensure!(message.contains("Service"), "{message}");
    ensure!(
        services
            .get("mine")
            .await?
            .spec
            .context("spec")?
            .ports
            .unwrap_or_default()[0]
            .port
            == 1,
        "left alone"
    );
    services.delete("mine", &DeleteParams::default()).await?;
    f.expect_condition(&ns, "mine", "Accepted", ("True", "Valid")).await?;
    f.delete_namespace(&ns).await
}

async fn runtime_class_missing(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("runtime").await?;
    let classes = Api::<RuntimeClass>::all(f.client());
    let mut nvidia = classes.get("nvidia").await?;
    classes.delete("nvidia", &DeleteParams::default()).await?;
    f.apply(&ns, vllm("gpu", json!({"accelerator": {"interface": "CUDA"}})))
        .await?;
    let message = f
        .expect_condition(&ns, "gpu", "Available", ("False", "RuntimeClassMissing"))
        .await?;
    ensure!(message.contains("nvidia"), "{message}");
    nvidia.metadata.resource_version = None;
    nvidia.metadata.uid = None;
    nvidia.metadata.managed_fields = None;
    classes.create(&PostParams::default(), &nvidia).await?;
    eventually("Available", Duration::from_secs(90), async || {
        let (status, reason, message) = now(&f, &ns, "gpu", "Available").await?;
        ensure!(status == "True", "{status} {reason} {message}");
        Ok(())
    })
    .await?;
    f.delete_namespace(&ns).await
}

async fn refused_pin(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("refused").await?;
    // What Berth does not model: a pod anti-affinity that forbids the node it would choose first.
    let blocker = json!({"metadata": {"name": "blocker", "labels": {"hostile": "yes"}}, "spec": {"nodeName": "h100-0",
        "containers": [{"name": "c", "image": "x"}]}});
    Api::<Pod>::namespaced(f.client(), &ns)
        .create(&PostParams::default(), &serde_json::from_value(blocker)?)
        .await?;
    let anti = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"hostile": "yes"}}}]}});
    let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": "shy"}, "spec": {
        "engine": {"name": "generic"}, "deployment": {"replicas": 1, "accelerator": {"interface": "CUDA", "class": "h100", "count": 2},
        "template": {"spec": {"affinity": anti, "containers": [{"name": "c", "image": "x"}]}}}}});
    f.apply(&ns, object).await?;
    let node = eventually("a bound pod", Duration::from_secs(60), async || {
        let nodes: Vec<_> = pods(&f, &ns, "shy").await?.iter().filter_map(node_of).collect();
        ensure!(nodes.len() == 1, "{nodes:?}");
        Ok(nodes[0].clone())
    })
    .await?;
    ensure!(node == "h100-1", "is on {node}");
    f.delete_namespace(&ns).await
}

async fn examples(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("examples").await?;
    let mut applied = 0;
    for entry in std::fs::read_dir(f.repo("examples"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            f.kubectl(&[
                "apply",
                "-n",
                &ns,
                "--validate=strict",
                "--dry-run=server",
                "-f",
                &path.to_string_lossy(),
            ])
            .await?;
            applied += 1;
        }
    }
    ensure!(applied >= 3, "{applied} examples");
    f.delete_namespace(&ns).await
}
