//! AIModels: what the original's manifests give, what workers report, and what KEDA is told.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::names;
use berth_crds::youxam::{AIModel, AIModelStatus, keys};
use berth_tests::{Fixture, NAMESPACE, Suite, condition, eventually};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SAMPLES: &str = "tests/behaviour/aimodel-samples.yaml";
const SOON: Duration = Duration::from_secs(30);
/// An API that comes later is noticed within this.
const DISCOVERY: Duration = Duration::from_secs(60);
/// Long enough for what must not come.
const A_WHILE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    Suite::new("aimodel")
        .values(json!({"pulsar": {"adminURL": "http://pulsar:8080", "url": "pulsar://pulsar:6650"}}))
        .trial(
            "every sample is accepted and gives the original's objects, without KEDA too",
            |c| samples(Fixture::new(c)),
        )
        .trial("a worker's error fails the model until its spec is changed", |c| {
            worker_errors(Fixture::new(c))
        })
        .trial("only what the pods are made of makes them anew, and once", |c| {
            rollouts(Fixture::new(c))
        })
        .trial("what is in the way is said, and left alone", |c| {
            in_the_way(Fixture::new(c))
        })
        .trial("workers that ask for GPUs are placed by Berth", |c| {
            gpus(Fixture::new(c))
        })
        .trial(
            "errors and deletions of the time without a controller are caught up with",
            |c| controller_down(Fixture::new(c)),
        )
        .trial("KEDA is told what to scale by, and leaves the number alone", |c| {
            scaled(Fixture::new(c))
        })
        .trial(
            "what the original left behind is taken over without restarting a pod",
            |c| left_behind(Fixture::new(c)),
        )
        .trial("a child that somebody keeps changing holds up no other", |c| {
            kept_changing(Fixture::new(c))
        })
        .run()
}

fn models(f: &Fixture, ns: &str) -> Api<AIModel> {
    Api::namespaced(f.client(), ns)
}

fn deployments(f: &Fixture, ns: &str) -> Api<Deployment> {
    Api::namespaced(f.client(), ns)
}

