//! Every write of the controller fails once, each in a run of its own: what comes of an object is the same as without.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_local::{Fleet, NodeSpec};
use berth_tests::faults::{Fault, Faults};
use berth_tests::{Fixture, Suite, eventually};
use futures::future::try_join_all;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

/// A failed pass comes again after a back-off.
const SETTLED: Duration = Duration::from_secs(60);
/// Long enough that a pass under way would have written.
const QUIET: Duration = Duration::from_secs(1);
/// Runs at a time.
const BATCH: usize = 6;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("node-0", "h100", 0)],
    };
    Suite::new("faults")
        .fleet(fleet)
        .values(json!({"controller": {"replicas": 1}}))
        .trial("an AIModel comes to the same end whichever write fails", |c| {
            each_write_fails(Fixture::new(c), aimodel())
        })
        .trial("an AIDeployment comes to the same end whichever write fails", |c| {
            each_write_fails(Fixture::new(c), aideployment())
        })
        .run()
}

/// An object's life, and what is looked at.
struct Scenario {
    resource: ApiResource,
    /// It is made so.
    made: Value,
    /// And changed so.
    edit: Value,
    /// Its children's kinds.
    children: Vec<ApiResource>,
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    }
}

fn aimodel() -> Scenario {
    const RBAC: &str = "rbac.authorization.k8s.io";
    Scenario {
        resource: resource("model.youxam.com", "v1alpha1", "AIModel", "aimodels"),
        made: json!({"apiVersion": "model.youxam.com/v1alpha1", "kind": "AIModel", "metadata": {"name": "it"},
            "spec": {"type": "local", "model": "tiny", "image": "worker:1", "replicas": 2}}),
        edit: json!({"spec": {"image": "worker:2", "replicas": 1}}),
        children: vec![
            resource("", "v1", "ServiceAccount", "serviceaccounts"),
            resource(RBAC, "v1", "Role", "roles"),
            resource(RBAC, "v1", "RoleBinding", "rolebindings"),
            resource("apps", "v1", "Deployment", "deployments"),
        ],
    }
}

fn aideployment() -> Scenario {
    let containers = |image: &str| json!({"template": {"spec": {"containers": [{"name": "server", "image": image}]}}});
    Scenario {
        resource: resource("premlabs.io", "v1alpha1", "AIDeployment", "aideployments"),
        made: json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": "it"}, "spec": {
            "engine": {"name": "generic"}, "endpoint": [{"domain": "it.example.com", "port": 8081}],
            "deployment": containers("server:1")}}),
        edit: json!({"spec": {"deployment": containers("server:2")}}),
        children: vec![
            resource("apps", "v1", "Deployment", "deployments"),
            resource("", "v1", "Service", "services"),
            resource("networking.k8s.io", "v1", "Ingress", "ingresses"),
        ],
    }
}

async fn each_write_fails(f: Fixture, scenario: Scenario) -> anyhow::Result<()> {
    let (faults, url) = Faults::start(&f.cluster).await?;
    f.cluster.set_api_server_of_pods(&url);
    f.restart_controller().await?;

    let (want, calls) = run(&f, &faults, &scenario, None, None).await?;
    ensure!(!calls.is_empty(), "no write has come through the proxy");
    for fault in Fault::ALL {
        let mut first = 1;
        loop {
            let batch = (first..first + BATCH).map(|n| run(&f, &faults, &scenario, Some((n, fault)), Some(&want)));
            let runs = try_join_all(batch).await?;
            if let Some(without) = runs.iter().position(|(_, calls)| calls.len() < first + BATCH) {
                let _ = without;
            }
            first += BATCH;
        }
    }
    Ok(())
}
