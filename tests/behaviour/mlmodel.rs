//! MLModels: every step from the manifest to the server, each failure on the way, and the ways back. The trials play the provisioner of
//! volumes; `local/stages/trouble.yaml` says how pods fail.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::names;
use berth_crds::tmforum::{MLModel, MLModelStatus, keys};
use berth_tests::{Fixture, NAMESPACE, Suite, condition, eventually};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SAMPLES: &str = "tests/behaviour/mlmodel-samples.yaml";
const SOON: Duration = Duration::from_secs(30);
/// Long enough for what must not come.
const A_WHILE: Duration = Duration::from_secs(2);

const GOOD: &str = "http://never.invalid/good.tar.gz";
const OTHER: &str = "http://never.invalid/other.tar.gz";
const HANGS: &str = "http://never.invalid/hangs.tar.gz";
const FAILS: &str = "http://never.invalid/fails.tar.gz";

fn main() -> ExitCode {
    Suite::new("mlmodel")
        .values(json!({"mlModel": {"storageTimeoutSeconds": 5, "startTimeoutSeconds": 3}}))
        .trial("every sample is accepted and goes through every phase", |c| {
            samples(Fixture::new(c))
        })
        .trial(
            "there is a Service and an endpoint if and only if it is exposed; replicas change in place",
            |c| in_place(Fixture::new(c)),
        )
        .trial(
            "a download that fails is Failed for good, until it is asked for again or the spec changes",
            |c| failing_download(Fixture::new(c)),
        )
        .trial("a volume that does not come is Failed until it does", |c| {
            no_volume(Fixture::new(c))
        })
        .trial("servers that cannot start are Failed until they can", |c| {
            failing_servers(Fixture::new(c))
        })
        .trial(
            "an edit is a clean start that waits for what has to go, also in the middle of a download",
            |c| clean_start(Fixture::new(c)),
        )
        .trial(
            "a download that is done is not done again when its Job is gone; converged models cost no write",
            |c| remembered(Fixture::new(c)),
        )
        .trial("the original's finalizer goes, and everything with the model", |c| {
            deleted(Fixture::new(c))
        })
        .trial("what the original left is taken over and nothing restarts", |c| {
            left_behind(Fixture::new(c))
        })
        .trial(
            "what is in the way is said and left alone; a paused model stands still",
            |c| in_the_way(Fixture::new(c)),
        )
        .run()
}

fn models(f: &Fixture, ns: &str) -> Api<MLModel> {
    Api::namespaced(f.client(), ns)
}

