//! ModelDeployment: a model that is validated by a Job, and then served. A version that fails leaves the one before serving.
//!
//! ```text
//! fetch (what is watched) ─► validate ─► stage ─► build ─► apply ─► status
//!                            pure        pure     pure     requests  pure, one request where it changed
//! ```
//!
//! What is served is written down on what serves it ([`served`]): the spec says it only as long as it has not changed.

mod build;
mod fetch;
#[cfg(test)]
pub mod fixtures;
mod runtime;
pub mod serve;
mod served;
mod stage;
mod status;
mod validate;

use std::sync::Arc;

use berth_crds::names;
use berth_crds::sathvik::{ModelDeployment, ModelDeploymentStatus, keys};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};

use self::build::{Children as Wants, build};
use self::fetch::Observed;
use self::stage::{Stage, stage};
use self::status::View;
use self::validate::{Defaults, Validated, validate};
use super::children::{Child, Children, Kind};
use super::error::Error;
use super::watch::key_of;
use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::adoption::{Terms, finalizers};
use crate::kinds::children::apply::{Writer, foreign_holder, timed};
use crate::kinds::children::braked::Braked;
use crate::kinds::children::hands::Hands;
use crate::kinds::children::wanted::Wanted;
use crate::kinds::status::acceptance::Acceptance;
use crate::kinds::watch::memory::{Memories, contest};
use crate::kinds::workload::autoscalers::Autoscalers;
use crate::kinds::workload::runtime_classes::RuntimeClasses;
use crate::metrics::Validation;

/// What is watched for ModelDeployments besides pods.
pub struct Seen {
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// HorizontalPodAutoscalers of the cluster.
    pub autoscalers: Arc<Autoscalers>,
}

/// What every look at a ModelDeployment is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// What the installation sets.
    pub defaults: Defaults,
    /// What is watched.
    pub seen: Seen,
    /// What is remembered between looks.
    pub memories: Memories<ModelDeploymentStatus>,
}

/// One look at one ModelDeployment: everything goes a step towards its spec, and its status tells how far it is.
pub async fn reconcile(object: &ModelDeployment, room: &Room) -> Result<(), Error> {
    let key = key_of(object);
    finalizers::remove(&room.context.client, &room.memories, object, keys::FINALIZER).await?;
    if object.metadata.deletion_timestamp.is_some() {
        // Its children go by their owner reference.
        return Ok(());
    }
    let paused = object.annotations().contains_key(names::PAUSED);
    let (acceptance, outcome, model) = match validate(object, &room.defaults) {
        read if paused => (Acceptance::Paused, Ok(()), read.ok()),
        Err(problems) => (Acceptance::Invalid(problems), Ok(()), None),
        Ok(model) => {
            let outcome = Box::pin(apply(&model, object, room)).await;
            let acceptance = match &outcome {
                Ok(notes) => Acceptance::Valid(model.ignored.iter().chain(notes).cloned().collect()),
                Err(error) => match Acceptance::of_failure(error, room.memories.get(&key).attempts) {
                    Some(acceptance) => acceptance,
                    None => return outcome.map(|_| ()),
                },
            };
            (acceptance, outcome.map(|_| ()), Some(model))
        }
    };
    let contest = contest(&outcome);
    if room
        .memories
        .is_told(&key, contest, object.status.as_ref().map(|s| &*s.conditions))
    {
        return outcome;
    }
    report(object, &acceptance, model.as_ref(), room).await?;
    room.memories.change(&key, |m| m.contest_told = contest);
    outcome
}

fn observe(key: &ObjectKey, owner: &OwnerReference, room: &Room) -> Observed {
    let Seen {
        children,
        runtime_classes,
        autoscalers,
    } = &room.seen;
    let picture = room.context.cluster.read();
    let mut observed = fetch::fetch(key, owner, children, &picture, runtime_classes.names());
    observed.driver = autoscalers.of(&(key.0.clone(), keys::server(&key.1)));
    observed
}

fn stage_of(model: &Validated, observed: &Observed, room: &Room) -> Stage {
    let now = super::status::now();
    stage(model, observed, room.defaults.place_timeout, now)
}

