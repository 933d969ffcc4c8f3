//! AutoNodeLabeler on 5,000 nodes with 100 rules: one patch a changed node, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_crds::premlabs::AutoNodeLabeler;
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, condition, eventually};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("cpu-0", "", 0)],
    };
    Suite::new("labeler_scale")
        .fleet(fleet)
        .trial(
            "each of 5,000 nodes is written once for all of 100 rules, and a rule's edit writes its nodes alone",
            |c| scale(Fixture::new(c)),
        )
        .run()
}

const NODES: usize = 5000;
const RULES: usize = 100;
/// The rule that is edited. It selects 20 of 100 racks, so a fifth of the nodes; the others two racks each.
const EDITED: usize = 7;
/// Another one, which is deleted.
const DELETED: usize = 42;
/// Requests under way at the same time.
const CREATORS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(180);

fn node_name(n: usize) -> String {
    format!("scale-{n:04}")
}

/// A rack is an equal share of the nodes; there are as many as rules.
fn racks(rule: usize) -> Vec<usize> {
    let count = if rule == EDITED { 20 } else { 2 };
    (0..count).map(|i| (rule + i) % RULES).collect()
}

fn nodes_of(rule: usize) -> BTreeSet<String> {
    let racks = racks(rule);
    let mine = (0..NODES).filter(|n| racks.contains(&(n % RULES)));
    mine.map(node_name).collect()
}

fn rules(f: &Fixture) -> Api<AutoNodeLabeler> {
    Api::namespaced(f.client(), "default")
}

/// Patches of the controller by node. The audit log has them in the order in which they were answered.
async fn patches(f: &Fixture) -> anyhow::Result<Vec<String>> {
    let writes = f.controller_writes("nodes").await?;
    let name = |w: &String| {
        let path = w.rsplit("/nodes/").next().unwrap_or_default();
        path.split('?').next().unwrap_or_default().to_owned()
    };
    Ok(writes.iter().map(name).collect())
}

/// Waits for so many new patches, and then some time for any that are too much. The new patches by node, and how long those that were waited
/// for took.
async fn settled(f: &Fixture, before: usize, least: usize) -> anyhow::Result<(BTreeMap<String, usize>, Duration)> {
    let started = Instant::now();
    loop {
        let seen = patches(f).await?.len() - before;
        if seen >= least {
            break;
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{seen} of {least} patches after {PATIENCE:?}"
        );
        // Reading the log costs time that the API server could use.
        tokio::time::sleep(Duration::from_millis(if least - seen > 1000 { 2000 } else { 500 })).await;
    }
    let took = started.elapsed();
    // What is too much would come now: the watch shows the writes, and every one of them asks for another pass.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut by_node = BTreeMap::new();
    for node in patches(f).await?.into_iter().skip(before) {
        *by_node.entry(node).or_insert(0) += 1;
    }
    Ok((by_node, took))
}

fn rate(count: usize, took: Duration) -> String {
    format!(
        "{count} patches in {:.1} s, {:.0}/s",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64()
    )
}

/// The nodes were written, each once, and no others.
fn exactly(by_node: &BTreeMap<String, usize>, wanted: &BTreeSet<String>) -> anyhow::Result<()> {
    let again: Vec<_> = by_node.iter().filter(|(_, times)| **times != 1).take(5).collect();
    ensure!(again.is_empty(), "written more than once: {again:?}");
    let written: BTreeSet<String> = by_node.keys().cloned().collect();
    let strays: Vec<_> = written.difference(wanted).take(5).collect();
    let missed: Vec<_> = wanted.difference(&written).take(5).collect();
    ensure!(
        strays.is_empty() && missed.is_empty(),
        "{} written, {} wanted; others written: {strays:?}, left out: {missed:?}",
        written.len(),
        wanted.len()
    );
    Ok(())
}

async fn edit(f: &Fixture, name: &str, spec: serde_json::Value) -> anyhow::Result<()> {
    rules(f)
        .patch(name, &PatchParams::default(), &Patch::Merge(&json!({"spec": spec})))
        .await?;
    Ok(())
}

async fn is_applied(f: &Fixture, name: &str, matched: usize, reason: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} is applied"), Duration::from_secs(30), async || {
        let rule = rules(f).get(name).await?;
        let status = rule.status.clone().unwrap_or_default();
        let (_, is, message) = condition(&status.conditions, "Applied", rule.metadata.generation)?;
        ensure!(is == reason, "{is}: {message}");
        ensure!(
            status.matched_nodes == i32::try_from(matched).ok(),
            "{:?}",
            status.matched_nodes
        );
        ensure!(status.nodes.len() == 20.min(matched), "{:?}", status.nodes);
        Ok(())
    })
    .await
}

