//! The way out: no gate of ours is left on any pod or template, and nothing restarts.
//!
//! ```text
//! stop the controller ──► templates: pause ► gate out of the ReplicaSets ► gate out of the Deployment, pause back ──► waiting pods ──► check
//! ```
//!
//! A changed pod template starts a rollout only if no ReplicaSet has an equal one. So while the Deployment is paused its ReplicaSets lose the
//! gate first (their templates may be changed, their pods stay as they are), and when the Deployment follows, its template is found to be
//! the one that already runs. Every step can be repeated: a run that was cut off is finished by the next one.

mod template;

use std::collections::BTreeSet;
use std::time::Duration;

use berth_crds::names::{self, managers};
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::patch::{drop_gate, is_outdated, operations_patch};
use crate::args::Settings;

/// Longest time for the controller's pods to go.
const STOP: Duration = Duration::from_secs(60);
/// Longest time for Kubernetes' controllers to see a change.
const OBSERVED: Duration = Duration::from_secs(30);
/// Longest time for one call.
const CALL: Duration = Duration::from_secs(10);
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// Objects that one page of a list holds.
const PAGE: u32 = 500;
/// Objects that are worked on at a time.
const AT_A_TIME: usize = 16;
/// Tries on an object that others change at the same time.
const TRIES: usize = 5;

/// Why gates may be left.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The API server refused or could not be reached.
    #[error("cannot {what}: {source}")]
    Call {
        /// Verb and object.
        what: String,
        /// Its answer.
        source: kube::Error,
    },
    /// The API server did not answer.
    #[error("cannot {what}: no answer within {} s", CALL.as_secs())]
    NoAnswer {
        /// Verb and object.
        what: String,
    },
    /// Something did not happen in time.
    #[error("{what} within {} s", limit.as_secs())]
    Slow {
        /// What did not happen.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// Gates are left.
    #[error("the gate {} is still on: {}", names::GATE, objects.join(", "))]
    Left {
        /// Kind, namespace and name of each.
        objects: Vec<String>,
    },
}

impl ReleaseError {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Call { source: kube::Error::Api(s), .. } if s.is_not_found())
    }

    /// The object is not as it was when the patch was made.
    fn is_outdated(&self) -> bool {
        matches!(self, Self::Call { source: kube::Error::Api(s), .. } if is_outdated(s))
    }
}

type Result<T> = std::result::Result<T, ReleaseError>;

/// Takes our gate from every Deployment, ReplicaSet and waiting pod of the cluster, whose controller is [stopped](stop_controller).
pub async fn release(client: Client) -> Result<()> {
    let deployments = gated(list(&client, "Deployments", "").await?, template::of_deployment);
    let done = "the gate is out of the template, nothing restarted";
    each("Deployment", deployments, done, async |d| {
        release_deployment(&client, d).await
    })
    .await;
    // Those of others than Deployments.
    let sets = gated(list(&client, "ReplicaSets", "").await?, template::of_replica_set);
    let done = "the gate is out of the template";
    each("ReplicaSet", sets, done, async |s| {
        release_replica_set(&client, s).await
    })
    .await;
    let pods = waiting_pods(&client).await?;
    each("Pod", pods, "released to kube-scheduler", async |p| {
        release_pod(&client, p).await
    })
    .await;
    let objects = left(&client).await?;
    if objects.is_empty() {
        tracing::info!("no gate {} is left", names::GATE);
        return Ok(());
    }
    Err(ReleaseError::Left { objects })
}

/// Does something to many objects, some at a time. One that fails must not keep the others; what is left is told at the end.
async fn each<K: ResourceExt>(kind: &str, objects: Vec<K>, done: &str, act: impl AsyncFn(&K) -> Result<()>) {
    let act = &act;
    let all = objects.iter().map(|object| async move {
        let name = label(kind, object);
        match act(object).await {
            Ok(()) => tracing::info!("{name}: {done}"),
            Err(error) if error.is_gone() => tracing::info!("{name}: gone meanwhile"),
            Err(error) => tracing::error!("{name}: {error}"),
        }
    });
    stream::iter(all).buffer_unordered(AT_A_TIME).collect::<()>().await;
}