/// One step; what there is to tell of it besides. Whoever is not to scale any more stops first, so that nobody fights over the number of
/// servers; whoever is to begins last, when its target is there.
async fn apply(model: &Validated, object: &ModelDeployment, room: &Room) -> Result<Vec<String>, Error> {
    let key = (model.namespace.clone(), model.name.clone());
    let observed = observe(&key, &model.owner, room);
    let is_scaled = model.autoscale.is_some() || observed.driver.is_some();
    let children = &room.seen.children;
    let hands = Hands {
        writer: Writer {
            client: &room.context.client,
            manager: names::managers::MODELDEPLOYMENT,
            owner: &model.owner,
            terms: Terms {
                // The original's spec has no number of servers: what an adopted Deployment has stays.
                replicas_given: object.spec.replicas.is_some() && !is_scaled,
                ..Terms::of(&object.metadata, children.contests(), super::status::now())
            },
        },
        children,
        memories: &room.memories,
        key: &key,
    };
    let mut stage = stage_of(model, &observed, room);
    if stage == Stage::Begin {
        stage = left_behind(stage, &observed, &hands, room).await?;
    }
    let Wants {
        job,
        deployment,
        service,
        alias,
        autoscaler,
    } = build(model, &stage, &observed, &room.defaults);
    let autoscaler = autoscaler.value();
    if let (Wanted::Gone, Some(seen)) = (&autoscaler, &observed.autoscaler) {
        hands.prune(Kind::HorizontalPodAutoscaler, seen).await?;
    }
    let mut braked = Braked::default();
    match (job.value(), &observed.job) {
        (Wanted::Gone, Some(seen)) => hands.prune(Kind::Job, seen).await?,
        (Wanted::Like(job), seen) => {
            let begun = hands.apply(Kind::Job, *job, seen.as_ref()).await;
            if begun.is_ok() {
                room.context.metrics.model_validation(Validation::Started);
            }
            braked.pass(begun)?;
        }
        (Wanted::Gone, None) | (Wanted::Left, _) => {}
    }
    let steps = [
        (Kind::Deployment, deployment.value(), &observed.deployment),
        (Kind::Service, service.value(), &observed.service),
        (Kind::HorizontalPodAutoscaler, autoscaler, &observed.autoscaler),
    ];
    for (kind, wanted, seen) in steps {
        if let Wanted::Like(child) = wanted {
            braked.pass(hands.apply(kind, *child, seen.as_ref()).await)?;
        }
    }
    let mut notes = Vec::new();
    if let Wanted::Like(child) = alias.value() {
        match hands.apply(Kind::Service, *child, observed.alias.as_ref()).await {
            // One address is enough: the original makes no other.
            Err(Error::NameTaken { holder, .. }) => notes.push(format!(
                "Service {} belongs to {holder}; {} is the address",
                keys::alias(&model.name),
                keys::service(&model.name)
            )),
            other => braked.pass(other)?,
        }
    }
    braked.end().map(|()| notes)
}

/// What the original made lacks the label by which children are watched. Servers that run have passed; a Job of the original's is done
/// again, since nothing says what it validates.
async fn left_behind(
    stage: Stage,
    observed: &Observed,
    hands: &Hands<'_, ModelDeploymentStatus>,
    room: &Room,
) -> Result<Stage, Error> {
    let (namespace, name) = hands.key;
    let found = async |kind: Kind, name: String| -> Result<Option<Child>, Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(room.context.client.clone(), namespace, &kind.resource());
        let found = timed("get", (kind.as_str(), namespace, &name), api.get_opt(&name)).await?;
        let child = found.map(Child::new);
        Ok(child.filter(|c| foreign_holder(hands.writer.owner, c).is_none()))
    };
    let is_new = observed.deployment.is_none() && observed.service.is_none();
    if is_new
        && found(Kind::Deployment, keys::server(name))
            .await?
            .is_some_and(|d| !d.terminating)
    {
        return Ok(Stage::Passed);
    }
    if let Some(job) = found(Kind::Job, keys::job(name)).await? {
        // One of ours that the watch has not shown yet stays.
        if job.annotation(names::REVISION).is_none() {
            hands.prune(Kind::Job, &job).await?;
        }
    }
    Ok(stage)
}

/// Writes the status where it changed, and tells of transitions.
async fn report(
    object: &ModelDeployment,
    acceptance: &Acceptance,
    model: Option<&Validated>,
    room: &Room,
) -> Result<(), Error> {
    let key = key_of(object);
    let before = super::status::last(object, object.status.as_ref(), &room.memories);
    // What was just applied counts, so it is read again.
    let observed = observe(&key, &validate::owner(object), room);
    let stage = model.map(|model| stage_of(model, &observed, room));
    let now = status::status(&View {
        generation: object.metadata.generation,
        acceptance,
        model: model.zip(stage.as_ref()),
        observed: &observed,
        before: &before,
        now: super::status::now(),
    });
    let manager = names::managers::MODELDEPLOYMENT_STATUS;
    let ended = status::ended(&before, &now);
    let is_first = before.phase.is_empty() && !now.phase.is_empty();
    super::status::report(&room.context, manager, object, (&before, now), &room.memories).await?;
    // Counted when it is written down, so that a write that is tried again counts once.
    let metrics = &room.context.metrics;
    if is_first {
        metrics.model_deployment_created();
    }
    if let Some(ended) = ended {
        metrics.model_validation(ended);
    }
    Ok(())
}
