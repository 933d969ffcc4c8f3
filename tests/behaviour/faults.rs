//! Every call of the controller about an object fails once, each in a run of its own: what comes of an object is the same as without, and
//! nothing is left of it when it is deleted.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_crds::tmforum::keys;
use berth_local::{Fleet, NodeSpec};
use berth_tests::faults::{Fault, Faults};
use berth_tests::{Fixture, Suite, eventually};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

/// A failed pass comes again after a back-off.
const SETTLED: Duration = Duration::from_secs(60);
/// Long enough that a pass under way would have written.
const QUIET: Duration = Duration::from_secs(1);
/// Runs at a time.
const BATCH: usize = 12;

fn main() -> ExitCode {
    let fleet = Fleet {
        nodes: vec![NodeSpec::new("node-0", "h100", 0)],
    };
    Suite::new("faults")
        .fleet(fleet)
        .values(json!({"controller": {"replicas": 1}}))
        .trial("an AIModel comes to the same end whichever call fails", |c| {
            each_call_fails(Fixture::new(c), aimodel())
        })
        .trial("an AIDeployment comes to the same end whichever call fails", |c| {
            each_call_fails(Fixture::new(c), aideployment())
        })
        .trial("an MLModel comes to the same end whichever call fails", |c| {
            each_call_fails(Fixture::new(c), mlmodel())
        })
        .trial("a ModelDeployment comes to the same end whichever call fails", |c| {
            each_call_fails(Fixture::new(c), modeldeployment())
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

/// Its edit is a clean start: everything goes before it is made anew.
fn mlmodel() -> Scenario {
    let url = |name: &str| format!("http://never.invalid/{name}.tar.gz");
    Scenario {
        resource: resource("oda.tmforum.org.oda.tmforum.org", "v1beta1", "MLModel", "mlmodels"),
        made: json!({"apiVersion": "oda.tmforum.org.oda.tmforum.org/v1beta1", "kind": "MLModel", "metadata": {"name": "it"},
            "spec": {"modelURL": url("good"), "storageSize": "1Gi", "framework": "tensorflow", "replicas": 1, "expose": true}}),
        edit: json!({"spec": {"modelURL": url("other")}}),
        children: vec![
            resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
            resource("batch", "v1", "Job", "jobs"),
            resource("apps", "v1", "Deployment", "deployments"),
            resource("", "v1", "Service", "services"),
        ],
    }
}

/// A version takes over from another when it is validated.
fn modeldeployment() -> Scenario {
    let uri = |version: &str| format!("http://never.invalid/{version}.pt");
    Scenario {
        resource: resource("mlops.sathvik.dev", "v1", "ModelDeployment", "modeldeployments"),
        made: json!({"apiVersion": "mlops.sathvik.dev/v1", "kind": "ModelDeployment", "metadata": {"name": "it"}, "spec": {
            "modelURI": uri("v1"), "runtime": "fastapi-pytorch", "runtimeImage": "server:1", "version": "v1",
            "resources": {"requests": {"cpu": "100m"}}}}),
        edit: json!({"spec": {"modelURI": uri("v2"), "version": "v2"}}),
        children: vec![
            resource("apps", "v1", "Deployment", "deployments"),
            resource("", "v1", "Service", "services"),
        ],
    }
}

async fn each_call_fails(f: Fixture, scenario: Scenario) -> anyhow::Result<()> {
    let (faults, url) = Faults::start(&f.cluster).await?;
    f.cluster.set_api_server_of_pods(&url);
    f.restart_controller().await?;

    let bench = Bench { f, faults, scenario };
    let plain = bench.run(None, None).await?;
    ensure!(plain.calls >= bench.scenario.children.len(), "{} calls", plain.calls);
    for fault in Fault::ALL {
        for first in (1..).step_by(BATCH) {
            let runs = (first..first + BATCH).map(|n| bench.run(Some((n, fault)), Some(&plain.ends)));
            if try_join_all(runs).await?.iter().any(|run| !run.has_failed) {
                ensure!(first + BATCH > plain.calls, "calls were not counted");
                break;
            }
        }
    }
    Ok(())
}

struct Bench {
    f: Fixture,
    faults: Faults,
    scenario: Scenario,
}

/// What came of one object.
struct Run {
    /// After it was made, and after it was changed.
    ends: [Value; 2],
    calls: usize,
    has_failed: bool,
}

impl Bench {
    /// Makes, changes and deletes the object in a namespace of its own, and waits each time until it has come to the end that is wanted.
    async fn run(&self, fault: Option<(usize, Fault)>, want: Option<&[Value; 2]>) -> anyhow::Result<Run> {
        let ns = self.f.namespace("faults").await?;
        self.faults.expect(&ns, fault);
        let api: Api<DynamicObject> = Api::namespaced_with(self.f.client(), &ns, &self.scenario.resource);
        let user = PatchParams::apply("user").force().validation_strict();
        self.volume(&ns).await?;
        api.patch("it", &user, &Patch::Apply(&self.scenario.made)).await?;
        let made = self.end(&ns, fault, want.map(|ends| &ends[0])).await?;
        self.volume(&ns).await?;
        api.patch("it", &PatchParams::default(), &Patch::Merge(&self.scenario.edit))
            .await?;
        let changed = self.end(&ns, fault, want.map(|ends| &ends[1])).await?;
        api.delete("it", &DeleteParams::default()).await?;
        self.gone(&ns, fault).await?;
        let round = self.faults.round(&ns);
        Ok(Run {
            ends: [made, changed],
            calls: round.calls.len(),
            has_failed: round.has_failed(),
        })
    }

    /// Plays the provisioner, for kinds that claim a volume.
    async fn volume(&self, ns: &str) -> anyhow::Result<()> {
        if !self
            .scenario
            .children
            .iter()
            .any(|child| child.kind == "PersistentVolumeClaim")
        {
            return Ok(());
        }
        let object = json!({"metadata": {"generateName": "model-"}, "spec": {
            "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/none"}, "claimRef": {"namespace": ns, "name": keys::claim("it")}}});
        let api = Api::<PersistentVolume>::all(self.f.client());
        api.create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        Ok(())
    }

    /// Waits until the object is served, and nothing more is written about it.
    async fn end(&self, ns: &str, fault: Option<(usize, Fault)>, want: Option<&Value>) -> anyhow::Result<Value> {
        let end = eventually("the object comes to its end", SETTLED, async || {
            let before = self.faults.round(ns).calls.len();
            let end = self.look(ns).await?;
            if let Some(want) = want {
                ensure!(end == *want, "{}", difference(want, &end));
            }
            let conditions = end.pointer("/0/0/status/conditions").context("no conditions")?;
            let generation = end.pointer("/0/0/metadata/generation");
            let is_served = |c: &Value| {
                c["type"] == "Available" && c["status"] == "True" && c.get("observedGeneration") == generation
            };
            ensure!(
                conditions.as_array().is_some_and(|all| all.iter().any(is_served)),
                "{conditions}"
            );
            tokio::time::sleep(QUIET).await;
            ensure!(self.faults.round(ns).calls.len() == before, "still calling");
            ensure!(self.look(ns).await? == end, "still changing");
            Ok(end)
        })
        .await;
        end.with_context(|| format!("{fault:?} of {:#?}", self.faults.round(ns).calls))
    }

    /// Waits until the object and its children are no more. Their pods would fill the node, too.
    async fn gone(&self, ns: &str, fault: Option<(usize, Fault)>) -> anyhow::Result<()> {
        let gone = eventually("the object is gone with its children", SETTLED, async || {
            let left = self.look(ns).await?;
            ensure!(
                left.as_array()
                    .is_some_and(|kinds| kinds.iter().all(|k| k == &json!([]))),
                "{left}"
            );
            Ok(())
        });
        gone.await
            .with_context(|| format!("{fault:?} of {:#?}", self.faults.round(ns).calls))
    }

    /// The object and its children, without what differs from one namespace to another.
    async fn look(&self, ns: &str) -> anyhow::Result<Value> {
        let mut all = vec![];
        for resource in std::iter::once(&self.scenario.resource).chain(&self.scenario.children) {
            let api: Api<DynamicObject> = Api::namespaced_with(self.f.client(), ns, resource);
            let mut objects = vec![];
            for object in api.list(&ListParams::default()).await? {
                let is_child = !object.metadata.owner_references.clone().unwrap_or_default().is_empty();
                if is_child || resource == &self.scenario.resource {
                    objects.push(essence(
                        serde_json::to_value(object)?,
                        resource == &self.scenario.resource,
                    ));
                }
            }
            all.push(Value::Array(objects));
        }
        Ok(serde_json::from_str(
            &Value::Array(all).to_string().replace(ns, "here"),
        )?)
    }
}

/// An object without times, without what is named or counted anew each time, and (but for the owner's) without status.
fn essence(mut object: Value, is_owner: bool) -> Value {
    for pointer in ["/metadata/ownerReferences/0", "/metadata", "/spec"] {
        if let Some(fields) = object.pointer_mut(pointer).and_then(Value::as_object_mut) {
            for name in [
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "managedFields",
                "clusterIP",
                "clusterIPs",
            ] {
                fields.remove(name);
            }
        }
    }
    for pointer in [
        "/spec/template/metadata/annotations/last-serviceaccount-update",
        // Of all that was applied, times and UIDs among it.
        "/metadata/annotations/berth.dev~1applied",
    ] {
        if let Some(value) = object.pointer_mut(pointer) {
            *value = Value::Null;
        }
    }
    // The volume that was bound; the Job's UID.
    let named = ["volumeName", "controller-uid", "batch.kubernetes.io/controller-uid"];
    forget(&mut object["spec"], &named);
    forget(&mut object["metadata"], &named);
    if is_owner {
        forget(&mut object["status"], &["lastTransitionTime", "pod"]);
    } else {
        object["status"] = Value::Null;
    }
    object
}

fn forget(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !names.contains(&name.as_str()));
            fields.values_mut().for_each(|value| forget(value, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| forget(value, names)),
        _ => {}
    }
}

/// Where two values differ first.
fn difference(want: &Value, is: &Value) -> String {
    let (want, is) = (format!("{want:#}"), format!("{is:#}"));
    let lines = want
        .lines()
        .zip(is.lines())
        .enumerate()
        .find(|(_, (want, is))| want != is);
    match lines {
        Some((line, (want, is))) => format!("line {line}: {} in place of {}", is.trim(), want.trim()),
        None => format!("{} lines in place of {}", is.lines().count(), want.lines().count()),
    }
}
