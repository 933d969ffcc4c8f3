//! AIDeployment: a model with its engine, as a Deployment, a Service and an Ingress.
//!
//! ```text
//! fetch (what is watched) ─► validate ─► build ─► apply ─► status
//!                            pure        pure     requests  pure, one request where it changed
//! ```

pub mod build;
pub mod fetch;
#[cfg(test)]
pub mod fixtures;
pub mod inputs;
pub mod models;
pub mod references;
pub mod serve;
pub mod status;
pub mod validate;

use std::sync::Arc;

use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIDeploymentStatus, AIModelMap};
use kube::ResourceExt;
use serde_json::Value;

use self::build::Children as Wanted;
use self::fetch::Observed;
use self::models::Maps;
use self::references::References;
use self::status::{Acceptance, View};
use self::validate::{Defaults, Surroundings, Validated, validate};
use super::children::{Child, Children, Kind};
use super::error::Error;
use super::watch::Objects;
use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::adoption::Terms;
use crate::kinds::children::apply::Writer;
use crate::kinds::children::braked::Braked;
use crate::kinds::children::hands::Hands;
use crate::kinds::watch::memory::{Memories, contest};
use crate::kinds::workload::autoscalers::Autoscalers;
use crate::kinds::workload::runtime_classes::RuntimeClasses;

/// What is watched for AIDeployments besides pods.
pub struct Seen {
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// HorizontalPodAutoscalers of the cluster.
    pub autoscalers: Arc<Autoscalers>,
    /// All AIModelMaps.
    pub maps: Arc<Objects<AIModelMap>>,
    /// Who refers to which of them; filled here, a map's change is told by it.
    pub references: Arc<References>,
}

/// What every look at an AIDeployment is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// What the installation sets.
    pub defaults: Defaults,
    /// What is watched.
    pub seen: Seen,
    /// What is remembered between looks.
    pub memories: Memories<AIDeploymentStatus>,
}

/// One look at one AIDeployment: everything is brought in step with its spec, and its status with what is.
pub async fn reconcile(object: &AIDeployment, room: &Room) -> Result<(), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // Its children go by their owner reference.
        return Ok(());
    }
    let key = (object.namespace().unwrap_or_default(), object.name_any());
    let paused = object.annotations().contains_key(names::PAUSED);
    let observed = observe(&key, room);
    let maps = maps(&key, object, room);
    let around = Surroundings {
        defaults: &room.defaults,
        maps: &maps,
    };
    let (acceptance, outcome) = match validate(object, around) {
        _ if paused => (Acceptance::Paused, Ok(())),
        Err(problems) => (Acceptance::Invalid(problems), Ok(())),
        Ok(model) => {
            let inputs = inputs::map_inputs(&key, &object.spec, &maps);
            let terms = Terms {
                inputs: &inputs,
                // The number of what is driven is the autoscaler's, whatever the spec says.
                replicas_given: observed.autoscaler.is_none()
                    && object.spec.deployment.as_ref().is_some_and(|d| d.replicas.is_some()),
                ..Terms::of(&object.metadata, room.seen.children.contests(), super::status::now())
            };
            let outcome = apply(&model, &observed, terms, room).await;
            let acceptance = match &outcome {
                Ok(()) if lacks_gateways(&model, &observed) => Acceptance::ApiNotInstalled(
                    "spec.gateway: the Gateway API (httproutes.gateway.networking.k8s.io/v1) is not installed in this cluster; \
                     install it, or publish by an Ingress"
                        .into(),
                ),
                Ok(()) => Acceptance::Valid(model.ignored),
                Err(error) => match Acceptance::of_failure(error, room.memories.get(&key).attempts) {
                    Some(acceptance) => acceptance,
                    None => return outcome,
                },
            };
            (acceptance, outcome)
        }
    };
    let contest = contest(&outcome);
    if room
        .memories
        .is_told(&key, contest, object.status.as_ref().map(|s| &*s.conditions))
    {
        return outcome;
    }
    report(object, &key, &acceptance, room).await?;
    room.memories.change(&key, |m| m.contest_told = contest);
    outcome
}

/// The maps that the spec names. One that is being deleted counts until it is gone: its owner may wait for children that are still in use.
fn maps(key: &ObjectKey, object: &AIDeployment, room: &Room) -> Maps {
    let referred = models::referred(&key.0, &object.spec);
    referred
        .into_iter()
        .filter_map(|key| Some((room.seen.maps.get(&key)?, key)))
        .map(|(map, key)| (key, map))
        .collect()
}

