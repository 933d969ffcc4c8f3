//! AutoNodeLabeler on the real API server: labels come, follow and go; disagreements have one stable answer.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::premlabs::AutoNodeLabeler;
use berth_tests::{Fixture, Suite, condition, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new("labeler")
        .trial("labels come with a rule, follow its edits and go with it", |c| {
            labels_follow_the_rule(Fixture::new(c))
        })
        .trial("labels follow the node, also where no agent runs", |c| {
            labels_follow_the_node(Fixture::new(c))
        })
        .trial("every operator and several expressions select as they say", |c| {
            operators(Fixture::new(c))
        })
        .trial("two rules that disagree: the oldest wins, the other says so", |c| {
            disagreement(Fixture::new(c))
        })
        .trial("bad rules get a condition and hurt nobody", |c| {
            bad_rules(Fixture::new(c))
        })
        .trial("labels of other owners are never fought over", |c| {
            other_owners(Fixture::new(c))
        })
        .trial("a restart of the controller writes no node", |c| {
            restart(Fixture::new(c))
        })
        .run()
}

const SOON: Duration = Duration::from_secs(20);

fn rules(f: &Fixture) -> Api<AutoNodeLabeler> {
    Api::namespaced(f.client(), "default")
}

async fn create(f: &Fixture, name: &str, spec: Value) -> anyhow::Result<()> {
    let rule = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AutoNodeLabeler", "metadata": {"name": name}, "spec": spec});
    let rule: AutoNodeLabeler = serde_json::from_value(rule)?;
    rules(f)
        .create(&PostParams::default(), &rule)
        .await
        .with_context(|| format!("create {name}"))?;
    Ok(())
}

