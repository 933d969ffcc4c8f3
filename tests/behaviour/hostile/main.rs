//! Whatever users write, each of them hears of it, and nobody else does.

mod generate;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Call, Fixture, NAMESPACE, Suite, eventually, vllm};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{ApiResource, ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use generate::Generator;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("h100-0", "h100", 8), NodeSpec::new("cpu-0", "", 0)],
    };
    Suite::new("hostile")
        .fleet(fleet)
        .trial(
            "whatever is accepted gets children or is told which field is wrong, and a good object beside it runs",
            |c| hostile(Fixture::new(c)),
        )
        .trial("an object that cannot be read is told which field, and recovers", |c| {
            unreadable(Fixture::new(c))
        })
        .run()
}

/// Variable with another seed.
const SEED: &str = "BERTH_HOSTILE_SEED";
const DEFAULT_SEED: u64 = 4;
/// Variable with another number of AIDeployments.
const COUNT: &str = "BERTH_HOSTILE_COUNT";
const DEFAULT_COUNT: u64 = 500;
/// Until every object was told of.
const PATIENCE: Duration = Duration::from_secs(90);
/// Over which requests are counted when all is quiet.
const QUIET: Duration = Duration::from_secs(10);

/// A kind of hostile objects.
struct Kind {
    name: &'static str,
    plural: &'static str,
    /// Specs that work, to start from.
    good: Vec<Value>,
    /// How many for each AIDeployment, in percent.
    percent: u64,
}

