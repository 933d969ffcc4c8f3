//! What the original operator got wrong over time, where a manifest and its objects (the conformance rows) cannot show it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIDeploymentStatus};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    Suite::new("defects")
        .trial(
            "the status follows pods that go and come, with and without endpoints",
            |c| status_follows_pods(Fixture::new(c)),
        )
        .trial("errMsg goes with what it told of", |c| error_goes(Fixture::new(c)))
        .trial("what others set on children stays", |c| {
            others_fields_stay(Fixture::new(c))
        })
        .trial("a program that changes a child back is not fought for ever", |c| {
            keeps_changing(Fixture::new(c))
        })
        .trial(
            "a program that deletes a child or takes its mark away is not fought for ever",
            |c| keeps_vanishing(Fixture::new(c)),
        )
        .trial(
            "notes of a program with the original's field manager are no contest",
            |c| notes_of_manager(Fixture::new(c)),
        )
        .run()
}

/// An AIDeployment of engine generic whose pods run on nodes with this label.
fn on_nodes(name: &str, zone: &str, endpoint: Value) -> Value {
    json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": name}, "spec": {
        "engine": {"name": "generic"}, "endpoint": endpoint,
        "deployment": {"nodeSelector": {"example.com/zone": zone},
            "template": {"spec": {"containers": [{"name": "web", "image": "oven/bun:latest"}]}}}}})
}

async fn status(f: &Fixture, ns: &str, name: &str) -> anyhow::Result<AIDeploymentStatus> {
    let object = Api::<AIDeployment>::namespaced(f.client(), ns).get(name).await?;
    Ok(object.status.unwrap_or_default())
}

async fn expect_status(f: &Fixture, ns: &str, name: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} is {wanted}"), SOON, async || {
        let status = status(f, ns, name).await?;
        ensure!(status.status.as_deref() == Some(wanted), "{status:?}");
        Ok(())
    })
    .await
}

async fn status_follows_pods(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("follows").await?;
    f.add_node("zone-a", json!({"example.com/zone": "a"}), json!({}))
        .await?;
    let names = ["silent", "public"];
    f.apply(&ns, on_nodes("silent", "a", json!([]))).await?;
    f.apply(
        &ns,
        on_nodes("public", "a", json!([{"domain": "a.example.com", "port": 8080}])),
    )
    .await?;
    for name in names {
        // What a user would wait with.
        let object = format!("aideployment/{name}");
        f.kubectl(&["wait", "-n", &ns, &object, "--for=condition=Available", "--timeout=30s"])
            .await?;
        expect_status(&f, &ns, name, "Ready").await?;
    }
    // The node takes no more pods, and those on it go.
    f.kubectl(&["cordon", "zone-a"]).await?;
    Api::<Pod>::namespaced(f.client(), &ns)
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    for name in names {
        expect_status(&f, &ns, name, "NotReady").await?;
        ensure!(status(&f, &ns, name).await?.ready_replicas.unwrap_or(0) == 0);
    }
    f.kubectl(&["uncordon", "zone-a"]).await?;
    for name in names {
        expect_status(&f, &ns, name, "Ready").await?;
    }
    f.delete_namespace(&ns).await?;
    f.kubectl(&["delete", "node", "zone-a"]).await?;
    Ok(())
}

async fn error_goes(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("errors").await?;
    let with = |engine: &str| {
        let mut object = on_nodes("m", "a", json!([]));
        object["spec"]["deployment"]["nodeSelector"] = json!({});
        object["spec"]["engine"]["name"] = engine.into();
        object
    };
    f.apply(&ns, with("generic")).await?;
    expect_status(&f, &ns, "m", "Ready").await?;
    f.apply(&ns, with("warp")).await?;
    expect_status(&f, &ns, "m", "Failed").await?;
    let message = status(&f, &ns, "m").await?.err_msg.context("errMsg")?;
    ensure!(message.contains("spec.engine.name"), "{message}");
    f.apply(&ns, with("generic")).await?;
    expect_status(&f, &ns, "m", "Ready").await?;
    let now = status(&f, &ns, "m").await?;
    ensure!(now.err_msg.is_none(), "{now:?}");
    f.delete_namespace(&ns).await
}