async fn delete(f: &Fixture, name: &str) -> anyhow::Result<()> {
    rules(f).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Nodes that carry `key`, with its value, sorted.
async fn carriers(f: &Fixture, key: &str) -> anyhow::Result<Vec<(String, String)>> {
    let nodes = Api::<Node>::all(f.client()).list(&Default::default()).await?;
    Ok(nodes
        .iter()
        .filter_map(|n| Some((n.name_any(), n.labels().get(key)?.clone())))
        .collect())
}

async fn expect_carriers(f: &Fixture, key: &str, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    eventually(&format!("{key} on {wanted:?}"), SOON, async || {
        let is = carriers(f, key).await?;
        let wanted: Vec<(String, String)> = wanted.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        ensure!(is == wanted, "is on {is:?}");
        Ok(())
    })
    .await
}

/// `(status, reason, message)` of a rule's condition once it is about the present generation.
async fn settled(f: &Fixture, name: &str, type_: &str) -> anyhow::Result<(String, String, String)> {
    eventually(&format!("condition {type_} of {name}"), SOON, async || {
        let rule = rules(f).get(name).await?;
        let status = rule.status.clone().unwrap_or_default();
        condition(&status.conditions, type_, rule.metadata.generation)
    })
    .await
}

async fn labels_follow_the_rule(f: Fixture) -> anyhow::Result<()> {
    create(
        &f,
        "follow",
        json!({"labels": {"example.com/pool": "big"}, "matchExpression": {
        "key": "kubernetes.io/hostname", "operator": "In", "values": ["h100-0", "h100-1"]}}),
    )
    .await?;
    expect_carriers(&f, "example.com/pool", &[("h100-0", "big"), ("h100-1", "big")]).await?;
    eventually("status", SOON, async || {
        let status = rules(&f).get("follow").await?.status.unwrap_or_default();
        ensure!(
            status.matched_nodes == Some(2) && status.nodes == ["h100-0", "h100-1"],
            "{status:?}"
        );
        Ok(())
    })
    .await?;
    ensure!(settled(&f, "follow", "Applied").await?.1 == "LabelsApplied");

    let edit =
        json!({"spec": {"labels": {"example.com/pool": "small"}, "matchExpression": {"values": ["h100-1", "t4-0"]}}});
    rules(&f)
        .patch("follow", &PatchParams::default(), &Patch::Merge(&edit))
        .await?;
    expect_carriers(&f, "example.com/pool", &[("h100-1", "small"), ("t4-0", "small")]).await?;

    delete(&f, "follow").await?;
    expect_carriers(&f, "example.com/pool", &[]).await
}

async fn labels_follow_the_node(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    create(
        &f,
        "node-follow",
        json!({"labels": {"foo/bar.com": "baz"}, "matchExpression": {"key": "example.com/rack", "operator": "Exists"}}),
    )
    .await?;
    ensure!(settled(&f, "node-follow", "Applied").await?.1 == "NoMatch");
    // A node that no agent runs on: it is not even one of KWOK's.
    let bare = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare-0", "labels": {"example.com/rack": "7"}}});
    nodes
        .create(&PostParams::default(), &serde_json::from_value(bare)?)
        .await?;
    expect_carriers(&f, "foo/bar.com", &[("bare-0", "baz")]).await?;
    let unracked = json!({"metadata": {"labels": {"example.com/rack": null}}});
    nodes
        .patch("bare-0", &PatchParams::default(), &Patch::Merge(&unracked))
        .await?;
    expect_carriers(&f, "foo/bar.com", &[]).await?;
    nodes.delete("bare-0", &DeleteParams::default()).await?;
    delete(&f, "node-follow").await?;
    // Nothing of ours brings a deleted node back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(nodes.get_opt("bare-0").await?.is_none(), "the deleted node is back");
    Ok(())
}

async fn operators(f: Fixture) -> anyhow::Result<()> {
    eventually("GPU labels", Duration::from_secs(60), async || {
        for node in ["h100-0", "h100-1", "a100-0", "t4-0", "l40s-0"] {
            let node = Api::<Node>::all(f.client()).get(node).await?;
            ensure!(node.labels().contains_key("nvidia.com/gpu.memory"));
        }
        Ok(())
    })
    .await?;
    let only = json!({"key": "berth.dev/gpu-class", "operator": "Exists"});
    let table = [
        (
            "gt",
            json!([{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["50000"]}, only]),
            vec!["h100-0", "h100-1"],
        ),
        (
            "lt",
            json!([{"key": "nvidia.com/gpu.memory", "operator": "Lt", "values": ["20000"]}, only]),
            vec!["t4-0"],
        ),
        (
            "in",
            json!([{"key": "berth.dev/gpu-class", "operator": "In", "values": ["a100", "t4"]}]),
            vec!["a100-0", "t4-0"],
        ),
        (
            "notin",
            json!([only, {"key": "berth.dev/gpu-class", "operator": "NotIn", "values": ["h100", "t4", "a100"]}]),
            vec!["l40s-0"],
        ),
        (
            "dne",
            json!([{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]),
            vec!["cpu-0"],
        ),
    ];
    for (name, expressions, wanted) in table {
        let key = format!("example.com/op-{name}");
        create(
            &f,
            name,
            json!({"labels": {&key: "yes"}, "matchExpressions": expressions}),
        )
        .await?;
        eventually(&format!("{name} on {wanted:?}"), SOON, async || {
            let mut is: Vec<String> = carriers(&f, &key).await?.into_iter().map(|(n, _)| n).collect();
            // The driverless node gets its class when another test gives it a driver; it is not part of this one.
            is.retain(|n| n != "nodriver-0" && n != "bare-0");
            ensure!(is == wanted, "is on {is:?}");
            Ok(())
        })
        .await?;
        delete(&f, name).await?;
    }
    Ok(())
}

async fn disagreement(f: Fixture) -> anyhow::Result<()> {
    let spec = |value: &str| {
        json!({"labels": {"example.com/tier": value}, "matchExpression": {
        "key": "kubernetes.io/hostname", "operator": "In", "values": ["cpu-0"]}})
    };
    create(&f, "older", spec("gold")).await?;
    expect_carriers(&f, "example.com/tier", &[("cpu-0", "gold")]).await?;
    // Creation times are whole seconds: without the pause both would be equally old and the name would decide.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    create(&f, "a-newer", spec("silver")).await?;
    let (status, reason, message) = settled(&f, "a-newer", "Applied").await?;
    ensure!(
        (status.as_str(), reason.as_str()) == ("False", "Conflict"),
        "{status} {reason}"
    );
    ensure!(
        message.contains("default/older") || message.contains("older"),
        "names the winner: {message}"
    );
    let conflicts = rules(&f).get("a-newer").await?.status.unwrap_or_default().conflicts;
    ensure!(
        conflicts.len() == 1 && conflicts[0].node == "cpu-0" && conflicts[0].key == "example.com/tier",
        "{conflicts:?}"
    );
    let version = Api::<Node>::all(f.client()).get("cpu-0").await?.metadata.managed_fields;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        Api::<Node>::all(f.client()).get("cpu-0").await?.metadata.managed_fields == version,
        "the answer oscillates"
    );
    expect_carriers(&f, "example.com/tier", &[("cpu-0", "gold")]).await?;
    delete(&f, "older").await?;
    expect_carriers(&f, "example.com/tier", &[("cpu-0", "silver")]).await?;
    delete(&f, "a-newer").await?;
    expect_carriers(&f, "example.com/tier", &[]).await
}

async fn bad_rules(f: Fixture) -> anyhow::Result<()> {
    let exists = json!({"key": "kubernetes.io/hostname", "operator": "Exists"});
    let table = [
        ("empty", json!({}), "matchExpression"),
        (
            "no-key",
            json!({"labels": {"example.com/x": "1"}, "matchExpression": {"operator": "Exists"}}),
            "key",
        ),
        (
            "no-operator",
            json!({"labels": {"example.com/x": "1"}, "matchExpression": {"key": "a"}}),
            "operator",
        ),
        (
            "unknown-operator",
            json!({"labels": {"example.com/x": "1"}, "matchExpression": {"key": "a", "operator": "Near"}}),
            "Near",
        ),
        (
            "bad-value",
            json!({"labels": {"example.com/x": "not a label!"}, "matchExpression": exists}),
            "example.com/x",
        ),
        (
            "protected",
            json!({"labels": {"node-role.kubernetes.io/worker": ""}, "matchExpression": exists}),
            "node-role.kubernetes.io/worker",
        ),
        (
            "ours",
            json!({"labels": {"nvidia.com/gpu.product": "x"}, "matchExpression": exists}),
            "nvidia.com/gpu.product",
        ),
    ];
    for (name, spec, _) in &table {
        create(&f, name, spec.clone()).await?;
    }
    create(
        &f,
        "good-beside",
        json!({"labels": {"example.com/good": "1"}, "matchExpression": {
        "key": "kubernetes.io/hostname", "operator": "In", "values": ["cpu-0"]}}),
    )
    .await?;
    expect_carriers(&f, "example.com/good", &[("cpu-0", "1")]).await?;
    for (name, _, names) in &table {
        let (status, reason, message) = settled(&f, name, "Accepted").await?;
        ensure!(
            (status.as_str(), reason.as_str()) == ("False", "InvalidSpec"),
            "{name}: {status} {reason} {message}"
        );
        ensure!(message.contains(names), "{name}: {message:?} does not name {names:?}");
        delete(&f, name).await?;
    }
    ensure!(carriers(&f, "example.com/x").await?.is_empty());
    delete(&f, "good-beside").await
}

async fn other_owners(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    let theirs = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "l40s-0", "labels": {"example.com/zone": "theirs"}}});
    nodes
        .patch(
            "l40s-0",
            &PatchParams::apply("some-cloud").force(),
            &Patch::Apply(&theirs),
        )
        .await?;
    create(
        &f,
        "zone",
        json!({"labels": {"example.com/zone": "mine"}, "matchExpression": {
        "key": "kubernetes.io/hostname", "operator": "In", "values": ["l40s-0", "cpu-0"]}}),
    )
    .await?;
    expect_carriers(&f, "example.com/zone", &[("cpu-0", "mine"), ("l40s-0", "theirs")]).await?;
    let (_, reason, message) = settled(&f, "zone", "Applied").await?;
    ensure!(
        reason == "Conflict" && message.contains("some-cloud"),
        "{reason}: {message}"
    );
    delete(&f, "zone").await?;
    expect_carriers(&f, "example.com/zone", &[("l40s-0", "theirs")]).await
}

async fn restart(f: Fixture) -> anyhow::Result<()> {
    create(
        &f,
        "stays",
        json!({"labels": {"example.com/stays": "1"}, "matchExpression": {
        "key": "kubernetes.io/hostname", "operator": "Exists"}}),
    )
    .await?;
    eventually("labels everywhere", SOON, async || {
        ensure!(carriers(&f, "example.com/stays").await?.len() >= 8);
        Ok(())
    })
    .await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = f.controller_writes("nodes").await?;
    f.restart_controller().await?;
    f.all_agents_connected().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = f.controller_writes("nodes").await?;
    ensure!(after == before, "written: {:?}", &after[before.len()..]);
    delete(&f, "stays").await
}