fn kinds() -> Vec<Kind> {
    let pod = json!({"spec": {"containers": [{"name": "c", "image": "example.com/engine:1", "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}}]}});
    let vllm = json!({"engine": {"name": "vllm"}, "models": [{"uri": "org/model"}], "endpoint": [{"domain": "m.example.com"}],
        "deployment": {"resources": {"requests": {"cpu": "1"}}}});
    let mut gpu = vllm.clone();
    gpu["deployment"] = json!({"accelerator": {"interface": "CUDA", "class": "h100"}, "template": pod});
    let engine = |name: &str| json!({"engine": {"name": name}, "models": [{"uri": "https://example.com/model.bin"}]});
    let generic = json!({"engine": {"name": "generic"}, "endpoint": [{"domain": "g.example.com", "port": 8080}], "deployment": {"template": pod}});
    let map = json!({"vllm": [{"variant": "base", "uri": "org/model"}], "localai": [{"variant": "base", "engineConfigFile": "name: x"}]});
    let mapped =
        json!({"engine": {"name": "vllm"}, "models": [{"modelMapRef": {"name": "h-0001", "variant": "base"}}]});
    let rule = json!({"labels": {"example.com/hostile": "x"}, "matchExpression": {"key": "kubernetes.io/hostname", "operator": "In", "values": ["cpu-0"]}});
    vec![
        Kind {
            name: "AIDeployment",
            plural: "aideployments",
            good: vec![
                vllm.clone(),
                vllm,
                gpu,
                generic.clone(),
                generic,
                mapped,
                engine("localai"),
                engine("triton"),
                engine("deepspeed-mii"),
                engine("none"),
            ],
            percent: 100,
        },
        Kind {
            name: "AIModelMap",
            plural: "aimodelmaps",
            good: vec![map],
            percent: 15,
        },
        Kind {
            name: "AutoNodeLabeler",
            plural: "autonodelabelers",
            good: vec![rule],
            percent: 20,
        },
    ]
}

fn number(variable: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

fn resource(kind: &Kind) -> ApiResource {
    ApiResource {
        group: "premlabs.io".into(),
        version: "v1alpha1".into(),
        api_version: "premlabs.io/v1alpha1".into(),
        kind: kind.name.into(),
        plural: kind.plural.into(),
    }
}

/// Applies a good object, and how long it took to serve.
async fn good(f: &Fixture, namespace: &str) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let object = vllm("good", json!({"accelerator": {"interface": "CUDA", "class": "h100"}}));
    f.apply(namespace, object).await?;
    f.expect_condition(namespace, "good", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    Ok(started.elapsed())
}

/// Processes of all controllers.
async fn processes(f: &Fixture) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for pod in f.cluster.pods_of("controller", None).await? {
        let name = pod.name_any();
        all.insert(
            name.clone(),
            format!("{:?}", f.cluster.process(&name, "controller")?.pid()),
        );
    }
    Ok(all)
}

async fn hostile(f: Fixture) -> anyhow::Result<()> {
    let (seed, count) = (number(SEED, DEFAULT_SEED)?, number(COUNT, DEFAULT_COUNT)?);
    println!("{SEED}={seed} {COUNT}={count}");
    let (alone, beside, crowd) = (
        f.namespace("alone").await?,
        f.namespace("beside").await?,
        f.namespace("crowd").await?,
    );
    // What is accepted may ask for two thousand million pods; that is for a quota to stop.
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "40", "requests.nvidia.com/gpu": "3"}}});
    Api::<ResourceQuota>::namespaced(f.client(), &crowd)
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    f.all_agents_connected().await?;
    let before = processes(&f).await?;
    let time_alone = good(&f, &alone).await?;

    let mut objects = Vec::new();
    for (at, kind) in kinds().into_iter().enumerate() {
        let file = f.repo(&format!(
            "deploy/charts/berth-crds/templates/{}.premlabs.io.yaml",
            kind.plural
        ));
        let mut generator = Generator::new(kind.name, file.as_ref(), kind.good.clone(), seed ^ (at as u64) << 32)?;
        for i in 0..usize::try_from(count * kind.percent / 100)? {
            objects.push((resource(&kind), generator.next(i)?));
        }
    }
    let started = Instant::now();
    let sent = futures::stream::iter(&objects)
        .map(|(resource, object)| create(&f, &crowd, resource, object))
        .buffered(16);
    let (sent, time_beside) = tokio::join!(sent.try_collect::<Vec<_>>(), good(&f, &beside));
    let (sent, time_beside) = (sent?, time_beside?);
    let accepted = sent.iter().filter(|s| s.is_none()).count();
    println!(
        "{} of {} objects were accepted in {:.1} s; refused: {:?}",
        accepted,
        objects.len(),
        started.elapsed().as_secs_f64(),
        tally(sent.into_iter().flatten())
    );
    println!(
        "a good object served after {:.1} s alone and {:.1} s beside them",
        time_alone.as_secs_f64(),
        time_beside.as_secs_f64()
    );
    ensure!(
        accepted * 4 > objects.len(),
        "hardly any was accepted: the API server is tested, not Berth"
    );

    for kind in kinds() {
        if !is_served(&f, &alone, &kind).await? {
            println!("{} is not served by this version", kind.name);
            continue;
        }
        let answers = everybody_was_told(&f, &crowd, &kind).await?;
        println!("{} {}: {:?}", answers.len(), kind.plural, tally(answers.into_iter()));
    }
    println!("everybody was told after {:.1} s", started.elapsed().as_secs_f64());
    is_quiet(&f, accepted).await?;

    ensure!(
        processes(&f).await? == before,
        "a controller was started again: {before:?}"
    );
    let logs = f.controller_logs().await?;
    let panics: Vec<&str> = logs.lines().filter(|l| l.contains("panicked")).take(3).collect();
    ensure!(panics.is_empty(), "{panics:#?}");
    Ok(())
}

/// Sends an object as it is; what the API server has against it.
async fn create(
    f: &Fixture,
    namespace: &str,
    resource: &ApiResource,
    object: &Value,
) -> anyhow::Result<Option<String>> {
    let api: Api<DynamicObject> = Api::namespaced_with(f.client(), namespace, resource);
    let body: DynamicObject = serde_json::from_value(object.clone())?;
    match api.create(&PostParams::default(), &body).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) => Ok(Some(format!("{} {}", status.code, status.reason))),
        Err(error) => bail!("create {}: {error}", object["metadata"]["name"]),
    }
}

fn tally(answers: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    answers.for_each(|a| *counts.entry(a).or_insert(0) += 1);
    counts
}