async fn others_fields_stay(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("others").await?;
    let endpoint = json!([{"domain": "b.example.com", "port": 8080}]);
    let mut object = on_nodes("m", "a", endpoint);
    object["spec"]["deployment"]["nodeSelector"] = json!({});
    f.apply(&ns, object.clone()).await?;
    expect_status(&f, &ns, "m", "Ready").await?;

    let deployments = Api::<Deployment>::namespaced(f.client(), &ns);
    let services = Api::<Service>::namespaced(f.client(), &ns);
    let ingresses = Api::<Ingress>::namespaced(f.client(), &ns);
    f.kubectl(&["rollout", "restart", "-n", &ns, "deployment/m"]).await?;
    let by_others = PatchParams::apply("somebody-else");
    let annotated = json!({"metadata": {"annotations": {"cloud.example.com/address": "kept"}}});
    services.patch("m", &by_others, &Patch::Merge(&annotated)).await?;
    let node_port = json!({"spec": {"type": "NodePort"}});
    services.patch("m", &by_others, &Patch::Merge(&node_port)).await?;
    let issued = json!({"metadata": {"annotations": {"cert-manager.example.com/issued": "kept"}}});
    ingresses.patch("m", &by_others, &Patch::Merge(&issued)).await?;

    // An edit makes Berth write all three.
    object["spec"]["env"] = json!([{"name": "EDITED", "value": "1"}]);
    object["spec"]["service"] = json!({"labels": {"edited": "1"}});
    object["spec"]["ingress"] = json!({"labels": {"edited": "1"}});
    f.apply(&ns, object).await?;
    eventually("the edit is in all children", SOON, async || {
        let deployment = deployments.get("m").await?;
        let template = deployment.spec.context("spec")?.template;
        let env = template.spec.context("pod spec")?.containers[0]
            .env
            .clone()
            .unwrap_or_default();
        ensure!(env.iter().any(|e| e.name == "EDITED"), "{env:?}");
        ensure!(services.get("m").await?.labels().contains_key("edited"));
        ensure!(ingresses.get("m").await?.labels().contains_key("edited"));
        Ok(())
    })
    .await?;
    let deployment = deployments.get("m").await?;
    let revision = deployment
        .annotations()
        .get("deployment.kubernetes.io/revision")
        .cloned();
    ensure!(
        revision.is_some(),
        "the revision is gone: {:?}",
        deployment.annotations()
    );
    let template = deployment.spec.context("spec")?.template.metadata.unwrap_or_default();
    let stamp = template.annotations.unwrap_or_default();
    ensure!(stamp.contains_key("kubectl.kubernetes.io/restartedAt"), "{stamp:?}");
    let service = services.get("m").await?;
    ensure!(
        service
            .annotations()
            .get("cloud.example.com/address")
            .is_some_and(|v| v == "kept")
    );
    ensure!(service.spec.and_then(|s| s.type_).as_deref() == Some("NodePort"));
    let ingress = ingresses.get("m").await?;
    ensure!(ingress.annotations().contains_key("cert-manager.example.com/issued"));
    f.delete_namespace(&ns).await
}

