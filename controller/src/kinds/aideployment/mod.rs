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
pub mod models;
pub mod references;
pub mod serve;
pub mod status;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIDeploymentStatus, AIModelMap};
use kube::ResourceExt;

use self::build::Children as Wanted;
use self::fetch::Observed;
use self::models::Maps;
use self::references::References;
use self::status::{Acceptance, View};
use self::validate::{Defaults, Surroundings, Validated, validate};
use super::apply::{Applied, Intent, Writer};
use super::children::{Children, Kind};
use super::error::{Class, Error};
use super::memory::Memories;
use super::runtime_classes::RuntimeClasses;
use super::watch::Objects;
use crate::cluster::ObjectKey;
use crate::context::Context;

/// Failures of the API server in a row after which the status tells of them: fewer are no news.
const TRANSIENT_TRIES: u32 = 3;

/// What every look at an AIDeployment is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// All AIModelMaps.
    pub maps: Arc<Objects<AIModelMap>>,
    /// Who refers to which of them.
    pub references: Arc<References>,
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
    let defaults = Defaults {
        policy: room.context.settings.placement_default,
        images: BTreeMap::new(),
    };
    let maps = maps(&key, object, room);
    let around = Surroundings {
        defaults: &defaults,
        maps: &maps,
    };
    let (acceptance, outcome) = match validate(object, around) {
        _ if paused => (Acceptance::Paused, Ok(())),
        Err(problems) => (Acceptance::Invalid(problems), Ok(())),
        Ok(model) => {
            let outcome = apply(&model, &observed, room).await;
            let acceptance = match &outcome {
                Ok(()) => Acceptance::Valid(model.ignored),
                Err(taken @ Error::NameTaken { .. }) => Acceptance::NameTaken(taken.to_string()),
                Err(error) => {
                    let is_brief = room.memories.get(&key).attempts < TRANSIENT_TRIES;
                    if error.class() == Class::Transient && is_brief {
                        return outcome;
                    }
                    Acceptance::ApplyFailed(error.to_string())
                }
            };
            (acceptance, outcome)
        }
    };
    report(object, &key, &acceptance, room).await?;
    outcome
}

/// The maps that the spec names. One that is being deleted counts until it is gone: its owner may wait for children that are still in use.
fn maps(key: &ObjectKey, object: &AIDeployment, room: &Room) -> Maps {
    let referred = models::referred(&key.0, &object.spec);
    referred
        .into_iter()
        .filter_map(|key| Some((room.maps.get(&key)?, key)))
        .map(|(map, key)| (key, map))
        .collect()
}

fn observe(key: &ObjectKey, room: &Room) -> Observed {
    let runtime_classes = room.runtime_classes.names();
    fetch::fetch(key, &room.children, &room.context.cluster.read(), runtime_classes)
}

/// The engine's files go first: the pods mount them. The Deployment is next: it is the child that the API server refuses most easily, and after a refused edit Service and Ingress
/// must still point at what serves. The Ingress goes last, as it sends traffic from outside to the other two.
async fn apply(model: &Validated, observed: &Observed, room: &Room) -> Result<(), Error> {
    let key = (model.namespace.clone(), model.name.clone());
    let memory = room.memories.get(&key);
    let writer = Writer {
        client: &room.context.client,
        manager: names::managers::AIDEPLOYMENT,
        owner: &model.owner,
    };
    let Wanted {
        config_map,
        deployment,
        service,
        ingress,
    } = build::build(model, observed);
    let wanted = [
        (Kind::ConfigMap, config_map.as_ref().map(as_value), &observed.config_map),
        (Kind::Deployment, Some(as_value(&deployment)), &observed.deployment),
        (Kind::Service, Some(as_value(&service)), &observed.service),
        (Kind::Ingress, ingress.as_ref().map(as_value), &observed.ingress),
    ];
    for (kind, object, seen) in &wanted {
        let (kind, Some(object)) = (*kind, object) else {
            continue;
        };
        let intent = Intent::new(kind, &model.owner, object.clone());
        let settled = memory.settled.get(&kind).cloned().unwrap_or_default();
        match writer.apply(&intent, seen.as_ref(), &settled).await? {
            Applied::Kept => {}
            Applied::Written { child, settled } => {
                tracing::info!(kind = kind.as_str(), namespace = key.0, name = key.1, "applied");
                let child_key = (intent.namespace.clone(), intent.name.clone());
                room.children.observe(kind, &child_key, &child);
                room.memories.change(&key, |m| {
                    m.settled.insert(kind, settled);
                });
            }
        }
    }
    // What is no longer wanted goes last, when nothing points at it any more.
    for (kind, object, seen) in &wanted {
        let (None, Some(seen)) = (object, seen) else { continue };
        let name = seen.object["metadata"]["name"].as_str().unwrap_or_default();
        if writer.prune(*kind, &key.0, name, Some(seen)).await? {
            tracing::info!(
                kind = kind.as_str(),
                namespace = key.0,
                name,
                "deleted: the spec no longer asks for it"
            );
        }
    }
    Ok(())
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