/// The running controller would gate anew what is released here.
pub async fn stop_controller(client: &Client, settings: &Settings) -> Result<()> {
    let (namespace, name) = (&settings.namespace, &settings.deployment);
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let what = format!("scale Deployment {namespace}/{name} to 0");
    let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match call(&what, api.patch_scale(name, &ours(), &scale)).await {
        Ok(_) => tracing::info!("Deployment {namespace}/{name}: scaled to 0"),
        Err(error) if error.is_gone() => {
            tracing::info!("Deployment {namespace}/{name}: not there, nothing to stop");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let deployment = call(&what, api.get(name)).await?;
    let uid = deployment.uid().unwrap_or_default();
    let selector = deployment.spec.map(|s| s.selector.match_labels.unwrap_or_default());
    let selector: Vec<String> = selector
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let pods = ListParams::default().labels(&selector.join(","));
    within(
        STOP,
        &format!("the pods of Deployment {namespace}/{name} did not go"),
        async || {
            let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
            let sets = call("list ReplicaSets", sets.list(&pods)).await?;
            let sets: BTreeSet<String> = sets
                .iter()
                .filter(|s| owned_by(*s, &uid))
                .filter_map(|s| s.uid())
                .collect();
            let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let running = call("list Pods", api.list(&pods)).await?;
            // The pod that runs this may carry the same labels.
            Ok(!running.iter().any(|p| sets.iter().any(|set| owned_by(p, set))))
        },
    )
    .await?;
    tracing::info!("Deployment {namespace}/{name}: its pods are gone");
    Ok(())
}

async fn release_deployment(client: &Client, deployment: &Deployment) -> Result<()> {
    let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
    let api: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let what = |verb: &str| format!("{verb} Deployment {namespace}/{name}");
    let was_paused = template::was_paused(deployment);
    let pause = json!({
        "metadata": {"uid": deployment.uid(), "annotations": {template::WAS_PAUSED: was_paused.to_string()}},
        "spec": {"paused": true},
    });
    let paused = call(&what("pause"), api.patch(&name, &ours(), &Patch::Merge(pause))).await?;
    let generation = paused.metadata.generation;
    let unseen = format!("the pause of Deployment {namespace}/{name} was not seen");
    let seen = within(OBSERVED, &unseen, async || {
        let now = call(&what("get"), api.get(&name)).await?;
        Ok(now.status.and_then(|s| s.observed_generation) >= generation)
    });
    let ready = match seen.await {
        Ok(()) => prepare_replica_sets(client, &paused).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ready {
        // As it was: a Deployment that stays paused would be worse than a gate.
        let back = operations_patch(template::resume(was_paused));
        call(&what("resume"), api.patch(&name, &ours(), &back)).await?;
        return Err(error);
    }
    let mut operations = template::ungate(template::of_deployment(&paused));
    operations.extend(template::resume(was_paused));
    call(&what("patch"), api.patch(&name, &ours(), &operations_patch(operations))).await?;
    Ok(())
}

/// The ReplicaSet that runs gets the template that the Deployment is about to have, and is the only one that has it.
async fn prepare_replica_sets(client: &Client, deployment: &Deployment) -> Result<()> {
    let namespace = deployment.namespace().unwrap_or_default();
    let uid = deployment.uid().unwrap_or_default();
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &namespace);
    let sets = call(
        &format!("list ReplicaSets of {namespace}"),
        api.list(&ListParams::default()),
    )
    .await?;
    let sets: Vec<ReplicaSet> = sets.items.into_iter().filter(|s| owned_by(s, &uid)).collect();
    for twin in template::older_twins(deployment, &sets) {
        let (name, operations) = (twin.name_any(), template::set_apart(twin));
        patch_replica_set(&api, &name, operations).await?;
        tracing::info!("ReplicaSet {namespace}/{name}: an older one with an equal template, set apart");
    }
    for set in gated(sets, template::of_replica_set) {
        patch_replica_set(&api, &set.name_any(), template::ungate(template::of_replica_set(&set))).await?;
    }
    Ok(())
}

async fn release_replica_set(client: &Client, set: &ReplicaSet) -> Result<()> {
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    patch_replica_set(&api, &set.name_any(), template::ungate(template::of_replica_set(set))).await
}

/// Patches a ReplicaSet and waits until Kubernetes' controllers, which share one cache, have seen it.
async fn patch_replica_set(api: &Api<ReplicaSet>, name: &str, operations: Vec<serde_json::Value>) -> Result<()> {
    let patched = call(
        &format!("patch ReplicaSet {name}"),
        api.patch(name, &ours(), &operations_patch(operations)),
    )
    .await?;
    let generation = patched.metadata.generation;
    within(
        OBSERVED,
        &format!("the change of ReplicaSet {name} was not seen"),
        async || {
            let now = call(&format!("get ReplicaSet {name}"), api.get(name)).await?;
            Ok(now.status.and_then(|s| s.observed_generation) >= generation)
        },
    )
    .await
}

async fn release_pod(client: &Client, pod: &Pod) -> Result<()> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let mut place = pod_gate(pod);
    let mut tries = 0;
    while let Some(gate) = place {
        let what = format!("patch Pod {namespace}/{name}");
        match call(&what, api.patch(&name, &ours(), &drop_gate(gate))).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_outdated() && tries < TRIES => {
                tries += 1;
                place = pod_gate(&call(&format!("get Pod {namespace}/{name}"), api.get(&name)).await?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn waiting_pods(client: &Client) -> Result<Vec<Pod>> {
    // Gated pods have no node.
    let pods = list::<Pod>(client, "Pods", "spec.nodeName=").await?;
    Ok(pods.into_iter().filter(|p| pod_gate(p).is_some()).collect())
}

fn pod_gate(pod: &Pod) -> Option<usize> {
    let mut gates = pod.spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten());
    gates.position(|g| g.name == names::GATE)
}

async fn left(client: &Client) -> Result<Vec<String>> {
    let deployments = gated(list(client, "Deployments", "").await?, template::of_deployment);
    let sets = gated(list(client, "ReplicaSets", "").await?, template::of_replica_set);
    let pods = waiting_pods(client).await?;
    let objects = deployments.iter().map(|d| label("Deployment", d));
    let objects = objects.chain(sets.iter().map(|s| label("ReplicaSet", s)));
    Ok(objects.chain(pods.iter().map(|p| label("Pod", p))).collect())
}

fn gated<K>(objects: Vec<K>, template: impl Fn(&K) -> Option<&k8s_openapi::api::core::v1::PodTemplateSpec>) -> Vec<K> {
    objects
        .into_iter()
        .filter(|o| template::gate(template(o)).is_some())
        .collect()
}

/// All objects of a kind, page by page.
async fn list<K>(client: &Client, plural: &str, fields: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let mut params = ListParams::default().fields(fields).limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = call(&format!("list {plural}"), api.list(&params)).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(objects),
        }
    }
}

fn owned_by<K: ResourceExt>(object: &K, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|o| o.controller == Some(true) && o.uid == uid)
}

fn label<K: ResourceExt>(kind: &str, object: &K) -> String {
    format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

fn ours() -> PatchParams {
    PatchParams {
        field_manager: Some(managers::PLACEMENT.into()),
        ..PatchParams::default()
    }
}

async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map_err(|source| ReleaseError::Call {
            what: what.to_owned(),
            source,
        }),
        Err(_) => Err(ReleaseError::NoAnswer { what: what.to_owned() }),
    }
}

/// Looks again and again until something is so, or the time is over.
async fn within(limit: Duration, otherwise: &str, so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let looks = async {
        while !so().await? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    tokio::time::timeout(limit, looks).await.unwrap_or_else(|_| {
        Err(ReleaseError::Slow {
            what: otherwise.to_owned(),
            limit,
        })
    })
}
