//! AIModels with real KEDA: a backlog in Pulsar becomes workers, and its end takes them away.
//!
//! ```text
//! backlog ─► stats of Pulsar's admin API (here) ─► KEDA's operator and adapter ─► API server ─► HPA controller ─► Deployment
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::premlabs::AIDeployment;
use berth_crds::youxam::{AIModel, keys};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, condition, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// KEDA asks every 5 s, the HPA controller every 2 s, and the number goes down 5 s after the load.
const SCALED: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let pulsar = Pulsar::bind();
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("node-0", "h100", 0)],
    };
    Suite::new("keda")
        .fleet(fleet)
        .keda()
        .values(json!({"pulsar": {"adminURL": pulsar.url, "url": "pulsar://pulsar:6650"}}))
        .trial("a backlog adds workers and its end takes them away", move |c| {
            backlog(Fixture::new(c), pulsar)
        })
        .trial(
            "a ScaledObject of the user's has the replicas, also while it is paused",
            |c| paused(Fixture::new(c)),
        )
        .run()
}

/// As much of Pulsar's admin API as KEDA asks for: the stats of topics.
struct Pulsar {
    url: String,
    listener: std::net::TcpListener,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    backlog: AtomicU64,
    /// What was asked for: request line, and the token.
    asked: Mutex<Vec<(String, Option<String>)>>,
}

impl Pulsar {
    /// Before there is a runtime: the chart's values hold its address.
    fn bind() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        Self {
            url: format!("http://{address}"),
            listener,
            served: Arc::default(),
        }
    }

    fn serve(self) -> anyhow::Result<Arc<Served>> {
        self.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(self.listener)?;
        let served = self.served.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = self.served.clone();
                tokio::spawn(async move { served.answer(stream).await });
            }
        });
        Ok(served)
    }
}

impl Served {
    /// One request; the connection ends with the answer.
    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        stream.read_line(&mut request).await?;
        let mut token = None;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            match line.trim_end().split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => token = Some(value.to_owned()),
                Some(_) => {}
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let topic = path.strip_prefix("/admin/v2/persistent/public/default/");
        let (status, body) = match topic.and_then(|rest| rest.strip_suffix("/stats")) {
            None => ("404 Not Found", json!({"reason": "Topic not found"})),
            Some(topic) => {
                let backlog = self.backlog.load(Ordering::Relaxed);
                let subscription = format!("{topic}-subscription");
                (
                    "200 OK",
                    json!({"backlogSize": backlog * 100, "subscriptions": {
                        subscription: {"msgBacklog": backlog, "type": "Shared", "consumers": []},
                        "another": {"msgBacklog": 100_000},
                    }}),
                )
            }
        };
        self.asked.lock().push((request.trim_end().to_owned(), token));
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(answer.as_bytes()).await
    }
}

async fn backlog(f: Fixture, pulsar: Pulsar) -> anyhow::Result<()> {
    let pulsar = pulsar.serve()?;
    let ns = f.namespace("keda").await?;
    let models: Api<AIModel> = Api::namespaced(f.client(), &ns);
    let deployments: Api<Deployment> = Api::namespaced(f.client(), &ns);
    let name = "tiny";
    f.kubectl(&[
        "create",
        "secret",
        "generic",
        "-n",
        &ns,
        "pulsar",
        "--from-literal=token=s3cret",
    ])
    .await?;
    let model = json!({"apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "metadata": {"name": name}, "spec": {
        "type": "local", "model": "TinyLlama-1.1B", "image": "worker:1", "msgBacklogThreshold": 100,
        "pulsarTokenSecretRef": {"name": "pulsar", "key": "token"}}});
    let user = PatchParams::apply("user").force().validation_strict();
    models.patch(name, &user, &Patch::Apply(&model)).await?;

    // The number that is wanted, and the number of pods that are ready.
    let expect = async |wanted: i32, within: Duration| {
        eventually(&format!("{wanted} workers"), within, async || {
            let deployment = deployments.get(&keys::deployment(name)).await?;
            let spec = deployment.spec.context("spec")?.replicas;
            let ready = deployment.status.unwrap_or_default().ready_replicas;
            ensure!(
                (spec, ready) == (Some(wanted), Some(wanted)),
                "{spec:?}, ready {ready:?}"
            );
            Ok(())
        })
        .await
        .map_err(|error| error.context(format!("asked of Pulsar last: {:?}", pulsar.asked.lock().last())))
    };
    expect(1, SOON).await?;
    eventually("KEDA is ready", SOON, async || {
        let object = models.get(name).await?;
        let status = object.status.unwrap_or_default();
        let (now, reason, message) = condition(&status.conditions, "ScalingActive", object.metadata.generation)?;
        ensure!(
            (now.as_str(), reason.as_str()) == ("True", "ScalerReady"),
            "{now} {reason}: {message}"
        );
        Ok(())
    })
    .await?;

    // The HPA is KEDA's, under the name that the original's users know, with the bounds of its README.
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(f.client(), &ns);
    let metric = async || {
        let status = autoscalers
            .get("keda-hpa-tiny-scaledobject")
            .await?
            .status
            .context("status")?;
        anyhow::Ok(json!(status.current_metrics))
    };
    let autoscaler = autoscalers
        .get("keda-hpa-tiny-scaledobject")
        .await?
        .spec
        .context("spec")?;
    ensure!(
        (autoscaler.min_replicas, autoscaler.max_replicas) == (Some(1), 100)
            && autoscaler.scale_target_ref.name == keys::deployment(name),
        "{autoscaler:?}"
    );
    eventually("the HPA controller gets the metric", SOON, async || {
        let metrics = metric().await?;
        ensure!(
            metrics.pointer("/0/external/current/averageValue") == Some(&json!("0")),
            "{metrics}"
        );
        Ok(())
    })
    .await?;
    expect(1, SOON).await?;

    // 500 messages at 100 a worker.
    pulsar.backlog.store(500, Ordering::Relaxed);
    expect(5, SCALED).await?;
    // A new image does not set the number back.
    let image = Patch::Merge(json!({"spec": {"image": "worker:2"}}));
    models.patch(name, &PatchParams::default(), &image).await?;
    eventually("the new image", SOON, async || {
        let spec = deployments.get(&keys::deployment(name)).await?.spec.context("spec")?;
        let pod = spec.template.spec.context("pod")?;
        ensure!(pod.containers[0].image.as_deref() == Some("worker:2"));
        ensure!(spec.replicas == Some(5), "{:?}", spec.replicas);
        Ok(())
    })
    .await?;
    expect(5, SOON).await?;
    pulsar.backlog.store(0, Ordering::Relaxed);
    expect(1, SCALED).await?;

    // KEDA asked for this topic alone, with the token that the workers have.
    let asked: Vec<(String, Option<String>)> = pulsar.asked.lock().clone();
    let line = "GET /admin/v2/persistent/public/default/model-TinyLlama-1.1B/stats HTTP/1.1";
    let want = (line.to_owned(), Some("Bearer s3cret".to_owned()));
    ensure!(asked.iter().all(|request| *request == want), "{asked:?}");

    // With the model goes everything of KEDA's.
    models.delete(name, &DeleteParams::default()).await?;
    eventually("nothing of KEDA's is left", SOON, async || {
        let left = autoscalers.list(&ListParams::default()).await?.items;
        ensure!(left.is_empty(), "{left:?}");
        let left: Value = serde_json::from_str(
            &f.kubectl(&["get", "scaledobjects,triggerauthentications", "-n", &ns, "-o", "json"])
                .await?,
        )?;
        ensure!(left["items"] == json!([]), "{left}");
        Ok(())
    })
    .await
}