fn claims(f: &Fixture, ns: &str) -> Api<PersistentVolumeClaim> {
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

/// Plays the provisioner: a volume that only this model's claim can have.
async fn volume(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<()> {
    let object = json!({"metadata": {"generateName": "model-"}, "spec": {
        "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/none"}, "claimRef": {"namespace": ns, "name": keys::claim(name)}}});
    let api = Api::<PersistentVolume>::all(f.client());
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

fn spec(url: &str) -> Value {
    json!({"modelURL": url, "storageSize": "1Gi", "framework": "tensorflow", "replicas": 1, "expose": true})
}

/// Applies a model as a user would; unknown fields are errors.
async fn apply(f: &Fixture, ns: &str, name: &str, spec: Value, annotations: Value) -> anyhow::Result<MLModel> {
    let object = json!({"apiVersion": "oda.tmforum.org.oda.tmforum.org/v1beta1", "kind": "MLModel",
        "metadata": {"name": name, "annotations": annotations}, "spec": spec});
    let params = PatchParams::apply("user").force().validation_strict();
    let answer = models(f, ns).patch(name, &params, &Patch::Apply(&object)).await;
    answer.with_context(|| format!("apply {name}"))
}

async fn status(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<(MLModelStatus, Option<i64>)> {
    let object = models(f, ns).get(name).await?;
    Ok((object.status.unwrap_or_default(), object.metadata.generation))
}

/// Waits for a phase about the present generation.
async fn phase(f: &Fixture, ns: &str, name: &str, wanted: &str) -> anyhow::Result<MLModelStatus> {
    eventually(&format!("{name} is {wanted}"), SOON, async || {
        let (status, generation) = status(f, ns, name).await?;
        ensure!(
            status.phase == wanted && Some(status.observed_generation) == generation,
            "{status:?}"
        );
        Ok(status)
    })
    .await
}

/// Waits for a reason of a condition.
async fn reason(f: &Fixture, ns: &str, name: &str, type_: &str, wanted: &str) -> anyhow::Result<MLModelStatus> {
    eventually(&format!("{type_} of {name} is {wanted}"), SOON, async || {
        let (status, generation) = status(f, ns, name).await?;
        let (_, reason, message) = condition(&status.conditions, type_, generation)?;
        ensure!(reason == wanted, "{reason}: {message}");
        Ok(status)
    })
    .await
}

async fn uids(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<[Option<String>; 3]> {
    Ok([
        claims(f, ns).get_opt(&keys::claim(name)).await?.and_then(|o| o.uid()),
        deployments(f, ns)
            .get_opt(&keys::server(name))
            .await?
            .and_then(|o| o.uid()),
        services(f, ns)
            .get_opt(&keys::service(name))
            .await?
            .and_then(|o| o.uid()),
    ])
}

/// Makes a model, with its volume, that is Ready.
async fn ready(f: &Fixture, ns: &str, name: &str, spec: Value) -> anyhow::Result<MLModelStatus> {
    volume(f, ns, name).await?;
    apply(f, ns, name, spec, json!({})).await?;
    phase(f, ns, name, "Ready").await
}

async fn samples(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("samples").await?;
    let names = ["mlmodel-sample", "mlmodel-sample-larger"];
    let watch = models(&f, &ns).watch(&WatchParams::default(), "0").await?.boxed();
    let seen = tokio::spawn(async move {
        let mut phases: Vec<String> = Vec::new();
        let mut events = watch;
        while phases.last().is_none_or(|p| p != "Ready") {
            let Some(event) = events.try_next().await? else { break };
            let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else {
                continue;
            };
            let phase = object.status.clone().unwrap_or_default().phase;
            if object.name_any() == "mlmodel-sample" && !phase.is_empty() && phases.last() != Some(&phase) {
                phases.push(phase);
            }
        }
        anyhow::Ok(phases)
    });
    for name in names {
        volume(&f, &ns, name).await?;
    }
    let samples = f.repo(SAMPLES);
    f.kubectl(&["apply", "-n", &ns, "--validate=strict", "-f", &samples])
        .await?;
    f.kubectl(&[
        "wait",
        "-n",
        &ns,
        "mlmodels",
        "--all",
        "--for=jsonpath={.status.phase}=Ready",
        "--timeout=60s",
    ])
    .await?;
    f.kubectl(&[
        "wait",
        "-n",
        &ns,
        "mlmodels",
        "--all",
        "--for=condition=Available",
        "--timeout=30s",
    ])
    .await?;
    let phases = tokio::time::timeout(SOON, seen).await???;
    ensure!(
        phases == ["Pending", "CreatingStorage", "Downloading", "Serving", "Ready"],
        "{phases:?}"
    );
    for name in names {
        let (status, _) = status(&f, &ns, name).await?;
        let endpoint = format!("{name}-service.{ns}.svc.cluster.local:8501");
        ensure!(status.service_endpoint.as_deref() == Some(&endpoint), "{status:?}");
        let claim = claims(&f, &ns).get(&format!("{name}-pvc")).await?;
        let size = claim.spec.and_then(|s| s.resources?.requests?.remove("storage"));
        ensure!(size.is_some_and(|s| s.0 == "5Gi"));
        jobs(&f, &ns).get(&format!("{name}-download-job")).await?;
        let server = deployments(&f, &ns).get(&format!("{name}-server")).await?;
        let template = server.spec.context("spec")?.template.spec.context("pod")?;
        ensure!(template.containers[0].image.as_deref() == Some("tensorflow/serving:latest"));
        let service = services(&f, &ns)
            .get(&format!("{name}-service"))
            .await?
            .spec
            .context("spec")?;
        ensure!(service.ports.is_some_and(|p| p[0].port == 8501));
        ensure!(service.selector == Some([("app".to_owned(), format!("{name}-server"))].into()));
    }
    let table = f.kubectl(&["get", "-n", &ns, "mlmodels"]).await?;
    for column in ["FRAMEWORK", "PHASE", "READY", "ENDPOINT", "AGE"] {
        ensure!(table.contains(column), "{table}");
    }
    Ok(())
}

async fn in_place(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("expose").await?;
    let with = |replicas: i32, expose: bool| {
        let mut spec = spec(GOOD);
        (spec["replicas"], spec["expose"]) = (replicas.into(), expose.into());
        spec
    };
    let status = ready(&f, &ns, "m", with(1, false)).await?;
    ensure!(status.service_endpoint.is_none(), "{status:?}");
    let [claim, server, service] = uids(&f, &ns, "m").await?;
    ensure!(service.is_none());
    apply(&f, &ns, "m", with(2, true), json!({})).await?;
    eventually("two servers and an endpoint", SOON, async || {
        let (status, _) = self::status(&f, &ns, "m").await?;
        ensure!(
            status.ready_replicas == Some(2) && status.service_endpoint.is_some(),
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    let pods = Api::<Pod>::namespaced(f.client(), &ns)
        .list(&ListParams::default().labels("app=m-server"))
        .await?;
    let nodes: std::collections::BTreeSet<_> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
    ensure!(nodes.len() == 1, "they share a volume for one node: {nodes:?}");
    apply(&f, &ns, "m", with(2, false), json!({})).await?;
    eventually("no Service, no endpoint", SOON, async || {
        ensure!(services(&f, &ns).get_opt("m-service").await?.is_none());
        let (status, _) = self::status(&f, &ns, "m").await?;
        ensure!(status.service_endpoint.is_none(), "{status:?}");
        Ok(())
    })
    .await?;
    let [claim_now, server_now, _] = uids(&f, &ns, "m").await?;
    ensure!((claim, server) == (claim_now, server_now), "nothing started anew");
    Ok(())
}

async fn failing_download(f: Fixture) -> anyhow::Result<()> {
    // A namesake elsewhere: the original deleted its pods.
    let elsewhere = f.namespace("namesake").await?;
    volume(&f, &elsewhere, "m").await?;
    apply(&f, &elsewhere, "m", spec(HANGS), json!({})).await?;
    phase(&f, &elsewhere, "m", "Downloading").await?;
    let pods = Api::<Pod>::namespaced(f.client(), &elsewhere);
    let pod_of_namesake = eventually("the namesake's pod", SOON, async || {
        let list = pods
            .list(&ListParams::default().labels("job-name=m-download-job"))
            .await?;
        list.items.first().and_then(ResourceExt::uid).context("none yet")
    })
    .await?;

    let ns = f.namespace("fails").await?;
    volume(&f, &ns, "m").await?;
    apply(&f, &ns, "m", spec(FAILS), json!({})).await?;
    let status = phase(&f, &ns, "m", "Failed").await?;
    let message = status.message.unwrap_or_default();
    ensure!(
        message.starts_with("Job m-download-job failed: BackoffLimitExceeded"),
        "{message}"
    );
    ensure!(message.contains("the server answers 404"), "{message}");
    reason(&f, &ns, "m", "Downloaded", "DownloadFailed").await?;
    ensure!(deployments(&f, &ns).get_opt("m-server").await?.is_none());

    // Its TTL takes the Job away: it is not run again.
    let background = DeleteParams::background();
    jobs(&f, &ns).delete("m-download-job", &background).await?;
    eventually("the Job is gone", SOON, async || {
        ensure!(jobs(&f, &ns).get_opt("m-download-job").await?.is_none());
        Ok(())
    })
    .await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(jobs(&f, &ns).get_opt("m-download-job").await?.is_none(), "run again");
    ensure!(phase(&f, &ns, "m", "Failed").await?.message == Some(message));

    // Asked for again, twice: a Job of its own each time.
    let mut before = None;
    for retry in ["1", "2"] {
        apply(&f, &ns, "m", spec(FAILS), json!({"berth.dev/retry": retry})).await?;
        let uid = eventually("another Job that fails", SOON, async || {
            let job = jobs(&f, &ns).get("m-download-job").await?;
            let failed = job.status.as_ref().is_some_and(|s| s.failed.unwrap_or(0) > 0);
            ensure!(job.uid() != before && failed && job.metadata.deletion_timestamp.is_none());
            Ok(job.uid())
        })
        .await?;
        before = uid;
        phase(&f, &ns, "m", "Failed").await?;
    }
    // An edit of the spec starts anew, and this time it works.
    volume(&f, &ns, "m").await?;
    apply(&f, &ns, "m", spec(GOOD), json!({"berth.dev/retry": "2"})).await?;
    phase(&f, &ns, "m", "Ready").await?;

    let list = pods
        .list(&ListParams::default().labels("job-name=m-download-job"))
        .await?;
    ensure!(
        list.items.first().and_then(ResourceExt::uid) == Some(pod_of_namesake),
        "the namesake's pod was touched"
    );
    Ok(())
}

async fn no_volume(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("novolume").await?;
    apply(&f, &ns, "m", spec(GOOD), json!({})).await?;
    let status = reason(&f, &ns, "m", "Downloaded", "VolumePending").await?;
    ensure!(
        ["CreatingStorage", "Downloading"].contains(&status.phase.as_str()),
        "{status:?}"
    );
    reason(&f, &ns, "m", "Downloaded", "VolumeNotBound").await?;
    let status = phase(&f, &ns, "m", "Failed").await?;
    ensure!(status.message.is_some_and(|m| m.contains("m-pvc")));
    volume(&f, &ns, "m").await?;
    phase(&f, &ns, "m", "Ready").await?;
    // What cannot be read fails at once, and says what to do.
    let mut bad = spec(GOOD);
    bad["storageSize"] = "five".into();
    apply(&f, &ns, "bad", bad, json!({})).await?;
    let status = phase(&f, &ns, "bad", "Failed").await?;
    ensure!(status.message.is_some_and(|m| m.contains("spec.storageSize")));
    Ok(())
}

async fn failing_servers(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("servers").await?;
    let with = |image: &str| {
        let mut spec = spec(GOOD);
        spec["image"] = format!("registry.invalid/berth/{image}:1").into();
        spec
    };
    volume(&f, &ns, "m").await?;
    apply(&f, &ns, "m", with("unavailable"), json!({})).await?;
    reason(&f, &ns, "m", "Available", "ImagePullBackOff").await?;
    let status = phase(&f, &ns, "m", "Failed").await?;
    ensure!(status.message.is_some_and(|m| m.contains("no such host")));
    let [claim, ..] = uids(&f, &ns, "m").await?;
    apply(&f, &ns, "m", with("never-ready"), json!({})).await?;
    phase(&f, &ns, "m", "Serving").await?;
    reason(&f, &ns, "m", "Available", "NotReadyInTime").await?;
    phase(&f, &ns, "m", "Failed").await?;
    apply(&f, &ns, "m", with("fine"), json!({})).await?;
    phase(&f, &ns, "m", "Ready").await?;
    ensure!(
        uids(&f, &ns, "m").await?[0] == claim,
        "another image needs no other volume"
    );
    Ok(())
}

async fn clean_start(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("update").await?;
    ready(&f, &ns, "m", spec(GOOD)).await?;
    let before = uids(&f, &ns, "m").await?;
    let pods = Api::<Pod>::namespaced(f.client(), &ns);
    // A pod that is slow to go keeps the volume: that is waited for.
    let servers = pods.list(&ListParams::default().labels("app=m-server")).await?;
    let slow = servers.items.first().context("a server")?.name_any();
    let hold = json!({"metadata": {"finalizers": ["example.com/slow"]}});
    pods.patch(&slow, &PatchParams::default(), &Patch::Merge(&hold)).await?;
    apply(&f, &ns, "m", spec(OTHER), json!({})).await?;
    reason(&f, &ns, "m", "Downloaded", "Restarting").await?;
    let status = phase(&f, &ns, "m", "Pending").await?;
    ensure!(status.service_endpoint.is_none(), "{status:?}");
    tokio::time::sleep(A_WHILE).await;
    let [claim, ..] = uids(&f, &ns, "m").await?;
    ensure!(
        claim.is_none() || claim == before[0],
        "nothing new before the old is gone"
    );
    let job = jobs(&f, &ns).get_opt("m-download-job").await?;
    ensure!(job.is_none(), "{job:?}");
    volume(&f, &ns, "m").await?;
    let release = json!({"metadata": {"finalizers": null}});
    pods.patch(&slow, &PatchParams::default(), &Patch::Merge(&release))
        .await?;
    phase(&f, &ns, "m", "Ready").await?;
    let after = uids(&f, &ns, "m").await?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(
            before.is_some() && after.is_some() && before != after,
            "{before:?} {after:?}"
        );
    }
    // In the middle of a download.
    volume(&f, &ns, "m").await?;
    apply(&f, &ns, "m", spec(HANGS), json!({})).await?;
    phase(&f, &ns, "m", "Downloading").await?;
    volume(&f, &ns, "m").await?;
    apply(&f, &ns, "m", spec(GOOD), json!({})).await?;
    phase(&f, &ns, "m", "Ready").await?;
    Ok(())
}

async fn remembered(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("ttl").await?;
    ready(&f, &ns, "m", spec(GOOD)).await?;
    let before = uids(&f, &ns, "m").await?;
    jobs(&f, &ns)
        .delete("m-download-job", &DeleteParams::background())
        .await?;
    // What is deleted by hand is made again.
    services(&f, &ns).delete("m-service", &DeleteParams::default()).await?;
    eventually("the Service is back", SOON, async || {
        let [_, _, service] = uids(&f, &ns, "m").await?;
        ensure!(service.is_some() && service != before[2]);
        Ok(())
    })
    .await?;
    let written = f.controller_writes("").await?.len();
    f.restart_controller().await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(
        jobs(&f, &ns).get_opt("m-download-job").await?.is_none(),
        "downloaded again"
    );
    let writes = f.controller_writes("").await?;
    let of_models: Vec<_> = writes[written..]
        .iter()
        .filter(|w| w.contains(&format!("/{ns}/")))
        .collect();
    ensure!(of_models.is_empty(), "{of_models:?}");
    Ok(())
}

async fn deleted(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("deletion").await?;
    ready(&f, &ns, "m", spec(GOOD)).await?;
    // As the original's: nobody is left to take it away.
    let finalizer = json!({"metadata": {"finalizers": [keys::FINALIZER, "example.com/kept"]}});
    models(&f, &ns)
        .patch("m", &PatchParams::default(), &Patch::Merge(&finalizer))
        .await?;
    eventually("the original's finalizer is gone, another stays", SOON, async || {
        let object = models(&f, &ns).get("m").await?;
        ensure!(object.finalizers() == ["example.com/kept"], "{:?}", object.finalizers());
        Ok(())
    })
    .await?;
    let none = json!({"metadata": {"finalizers": null}});
    models(&f, &ns)
        .patch("m", &PatchParams::default(), &Patch::Merge(&none))
        .await?;
    // Nobody of ours has to be there for it; what came back with the original's finalizer waits for us.
    ready(&f, &ns, "late", spec(GOOD)).await?;
    let scale = async |replicas: &str| {
        let count = format!("--replicas={replicas}");
        f.kubectl(&["scale", "-n", NAMESPACE, "deployment/berth-controller", &count])
            .await
    };
    let replicas = f.cluster.pods_of("controller", None).await?.len().to_string();
    scale("0").await?;
    eventually("no controller runs", SOON, async || {
        ensure!(f.cluster.pods_of("controller", None).await?.is_empty());
        Ok(())
    })
    .await?;
    let of_original = json!({"metadata": {"finalizers": [keys::FINALIZER]}});
    models(&f, &ns)
        .patch("late", &PatchParams::default(), &Patch::Merge(&of_original))
        .await?;
    for name in ["m", "late"] {
        models(&f, &ns).delete(name, &DeleteParams::default()).await?;
    }
    let is_gone = async |name: &str| {
        ensure!(models(&f, &ns).get_opt(name).await?.is_none());
        ensure!(uids(&f, &ns, name).await? == [None, None, None]);
        let job = jobs(&f, &ns).get_opt(&format!("{name}-download-job")).await?;
        ensure!(job.is_none());
        Ok(())
    };
    eventually("everything is gone", SOON, async || is_gone("m").await).await?;
    ensure!(models(&f, &ns).get_opt("late").await?.is_some());
    scale(&replicas).await?;
    eventually("the other is gone too", SOON, async || is_gone("late").await).await
}

/// As the original made them: owned without the flag, by its field manager, in the middle of serving.
async fn left_behind(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("original").await?;
    volume(&f, &ns, "m").await?;
    // Nobody serves while the original does.
    let pause = json!({"berth.dev/paused": ""});
    let object = apply(&f, &ns, "m", spec(GOOD), pause).await?;
    let owner = json!([{"apiVersion": "oda.tmforum.org.oda.tmforum.org/v1beta1", "kind": "MLModel", "name": "m", "uid": object.uid()}]);
    let by_original = PostParams {
        field_manager: Some("manager".into()),
        ..PostParams::default()
    };
    let claim = json!({"metadata": {"name": "m-pvc", "ownerReferences": owner}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    claims(&f, &ns)
        .create(&by_original, &serde_json::from_value(claim)?)
        .await?;
    let server = json!({"metadata": {"name": "m-server", "ownerReferences": owner}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "m-server"}}, "template": {
            "metadata": {"labels": {"app": "m-server"}},
            "spec": {"containers": [{"name": "tf-serving", "image": "tensorflow/serving:latest",
                "args": ["--model_base_path=/models", "--rest_api_port=8501"], "ports": [{"containerPort": 8501}],
                "volumeMounts": [{"name": "model-storage", "mountPath": "/models"}]}],
                "volumes": [{"name": "model-storage", "persistentVolumeClaim": {"claimName": "m-pvc"}}]}}}});
    deployments(&f, &ns)
        .create(&by_original, &serde_json::from_value(server)?)
        .await?;
    let before = eventually("the original's server runs", SOON, async || {
        let server = deployments(&f, &ns).get("m-server").await?;
        ensure!(
            server.status.as_ref().and_then(|s| s.ready_replicas) == Some(1),
            "{:?}",
            server.status
        );
        Ok(server)
    })
    .await?;
    let left = json!({"status": {"phase": "Ready", "message": "ready", "observedGeneration": 1, "conditions": null},
        "metadata": {"finalizers": [keys::FINALIZER]}});
    models(&f, &ns)
        .patch_status("m", &PatchParams::default(), &Patch::Merge(&left))
        .await?;
    models(&f, &ns)
        .patch("m", &PatchParams::default(), &Patch::Merge(&left))
        .await?;

    apply(&f, &ns, "m", spec(GOOD), json!({})).await?;
    reason(&f, &ns, "m", "Downloaded", "DownloadComplete").await?;
    let status = phase(&f, &ns, "m", "Ready").await?;
    ensure!(status.service_endpoint.is_some(), "{status:?}");
    let after = deployments(&f, &ns).get("m-server").await?;
    ensure!(after.uid() == before.uid());
    let template = |d: &Deployment| d.spec.as_ref().map(|s| s.template.clone());
    ensure!(template(&after) == template(&before), "{:?}", template(&after));
    ensure!(
        after.owner_references()[0].controller == Some(true),
        "{:?}",
        after.owner_references()
    );
    ensure!(
        jobs(&f, &ns).get_opt("m-download-job").await?.is_none(),
        "downloaded again"
    );
    ensure!(models(&f, &ns).get("m").await?.finalizers().is_empty());

    // An edit that is no clean start: the file that the original's servers have is not where ours look, so it is downloaded first.
    let mut edited = spec(GOOD);
    edited["image"] = json!("tensorflow/serving:2.19.0");
    apply(&f, &ns, "m", edited, json!({})).await?;
    eventually("our own download came before our own servers", SOON, async || {
        let server = deployments(&f, &ns).get("m-server").await?;
        let claim = claims(&f, &ns).get("m-pvc").await?;
        let is_downloaded = claim.annotations().contains_key(names::MODEL_DOWNLOADED);
        let is_changed = template(&server) != template(&before);
        if is_changed && !is_downloaded {
            panic!("servers were changed before there was a model for them");
        }
        ensure!(is_changed && is_downloaded);
        Ok(())
    })
    .await?;
    phase(&f, &ns, "m", "Ready").await?;
    Ok(())
}

async fn in_the_way(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("taken").await?;
    let claim = json!({"metadata": {"name": "m-pvc"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}}});
    let made = claims(&f, &ns)
        .create(&PostParams::default(), &serde_json::from_value(claim)?)
        .await?;
    apply(&f, &ns, "m", spec(GOOD), json!({})).await?;
    reason(&f, &ns, "m", "Accepted", "NameTaken").await?;
    phase(&f, &ns, "m", "Failed").await?;
    ensure!(claims(&f, &ns).get("m-pvc").await?.resource_version() == made.resource_version());

    ready(&f, &ns, "p", spec(GOOD)).await?;
    apply(&f, &ns, "p", spec(OTHER), json!({"berth.dev/paused": ""})).await?;
    reason(&f, &ns, "p", "Accepted", "Paused").await?;
    let before = uids(&f, &ns, "p").await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(uids(&f, &ns, "p").await? == before);
    Ok(())
}
