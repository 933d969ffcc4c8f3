//! ModelDeployments: from the manifest through its validation to the servers, each failure on the way, and the versions after the first.
//! `local/stages/trouble.yaml` says how pods fail.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::names;
use berth_crds::sathvik::{ModelDeployment, ModelDeploymentStatus, keys};
use berth_tests::{Fixture, NAMESPACE, Suite, condition, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SAMPLES: &str = "tests/behaviour/modeldeployment-samples.yaml";
const SOON: Duration = Duration::from_secs(40);
/// Long enough for what must not come.
const A_WHILE: Duration = Duration::from_secs(2);

const GOOD: &str = "http://never.invalid/good.pt";
const FAILS: &str = "http://never.invalid/fails.pt";
const HANGS: &str = "http://never.invalid/hangs.tar.gz";

fn main() -> ExitCode {
    Suite::new("modeldeployment")
        .values(json!({"modelDeployment": {"placeTimeoutSeconds": 3, "maxReplicas": 4}}))
        .trial("every sample is accepted and served, with and without a validation", |c| {
            samples(Fixture::new(c))
        })
        .trial(
            "the last good version serves while the next is validated, after it failed, and while its servers cannot start",
            |c| versions(Fixture::new(c)),
        )
        .trial("a validation without a node fails in time, and passes with less", |c| {
            no_place(Fixture::new(c))
        })
        .trial("autoscale gives the number of servers away, and takes it back", |c| {
            autoscale(Fixture::new(c))
        })
        .trial("servers that ask for GPUs are placed by Berth", |c| gpus(Fixture::new(c)))
        .trial(
            "what is deleted by hand is made again; what is in the way is said and left alone; a paused model stands still",
            |c| by_hand(Fixture::new(c)),
        )
        .trial("what the original left is taken over and nothing restarts", |c| {
            left_behind(Fixture::new(c))
        })
        .trial(
            "everything goes with the model while no controller runs; converged models cost no write",
            |c| controller_down(Fixture::new(c)),
        )
        .run()
}

fn models(f: &Fixture, ns: &str) -> Api<ModelDeployment> {
    Api::namespaced(f.client(), ns)
}

fn jobs(f: &Fixture, ns: &str) -> Api<Job> {
    Api::namespaced(f.client(), ns)
}

fn deployments(f: &Fixture, ns: &str) -> Api<Deployment> {
    Api::namespaced(f.client(), ns)
}

fn services(f: &Fixture, ns: &str) -> Api<Service> {
    Api::namespaced(f.client(), ns)
}

fn autoscalers(f: &Fixture, ns: &str) -> Api<HorizontalPodAutoscaler> {
    Api::namespaced(f.client(), ns)
}

/// The first version, which passes, with these fields changed.
fn spec(changes: Value) -> Value {
    let mut spec = json!({"modelURI": GOOD, "runtime": "fastapi-pytorch", "validateScript": "validate.py", "autoscale": false,
        "version": "v1", "resources": {"limits": {"cpu": "200m"}, "requests": {"cpu": "100m"}}});
    if let (Some(spec), Some(changes)) = (spec.as_object_mut(), changes.as_object()) {
        spec.extend(changes.clone());
        spec.retain(|_, value| !value.is_null());
    }
    spec
}

/// Applies a model as a user would; unknown fields are errors.
async fn apply(f: &Fixture, ns: &str, name: &str, spec: Value, annotations: Value) -> anyhow::Result<ModelDeployment> {
    let object = json!({"apiVersion": "mlops.sathvik.dev/v1", "kind": "ModelDeployment",
        "metadata": {"name": name, "annotations": annotations}, "spec": spec});
    let params = PatchParams::apply("user").force().validation_strict();
    let answer = models(f, ns).patch(name, &params, &Patch::Apply(&object)).await;
    answer.with_context(|| format!("apply {name}"))
}

/// Waits for a phase that is about the present generation.
async fn phase(f: &Fixture, ns: &str, name: &str, wanted: &str) -> anyhow::Result<ModelDeploymentStatus> {
    eventually(&format!("{name} is {wanted}"), SOON, async || {
        let object = models(f, ns).get(name).await?;
        let (status, generation) = (object.status.unwrap_or_default(), object.metadata.generation);
        condition(&status.conditions, "Accepted", generation)?;
        ensure!(status.phase == wanted, "{status:?}");
        Ok(status)
    })
    .await
}

/// Waits for a reason of a condition.
async fn reason(f: &Fixture, ns: &str, name: &str, type_: &str, wanted: &str) -> anyhow::Result<ModelDeploymentStatus> {
    eventually(&format!("{type_} of {name} is {wanted}"), SOON, async || {
        let object = models(f, ns).get(name).await?;
        let (status, generation) = (object.status.unwrap_or_default(), object.metadata.generation);
        let (_, reason, message) = condition(&status.conditions, type_, generation)?;
        ensure!(reason == wanted, "{reason}: {message}");
        Ok(status)
    })
    .await
}

/// Where the model is that a Deployment serves.
async fn served(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<String> {
    let deployment = deployments(f, ns).get(&keys::server(name)).await?;
    let pod = deployment.spec.and_then(|s| s.template.spec).context("pod")?;
    let env = pod.containers[0].env.clone().unwrap_or_default();
    let uri = env.into_iter().find(|e| e.name == "MODEL_URI").and_then(|e| e.value);
    uri.context("MODEL_URI")
}

async fn server_pods(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(f.client(), ns);
    let list = pods
        .list(&ListParams::default().labels(&format!("model={name}")))
        .await?;
    Ok(list.items)
}

/// Pods that a Service leads to.
async fn led_to(f: &Fixture, ns: &str, service: &str) -> anyhow::Result<Vec<String>> {
    let slices = Api::<EndpointSlice>::namespaced(f.client(), ns);
    let list = slices
        .list(&ListParams::default().labels(&format!("kubernetes.io/service-name={service}")))
        .await?;
    let endpoints = list.items.into_iter().flat_map(|s| s.endpoints);
    let mut names: Vec<_> = endpoints.filter_map(|e| e.target_ref?.name).collect();
    names.sort();
    Ok(names)
}

async fn samples(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("samples").await?;
    let before = f.metric_sum("model_deployments_created_total").await?;
    let samples = f.repo(SAMPLES);
    f.kubectl(&["apply", "-n", &ns, "--validate=strict", "-f", &samples])
        .await?;
    let wait = ["wait", "-n", &ns, "modeldeployments", "--all", "--timeout=60s"];
    for wanted in ["--for=jsonpath={.status.phase}=Ready", "--for=condition=Available"] {
        f.kubectl(&[&wait[..], &[wanted]].concat()).await?;
    }
    for (name, version, script) in [
        ("dummy-model", "v1", true),
        ("dummy-fastapi", "v2", true),
        ("readme-model", "v1", false),
        ("custom-model", "v1", true),
    ] {
        let status = phase(&f, &ns, name, "Ready").await?;
        ensure!(status.version.as_deref() == Some(version), "{name}: {status:?}");
        let job = jobs(&f, &ns).get_opt(&format!("validate-{name}")).await?;
        ensure!(job.is_some() == script, "{name}: {:?}", job.map(|j| j.status));
        let pods = server_pods(&f, &ns, name).await?;
        ensure!(pods.len() == 1, "{name}: {} pods", pods.len());
        let container = &pods[0].spec.as_ref().context("spec")?.containers[0];
        // What the PodMonitor among the samples goes by.
        ensure!(
            container.ports.as_ref().is_some_and(|p| p[0].container_port == 8000),
            "{container:?}"
        );
        for (service, port) in [(format!("svc-{name}"), 80), (format!("{name}-service"), 8000)] {
            let spec = services(&f, &ns).get(&service).await?.spec.context("spec")?;
            ensure!(spec.ports.is_some_and(|p| p[0].port == port), "{service}");
            ensure!(spec.selector == Some(BTreeMap::from([("model".to_owned(), name.to_owned())])));
            eventually("it leads to the server alone", SOON, async || {
                let names = led_to(&f, &ns, &service).await?;
                ensure!(names == [pods[0].name_any()], "{service}: {names:?}");
                Ok(())
            })
            .await?;
        }
        let scaled = autoscalers(&f, &ns).get_opt(&format!("inference-{name}")).await?;
        ensure!(scaled.is_some() == (name == "custom-model"), "{name}");
    }
    let table = f.kubectl(&["get", "-n", &ns, "modeldeployments"]).await?;
    for column in ["RUNTIME", "VERSION", "SERVING", "PHASE", "READY", "AGE"] {
        ensure!(table.contains(column), "{table}");
    }
    let created = f.metric_sum("model_deployments_created_total").await? - before;
    ensure!((created - 4.0).abs() < 0.5, "{created} were counted");
    for status in ["started", "success"] {
        let metric = format!("model_validations_total{{status=\"{status}\"}}");
        let count = f.metric_sum(&metric).await?;
        ensure!((count - 3.0).abs() < 0.5, "{status}: {count}");
    }
    Ok(())
}

async fn versions(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("versions").await?;
    // Fails from the beginning; its Job takes as long to say so as the next one's does.
    apply(&f, &ns, "bad", spec(json!({"modelURI": FAILS})), json!({})).await?;
    apply(&f, &ns, "m", spec(json!({})), json!({})).await?;
    phase(&f, &ns, "m", "Ready").await?;
    let first = server_pods(&f, &ns, "m").await?;

    // While it is validated.
    apply(
        &f,
        &ns,
        "m",
        spec(json!({"modelURI": HANGS, "version": "v2"})),
        json!({}),
    )
    .await?;
    let status = phase(&f, &ns, "m", "Validating").await?;
    ensure!(status.version.as_deref() == Some("v1"), "{status:?}");
    eventually("its pod runs, and gets no traffic", SOON, async || {
        let pods = Api::<Pod>::namespaced(f.client(), &ns);
        let list = pods.list(&ListParams::default().labels("job-name=validate-m")).await?;
        ensure!(
            list.items
                .iter()
                .any(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"))
        );
        let led = led_to(&f, &ns, "svc-m").await?;
        ensure!(led == [first[0].name_any()], "{led:?}");
        Ok(())
    })
    .await?;
    // What is served is mended meanwhile, although the spec says another version.
    deployments(&f, &ns)
        .delete("inference-m", &DeleteParams::default())
        .await?;
    eventually("it is made again as it was", SOON, async || {
        ensure!(served(&f, &ns, "m").await? == GOOD);
        ensure!(
            server_pods(&f, &ns, "m")
                .await?
                .iter()
                .all(|p| p.uid() != first[0].uid())
        );
        Ok(())
    })
    .await?;

    // After it failed.
    apply(
        &f,
        &ns,
        "m",
        spec(json!({"modelURI": FAILS, "version": "v3"})),
        json!({}),
    )
    .await?;
    let status = phase(&f, &ns, "m", "Failed").await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.starts_with("Validation failed for version v3: "), "{message}");
    ensure!(status.version.as_deref() == Some("v1"));
    reason(&f, &ns, "m", "Validated", "ValidationFailed").await?;
    reason(&f, &ns, "m", "Available", "MinimumReplicasAvailable").await?;
    ensure!(served(&f, &ns, "m").await? == GOOD);
    let object = models(&f, &ns).get("m").await?;
    ensure!(
        object.spec.version == "v3" && object.spec.model_uri == FAILS,
        "the user's spec is the user's"
    );

    let status = phase(&f, &ns, "bad", "Failed").await?;
    ensure!(status.version.is_none(), "{status:?}");
    ensure!(deployments(&f, &ns).get_opt("inference-bad").await?.is_none());
    ensure!(f.metric_sum("model_validations_total{status=\"failure\"}").await? >= 2.0);
    let job = jobs(&f, &ns).get("validate-bad").await?;
    apply(
        &f,
        &ns,
        "bad",
        spec(json!({"modelURI": FAILS})),
        json!({names::RETRY: "1"}),
    )
    .await?;
    eventually("it is tried again when it is asked for", SOON, async || {
        let again = jobs(&f, &ns).get("validate-bad").await?;
        ensure!(again.uid() != job.uid());
        Ok(())
    })
    .await?;

    // While its servers cannot start.
    let broken = json!({"version": "v4", "runtimeImage": "registry.invalid/berth/unavailable:1"});
    apply(&f, &ns, "m", spec(broken), json!({})).await?;
    let status = eventually("servers that have no image are told", SOON, async || {
        let status = phase(&f, &ns, "m", "Failed").await?;
        ensure!(
            status.message.as_ref().is_some_and(|m| m.contains("no such host")),
            "{status:?}"
        );
        Ok(status)
    })
    .await?;
    ensure!(status.version.as_deref() == Some("v1"), "{status:?}");
    reason(&f, &ns, "m", "Available", "MinimumReplicasAvailable").await?;

    // And a good one takes over.
    apply(&f, &ns, "m", spec(json!({"version": "v5"})), json!({})).await?;
    let status = phase(&f, &ns, "m", "Ready").await?;
    ensure!(status.version.as_deref() == Some("v5"), "{status:?}");
    Ok(())
}

async fn no_place(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("full").await?;
    let huge = json!({"requests": {"cpu": "100000"}});
    apply(&f, &ns, "m", spec(json!({"resources": huge})), json!({})).await?;
    let status = reason(&f, &ns, "m", "Validated", "ValidationNotPlaced").await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.contains("nsufficient cpu"), "{message}");
    phase(&f, &ns, "m", "Failed").await?;
    // With less it passes; the servers wait, and that is no deadlock of the validation.
    let less = json!({"resources": huge, "validateResources": {"requests": {"cpu": "100m"}}});
    apply(&f, &ns, "m", spec(less), json!({})).await?;
    reason(&f, &ns, "m", "Validated", "ValidationSucceeded").await?;
    let status = phase(&f, &ns, "m", "Deploying").await?;
    ensure!(status.message.is_some_and(|m| m.contains("nsufficient cpu")));
    Ok(())
}

async fn autoscale(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("autoscale").await?;
    let with = |more: Value| {
        let mut changes = json!({"validateScript": null});
        if let (Some(changes), Some(more)) = (changes.as_object_mut(), more.as_object()) {
            changes.extend(more.clone());
        }
        spec(changes)
    };
    apply(&f, &ns, "m", with(json!({"replicas": 2})), json!({})).await?;
    phase(&f, &ns, "m", "Ready").await?;
    let number = async |wanted: i32| {
        eventually(&format!("{wanted} servers"), SOON, async || {
            let replicas = deployments(&f, &ns)
                .get("inference-m")
                .await?
                .spec
                .and_then(|s| s.replicas);
            ensure!(replicas == Some(wanted), "{replicas:?}");
            Ok(())
        })
        .await
    };
    number(2).await?;
    apply(&f, &ns, "m", with(json!({"autoscale": true})), json!({})).await?;
    // No metrics here: the autoscaler says so, and the number stays.
    reason(&f, &ns, "m", "ScalingActive", "ScalerNotReady").await?;
    number(2).await?;
    let autoscaler = autoscalers(&f, &ns).get("inference-m").await?;
    let uid = autoscaler.uid();
    let autoscaler = autoscaler.spec.context("spec")?;
    ensure!(
        (autoscaler.min_replicas, autoscaler.max_replicas) == (Some(1), 4),
        "{autoscaler:?}"
    );
    // Deleted by hand it comes back, and the number is not taken back in between.
    autoscalers(&f, &ns)
        .delete("inference-m", &DeleteParams::default())
        .await?;
    eventually("the autoscaler is back", SOON, async || {
        let again = autoscalers(&f, &ns).get("inference-m").await?;
        ensure!(again.uid() != uid, "the one before");
        Ok(())
    })
    .await?;
    reason(&f, &ns, "m", "ScalingActive", "ScalerNotReady").await?;
    number(2).await?;
    // Its least number needs none.
    let bounds = json!({"autoscale": true, "minReplicas": 3});
    apply(&f, &ns, "m", with(bounds), json!({})).await?;
    number(3).await?;
    apply(&f, &ns, "m", with(json!({"autoscale": false})), json!({})).await?;
    number(1).await?;
    ensure!(autoscalers(&f, &ns).get_opt("inference-m").await?.is_none());
    Ok(())
}

async fn gpus(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("gpus").await?;
    let asked = json!({names::GPU_CLASS: "t4", names::GPU_COUNT: "1"});
    apply(&f, &ns, "m", spec(json!({})), asked).await?;
    reason(&f, &ns, "m", "Placed", "AllPlaced").await?;
    phase(&f, &ns, "m", "Ready").await?;
    let pods = server_pods(&f, &ns, "m").await?;
    let node = pods[0].spec.as_ref().and_then(|s| s.node_name.clone());
    ensure!(node.as_deref() == Some("t4-0"), "{node:?}");
    Ok(())
}

async fn by_hand(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("hand").await?;
    apply(&f, &ns, "m", spec(json!({})), json!({})).await?;
    phase(&f, &ns, "m", "Ready").await?;
    let job = jobs(&f, &ns).get("validate-m").await?.uid();
    let gone = DeleteParams::background();
    jobs(&f, &ns).delete("validate-m", &gone).await?;
    let deployment = deployments(&f, &ns).get("inference-m").await?.uid();
    deployments(&f, &ns).delete("inference-m", &gone).await?;
    eventually("the servers are back", SOON, async || {
        ensure!(deployments(&f, &ns).get("inference-m").await?.uid() != deployment);
        Ok(())
    })
    .await?;
    for service in ["svc-m", "m-service"] {
        services(&f, &ns).delete(service, &gone).await?;
        eventually("both Services are back", SOON, async || {
            let service = services(&f, &ns).get(service).await?;
            ensure!(service.metadata.deletion_timestamp.is_none());
            Ok(())
        })
        .await?;
    }
    phase(&f, &ns, "m", "Ready").await?;
    let again = jobs(&f, &ns).get_opt("validate-m").await?;
    ensure!(
        again.is_none(),
        "validated again: {job:?} {:?}",
        again.and_then(|j| j.uid())
    );

    // In the way: somebody's Deployment, and an address that is one too many.
    let theirs = json!({"metadata": {"name": "inference-t", "labels": {"model": "t"}}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let theirs = deployments(&f, &ns)
        .create(&PostParams::default(), &serde_json::from_value(theirs)?)
        .await?;
    apply(&f, &ns, "t", spec(json!({"validateScript": null})), json!({})).await?;
    reason(&f, &ns, "t", "Accepted", "NameTaken").await?;
    phase(&f, &ns, "t", "Failed").await?;
    models(&f, &ns).delete("t", &gone).await?;
    let service = json!({"metadata": {"name": "a-service"}, "spec": {"ports": [{"port": 1}]}});
    services(&f, &ns)
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    apply(&f, &ns, "a", spec(json!({})), json!({})).await?;
    phase(&f, &ns, "a", "Ready").await?;
    reason(&f, &ns, "a", "Accepted", "IgnoredFields").await?;
    let still = deployments(&f, &ns).get("inference-t").await?;
    ensure!(still.uid() == theirs.uid() && still.labels().get(names::MANAGED_BY).is_none());

    apply(&f, &ns, "m", spec(json!({"version": "v2"})), json!({names::PAUSED: ""})).await?;
    reason(&f, &ns, "m", "Accepted", "Paused").await?;
    let before = deployments(&f, &ns).get("inference-m").await?.resource_version();
    tokio::time::sleep(A_WHILE).await;
    ensure!(deployments(&f, &ns).get("inference-m").await?.resource_version() == before);
    ensure!(jobs(&f, &ns).get_opt("validate-m").await?.is_none());
    Ok(())
}

/// As the original made them, in the middle of serving.
async fn left_behind(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("original").await?;
    // Nobody serves while the original does.
    let object = apply(&f, &ns, "m", spec(json!({})), json!({names::PAUSED: ""})).await?;
    let owner = json!([{"apiVersion": "mlops.sathvik.dev/v1", "kind": "ModelDeployment", "name": "m", "uid": object.uid(),
        "controller": true, "blockOwnerDeletion": true}]);
    let by_original = PostParams {
        field_manager: Some("manager".into()),
        ..PostParams::default()
    };
    let container =
        |name: &str, image: &str| json!({"name": name, "image": image, "env": [{"name": "MODEL_URI", "value": GOOD}]});
    let job = json!({"metadata": {"name": "validate-m", "labels": {"model": "m", "type": "validation"}, "ownerReferences": owner}, "spec": {
        "backoffLimit": 1, "template": {"spec": {"restartPolicy": "Never", "containers": [container("validate", "validator:dev")]}}}});
    let job = jobs(&f, &ns)
        .create(&by_original, &serde_json::from_value(job)?)
        .await?;
    let mut server = container("inference", "fastapi-pytorch:dev");
    (server["imagePullPolicy"], server["ports"]) = ("Never".into(), json!([{"containerPort": 8000}]));
    let server = json!({"metadata": {"name": "inference-m", "labels": {"model": "m", "type": "inference"}, "ownerReferences": owner},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"model": "m"}}, "template": {
            "metadata": {"labels": {"model": "m"}}, "spec": {"containers": [server]}}}});
    deployments(&f, &ns)
        .create(&by_original, &serde_json::from_value(server)?)
        .await?;
    let service = json!({"metadata": {"name": "svc-m", "ownerReferences": owner},
        "spec": {"type": "ClusterIP", "selector": {"model": "m"}, "ports": [{"port": 80, "targetPort": 8000}]}});
    let service = services(&f, &ns)
        .create(&by_original, &serde_json::from_value(service)?)
        .await?;
    let before = eventually("the original's servers run", SOON, async || {
        let server = deployments(&f, &ns).get("inference-m").await?;
        ensure!(server.status.as_ref().and_then(|s| s.ready_replicas) == Some(2));
        Ok(server)
    })
    .await?;
    let uids = |pods: &[Pod]| {
        pods.iter()
            .map(ResourceExt::uid)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let pods = uids(&server_pods(&f, &ns, "m").await?);
    let left = json!({"status": {"phase": "Ready", "message": "", "version": "v0", "conditions": null},
        "metadata": {"finalizers": [keys::FINALIZER, "example.com/kept"]}});
    let none = PatchParams::default();
    models(&f, &ns).patch_status("m", &none, &Patch::Merge(&left)).await?;
    models(&f, &ns).patch("m", &none, &Patch::Merge(&left)).await?;

    apply(&f, &ns, "m", spec(json!({})), json!({})).await?;
    eventually("the README's Service is there too", SOON, async || {
        services(&f, &ns).get("m-service").await.map(drop).map_err(Into::into)
    })
    .await?;
    let status = phase(&f, &ns, "m", "Ready").await?;
    ensure!(status.version.as_deref() == Some("v0"), "{status:?}");
    let after = deployments(&f, &ns).get("inference-m").await?;
    let spec_of = |d: &Deployment| d.spec.as_ref().map(|s| (s.template.clone(), s.replicas));
    ensure!(
        after.uid() == before.uid() && spec_of(&after) == spec_of(&before),
        "{:?}",
        after.spec
    );
    ensure!(uids(&server_pods(&f, &ns, "m").await?) == pods, "nothing restarts");
    ensure!(services(&f, &ns).get("svc-m").await?.uid() == service.uid());
    let object = models(&f, &ns).get("m").await?;
    ensure!(object.finalizers() == ["example.com/kept"], "{:?}", object.finalizers());

    // The next version is validated by a Job of our own, and those servers go on until it has passed.
    apply(
        &f,
        &ns,
        "m",
        spec(json!({"modelURI": HANGS, "version": "v2"})),
        json!({}),
    )
    .await?;
    phase(&f, &ns, "m", "Validating").await?;
    eventually("the original's Job made way", SOON, async || {
        let ours = jobs(&f, &ns).get("validate-m").await?;
        ensure!(ours.uid() != job.uid());
        Ok(())
    })
    .await?;
    let during = deployments(&f, &ns).get("inference-m").await?;
    ensure!(spec_of(&during) == spec_of(&before), "{:?}", during.spec);
    apply(&f, &ns, "m", spec(json!({"version": "v3"})), json!({})).await?;
    let status = eventually("the next version takes over", SOON, async || {
        let status = phase(&f, &ns, "m", "Ready").await?;
        ensure!(status.version.as_deref() == Some("v3"), "{status:?}");
        Ok(status)
    })
    .await?;
    ensure!(status.ready_replicas == Some(2), "the number stays: {status:?}");
    let release = json!({"metadata": {"finalizers": null}});
    models(&f, &ns).patch("m", &none, &Patch::Merge(&release)).await?;
    Ok(())
}

async fn controller_down(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("down").await?;
    for name in ["gone", "held", "stays"] {
        apply(&f, &ns, name, spec(json!({"autoscale": true})), json!({})).await?;
    }
    for name in ["gone", "held", "stays"] {
        phase(&f, &ns, name, "Ready").await?;
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
    let finalizer = json!({"metadata": {"finalizers": [keys::FINALIZER]}});
    models(&f, &ns)
        .patch("held", &PatchParams::default(), &Patch::Merge(&finalizer))
        .await?;
    for name in ["gone", "held"] {
        models(&f, &ns).delete(name, &DeleteParams::default()).await?;
    }
    let is_gone = async |name: &str| {
        ensure!(models(&f, &ns).get_opt(name).await?.is_none());
        ensure!(deployments(&f, &ns).get_opt(&keys::server(name)).await?.is_none());
        ensure!(jobs(&f, &ns).get_opt(&keys::job(name)).await?.is_none());
        ensure!(services(&f, &ns).get_opt(&keys::service(name)).await?.is_none());
        ensure!(services(&f, &ns).get_opt(&keys::alias(name)).await?.is_none());
        ensure!(autoscalers(&f, &ns).get_opt(&keys::server(name)).await?.is_none());
        ensure!(server_pods(&f, &ns, name).await?.is_empty());
        Ok(())
    };
    eventually("everything goes by its owner reference", SOON, async || {
        is_gone("gone").await
    })
    .await?;
    let written = f.controller_writes("").await?.len();
    scale(&replicas).await?;
    eventually("a leader", Duration::from_secs(60), async || {
        f.controller_json("/nodes").await.map(drop)
    })
    .await?;
    eventually("the original's finalizer holds nothing up", SOON, async || {
        is_gone("held").await
    })
    .await?;
    phase(&f, &ns, "stays", "Ready").await?;
    tokio::time::sleep(A_WHILE).await;
    let writes = f.controller_writes("").await?;
    let of_stays: Vec<_> = writes[written..]
        .iter()
        .filter(|w| w.contains(&format!("/{ns}/")) && w.contains("stays"))
        .collect();
    ensure!(of_stays.is_empty(), "{of_stays:?}");
    Ok(())
}
