//! AIModel: workers that take a model's requests from a Pulsar topic, as a Deployment that KEDA scales by the topic's backlog.
//!
//! ```text
//! Events of workers ─► reports ┐
//! fetch (what is watched) ─────┴► errors ─► validate ─► build ─► apply ─► status
//!                                 pure      pure        pure     requests  pure, one request where it changed
//! ```

pub mod build;
pub mod errors;
pub mod fetch;
#[cfg(test)]
pub mod fixtures;
pub mod reports;
pub mod serve;
pub mod status;
pub mod validate;

use std::sync::Arc;

use berth_crds::names;
use berth_crds::youxam::{AIModel, AIModelStatus, keys};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use serde_json::Value;

use self::build::{build, is_driven};
use self::errors::{Changed, Verdict};
use self::fetch::Observed;
use self::reports::Reports;
use self::status::View;
use self::validate::{Defaults, Validated, validate};
use super::children::{Children, Kind};
use super::error::Error;
use super::watch::key_of;
use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::adoption::Terms;
use crate::kinds::children::apply::{Writer, timed};
use crate::kinds::children::braked::Braked;
use crate::kinds::children::hands::Hands;
use crate::kinds::status::acceptance::Acceptance;
use crate::kinds::watch::memory::{Memories, contest};
use crate::kinds::workload::autoscalers::Autoscalers;
use crate::kinds::workload::runtime_classes::RuntimeClasses;

/// What is watched for AIModels besides pods and Events.
pub struct Seen {
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// HorizontalPodAutoscalers of the cluster.
    pub autoscalers: Arc<Autoscalers>,
}

/// What every look at an AIModel is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// What the installation sets.
    pub defaults: Defaults,
    /// What is watched.
    pub seen: Seen,
    /// What workers reported.
    pub reports: Reports,
    /// What is remembered between looks.
    pub memories: Memories<AIModelStatus>,
}

/// One look at one AIModel: everything is brought in step with its spec and with what its workers reported, and its status with what is.
pub async fn reconcile(object: &AIModel, room: &Room) -> Result<(), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // Its children go by their owner reference.
        return Ok(());
    }
    let key = key_of(object);
    let owner = validate::owner(object);
    let before = super::status::last(object, object.status.as_ref(), &room.memories);
    let report = room.reports.waiting(&key);
    let changed = match errors::depends_on_change(object, &before, report.as_ref()) {
        true => changed_at(&key, room).await?,
        false => Changed::NotAsked,
    };
    let verdict = errors::judge(object, &before, report.as_ref(), changed);
    let read = validate(object, &room.defaults);
    let scaling = read.as_ref().ok().and_then(|model| model.scaling.clone());
    let (acceptance, outcome) = match read {
        _ if object
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(k, _)| k == names::PAUSED) =>
        {
            (Acceptance::Paused, Ok(()))
        }
        Err(problems) => {
            // Children stay as they are, but for what adds workers to those that fail.
            let outcome = match verdict.failure {
                Some(_) => stop_scaling(&hands(room, object, &key, &owner, true), &observe(&key, room)).await,
                None => Ok(()),
            };
            (Acceptance::Invalid(problems), outcome)
        }
        Ok(model) => {
            let replicas_given = object.spec.replicas.is_some() && !is_driven(&model, &observe(&key, room));
            let hands = hands(room, object, &key, &owner, replicas_given);
            let outcome = Box::pin(apply(&model, &verdict, &hands, room)).await;
            let acceptance = match &outcome {
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
    // What was just applied counts, so it is read again.
    let observed = observe(&key, room);
    let status = status::status(&View {
        generation: object.metadata.generation,
        acceptance: &acceptance,
        verdict: &verdict,
        scaling: scaling.as_ref(),
        observed: &observed,
        before: &before,
        now: super::status::now(),
    });
    let manager = names::managers::AIMODEL_STATUS;
    super::status::report(&room.context, manager, object, (&before, status), &room.memories).await?;
    room.memories.change(&key, |m| m.contest_told = contest);
    if let Some(report) = &report {
        room.reports.settle(&key, report);
    }
    outcome
}

/// The one request that a report may take: watched objects are kept without what tells when their spec was changed.
async fn changed_at(key: &ObjectKey, room: &Room) -> Result<Changed, Error> {
    let api: Api<AIModel> = Api::namespaced(room.context.client.clone(), &key.0);
    let found = timed("get", ("AIModel", &key.0, &key.1), api.get_metadata_opt(&key.1)).await?;
    Ok(found
        .and_then(|object| errors::changed_at(&object.metadata))
        .map_or(Changed::NotAsked, Changed::At))
}

/// `replicas_given`: whether the number of workers is the spec's. Where it is not, that of an adopted Deployment stays.
fn hands<'a>(
    room: &'a Room,
    object: &AIModel,
    key: &'a ObjectKey,
    owner: &'a OwnerReference,
    replicas_given: bool,
) -> Hands<'a, AIModelStatus> {
    Hands {
        writer: Writer {
            client: &room.context.client,
            manager: names::managers::AIMODEL,
            owner,
            terms: Terms {
                replicas_given,
                ..Terms::of(&object.metadata, room.seen.children.contests(), super::status::now())
            },
        },
        children: &room.seen.children,
        memories: &room.memories,
        key,
    }
}