/// Whether a plain object of the kind is told anything at all.
async fn is_served(f: &Fixture, namespace: &str, kind: &Kind) -> anyhow::Result<bool> {
    let resource = resource(kind);
    let api: Api<DynamicObject> = Api::namespaced_with(f.client(), namespace, &resource);
    let plain = json!({"apiVersion": resource.api_version, "kind": kind.name, "metadata": {"name": "plain"}, "spec": kind.good[0]});
    api.create(&PostParams::default(), &serde_json::from_value(plain)?)
        .await?;
    let told = eventually("a word", Duration::from_secs(10), async || {
        let status = api.get("plain").await?.data["status"]["conditions"].clone();
        ensure!(status.is_array());
        Ok(())
    });
    Ok(told.await.is_ok())
}

/// What each object of a kind was told, once all were.
async fn everybody_was_told(f: &Fixture, namespace: &str, kind: &Kind) -> anyhow::Result<Vec<String>> {
    let api: Api<DynamicObject> = Api::namespaced_with(f.client(), namespace, &resource(kind));
    eventually(&format!("every {} was told of", kind.name), PATIENCE, async || {
        let children = children(f, namespace).await?;
        let objects = api.list(&ListParams::default()).await?.items;
        let (mut answers, mut silent) = (Vec::new(), Vec::new());
        for object in &objects {
            match answer(kind, object, &children) {
                Ok(answer) => answers.push(answer),
                Err(error) => silent.push(format!(
                    "{:.60}: {error:#}: {:.1500}",
                    object.name_any(),
                    object.data["spec"].to_string()
                )),
            }
        }
        ensure!(
            silent.is_empty(),
            "{} of {}: {:#?}",
            silent.len(),
            objects.len(),
            &silent[..silent.len().min(10)]
        );
        Ok(answers)
    })
    .await
}

