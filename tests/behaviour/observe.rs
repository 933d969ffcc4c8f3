//! With `nodes.mode: observe` nothing is written on nodes, and whoever asks is told what would be.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use berth_crds::premlabs::AutoNodeLabeler;
use berth_local::{Fleet, NodeSpec};
use berth_tests::{Fixture, Suite, condition, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("t4-0", "t4", 1), NodeSpec::new("cpu-0", "", 0)],
    };
    Suite::new("observe")
        .fleet(fleet)
        .values(json!({"nodes": {"mode": "observe"}}))
        .trial("a rule says what it would write, and nothing is written", |c| {
            rule(Fixture::new(c))
        })
        .run()
}

async fn rule(f: Fixture) -> anyhow::Result<()> {
    f.all_agents_connected().await?;
    let rules = Api::<AutoNodeLabeler>::namespaced(f.client(), "default");
    let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AutoNodeLabeler", "metadata": {"name": "watching"}, "spec": {
        "labels": {"example.com/a": "1"}, "matchExpression": {"key": "kubernetes.io/hostname", "operator": "Exists"}}});
    rules
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    let applied = async |wanted: (&str, &str, &str)| {
        eventually(&format!("{wanted:?}"), Duration::from_secs(20), async || {
            let rule = rules.get("watching").await?;
            let conditions = rule.status.clone().unwrap_or_default().conditions;
            let (status, reason, message) = condition(&conditions, "Applied", rule.metadata.generation)?;
            ensure!(
                (&*status, &*reason) == (wanted.0, wanted.1) && message.contains(wanted.2),
                "{status} {reason}: {message}"
            );
            Ok(())
        })
        .await
    };
    applied(("False", "Observed", "2 of 2 matching")).await?;
    // Somebody does what would have been done.
    for (node, wanted) in [
        ("cpu-0", ("False", "Observed", "1 of 2")),
        ("t4-0", ("True", "LabelsApplied", "")),
    ] {
        let label = json!({"metadata": {"labels": {"example.com/a": "1"}}});
        Api::<Node>::all(f.client())
            .patch(node, &PatchParams::default(), &Patch::Merge(&label))
            .await?;
        applied(wanted).await?;
    }
    let written = f.controller_writes("nodes").await?;
    ensure!(written.is_empty(), "{written:?}");
    Ok(())
}
