//! Models by name: AIModelMaps, their ConfigMaps, and the AIDeployments that refer to them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::premlabs::{AIDeployment, AIModelMap};
use berth_tests::{Fixture, Suite, condition, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

// Each trial has a namespace of its own, and none asks for a GPU: they are left to the end of the cluster, which is quicker than to wait for
// the garbage collector.
fn main() -> ExitCode {
    Suite::new("aimodelmap")
        .trial(
            "K1: every variant with a configuration file is in the map's ConfigMap",
            |c| config_map(Fixture::new(c)),
        )
        .trial(
            "the ConfigMap follows edits, is repaired, and goes with the last file",
            |c| follows(Fixture::new(c)),
        )
        .trial("a same-named ConfigMap of somebody else is left alone", |c| {
            name_taken(Fixture::new(c))
        })
        .trial("a ConfigMap that the original made becomes the map's", |c| {
            left_behind(Fixture::new(c))
        })
        .trial("a variant that is there twice is named, and the first counts", |c| {
            twice(Fixture::new(c))
        })
        .trial(
            "V5: a reference is served, and only edits of its variant roll the pods",
            |c| reference(Fixture::new(c)),
        )
        .trial(
            "L6: a configuration file reaches the pods, and an edit of it rolls them",
            |c| engine_config(Fixture::new(c)),
        )
        .trial("a map of another namespace is used after it allows it", |c| {
            other_namespace(Fixture::new(c))
        })
        .trial("a map that is deleted leaves what runs", |c| deleted(Fixture::new(c)))
        .trial("converged maps cost no write, also after a restart", |c| {
            converged(Fixture::new(c))
        })
        .run()
}

const SOON: Duration = Duration::from_secs(30);
/// Long enough for a write that must not come.
const A_WHILE: Duration = Duration::from_secs(2);

fn maps(f: &Fixture, ns: &str) -> Api<AIModelMap> {
    Api::namespaced(f.client(), ns)
}

fn config_maps(f: &Fixture, ns: &str) -> Api<ConfigMap> {
    Api::namespaced(f.client(), ns)
}

fn deployments(f: &Fixture, ns: &str) -> Api<Deployment> {
    Api::namespaced(f.client(), ns)
}

/// Applies a map as a user would; unknown fields are errors.
async fn apply(f: &Fixture, ns: &str, name: &str, spec: Value, annotations: Value) -> anyhow::Result<()> {
    let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap",
        "metadata": {"name": name, "annotations": annotations}, "spec": spec});
    let params = PatchParams::apply("user").force().validation_strict();
    let patch = Patch::Apply(&object);
    let answer = maps(f, ns).patch(name, &params, &patch).await;
    answer.with_context(|| format!("apply {name}")).map(drop)
}

/// Waits for the condition Accepted of a map, about its present generation; its message.
async fn accepted(f: &Fixture, ns: &str, name: &str, wanted: (&str, &str)) -> anyhow::Result<String> {
    eventually(&format!("Accepted of {name} is {wanted:?}"), SOON, async || {
        let object = maps(f, ns).get(name).await?;
        let conditions = object.status.clone().unwrap_or_default().conditions;
        let (status, reason, message) = condition(&conditions, "Accepted", object.metadata.generation)?;
        ensure!(
            (status.as_str(), reason.as_str()) == wanted,
            "is {status} {reason}: {message}"
        );
        Ok(message)
    })
    .await
}

async fn expect_data(f: &Fixture, ns: &str, name: &str, wanted: &[(&str, &str)]) -> anyhow::Result<ConfigMap> {
    eventually(&format!("ConfigMap {name} has {wanted:?}"), SOON, async || {
        let found = config_maps(f, ns).get(name).await?;
        let data = found.data.clone().unwrap_or_default();
        let wanted = wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ensure!(data == wanted, "{data:?}");
        Ok(found)
    })
    .await
}

async fn no_config_map(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<()> {
    eventually(&format!("no ConfigMap {name}"), SOON, async || {
        ensure!(config_maps(f, ns).get_opt(name).await?.is_none());
        Ok(())
    })
    .await
}

fn file(variant: &str, text: &str) -> Value {
    json!({"variant": variant, "uri": "u", "engineConfigFile": text})
}

/// An AIDeployment of engine vllm with one model that is in a map.
fn referring(name: &str, reference: Value, more: Value) -> Value {
    let mut model = more;
    model["modelMapRef"] = reference;
    json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name},
        "spec": {"engine": {"name": "vllm"}, "models": [model]}})
}