async fn scale(f: Fixture) -> anyhow::Result<()> {
    let spec = |rule: usize, value: &str| {
        let racks: Vec<String> = racks(rule).into_iter().map(|r| format!("r{r}")).collect();
        json!({"labels": {format!("example.com/rule-{rule}"): value},
            "matchExpression": {"key": "example.com/rack", "operator": "In", "values": racks}})
    };
    let named = |name: &str, spec: serde_json::Value| -> anyhow::Result<AutoNodeLabeler> {
        Ok(serde_json::from_value(
            json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AutoNodeLabeler",
            "metadata": {"name": name}, "spec": spec}),
        )?)
    };
    let (edited, matched) = (format!("rule-{EDITED:03}"), nodes_of(EDITED).len());
    // Rules first: a node that comes then needs one patch for all of them.
    for rule in 0..RULES {
        let object = named(&format!("rule-{rule:03}"), spec(rule, "v1"))?;
        rules(&f).create(&PostParams::default(), &object).await?;
    }
    is_applied(&f, "rule-099", 0, "NoMatch").await?;
    let before = patches(&f).await?.len();

    let nodes = Api::<Node>::all(f.client());
    let started = Instant::now();
    // Nodes without a machine, a kubelet or KWOK: labels are all that is asked of them.
    let created = futures::stream::iter(0..NODES).map(|n| {
        let nodes = nodes.clone();
        async move {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(n), "labels": {
                "example.com/rack": format!("r{}", n % RULES)}}});
            nodes
                .create(&PostParams::default(), &serde_json::from_value(node)?)
                .await
                .with_context(|| node_name(n))?;
            Ok::<_, anyhow::Error>(())
        }
    });
    created.buffer_unordered(CREATORS).try_collect::<Vec<_>>().await?;
    println!("{NODES} nodes created in {:.1} s", started.elapsed().as_secs_f64());
    let (by_node, _) = settled(&f, before, NODES).await?;
    println!(
        "labels of {RULES} rules on {NODES} nodes, while they come and after: {}",
        rate(NODES, started.elapsed() - Duration::from_secs(3))
    );
    exactly(&by_node, &(0..NODES).map(node_name).collect())?;
    is_applied(&f, &edited, matched, "LabelsApplied").await?;

    let before = patches(&f).await?.len();
    edit(&f, &edited, spec(EDITED, "v2")).await?;
    let (by_node, took) = settled(&f, before, matched).await?;
    println!("one rule edited: {}", rate(matched, took));
    exactly(&by_node, &nodes_of(EDITED))?;
    is_applied(&f, &edited, matched, "LabelsApplied").await?;
    let labels = nodes.get(&node_name(7)).await?.metadata.labels.unwrap_or_default();
    ensure!(
        labels["example.com/rule-7"] == "v2" && labels["example.com/rule-6"] == "v1",
        "{labels:?}"
    );

    // The same nodes, said otherwise.
    let before = patches(&f).await?.len();
    let mut values: Vec<String> = racks(EDITED).into_iter().map(|r| format!("r{r}")).rev().collect();
    values.push("r-none".into());
    edit(&f, &edited, json!({"matchExpression": {"values": values}})).await?;
    is_applied(&f, &edited, matched, "LabelsApplied").await?;
    let (by_node, _) = settled(&f, before, 0).await?;
    exactly(&by_node, &BTreeSet::new())?;

    // A younger rule that wants another value for the same label changes no node; it says so itself.
    let before = patches(&f).await?.len();
    let mut late = spec(EDITED, "v2");
    late["labels"] = json!({"example.com/rule-7": "mine"});
    rules(&f).create(&PostParams::default(), &named("young", late)?).await?;
    let shown = eventually("conflicts are shown", Duration::from_secs(30), async || {
        let shown = f.kubectl(&["get", "autonodelabelers", "young"]).await?;
        ensure!(shown.contains("Conflict"), "{shown}");
        Ok(shown)
    })
    .await?;
    let columns: Vec<&str> = shown.lines().last().unwrap_or_default().split_whitespace().collect();
    let count = matched.to_string();
    ensure!(
        columns[..5] == ["young", &count, &count, "False", "Conflict"],
        "{shown}"
    );
    let (by_node, _) = settled(&f, before, 0).await?;
    exactly(&by_node, &BTreeSet::new())?;

    let before = patches(&f).await?.len();
    rules(&f)
        .delete(&format!("rule-{DELETED:03}"), &DeleteParams::default())
        .await?;
    let (by_node, took) = settled(&f, before, nodes_of(DELETED).len()).await?;
    println!("one rule deleted: {}", rate(by_node.len(), took));
    exactly(&by_node, &nodes_of(DELETED))?;
    Ok(())
}