/// KEDA takes its HorizontalPodAutoscaler away while a ScaledObject is paused, and sets the number itself.
async fn paused(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("paused").await?;
    let name = "web";
    let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name}, "spec": {
        "engine": {"name": "generic"}, "endpoint": [],
        "deployment": {"replicas": 2, "template": {"spec": {"containers": [{"name": "web", "image": "oven/bun:latest"}]}}}}});
    f.apply(&ns, object).await?;
    let deployments: Api<Deployment> = Api::namespaced(f.client(), &ns);
    let expect = async |what: &str, wanted: i32| {
        eventually(&format!("{what}: {wanted}"), SCALED, async || {
            let is = deployments.get(name).await?.spec.context("spec")?.replicas;
            ensure!(is == Some(wanted), "{is:?}");
            Ok(())
        })
        .await
    };
    expect("as the spec says", 2).await?;

    let resource = ApiResource {
        group: "keda.sh".into(),
        version: "v1alpha1".into(),
        api_version: "keda.sh/v1alpha1".into(),
        kind: "ScaledObject".into(),
        plural: "scaledobjects".into(),
    };
    let scaled: Api<DynamicObject> = Api::namespaced_with(f.client(), &ns, &resource);
    let user = PatchParams::apply("user").force();
    let write = async |annotations: Value| {
        // Never within these hours of the year but one minute: the number is the least.
        let object = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"scaleTargetRef": {"name": name}, "minReplicaCount": 1, "maxReplicaCount": 5, "triggers": [{"type": "cron",
                "metadata": {"timezone": "Etc/UTC", "start": "0 0 29 2 *", "end": "1 0 29 2 *", "desiredReplicas": "4"}}]}});
        scaled.patch(name, &user, &Patch::Apply(&object)).await
    };
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(f.client(), &ns);
    let hpa = async |there: bool| {
        eventually(&format!("KEDA's HPA is there: {there}"), SCALED, async || {
            let found = autoscalers.list(&ListParams::default()).await?.items;
            ensure!(found.is_empty() != there, "{found:?}");
            Ok(())
        })
        .await
    };
    write(json!({})).await?;
    hpa(true).await?;
    expect("KEDA scales", 1).await?;

    write(json!({"autoscaling.keda.sh/paused-replicas": "3"})).await?;
    hpa(false).await?;
    expect("KEDA's number while it is paused", 3).await?;
    // Whatever makes Berth look again leaves it.
    let looked = async |n: u32| {
        let edit = json!({"spec": {"env": [{"name": "LOOK", "value": n.to_string()}]}});
        let models: Api<AIDeployment> = Api::namespaced(f.client(), &ns);
        models.patch(name, &PatchParams::default(), &Patch::Merge(edit)).await?;
        eventually("the edit is in the Deployment", SOON, async || {
            let template = json!(deployments.get(name).await?.spec.context("spec")?.template);
            ensure!(
                template.to_string().contains(&format!("\"value\":\"{n}\"")),
                "{template}"
            );
            Ok(())
        })
        .await
    };
    for n in 0..3 {
        looked(n).await?;
        let is = deployments.get(name).await?.spec.context("spec")?.replicas;
        ensure!(is == Some(3), "look {n}: {is:?}");
    }

    scaled.delete(name, &DeleteParams::default()).await?;
    expect("the spec's again, when the ScaledObject is gone", 2).await
}