async fn expect_args(f: &Fixture, ns: &str, name: &str, wanted: &[&str]) -> anyhow::Result<Deployment> {
    eventually(&format!("arguments {wanted:?}"), SOON, async || {
        let found = deployments(f, ns).get(name).await?;
        let pod = found.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        let args = pod.context("pod spec")?.containers[0].args.clone().unwrap_or_default();
        ensure!(args == wanted, "{args:?}");
        Ok(found)
    })
    .await
}

/// The controller's writes in a namespace; of this resource only, unless it is empty.
async fn writes(f: &Fixture, ns: &str, resource: &str) -> anyhow::Result<Vec<String>> {
    let of_namespace = format!("/namespaces/{ns}/");
    let all = f.controller_writes(resource).await?;
    Ok(all.into_iter().filter(|w| w.contains(&of_namespace)).collect())
}

async fn config_map(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("k1").await?;
    let spec = json!({"localai": [file("variant1", "a: 1\n"), file("variant2", "b: 2\n"), {"variant": "bare", "uri": "u"}],
        "vllm": [file("variant1", "c: 3\n")]});
    apply(&f, &ns, "k1.map", spec, json!({})).await?;
    let made = expect_data(
        &f,
        &ns,
        "k1.map",
        &[
            ("localai-variant1-engineConfigFile", "a: 1\n"),
            ("localai-variant2-engineConfigFile", "b: 2\n"),
            ("vllm-variant1-engineConfigFile", "c: 3\n"),
        ],
    )
    .await?;
    let key = "mlcontroller.premlabs.io/aimodelmap";
    ensure!(
        made.labels().get(key).map(String::as_str) == Some("k1.map"),
        "{:?}",
        made.labels()
    );
    ensure!(made.annotations().get(key).map(String::as_str) == Some("k1.map"));
    let owner = maps(&f, &ns).get("k1.map").await?.uid();
    let owners = made.owner_references();
    ensure!(
        owners.len() == 1 && Some(&owners[0].uid) == owner.as_ref(),
        "{owners:?}"
    );
    ensure!(owners[0].controller == Some(true) && owners[0].block_owner_deletion == Some(true));
    accepted(&f, &ns, "k1.map", ("True", "Valid")).await?;

    // The original's sample: nothing in it. And a field that its engine does not read.
    apply(&f, &ns, "empty", json!({}), json!({})).await?;
    accepted(&f, &ns, "empty", ("True", "Valid")).await?;
    apply(
        &f,
        &ns,
        "vain",
        json!({"localai": [{"variant": "a", "uri": "u", "dataType": "int8"}]}),
        json!({}),
    )
    .await?;
    let message = accepted(&f, &ns, "vain", ("True", "IgnoredFields")).await?;
    ensure!(message.contains("spec.localai[0].dataType"), "{message}");
    tokio::time::sleep(A_WHILE).await;
    no_config_map(&f, &ns, "empty").await?;
    no_config_map(&f, &ns, "vain").await?;

    let table = f.kubectl(&["get", "-n", &ns, "aimodelmaps"]).await?;
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    ensure!(
        lines.next() == Some(vec!["NAME", "ACCEPTED", "REASON", "AGE"]),
        "{table}"
    );
    ensure!(
        lines.next().is_some_and(|l| l[..3] == ["empty", "True", "Valid"]),
        "{table}"
    );
    Ok(())
}