async fn keeps_changing(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("changes").await?;
    let endpoint = json!([{"domain": "c.example.com", "port": 8080}]);
    let mut object = on_nodes("m", "a", endpoint);
    object["spec"]["deployment"]["nodeSelector"] = json!({});
    f.apply(&ns, object.clone()).await?;
    expect_status(&f, &ns, "m", "Ready").await?;

    let services = Api::<Service>::namespaced(f.client(), &ns);
    let over = Arc::new(AtomicBool::new(false));
    let fighter = {
        let (services, is_over) = (services.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let ports = json!({"spec": {"ports": [{"port": 8080, "targetPort": 9999}]}});
                // Its own failures are of no interest.
                let _ = services
                    .patch("m", &PatchParams::apply("fighter"), &Patch::Strategic(&ports))
                    .await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    let said = f
        .expect_condition(&ns, "m", "Accepted", ("False", "ChildKeepsChanging"))
        .await?;
    ensure!(said.contains("targetPort") && said.contains("Service"), "{said}");
    let writes = async || {
        let all = f.controller_writes("services").await?;
        anyhow::Ok(all.iter().filter(|w| w.contains(&ns) && w.starts_with("patch")).count())
    };
    let before = writes().await?;
    // Others go on, and take longer than a fight would pause.
    f.apply(&ns, {
        let mut other = on_nodes("other", "a", json!([]));
        other["spec"]["deployment"]["nodeSelector"] = json!({});
        other
    })
    .await?;
    expect_status(&f, &ns, "other", "Ready").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = writes().await?;
    ensure!(before <= 10 && after <= before + 2, "{before} writes, then {after}");

    // An edit is no repair: it is carried out at once.
    over.store(true, Ordering::SeqCst);
    fighter.await?;
    object["spec"]["service"] = json!({"labels": {"edited": "1"}});
    f.apply(&ns, object).await?;
    f.expect_condition(&ns, "m", "Accepted", ("True", "Valid")).await?;
    let service = services.get("m").await?;
    let port = json!(service.spec.context("spec")?.ports);
    ensure!(
        port[0]["targetPort"] == 8080 && service.metadata.labels.is_some_and(|l| l.contains_key("edited")),
        "{port}"
    );
    Ok(())
}

async fn keeps_vanishing(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("vanishes").await?;
    let services = Api::<Service>::namespaced(f.client(), &ns);
    for (name, told) in [("deleted", "keeps deleting Service"), ("stripped", names::APPLIED)] {
        let mut object = on_nodes(name, "a", json!([{"domain": "v.example.com", "port": 8080}]));
        object["spec"]["deployment"]["nodeSelector"] = json!({});
        f.apply(&ns, object.clone()).await?;
        expect_status(&f, &ns, name, "Ready").await?;

        let over = Arc::new(AtomicBool::new(false));
        let fighter = {
            let (services, is_over) = (services.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let strip = json!({"metadata": {"annotations": {names::APPLIED: null}}});
                while !is_over.load(Ordering::SeqCst) {
                    // Its own failures are of no interest.
                    if name == "deleted" {
                        let _ = services.delete(name, &DeleteParams::default()).await;
                    } else {
                        let params = PatchParams::apply("fighter");
                        let _ = services.patch(name, &params, &Patch::Merge(&strip)).await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        };
        let said = f
            .expect_condition(&ns, name, "Accepted", ("False", "ChildKeepsChanging"))
            .await?;
        ensure!(said.contains(told) && said.contains("Service"), "{said}");
        let writes = async || {
            let all = f.controller_writes("services").await?;
            let service = format!("/{ns}/services/{name}?");
            anyhow::Ok(all.iter().filter(|w| w.contains(&service)).count())
        };
        let before = writes().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = writes().await?;
        ensure!(
            (5..=10).contains(&before) && after <= before + 2,
            "{name}: {before} writes, then {after}"
        );

        // An edit is no repair: it is carried out at once.
        over.store(true, Ordering::SeqCst);
        fighter.await?;
        object["spec"]["service"] = json!({"labels": {"edited": "1"}});
        f.apply(&ns, object).await?;
        f.expect_condition(&ns, name, "Accepted", ("True", "Valid")).await?;
        let service = services.get(name).await?;
        ensure!(service.labels().contains_key("edited"), "{:?}", service.metadata);
        ensure!(service.annotations().contains_key(names::APPLIED));
    }
    f.delete_namespace(&ns).await
}

async fn notes_of_manager(f: Fixture) -> anyhow::Result<()> {
    let ns = f.namespace("notes").await?;
    let mut object = on_nodes("m", "a", json!([{"domain": "n.example.com", "port": 8080}]));
    object["spec"]["deployment"]["nodeSelector"] = json!({});
    f.apply(&ns, object.clone()).await?;
    expect_status(&f, &ns, "m", "Ready").await?;
    // What a program made with the usual framework is called that chooses no name.
    let manager = PatchParams::apply("manager");
    let note = json!({"metadata": {"annotations": {"example.com/note": "kept"}, "labels": {"example.com/team": "a"}}});
    let services = Api::<Service>::namespaced(f.client(), &ns);
    let deployments = Api::<Deployment>::namespaced(f.client(), &ns);
    services.patch("m", &manager, &Patch::Merge(&note)).await?;
    deployments.patch("m", &manager, &Patch::Merge(&note)).await?;

    object["spec"]["service"] = json!({"labels": {"edited": "1"}});
    object["spec"]["env"] = json!([{"name": "EDITED", "value": "1"}]);
    f.apply(&ns, object).await?;
    f.expect_condition(&ns, "m", "Accepted", ("True", "Valid")).await?;
    let service = services.get("m").await?;
    ensure!(
        service.labels().contains_key("edited") && service.annotations().contains_key("example.com/note"),
        "{:?}",
        service.metadata
    );
    let env = json!(deployments.get("m").await?.spec.context("spec")?.template);
    ensure!(env.to_string().contains("EDITED"), "{env}");
    Ok(())
}