fn observe(key: &ObjectKey, room: &Room) -> Observed {
    let Seen {
        children,
        runtime_classes,
        autoscalers,
    } = &room.seen;
    let mut observed = fetch::fetch(key, children, &room.context.cluster.read(), runtime_classes.names());
    observed.autoscaler = autoscalers.of(&(key.0.clone(), keys::deployment(&key.1)));
    observed
}

/// Whoever is not to scale any more stops first, so that nobody fights over the number of workers. The rights of the workers come before
/// the workers, and their ServiceAccount before its age stands in their template. KEDA comes last: its target has to be there.
async fn apply(
    model: &Validated,
    verdict: &Verdict,
    hands: &Hands<'_, AIModelStatus>,
    room: &Room,
) -> Result<(), Error> {
    let is_healthy = verdict.failure.is_none();
    let observed = observe(hands.key, room);
    let wanted = build(model, &observed, is_healthy);
    if wanted.scaled_object.is_none() {
        stop_scaling(hands, &observed).await?;
    }
    let rights = [
        (
            Kind::ServiceAccount,
            as_value(&wanted.service_account),
            &observed.service_account,
        ),
        (Kind::Role, as_value(&wanted.role), &observed.role),
        (
            Kind::RoleBinding,
            as_value(&wanted.role_binding),
            &observed.role_binding,
        ),
    ];
    let mut braked = Braked::default();
    for (kind, object, seen) in rights {
        braked.pass(hands.apply(kind, object, seen.as_ref()).await)?;
    }

    let mut observed = observe(hands.key, room);
    let deployment = observed.deployment.clone();
    if observed.deployment.is_none() && is_driven(model, &observed) {
        // One that the original left behind may be scaled already: its number stays what it is.
        observed.deployment = hands
            .unlabelled(Kind::Deployment, &keys::deployment(&hands.key.1))
            .await?;
    }
    let wanted = build(model, &observed, is_healthy);
    let rest = [
        (Kind::Deployment, wanted.deployment.as_ref().map(as_value), &deployment),
        (
            Kind::TriggerAuthentication,
            wanted.trigger_authentication,
            &observed.trigger_authentication,
        ),
        (Kind::ScaledObject, wanted.scaled_object, &observed.scaled_object),
    ];
    for (kind, object, seen) in rest {
        match (object, seen) {
            (Some(object), _) => braked.pass(hands.apply(kind, object, seen.as_ref()).await)?,
            // Without a ServiceAccount yet, workers are not unwanted.
            (None, Some(seen)) if kind != Kind::Deployment => hands.prune(kind, seen).await?,
            (None, _) => {}
        }
    }
    braked.end()
}

async fn stop_scaling(hands: &Hands<'_, AIModelStatus>, observed: &Observed) -> Result<(), Error> {
    match &observed.scaled_object {
        Some(seen) => hands.prune(Kind::ScaledObject, seen).await,
        None => Ok(()),
    }
}

/// The AIModel whose Deployment has this name.
pub fn of_deployment(deployment: &str) -> Option<&str> {
    deployment.strip_suffix(&keys::deployment(""))
}

fn as_value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).expect("plain data with text keys always serialises")
}