async fn follows(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("follows").await?;
    let (key, other) = ("localai-a-engineConfigFile", "deepspeed-mii-b-engineConfigFile");
    apply(&f, &ns, "m", json!({"localai": [file("a", "1")]}), json!({})).await?;
    let first = expect_data(&f, &ns, "m", &[(key, "1")]).await?;
    let spec = json!({"localai": [file("a", "2")], "deepspeed-mii": [file("b", "3")]});
    apply(&f, &ns, "m", spec.clone(), json!({})).await?;
    let second = expect_data(&f, &ns, "m", &[(key, "2"), (other, "3")]).await?;
    ensure!(first.uid() == second.uid(), "the same object");

    // By hand: another text, a key less, no label, no owner, no object.
    let api = config_maps(&f, &ns);
    let edits = [
        json!({"data": {key: "mine"}}),
        json!({"data": {key: null}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}, "data": {key: "mine"}}),
        json!({"metadata": {"ownerReferences": null}, "data": {key: "mine"}}),
    ];
    for edit in edits {
        api.patch("m", &PatchParams::default(), &Patch::Merge(&edit)).await?;
        expect_data(&f, &ns, "m", &[(key, "2"), (other, "3")])
            .await
            .with_context(|| format!("{edit}"))?;
    }
    api.delete("m", &DeleteParams::default()).await?;
    let again = expect_data(&f, &ns, "m", &[(key, "2"), (other, "3")]).await?;
    ensure!(again.uid() != second.uid() && again.owner_references().len() == 1);

    // Paused: nothing is brought in step until it ends.
    let less = json!({"deepspeed-mii": [file("b", "3")]});
    apply(&f, &ns, "m", less.clone(), json!({"berth.dev/paused": ""})).await?;
    accepted(&f, &ns, "m", ("Unknown", "Paused")).await?;
    expect_data(&f, &ns, "m", &[(key, "2"), (other, "3")]).await?;
    apply(&f, &ns, "m", less, json!({})).await?;
    expect_data(&f, &ns, "m", &[(other, "3")]).await?;
    apply(&f, &ns, "m", json!({"vllm": [{"variant": "a", "uri": "u"}]}), json!({})).await?;
    no_config_map(&f, &ns, "m").await?;
    Ok(())
}

async fn name_taken(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("taken").await?;
    let api = config_maps(&f, &ns);
    let foreign = serde_json::from_value(json!({"metadata": {"name": "mine"}, "data": {"a": "b"}}))?;
    let before = api.create(&PostParams::default(), &foreign).await?;
    let spec = json!({"localai": [file("a", "1")]});
    apply(&f, &ns, "mine", spec, json!({})).await?;
    let message = accepted(&f, &ns, "mine", ("False", "NameTaken")).await?;
    ensure!(message.contains(&format!("ConfigMap {ns}/mine")), "{message}");
    ensure!(api.get("mine").await? == before, "left alone");
    eventually("an Event", SOON, async || {
        let events = f.events_in(&ns, "AIModelMap", "mine").await?;
        ensure!(events.iter().any(|e| e.reason == "NameTaken"), "{events:?}");
        Ok(())
    })
    .await?;
    // Without files no ConfigMap is wanted, and the foreign one is nobody's business.
    apply(&f, &ns, "mine", json!({}), json!({})).await?;
    accepted(&f, &ns, "mine", ("True", "Valid")).await?;
    ensure!(api.get("mine").await? == before, "left alone");
    Ok(())
}

async fn left_behind(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("behind").await?;
    let spec = json!({"localai": [file("base", "new")]});
    apply(&f, &ns, "old", spec.clone(), json!({"berth.dev/paused": ""})).await?;
    let uid = maps(&f, &ns).get("old").await?.uid();
    let made = json!({"metadata": {"name": "old",
            "labels": {"mlcontroller.premlabs.io/aimodelmap": "old"}, "annotations": {"mlcontroller.premlabs.io/aimodelmap": "old"},
            "ownerReferences": [{"apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap", "name": "old", "uid": uid,
                "controller": true, "blockOwnerDeletion": true}]},
        "data": {"localai-base-engineConfigFile": "frozen at creation", "generic-old-engineConfigFile": "of a variant that is gone"}});
    let params = PostParams {
        field_manager: Some("manager".into()),
        ..PostParams::default()
    };
    let before = config_maps(&f, &ns)
        .create(&params, &serde_json::from_value(made)?)
        .await?;
    apply(&f, &ns, "old", spec, json!({})).await?;
    let after = expect_data(&f, &ns, "old", &[("localai-base-engineConfigFile", "new")]).await?;
    ensure!(after.uid() == before.uid(), "the same object");
    ensure!(after.owner_references().len() == 1, "{:?}", after.owner_references());
    accepted(&f, &ns, "old", ("True", "Valid")).await?;
    Ok(())
}