fn observe(key: &ObjectKey, room: &Room) -> Observed {
    let Seen {
        children,
        runtime_classes,
        autoscalers,
        ..
    } = &room.seen;
    let mut observed = fetch::fetch(key, children, &room.context.cluster.read(), runtime_classes.names());
    observed.autoscaler = autoscalers.of(key);
    observed
}

/// Whether HTTPRoutes are wanted where nobody serves them.
fn lacks_gateways(model: &Validated, observed: &Observed) -> bool {
    !model.gateways.is_empty() && observed.http_routes.is_none()
}

/// The engine's files go first: the pods mount them. The Deployment is next: it is the child that the API server refuses most easily, and after a refused edit Service and Ingress
/// must still point at what serves. The Ingress goes last, as it sends traffic from outside to the other two.
async fn apply(model: &Validated, observed: &Observed, terms: Terms<'_>, room: &Room) -> Result<(), Error> {
    let key = (model.namespace.clone(), model.name.clone());
    let hands = Hands {
        writer: Writer {
            client: &room.context.client,
            manager: names::managers::AIDEPLOYMENT,
            owner: &model.owner,
            terms,
        },
        children: &room.seen.children,
        memories: &room.memories,
        key: &key,
    };
    let mut for_build = observed.clone();
    if observed.deployment.is_none() && observed.autoscaler.is_some() {
        // One that the original left behind may be scaled already: its number stays what it is.
        for_build.deployment = hands.unlabelled(Kind::Deployment, &key.1).await?;
    }
    let Wanted {
        config_map,
        deployment,
        service,
        ingress,
        http_routes,
    } = build::build(model, &for_build);
    let lacks_gateways = lacks_gateways(model, observed);
    let mut wanted = vec![
        (Kind::ConfigMap, config_map.as_ref().map(as_value), &observed.config_map),
        (Kind::Deployment, Some(as_value(&deployment)), &observed.deployment),
        (Kind::Service, Some(as_value(&service)), &observed.service),
        (Kind::Ingress, ingress.as_ref().map(as_value), &observed.ingress),
    ];
    let seen_routes: Vec<Option<Child>> = observed.http_routes.iter().flatten().cloned().map(Some).collect();
    let named = |name: &Value| {
        seen_routes
            .iter()
            .find(|c| c.as_ref().is_some_and(|c| c.object["metadata"]["name"] == *name))
    };
    if !lacks_gateways {
        for route in &http_routes {
            wanted.push((
                Kind::HttpRoute,
                Some(route.clone()),
                named(&route["metadata"]["name"]).unwrap_or(&None),
            ));
        }
        let is_wanted = |child: &Child| {
            http_routes
                .iter()
                .any(|r| r["metadata"]["name"] == child.object["metadata"]["name"])
        };
        let unwanted = seen_routes.iter().filter(|c| c.as_ref().is_some_and(|c| !is_wanted(c)));
        wanted.extend(unwanted.map(|seen| (Kind::HttpRoute, None, seen)));
    }
    let (mut contested, mut braked) = (None, Braked::default());
    for (kind, object, seen) in &wanted {
        let (kind, Some(object)) = (*kind, object) else {
            continue;
        };
        match hands.apply(kind, object.clone(), seen.as_ref()).await {
            // The others are looked at all the same: each is left alone from its own last write of the original's on.
            Err(other @ Error::AnotherOperator { .. }) => {
                contested.get_or_insert(other);
            }
            done => braked.pass(done)?,
        }
    }
    if let Some(other) = contested {
        return Err(other);
    }
    // What is no longer wanted goes last, when nothing points at it any more.
    for (kind, object, seen) in &wanted {
        let (None, Some(seen)) = (object, seen) else { continue };
        if *kind == Kind::Ingress && lacks_gateways {
            // It still publishes what nothing else can.
            continue;
        }
        hands.prune(*kind, seen).await?;
    }
    braked.end()
}

fn as_value(object: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(object).expect("plain data with text keys always serialises")
}

/// Writes the status where it changed, and tells of transitions.
async fn report(object: &AIDeployment, key: &ObjectKey, acceptance: &Acceptance, room: &Room) -> Result<(), Error> {
    // What was just applied counts, so it is read again.
    let observed = observe(key, room);
    let mut before = super::status::last(object, object.status.as_ref(), &room.memories);
    // An empty message is none.
    before.err_msg = before.err_msg.filter(|m| !m.is_empty());
    let status = status::status(&View {
        name: &key.1,
        generation: object.metadata.generation,
        acceptance,
        observed: &observed,
        before: &before,
        now: super::status::now(),
    });
    let manager = names::managers::AIDEPLOYMENT_STATUS;
    super::status::report(&room.context, manager, object, (&before, status), &room.memories).await
}