/// `Kind owner-uid` of all children.
async fn children(f: &Fixture, namespace: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for (group, kind, plural) in [
        ("apps", "Deployment", "deployments"),
        ("", "Service", "services"),
        ("", "ConfigMap", "configmaps"),
    ] {
        let api_version = if group.is_empty() {
            "v1".to_owned()
        } else {
            format!("{group}/v1")
        };
        let resource = ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version,
            kind: kind.into(),
            plural: plural.into(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(f.client(), namespace, &resource);
        for object in api.list(&ListParams::default()).await?.items {
            all.extend(object.owner_references().iter().map(|o| format!("{kind} {}", o.uid)));
        }
    }
    Ok(all)
}

/// What an object was told; an error says what is amiss.
fn answer(kind: &Kind, object: &DynamicObject, children: &BTreeSet<String>) -> anyhow::Result<String> {
    let conditions = object.data["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let accepted = conditions
        .iter()
        .find(|c| c["type"] == "Accepted")
        .context("no condition Accepted")?;
    let text = |field: &str| accepted[field].as_str().unwrap_or_default();
    ensure!(
        accepted["observedGeneration"] == json!(object.metadata.generation),
        "not of this generation"
    );
    let (reason, message) = (text("reason"), text("message"));
    ensure!(
        message.len() <= 10_000,
        "{reason}: a message of {} bytes",
        message.len()
    );
    let names_field = message.contains("spec.") || message.contains("metadata.");
    match (text("status"), reason) {
        ("True", _) => {
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let wanted: &[&str] = if kind.name == "AIDeployment" {
                &["Deployment", "Service"]
            } else {
                &[]
            };
            for child in wanted {
                ensure!(
                    children.contains(&format!("{child} {uid}")),
                    "accepted, and has no {child}"
                );
            }
        }
        ("False", "NameTaken" | "NamespaceNotAllowed") => ensure!(!message.is_empty(), "{reason} without a word"),
        ("False", _) => ensure!(
            names_field || message.contains("too large"),
            "{reason} names no field: {message}"
        ),
        ("Unknown", "Paused") => {}
        (status, _) => bail!("Accepted={status}/{reason}: {message}"),
    }
    Ok(format!("{}/{reason}", text("status")))
}

/// When all were told, there is hardly anything left to do: what was refused is tried again ever more seldom.
async fn is_quiet(f: &Fixture, accepted: usize) -> anyhow::Result<()> {
    let user = format!("system:serviceaccount:{NAMESPACE}:berth-controller");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = f.audit(&user).await?.len();
    tokio::time::sleep(QUIET).await;
    let calls: Vec<Call> = f.audit(&user).await?.into_iter().skip(before).collect();
    let of = |c: &Call| c.resource.clone().unwrap_or_default();
    let calls: Vec<&Call> = calls.iter().filter(|c| of(c) != "leases").collect();
    let by_resource = tally(calls.iter().map(|c| format!("{} {}", c.verb, of(c))));
    println!(
        "{} requests in {} s when all is quiet: {by_resource:?}",
        calls.len(),
        QUIET.as_secs()
    );
    let again = tally(
        calls
            .iter()
            .filter(|c| of(c) != "events")
            .map(|c| format!("{} {:.200}", c.verb, c.uri)),
    );
    let again: Vec<_> = again.into_iter().filter(|(_, times)| *times > 4).collect();
    ensure!(again.is_empty(), "the same again and again: {again:#?}");
    ensure!(
        calls.len() <= accepted + 100,
        "{} requests for {accepted} objects",
        calls.len()
    );
    Ok(())
}

/// The schema that is installed is not always ours: another version's, or the original's, may take what we cannot read.
async fn unreadable(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("unreadable").await?;
    let loose = r#"{"x-kubernetes-int-or-string": true}"#;
    let cases = [
        (
            "aideployments",
            "args/items",
            json!({"engine": {"name": "vllm"}, "models": [{"uri": "m"}], "args": ["--x", 5]}),
            "spec.args[1]: ",
            json!({"args": ["--x", "5"]}),
        ),
        (
            "autonodelabelers",
            "labels/additionalProperties",
            json!({"labels": {"example.com/n": 5}, "matchExpression": {"key": "example.com/none", "operator": "Exists"}}),
            "spec.labels.example.com/n: ",
            json!({"labels": {"example.com/n": "5"}}),
        ),
    ];
    for (plural, field, spec, named, fix) in cases {
        let kinds = kinds();
        let kind = kinds
            .iter()
            .find(|k| k.plural == plural)
            .context("a kind of that name")?;
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{field}");
        let patch = format!(r#"[{{"op": "replace", "path": "{path}", "value": {loose}}}]"#);
        f.kubectl(&[
            "patch",
            "crd",
            &format!("{plural}.premlabs.io"),
            "--type=json",
            "-p",
            &patch,
        ])
        .await?;
        let resource = resource(kind);
        let api: Api<DynamicObject> = Api::namespaced_with(f.client(), &ns, &resource);
        let object =
            json!({"apiVersion": resource.api_version, "kind": kind.name, "metadata": {"name": "odd"}, "spec": spec});
        let object: DynamicObject = serde_json::from_value(object)?;
        eventually("the schema is as it was patched", Duration::from_secs(30), async || {
            Ok(api.create(&PostParams::default(), &object).await.map(drop)?)
        })
        .await?;
        let accepted = async |status: &str| {
            eventually(
                &format!("Accepted={status} of {plural}"),
                Duration::from_secs(30),
                async || {
                    let object = api.get("odd").await?;
                    let conditions = object.data["status"]["conditions"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    let accepted = conditions.iter().find(|c| c["type"] == "Accepted").cloned();
                    let accepted = accepted.with_context(|| format!("{conditions:?}"))?;
                    ensure!(
                        accepted["status"] == status
                            && accepted["observedGeneration"] == json!(object.metadata.generation),
                        "{accepted}"
                    );
                    Ok((
                        accepted["message"].as_str().unwrap_or_default().to_owned(),
                        object.data["status"]["errMsg"].clone(),
                    ))
                },
            )
            .await
        };
        let (message, error) = accepted("False").await?;
        ensure!(message.starts_with(named), "{message}");
        ensure!(plural != "aideployments" || error == json!(message), "{error}");
        eventually("an Event", Duration::from_secs(20), async || {
            let said = f.events_in(&ns, kind.name, "odd").await?;
            ensure!(
                said.iter()
                    .any(|s| s.reason == "InvalidSpec" && s.message.starts_with(named)),
                "{said:?}"
            );
            Ok(())
        })
        .await?;
        let params = PatchParams::default();
        api.patch("odd", &params, &Patch::Merge(json!({"spec": fix}))).await?;
        let (_, error) = accepted("True").await?;
        ensure!(error.is_null(), "{error}");
    }
    f.delete_namespace(&ns).await
}