async fn twice(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("twice").await?;
    let spec = json!({"vllm": [{"variant": "a", "uri": "first"}, {"variant": "b", "uri": "u"}, {"variant": "a", "uri": "second"}]});
    apply(&f, &ns, "m", spec, json!({})).await?;
    let message = accepted(&f, &ns, "m", ("False", "InvalidSpec")).await?;
    ensure!(
        message.contains("spec.vllm[2].variant") && message.contains("spec.vllm[0]"),
        "{message}"
    );
    f.apply(&ns, referring("uses", json!({"name": "m", "variant": "a"}), json!({})))
        .await?;
    expect_args(&f, &ns, "uses", &["--model", "first"]).await?;
    Ok(())
}

async fn reference(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("reference").await?;
    // The reference is there first.
    let reference = json!({"name": "phi-2.0", "variant": "original"});
    f.apply(&ns, referring("phi", reference.clone(), json!({}))).await?;
    let message = f
        .expect_condition(&ns, "phi", "Accepted", ("False", "ReferenceNotFound"))
        .await?;
    ensure!(
        message.contains("spec.models[0].modelMapRef.name") && message.contains("phi-2.0"),
        "{message}"
    );
    let vllm = |variants: Value| json!({"vllm": variants});
    let original = json!({"variant": "original", "uri": "microsoft/phi-2"});
    apply(&f, &ns, "phi-2.0", vllm(json!([original])), json!({})).await?;
    let served = expect_args(&f, &ns, "phi", &["--model", "microsoft/phi-2"]).await?;
    f.expect_condition(&ns, "phi", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    f.expect_condition(&ns, "phi", "Accepted", ("True", "Valid")).await?;

    // What is not its variant's is not its pods'.
    let before = (writes(&f, &ns, "deployments").await?, served.metadata.generation);
    let other = json!({"variant": "other", "uri": "x", "engineConfigFile": "y"});
    apply(
        &f,
        &ns,
        "phi-2.0",
        vllm(json!([other, original])),
        json!({"example.com/note": "1", "berth.dev/allow-from": "*"}),
    )
    .await?;
    accepted(&f, &ns, "phi-2.0", ("True", "Valid")).await?;
    expect_data(&f, &ns, "phi-2.0", &[("vllm-other-engineConfigFile", "y")]).await?;
    tokio::time::sleep(A_WHILE).await;
    let generation = deployments(&f, &ns).get("phi").await?.metadata.generation;
    let after = (writes(&f, &ns, "deployments").await?, generation);
    ensure!(after == before, "the Deployment was written: {after:?}");

    // What is its variant's is; what it sets itself wins.
    let edited =
        json!({"variant": "original", "uri": "microsoft/phi-3", "quantization": "gptq", "dataType": "float16"});
    apply(&f, &ns, "phi-2.0", vllm(json!([edited])), json!({})).await?;
    let wanted = [
        "--model",
        "microsoft/phi-3",
        "--dtype",
        "float16",
        "--quantization",
        "gptq",
    ];
    let rolled = expect_args(&f, &ns, "phi", &wanted).await?;
    ensure!(rolled.uid() == served.uid() && rolled.metadata.generation > served.metadata.generation);
    f.apply(&ns, referring("phi", reference, json!({"quantization": "awq"})))
        .await?;
    let wanted = [
        "--model",
        "microsoft/phi-3",
        "--dtype",
        "float16",
        "--quantization",
        "awq",
    ];
    expect_args(&f, &ns, "phi", &wanted).await?;

    // A value that cannot work is told with the map that it is in, while what runs goes on.
    let bad = json!({"variant": "original", "uri": "microsoft/phi-3", "dataType": "a b"});
    apply(&f, &ns, "phi-2.0", vllm(json!([bad])), json!({})).await?;
    let message = f
        .expect_condition(&ns, "phi", "Accepted", ("False", "InvalidSpec"))
        .await?;
    ensure!(
        message.contains(&format!("(from AIModelMap {ns}/phi-2.0 variant original)")),
        "{message}"
    );
    expect_args(&f, &ns, "phi", &wanted).await?;
    Ok(())
}

async fn engine_config(f: Fixture) -> anyhow::Result<()> {
    let (library, ns) = (f.namespace("bert").await?, f.namespace("serves").await?);
    let spec = |text: &str| json!({"localai": [file("base", text), file("other", "x")]});
    let grant = json!({"berth.dev/allow-from": "*"});
    apply(&f, &library, "distilroberta", spec("name: bert"), grant.clone()).await?;
    let reference = json!({"name": "distilroberta", "variant": "base", "namespace": library});
    let mut object = referring("simple", reference, json!({}));
    object["spec"]["engine"]["name"] = json!("localai");
    object["spec"]["env"] = json!([{"name": "DEBUG", "value": "true"}]);
    f.apply(&ns, object.clone()).await?;
    f.expect_condition(&ns, "simple", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    let key = "localai-base-engineConfigFile";
    expect_data(&f, &ns, "simple-engine-config", &[(key, "name: bert")]).await?;
    let hash = async || -> anyhow::Result<String> {
        let template = deployments(&f, &ns).get("simple").await?.spec.context("spec")?.template;
        let annotations = template.metadata.and_then(|m| m.annotations).unwrap_or_default();
        let hash = annotations.get("berth.dev/config-hash");
        hash.cloned().context("a hash in the template")
    };
    let first = hash().await?;
    let pod = deployments(&f, &ns)
        .get("simple")
        .await?
        .spec
        .and_then(|s| s.template.spec);
    let volumes = pod.context("pod spec")?.volumes.unwrap_or_default();
    let volumes: Vec<_> = volumes.iter().map(|v| v.name.as_str()).collect();
    ensure!(volumes == ["models", "cache", "configs"], "{volumes:?}");

    // Another variant's file is another's.
    let other = json!({"localai": [file("base", "name: bert"), file("other", "y")]});
    apply(&f, &library, "distilroberta", other, grant.clone()).await?;
    expect_data(
        &f,
        &library,
        "distilroberta",
        &[(key, "name: bert"), ("localai-other-engineConfigFile", "y")],
    )
    .await?;
    tokio::time::sleep(A_WHILE).await;
    ensure!(hash().await? == first);

    // An edit of its own reaches the map's ConfigMap, that of the AIDeployment, and the pods.
    apply(&f, &library, "distilroberta", spec("name: bert2"), grant).await?;
    expect_data(
        &f,
        &library,
        "distilroberta",
        &[(key, "name: bert2"), ("localai-other-engineConfigFile", "x")],
    )
    .await?;
    expect_data(&f, &ns, "simple-engine-config", &[(key, "name: bert2")]).await?;
    eventually("another hash", SOON, async || {
        ensure!(hash().await? != first);
        Ok(())
    })
    .await?;

    // What the AIDeployment says itself wins, and without any file the ConfigMap goes.
    object["spec"]["models"][0]["engineConfigFile"] = json!("name: mine");
    f.apply(&ns, object.clone()).await?;
    expect_data(&f, &ns, "simple-engine-config", &[(key, "name: mine")]).await?;
    object["spec"]["models"] = json!([{"uri": "phi-2"}]);
    f.apply(&ns, object).await?;
    expect_args(&f, &ns, "simple", &["phi-2"]).await?;
    no_config_map(&f, &ns, "simple-engine-config").await
}

async fn other_namespace(f: Fixture) -> anyhow::Result<()> {
    let (library, ns) = (f.namespace("library").await?, f.namespace("reader").await?);
    let spec = |uri: &str| json!({"vllm": [{"variant": "v", "uri": uri}]});
    apply(&f, &library, "shared", spec("one"), json!({})).await?;
    f.apply(
        &ns,
        referring(
            "reads",
            json!({"name": "shared", "variant": "v", "namespace": library}),
            json!({}),
        ),
    )
    .await?;
    let message = f
        .expect_condition(&ns, "reads", "Accepted", ("False", "ReferenceNotPermitted"))
        .await?;
    ensure!(message.contains(&format!("berth.dev/allow-from={ns}")), "{message}");
    ensure!(deployments(&f, &ns).get_opt("reads").await?.is_none());

    let grant = json!({"berth.dev/allow-from": format!("somebody, {ns}")});
    apply(&f, &library, "shared", spec("one"), grant.clone()).await?;
    expect_args(&f, &ns, "reads", &["--model", "one"]).await?;
    f.expect_condition(&ns, "reads", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    apply(&f, &library, "shared", spec("two"), grant).await?;
    expect_args(&f, &ns, "reads", &["--model", "two"]).await?;
    f.expect_condition(&ns, "reads", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;

    // Taken back: nothing more is read, and what runs goes on.
    apply(
        &f,
        &library,
        "shared",
        spec("three"),
        json!({"berth.dev/allow-from": "somebody"}),
    )
    .await?;
    f.expect_condition(&ns, "reads", "Accepted", ("False", "ReferenceNotPermitted"))
        .await?;
    tokio::time::sleep(A_WHILE).await;
    expect_args(&f, &ns, "reads", &["--model", "two"]).await?;
    f.expect_condition(&ns, "reads", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;

    Ok(())
}

async fn deleted(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("deleted").await?;
    let spec = json!({"vllm": [file("v", "text")]});
    apply(&f, &ns, "m", spec.clone(), json!({})).await?;
    f.apply(&ns, referring("stays", json!({"name": "m", "variant": "v"}), json!({})))
        .await?;
    f.expect_condition(&ns, "stays", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    expect_data(&f, &ns, "m", &[("vllm-v-engineConfigFile", "text")]).await?;
    let running = async || -> anyhow::Result<Vec<Option<String>>> {
        let selector = ListParams::default().labels("mlcontroller.premlabs.io/ai-deployment=stays");
        let pods = Api::<Pod>::namespaced(f.client(), &ns).list(&selector).await?;
        Ok(pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .map(ResourceExt::uid)
            .collect())
    };
    let (pods, before) = (running().await?, writes(&f, &ns, "deployments").await?);
    ensure!(pods.len() == 1, "{pods:?}");
    maps(&f, &ns).delete("m", &DeleteParams::default()).await?;
    f.expect_condition(&ns, "stays", "Accepted", ("False", "ReferenceNotFound"))
        .await?;
    f.expect_condition(&ns, "stays", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    no_config_map(&f, &ns, "m").await?;
    let status = Api::<AIDeployment>::namespaced(f.client(), &ns)
        .get("stays")
        .await?
        .status
        .unwrap_or_default();
    ensure!(
        status.status.as_deref() == Some("Failed") && status.err_msg.is_some(),
        "{status:?}"
    );

    apply(&f, &ns, "m", spec, json!({})).await?;
    f.expect_condition(&ns, "stays", "Accepted", ("True", "Valid")).await?;
    expect_data(&f, &ns, "m", &[("vllm-v-engineConfigFile", "text")]).await?;
    let after = writes(&f, &ns, "deployments").await?;
    ensure!(after == before, "the Deployment was written: {after:?}");
    ensure!(running().await? == pods, "the pods are the same");
    Ok(())
}

async fn converged(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("converged").await?;
    apply(
        &f,
        &ns,
        "m",
        json!({"vllm": [file("v", "text"), file("w", "text")]}),
        json!({}),
    )
    .await?;
    apply(
        &f,
        &ns,
        "bad",
        json!({"vllm": [file("v", "text"), file("v", "text")]}),
        json!({}),
    )
    .await?;
    f.apply(&ns, referring("calm", json!({"name": "m", "variant": "v"}), json!({})))
        .await?;
    f.expect_condition(&ns, "calm", "Available", ("True", "MinimumReplicasAvailable"))
        .await?;
    accepted(&f, &ns, "m", ("True", "Valid")).await?;
    accepted(&f, &ns, "bad", ("False", "InvalidSpec")).await?;
    tokio::time::sleep(A_WHILE).await;
    let before = writes(&f, &ns, "").await?;
    f.restart_controller().await?;
    tokio::time::sleep(A_WHILE * 2).await;
    let after = writes(&f, &ns, "").await?;
    ensure!(after == before, "written after a restart: {:?}", &after[before.len()..]);
    // And it still follows.
    apply(&f, &ns, "m", json!({"vllm": [file("v", "other")]}), json!({})).await?;
    expect_data(&f, &ns, "m", &[("vllm-v-engineConfigFile", "other")]).await?;
    Ok(())
}