fn model(name: &str, more: Value) -> Value {
    let mut spec = json!({"type": "local", "model": "tiny", "image": "worker:1"});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({"apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "metadata": {"name": name}, "spec": spec})
}

async fn apply(f: &Fixture, ns: &str, object: Value) -> anyhow::Result<()> {
    let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
    let params = PatchParams::apply("user").force().validation_strict();
    models(f, ns).patch(&name, &params, &Patch::Apply(&object)).await?;
    Ok(())
}

async fn edit(f: &Fixture, ns: &str, name: &str, spec: Value) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    models(f, ns).patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn status(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<AIModelStatus> {
    Ok(models(f, ns).get(name).await?.status.unwrap_or_default())
}

/// Waits until the state is told of the present generation; the message.
async fn expect_state(f: &Fixture, ns: &str, name: &str, state: &str) -> anyhow::Result<String> {
    eventually(&format!("{name} is {state}"), SOON, async || {
        let object = models(f, ns).get(name).await?;
        let status = object.status.clone().unwrap_or_default();
        condition(&status.conditions, "WorkersHealthy", object.metadata.generation)?;
        ensure!(status.state.as_deref() == Some(state), "{status:?}");
        Ok(status.message.unwrap_or_default())
    })
    .await
}

async fn expect_condition(
    f: &Fixture,
    ns: &str,
    name: &str,
    type_: &str,
    wanted: (&str, &str),
    within: Duration,
) -> anyhow::Result<String> {
    eventually(&format!("{type_} of {name} is {wanted:?}"), within, async || {
        let object = models(f, ns).get(name).await?;
        let conditions = object.status.clone().unwrap_or_default().conditions;
        let (status, reason, message) = condition(&conditions, type_, object.metadata.generation)?;
        ensure!(
            (status.as_str(), reason.as_str()) == wanted,
            "{status} {reason}: {message}"
        );
        Ok(message)
    })
    .await
}

async fn samples(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("samples").await?;
    f.kubectl(&["apply", "-n", &ns, "--validate=strict", "-f", &f.repo(SAMPLES)])
        .await?;
    for name in [
        "aimodel-sample",
        "ai-model-plain",
        "ai-model-sample",
        "remote-model",
        "scaled-model",
    ] {
        expect_state(&f, &ns, name, "Running").await?;
        expect_condition(&f, &ns, name, "Available", ("True", "MinimumReplicasAvailable"), SOON).await?;
    }
    let table = f.kubectl(&["get", "aimodels", "-n", &ns, "aimodel-sample"]).await?;
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    let want = [
        ["NAME", "TYPE", "MODEL", "REPLICAS", "STATE"],
        ["aimodel-sample", "local", "TinyLlama-1.1B", "3", "Running"],
    ];
    ensure!(rows == want, "{table}");

    // The children, as they came out of the API server.
    let name = "aimodel-sample";
    let account = Api::<ServiceAccount>::namespaced(f.client(), &ns)
        .get("aimodel-sample-deployment-sa")
        .await?;
    let role = Api::<Role>::namespaced(f.client(), &ns)
        .get("aimodel-sample-deployment-event-role")
        .await?;
    let binding = Api::<RoleBinding>::namespaced(f.client(), &ns)
        .get("aimodel-sample-deployment-event-rolebinding")
        .await?;
    ensure!(
        json!(role.rules)
            == json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch", "update"]}]),
        "{role:?}"
    );
    ensure!(
        binding.role_ref.name == role.name_any() && binding.subjects.unwrap_or_default()[0].name == account.name_any()
    );
    let deployment = deployments(&f, &ns).get("aimodel-sample-deployment").await?;
    let owner = &deployment.metadata.owner_references.clone().unwrap_or_default()[0];
    ensure!(owner.kind == "AIModel" && owner.name == name && owner.controller == Some(true));
    let spec = deployment.spec.clone().context("spec")?;
    ensure!(json!(spec.selector) == json!({"matchLabels": {"aimodel-internel-selector": name}}));
    let made = account.metadata.creation_timestamp.context("a time")?;
    let template = spec.template.metadata.context("metadata")?;
    ensure!(
        json!(template.annotations) == json!({keys::SERVICE_ACCOUNT_SEEN: made}),
        "{:?}",
        template.annotations
    );
    ensure!(
        template.labels.clone().unwrap_or_default().len() == 6,
        "{:?}",
        template.labels
    );
    let pod = spec.template.spec.context("pod")?;
    ensure!(pod.service_account_name.as_deref() == Some("aimodel-sample-deployment-sa"));
    let env = json!(pod.containers[0].env);
    let want = json!([
        {"name": "NODE_TYPE", "value": "local"}, {"name": "MODEL_NAME", "value": "TinyLlama-1.1B"},
        {"name": "API_URL"}, {"name": "API_KEY"}, {"name": "MAX_PROCESS_NUM", "value": "128"},
        {"name": "PULSAR_URL", "value": "pulsar://pulsar:6650"}, {"name": "PULSAR_TOKEN"},
        {"name": "RES_TOPIC_NAME", "value": "res-topic"}, {"name": "AIMODEL_NAME", "value": name},
        {"name": "AIMODEL_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}},
    ]);
    ensure!(env == want, "{env}");
    // A user's Service selects by a label of the AIModel; the demo's by the selector's own.
    for (selector, pods) in [("app=ai-model", 3), ("aimodel-internel-selector=ai-model-plain", 3)] {
        let list = Api::<Pod>::namespaced(f.client(), &ns)
            .list(&ListParams::default().labels(selector))
            .await?;
        ensure!(list.items.len() == pods, "{selector}: {}", list.items.len());
    }

    // Without KEDA a condition says so, and everything else is as without scaling.
    for (scaled, replicas) in [("ai-model-sample", 3), ("scaled-model", 1)] {
        let reason = ("False", "ApiNotInstalled");
        let message = expect_condition(&f, &ns, scaled, "ScalingActive", reason, SOON).await?;
        ensure!(message.contains("keda.sh"), "{message}");
        let deployment = deployments(&f, &ns).get(&keys::deployment(scaled)).await?;
        ensure!(deployment.spec.context("spec")?.replicas == Some(replicas), "{scaled}");
    }
    edit(&f, &ns, "scaled-model", json!({"replicas": 2})).await?;
    expect_replicas(&f, &ns, "scaled-model", 2).await?;
    // Converged: no write from here on.
    expect_state(&f, &ns, "scaled-model", "Running").await?;
    tokio::time::sleep(A_WHILE).await;
    let before = f.controller_writes("").await?;
    tokio::time::sleep(A_WHILE).await;
    let after = f.controller_writes("").await?;
    ensure!(after.len() == before.len(), "{:?}", &after[before.len()..]);

    // For a later trial: it takes a while until the API is noticed.
    install_keda(&f).await?;
    Ok(())
}

async fn expect_replicas(f: &Fixture, ns: &str, name: &str, replicas: i32) -> anyhow::Result<()> {
    eventually(&format!("{name} has {replicas} workers"), SOON, async || {
        let deployment = deployments(f, ns).get(&keys::deployment(name)).await?;
        let now = deployment.spec.context("spec")?.replicas;
        ensure!(now == Some(replicas), "{now:?}");
        Ok(())
    })
    .await
}

/// An Event as the original's worker writes it, by the worker's own right.
async fn report(f: &Fixture, ns: &str, model: &str, message: &str, change: Value) -> anyhow::Result<String> {
    let user = format!("system:serviceaccount:{ns}:{}", keys::service_account(model));
    let events = Api::<Event>::namespaced(f.client_as(&user).await?, ns);
    let now = jiff::Timestamp::now().to_string();
    let mut event = json!({
        "metadata": {"generateName": format!("{model}-error-"), "namespace": ns},
        "involvedObject": {"kind": "AIModel", "namespace": ns, "name": model},
        "source": {"component": "worker"}, "type": "Warning", "reason": "ConfigurationError", "message": message,
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    for (path, value) in change.as_object().into_iter().flatten() {
        *event.pointer_mut(path).context("a field")? = value.clone();
    }
    let made = events
        .create(&PostParams::default(), &serde_json::from_value(event)?)
        .await?;
    Ok(made.name_any())
}

async fn worker_errors(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("errors").await?;
    for name in ["one", "two"] {
        apply(&f, &ns, model(name, json!({}))).await?;
        expect_state(&f, &ns, name, "Running").await?;
    }
    let event = report(&f, &ns, "one", "no such model", json!({})).await?;
    let message = expect_state(&f, &ns, "one", "Failed").await?;
    ensure!(message == "ConfigurationError: no such model", "{message}");
    expect_condition(&f, &ns, "one", "WorkersHealthy", ("False", "ErrorReported"), SOON).await?;
    ensure!(
        deployments(&f, &ns).get("one-deployment").await.is_ok(),
        "the workers stay"
    );

    // Labels are no change of the spec; a field that no child shows is one.
    let labelled = Patch::Merge(json!({"metadata": {"labels": {"team": "a"}}}));
    models(&f, &ns).patch("one", &PatchParams::default(), &labelled).await?;
    tokio::time::sleep(A_WHILE).await;
    expect_state(&f, &ns, "one", "Failed").await?;
    edit(&f, &ns, "one", json!({"msgBacklogThreshold": 9})).await?;
    expect_state(&f, &ns, "one", "Running").await?;

    // The same Event once more.
    let user = format!("system:serviceaccount:{ns}:one-deployment-sa");
    let again =
        json!({"count": 2, "lastTimestamp": jiff::Timestamp::now().to_string(), "message": "still no such model"});
    Api::<Event>::namespaced(f.client_as(&user).await?, &ns)
        .patch(&event, &PatchParams::default(), &Patch::Merge(again))
        .await?;
    let message = expect_state(&f, &ns, "one", "Failed").await?;
    ensure!(message == "ConfigurationError: still no such model", "{message}");

    // Another group's kind of that name, a Normal Event, and Berth's own do not count; ours told of the failure.
    report(&f, &ns, "two", "x", json!({"/type": "Normal"})).await?;
    let other =
        json!({"/involvedObject": {"apiVersion": "example.com/v1", "kind": "AIModel", "namespace": ns, "name": "two"}});
    report(&f, &ns, "two", "x", other).await?;
    report(
        &f,
        &ns,
        "two",
        "x",
        json!({"/source": {"component": "berth-controller"}}),
    )
    .await?;
    tokio::time::sleep(A_WHILE).await;
    expect_state(&f, &ns, "two", "Running").await?;
    eventually("our own Event", SOON, async || {
        let told = f.events_in(&ns, "AIModel", "one").await?;
        ensure!(told.iter().any(|e| e.reason == "ErrorReported"), "{told:?}");
        Ok(())
    })
    .await?;
    let message = expect_state(&f, &ns, "one", "Failed").await?;
    ensure!(message == "ConfigurationError: still no such model", "{message}");
    Ok(())
}

async fn versions(f: &Fixture, ns: &str) -> anyhow::Result<usize> {
    Ok(Api::<ReplicaSet>::namespaced(f.client(), ns)
        .list(&ListParams::default())
        .await?
        .items
        .len())
}

async fn expect_rolled(f: &Fixture, ns: &str, name: &str, versions: usize) -> anyhow::Result<()> {
    eventually(&format!("version {versions} of {name}"), SOON, async || {
        let deployment = deployments(f, ns).get(&keys::deployment(name)).await?;
        let status = deployment.status.unwrap_or_default();
        ensure!(
            status.observed_generation == deployment.metadata.generation,
            "not yet looked at"
        );
        let now = self::versions(f, ns).await?;
        ensure!(now == versions, "{now} versions");
        Ok(())
    })
    .await?;
    tokio::time::sleep(A_WHILE).await;
    let now = self::versions(f, ns).await?;
    ensure!(now == versions, "{now} versions, and {versions} were meant");
    Ok(())
}

async fn rollouts(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("rollouts").await?;
    apply(&f, &ns, model("m", json!({}))).await?;
    expect_state(&f, &ns, "m", "Running").await?;
    edit(&f, &ns, "m", json!({"replicas": 2})).await?;
    expect_replicas(&f, &ns, "m", 2).await?;
    expect_rolled(&f, &ns, "m", 1).await?;
    edit(&f, &ns, "m", json!({"image": "worker:2"})).await?;
    expect_rolled(&f, &ns, "m", 2).await?;
    // Others may write on the Deployment what they like.
    let theirs = Patch::Merge(json!({"metadata": {"labels": {"example.com/cost": "a"}}}));
    deployments(&f, &ns)
        .patch("m-deployment", &PatchParams::default(), &theirs)
        .await?;
    expect_rolled(&f, &ns, "m", 2).await?;

    // Tokens die with the ServiceAccount: pods are made anew, once. Its age is known in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let accounts = Api::<ServiceAccount>::namespaced(f.client(), &ns);
    accounts.delete("m-deployment-sa", &DeleteParams::default()).await?;
    eventually("the ServiceAccount is back", SOON, async || {
        Ok(accounts.get("m-deployment-sa").await?)
    })
    .await?;
    expect_rolled(&f, &ns, "m", 3).await?;
    // And what else is deleted comes back.
    Api::<Role>::namespaced(f.client(), &ns)
        .delete("m-deployment-event-role", &DeleteParams::default())
        .await?;
    Api::<RoleBinding>::namespaced(f.client(), &ns)
        .delete("m-deployment-event-rolebinding", &DeleteParams::default())
        .await?;
    deployments(&f, &ns)
        .delete("m-deployment", &DeleteParams::background())
        .await?;
    eventually("all children are back", SOON, async || {
        Api::<Role>::namespaced(f.client(), &ns)
            .get("m-deployment-event-role")
            .await?;
        Api::<RoleBinding>::namespaced(f.client(), &ns)
            .get("m-deployment-event-rolebinding")
            .await?;
        let deployment = deployments(&f, &ns).get("m-deployment").await?;
        ensure!(deployment.metadata.deletion_timestamp.is_none());
        Ok(())
    })
    .await?;
    Ok(())
}

async fn in_the_way(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("way").await?;
    // A spec that cannot work, all of it at once; and none at all, as the original's own test has it.
    apply(&f, &ns, model("bad", json!({"type": "other", "replicas": -1}))).await?;
    let message = expect_state(&f, &ns, "bad", "Failed").await?;
    ensure!(
        message.starts_with("InvalidSpec: spec.type: ") && message.contains("spec.replicas: "),
        "{message}"
    );
    let empty = json!({"apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "metadata": {"name": "empty"}});
    apply(&f, &ns, empty).await?;
    let message = expect_condition(&f, &ns, "empty", "Accepted", ("False", "InvalidSpec"), SOON).await?;
    ensure!(message.contains("spec.image: is not set"), "{message}");
    ensure!(deployments(&f, &ns).get_opt("bad-deployment").await?.is_none());
    edit(&f, &ns, "bad", json!({"type": "remote", "replicas": 1})).await?;
    expect_state(&f, &ns, "bad", "Running").await?;

    let accounts = Api::<ServiceAccount>::namespaced(f.client(), &ns);
    let theirs = json!({"metadata": {"name": "taken-deployment-sa"}});
    accounts
        .create(&PostParams::default(), &serde_json::from_value(theirs)?)
        .await?;
    apply(&f, &ns, model("taken", json!({}))).await?;
    let message = expect_condition(&f, &ns, "taken", "Accepted", ("False", "NameTaken"), SOON).await?;
    ensure!(message.contains("ServiceAccount"), "{message}");
    let left = accounts.get("taken-deployment-sa").await?;
    ensure!(left.metadata.owner_references.is_none() && left.metadata.labels.is_none());

    let pause = |value: Value| Patch::Merge(json!({"metadata": {"annotations": {names::PAUSED: value}}}));
    models(&f, &ns)
        .patch("bad", &PatchParams::default(), &pause(json!("")))
        .await?;
    expect_condition(&f, &ns, "bad", "Accepted", ("Unknown", "Paused"), SOON).await?;
    edit(&f, &ns, "bad", json!({"replicas": 4})).await?;
    expect_condition(&f, &ns, "bad", "Accepted", ("Unknown", "Paused"), SOON).await?;
    expect_replicas(&f, &ns, "bad", 1).await?;
    models(&f, &ns)
        .patch("bad", &PatchParams::default(), &pause(Value::Null))
        .await?;
    expect_replicas(&f, &ns, "bad", 4).await?;
    Ok(())
}

async fn gpus(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("gpus").await?;
    f.all_agents_connected().await?;
    let mut object = model("g", json!({}));
    object["metadata"]["annotations"] = json!({names::GPU_CLASS: "h100", names::GPU_COUNT: "2"});
    apply(&f, &ns, object).await?;
    expect_condition(&f, &ns, "g", "Placed", ("True", "AllPlaced"), SOON).await?;
    let pods = Api::<Pod>::namespaced(f.client(), &ns)
        .list(&ListParams::default())
        .await?;
    let pod = pods.items.first().and_then(|p| p.spec.clone()).context("a pod")?;
    ensure!(
        pod.node_name.as_deref().is_some_and(|n| n.starts_with("h100")),
        "{:?}",
        pod.node_name
    );
    let limits = pod.containers[0]
        .resources
        .clone()
        .and_then(|r| r.limits)
        .unwrap_or_default();
    ensure!(limits["nvidia.com/gpu"].0 == "2");
    f.delete_namespace(&ns).await
}

async fn controller_down(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("down").await?;
    for name in ["ill", "mended", "gone"] {
        apply(&f, &ns, model(name, json!({}))).await?;
        expect_state(&f, &ns, name, "Running").await?;
    }
    let scale = async |replicas: &str| {
        let count = format!("--replicas={replicas}");
        f.kubectl(&["scale", "-n", NAMESPACE, "deployment/berth-controller", &count])
            .await
    };
    let replicas = f.cluster.pods_of("controller", None).await?.len().to_string();
    scale("0").await?;
    eventually("no controller runs", SOON, async || {
        let left = f.cluster.pods_of("controller", None).await?;
        ensure!(left.is_empty(), "{} pods", left.len());
        Ok(())
    })
    .await?;
    report(&f, &ns, "ill", "while nobody listened", json!({})).await?;
    report(&f, &ns, "mended", "before the edit", json!({})).await?;
    models(&f, &ns).delete("gone", &DeleteParams::default()).await?;
    eventually("children go by their owner reference", SOON, async || {
        ensure!(deployments(&f, &ns).get_opt("gone-deployment").await?.is_none());
        let accounts = Api::<ServiceAccount>::namespaced(f.client(), &ns);
        ensure!(accounts.get_opt("gone-deployment-sa").await?.is_none());
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    edit(&f, &ns, "mended", json!({"maxProcessNum": 5})).await?;
    scale(&replicas).await?;
    eventually("a leader", Duration::from_secs(60), async || {
        f.controller_json("/nodes").await.map(drop)
    })
    .await?;

    let message = expect_state(&f, &ns, "ill", "Failed").await?;
    ensure!(message == "ConfigurationError: while nobody listened", "{message}");
    expect_state(&f, &ns, "mended", "Running").await?;
    ensure!(deployments(&f, &ns).get_opt("gone-deployment").await?.is_none());
    // What was told once is not told again.
    edit(&f, &ns, "ill", json!({"maxProcessNum": 5})).await?;
    expect_state(&f, &ns, "ill", "Running").await?;
    f.restart_controller().await?;
    tokio::time::sleep(A_WHILE).await;
    expect_state(&f, &ns, "ill", "Running").await?;
    expect_state(&f, &ns, "mended", "Running").await?;
    Ok(())
}

const KEDA_KINDS: [(&str, &str); 2] = [
    ("ScaledObject", "scaledobjects"),
    ("TriggerAuthentication", "triggerauthentications"),
];

/// The kinds alone, without anybody who serves them.
async fn install_keda(f: &Fixture) -> anyhow::Result<()> {
    for (kind, plural) in KEDA_KINDS {
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.keda.sh")},
            "spec": {"group": "keda.sh", "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}}}]},
        });
        let resource = ApiResource {
            group: "apiextensions.k8s.io".into(),
            version: "v1".into(),
            api_version: "apiextensions.k8s.io/v1".into(),
            kind: "CustomResourceDefinition".into(),
            plural: "customresourcedefinitions".into(),
        };
        let api: Api<DynamicObject> = Api::all_with(f.client(), &resource);
        match api.create(&PostParams::default(), &serde_json::from_value(crd)?).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// The kinds are there, and Berth has noticed.
async fn with_keda(f: &Fixture, ns: &str) -> anyhow::Result<()> {
    install_keda(f).await?;
    apply(f, ns, model("first", json!({"msgBacklogThreshold": 1}))).await?;
    eventually("a first ScaledObject", DISCOVERY, async || {
        Ok(keda(f, ns, KEDA_KINDS[0]).get("first-scaledobject").await?)
    })
    .await?;
    models(f, ns).delete("first", &DeleteParams::default()).await?;
    Ok(())
}

fn keda(f: &Fixture, ns: &str, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "keda.sh".into(),
        version: "v1alpha1".into(),
        api_version: "keda.sh/v1alpha1".into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    Api::namespaced_with(f.client(), ns, &resource)
}

async fn scaled(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("scaled").await?;
    let elsewhere = f.namespace("first").await?;
    with_keda(&f, &elsewhere).await?;
    f.kubectl(&["apply", "-n", &ns, "--validate=strict", "-f", &f.repo(SAMPLES)])
        .await?;
    let objects = keda(&f, &ns, KEDA_KINDS[0]);
    let name = "ai-model-sample";
    let trigger = async |within: Duration, threshold: &str, model: &str| {
        eventually("a ScaledObject as the spec says", within, async || {
            let object = objects.get("ai-model-sample-scaledobject").await?;
            let owner = &object.metadata.owner_references.clone().unwrap_or_default()[0];
            ensure!(owner.kind == "AIModel" && owner.controller == Some(true));
            let want = json!({
                "scaleTargetRef": {"name": "ai-model-sample-deployment"}, "minReplicaCount": 1, "pollingInterval": 5,
                "triggers": [{"type": "pulsar", "metadata": {
                    "adminURL": "http://pulsar:8080", "topic": format!("persistent://public/default/model-{model}"),
                    "subscription": format!("model-{model}-subscription"), "msgBacklogThreshold": threshold}}],
            });
            ensure!(object.data["spec"] == want, "{}", object.data["spec"]);
            Ok(())
        })
        .await
    };
    trigger(SOON, "2", "TinyLlama-1.1B").await?;
    let made: BTreeSet<String> = objects
        .list(&ListParams::default())
        .await?
        .iter()
        .map(|o| o.name_any())
        .collect();
    let want = ["ai-model-sample-scaledobject", "scaled-model-scaledobject"];
    ensure!(made == want.map(str::to_owned).into(), "{made:?}");
    expect_replicas(&f, &ns, name, 3).await?;
    // What KEDA says of it is told on.
    let ready =
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "x", "message": "ready"}]}});
    objects
        .patch_status(
            "ai-model-sample-scaledobject",
            &PatchParams::default(),
            &Patch::Merge(ready),
        )
        .await?;
    expect_condition(&f, &ns, name, "ScalingActive", ("True", "ScalerReady"), SOON).await?;

    // KEDA's HPA scales; what else changes does not set the number back, also not before it has scaled at all.
    edit(&f, &ns, name, json!({"image": "worker:2"})).await?;
    eventually("the new image", SOON, async || {
        let spec = deployments(&f, &ns)
            .get("ai-model-sample-deployment")
            .await?
            .spec
            .context("spec")?;
        let pod = spec.template.spec.context("pod")?;
        ensure!(pod.containers[0].image.as_deref() == Some("worker:2"));
        ensure!(spec.replicas == Some(3), "{:?}", spec.replicas);
        Ok(())
    })
    .await?;
    deployments(&f, &ns)
        .patch_scale(
            "ai-model-sample-deployment",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 7}})),
        )
        .await?;
    edit(
        &f,
        &ns,
        name,
        json!({"msgBacklogThreshold": 5, "model": "other", "replicas": 2}),
    )
    .await?;
    trigger(SOON, "5", "other").await?;
    tokio::time::sleep(A_WHILE).await;
    expect_replicas(&f, &ns, name, 7).await?;

    // By hand: it comes back. On an error: it goes, and the number stays.
    let params = DeleteParams::default();
    objects.delete("ai-model-sample-scaledobject", &params).await?;
    trigger(SOON, "5", "other").await?;
    report(&f, &ns, name, "no such model", json!({})).await?;
    let is_gone = async || {
        eventually("the ScaledObject is gone", SOON, async || {
            ensure!(objects.get_opt("ai-model-sample-scaledobject").await?.is_none());
            Ok(())
        })
        .await
    };
    is_gone().await?;
    expect_state(&f, &ns, name, "Failed").await?;
    expect_condition(&f, &ns, name, "ScalingActive", ("False", "ErrorReported"), SOON).await?;
    expect_replicas(&f, &ns, name, 7).await?;
    edit(&f, &ns, name, json!({"maxProcessNum": 64})).await?;
    trigger(SOON, "5", "other").await?;
    expect_state(&f, &ns, name, "Running").await?;

    // Without a threshold the spec says how many there are.
    edit(&f, &ns, name, json!({"msgBacklogThreshold": null})).await?;
    is_gone().await?;
    expect_replicas(&f, &ns, name, 2).await?;
    eventually("nothing is told of scaling", SOON, async || {
        let status = status(&f, &ns, name).await?;
        ensure!(
            status.conditions.iter().all(|c| c.type_ != "ScalingActive"),
            "{status:?}"
        );
        Ok(())
    })
    .await?;

    // A token: KEDA takes it from where the workers have it.
    let secret = json!({"pulsarTokenSecretRef": {"name": "pulsar", "key": "token"}, "msgBacklogThreshold": 3});
    apply(&f, &ns, model("guarded", secret)).await?;
    eventually("a TriggerAuthentication", SOON, async || {
        let authentication = keda(&f, &ns, KEDA_KINDS[1]).get("guarded-scaledobject").await?;
        let want = json!({"env": [{"parameter": "bearerToken", "name": "PULSAR_TOKEN", "containerName": "guarded"}]});
        ensure!(authentication.data["spec"] == want, "{}", authentication.data["spec"]);
        let object = objects.get("guarded-scaledobject").await?;
        let trigger = &object.data["spec"]["triggers"][0];
        ensure!(
            trigger["authenticationRef"] == json!({"name": "guarded-scaledobject"}),
            "{trigger}"
        );
        Ok(())
    })
    .await?;

    Ok(())
}

async fn left_behind(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("left").await?;
    let elsewhere = f.namespace("first").await?;
    with_keda(&f, &elsewhere).await?;
    // Paused, so that the original is alone with it.
    let mut object = model("old", json!({"msgBacklogThreshold": 4, "replicas": 2}));
    object["metadata"]["annotations"] = json!({names::PAUSED: ""});
    object["metadata"]["labels"] = json!({"app": "old"});
    apply(&f, &ns, object).await?;
    let uid = models(&f, &ns).get("old").await?.metadata.uid;
    let owner = json!([{"apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "name": "old", "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    let by_original = PostParams {
        field_manager: Some("manager".into()),
        ..PostParams::default()
    };
    let account = json!({"metadata": {"name": "old-deployment-sa", "ownerReferences": owner}});
    Api::<ServiceAccount>::namespaced(f.client(), &ns)
        .create(&by_original, &serde_json::from_value(account)?)
        .await?;
    let labels = json!({"app": "old", "aimodel-internel-selector": "old"});
    let deployment = json!({"metadata": {"name": "old-deployment", "ownerReferences": owner}, "spec": {
        "replicas": 5, "selector": {"matchLabels": {"aimodel-internel-selector": "old"}},
        "template": {
            "metadata": {"labels": labels, "annotations": {keys::SERVICE_ACCOUNT_SEEN: "2026-01-01T00:00:00Z", "restartedAt": "x"}},
            "spec": {"serviceAccountName": "old-deployment-sa", "containers": [{"name": "old", "image": "worker:0"}]}}}});
    let made = deployments(&f, &ns)
        .create(&by_original, &serde_json::from_value(deployment)?)
        .await?;
    let scaled = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"name": "old-scaledobject", "ownerReferences": owner}, "spec": {"triggers": []}});
    let objects = keda(&f, &ns, KEDA_KINDS[0]);
    objects.create(&by_original, &serde_json::from_value(scaled)?).await?;
    // It writes its status whole, and so without conditions.
    let state =
        json!({"status": {"state": "Failed", "message": "GeneralError: of the original's time", "conditions": null}});
    expect_rolled(&f, &ns, "old", 1).await?;
    // A look that began before may still write what it saw: the original says it until it stands.
    eventually("the original's word stands", SOON, async || {
        models(&f, &ns)
            .patch_status("old", &PatchParams::default(), &Patch::Merge(&state))
            .await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = models(&f, &ns).get("old").await?.status.unwrap_or_default();
        ensure!(status.state.as_deref() == Some("Failed"), "{status:?}");
        Ok(())
    })
    .await?;

    let go = Patch::Merge(json!({"metadata": {"annotations": {names::PAUSED: null}}}));
    models(&f, &ns).patch("old", &PatchParams::default(), &go).await?;
    expect_condition(&f, &ns, "old", "Accepted", ("True", "Valid"), SOON).await?;
    expect_rolled(&f, &ns, "old", 1).await?;
    let message = expect_state(&f, &ns, "old", "Failed").await?;
    ensure!(message == "GeneralError: of the original's time", "{message}");
    let taken = deployments(&f, &ns).get("old-deployment").await?;
    ensure!(taken.metadata.uid == made.metadata.uid && taken.labels().contains_key(names::MANAGED_BY));
    let (before, after) = (made.spec.context("spec")?, taken.spec.context("spec")?);
    ensure!(
        before.template == after.template && after.replicas == Some(5),
        "{after:?}"
    );

    // An edit brings all of it in step, in one rollout, and leaves the number to whoever scales.
    edit(&f, &ns, "old", json!({"image": "worker:2"})).await?;
    expect_rolled(&f, &ns, "old", 2).await?;
    let spec = deployments(&f, &ns).get("old-deployment").await?.spec.context("spec")?;
    let annotations = spec.template.metadata.and_then(|m| m.annotations).unwrap_or_default();
    ensure!(!annotations.contains_key("restartedAt"), "{annotations:?}");
    ensure!(spec.replicas == Some(5), "{:?}", spec.replicas);
    eventually("the ScaledObject follows", SOON, async || {
        let object = objects.get("old-scaledobject").await?;
        let threshold = &object.data["spec"]["triggers"][0]["metadata"]["msgBacklogThreshold"];
        ensure!(threshold == "4", "{}", object.data["spec"]);
        Ok(())
    })
    .await
}

async fn kept_changing(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("changes").await?;
    apply(&f, &ns, model("m", json!({}))).await?;
    expect_state(&f, &ns, "m", "Running").await?;
    let fighter = {
        let roles = Api::<Role>::namespaced(f.client(), &ns);
        tokio::spawn(async move {
            loop {
                let rules = json!({"rules": [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]});
                // Its own failures are of no interest.
                let _ = roles
                    .patch(
                        "m-deployment-event-role",
                        &PatchParams::apply("fighter"),
                        &Patch::Merge(&rules),
                    )
                    .await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    let braked = ("False", "ChildKeepsChanging");
    expect_condition(&f, &ns, "m", "Accepted", braked, SOON).await?;
    // The Role comes before the Deployment.
    edit(&f, &ns, "m", json!({"image": "worker:2"})).await?;
    eventually("the edit is in the Deployment", SOON, async || {
        let deployment = deployments(&f, &ns).get("m-deployment").await?;
        let pod = deployment.spec.context("spec")?.template.spec.context("pod")?;
        let image = pod.containers[0].image.as_deref();
        ensure!(image == Some("worker:2"), "{image:?}");
        Ok(())
    })
    .await?;
    let said = expect_condition(&f, &ns, "m", "Accepted", braked, SOON).await?;
    ensure!(said.contains("Role") && said.contains("rules"), "{said}");
    fighter.abort();
    f.delete_namespace(&ns).await
}
