//! MLModel: a model that is downloaded into a volume and served from there.
//!
//! ```text
//! fetch (what is watched) ─► validate ─► stage ─► build ─► apply ─► status
//!                            pure        pure     pure     requests  pure, one request where it changed
//! ```
//!
//! Every look goes one step: what it makes is watched, and wakes the next look.

mod build;
mod download;
mod fetch;
#[cfg(test)]
pub mod fixtures;
mod framework;
pub mod serve;
mod stage;
mod status;
mod validate;

use std::sync::Arc;

use berth_crds::names;
use berth_crds::tmforum::{MLModel, MLModelStatus, keys};
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
use crate::kinds::workload::runtime_classes::RuntimeClasses;

/// What every look at an MLModel is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// What the installation sets.
    pub defaults: Defaults,
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// What is remembered between looks.
    pub memories: Memories<MLModelStatus>,
}

/// One look at one MLModel: everything goes a step towards its spec, and its status tells how far it is.
pub async fn reconcile(object: &MLModel, room: &Room) -> Result<(), Error> {
    let key = key_of(object);
    finalizers::remove(&room.context.client, &room.memories, object, keys::FINALIZER).await?;
    if object.metadata.deletion_timestamp.is_some() {
        // Its children go by their owner reference.
        return Ok(());
    }
    let before = super::status::last(object, object.status.as_ref(), &room.memories);
    let paused = object.annotations().contains_key(names::PAUSED);
    let read = validate(object, &room.defaults);
    if let (Ok(model), false) = (&read, paused || !before.phase.is_empty()) {
        // The first thing that is told of it, as by the original: also where nothing can be made.
        let acceptance = Acceptance::Valid(model.ignored.clone());
        report(object, &acceptance, Some(model), &before, room).await?;
    }
    let (acceptance, outcome, model) = match read {
        read if paused => (Acceptance::Paused, Ok(()), read.ok()),
        Err(problems) => (Acceptance::Invalid(problems), Ok(()), None),
        Ok(model) => {
            let outcome = Box::pin(apply(&model, object, &before, room)).await;
            let acceptance = match &outcome {
                Ok(()) => Acceptance::Valid(model.ignored.clone()),
                Err(error) => match Acceptance::of_failure(error, room.memories.get(&key).attempts) {
                    Some(acceptance) => acceptance,
                    None => return outcome,
                },
            };
            (acceptance, outcome, Some(model))
        }
    };
    let contest = contest(&outcome);
    if room
        .memories
        .is_told(&key, contest, object.status.as_ref().map(|s| &*s.conditions))
    {
        return outcome;
    }
    let before = super::status::last(object, object.status.as_ref(), &room.memories);
    report(object, &acceptance, model.as_ref(), &before, room).await?;
    room.memories.change(&key, |m| m.contest_told = contest);
    outcome
}

fn observe(key: &ObjectKey, owner: &OwnerReference, room: &Room) -> Observed {
    let runtime_classes = room.runtime_classes.names();
    fetch::fetch(
        key,
        owner,
        &room.children,
        &room.context.cluster.read(),
        runtime_classes,
    )
}

fn stage_of(object: &MLModel, model: &Validated, observed: &Observed, room: &Room) -> Stage {
    let terms = Terms::of(&object.metadata, room.children.contests(), super::status::now());
    let is_held = observed.deployment.as_ref().is_some_and(|d| terms.holds(d));
    stage(&model.download.source, model.retry.as_deref(), is_held, observed)
}

/// One step. The claim is first: it remembers how the download ended before anything follows from that. What goes, goes in the other
/// order: whoever uses the volume first.
async fn apply(model: &Validated, object: &MLModel, before: &MLModelStatus, room: &Room) -> Result<(), Error> {
    let key = (model.namespace.clone(), model.name.clone());
    let hands = Hands {
        writer: Writer {
            client: &room.context.client,
            manager: names::managers::MLMODEL,
            owner: &model.owner,
            terms: Terms::of(&object.metadata, room.children.contests(), super::status::now()),
        },
        children: &room.children,
        memories: &room.memories,
        key: &key,
    };
    let observed = observe(&key, &model.owner, room);
    let mut stage = stage_of(object, model, &observed, room);
    if observed.claim.is_none() {
        stage = left_behind(stage, &key, &hands, room).await?;
    }
    if let (Stage::Failed(failure), Some(words)) = (&mut stage, status::last_try(before, object.metadata.generation))
        && !failure.message.contains(words)
    {
        failure.message = format!("{}; the last try ended with: {words}", failure.message);
    }
    let Wants {
        claim,
        job,
        deployment,
        service,
    } = build(model, &stage, &observed, room.defaults.ensure_storage);
    let steps = [
        (Kind::PersistentVolumeClaim, claim.value(), &observed.claim),
        (Kind::Job, job.value(), &observed.job),
        (Kind::Deployment, deployment.value(), &observed.deployment),
        (Kind::Service, service.value(), &observed.service),
    ];
    let mut braked = Braked::default();
    for (kind, wanted, seen) in &steps {
        if let Wanted::Like(object) = wanted {
            braked.pass(hands.apply(*kind, object.as_ref().clone(), seen.as_ref()).await)?;
        }
    }
    for (kind, wanted, seen) in steps.iter().rev() {
        if let (Wanted::Gone, Some(seen)) = (wanted, seen) {
            hands.prune(*kind, seen).await?;
        }
    }
    braked.end()
}

/// What the original made lacks the label by which children are watched. Servers that run have their model, and go on; what the
/// original's Job downloads is where no server of ours reads it.
async fn left_behind(
    stage: Stage,
    key: &ObjectKey,
    hands: &Hands<'_, MLModelStatus>,
    room: &Room,
) -> Result<Stage, Error> {
    let found = async |kind: Kind, name: String| -> Result<Option<Child>, Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(room.context.client.clone(), &key.0, &kind.resource());
        let found = timed("get", (kind.as_str(), &key.0, &name), api.get_opt(&name)).await?;
        let child = found.map(Child::new);
        Ok(child.filter(|c| !c.terminating && foreign_holder(hands.writer.owner, c).is_none()))
    };
    if found(Kind::PersistentVolumeClaim, keys::claim(&key.1)).await?.is_none() {
        return Ok(stage);
    }
    if found(Kind::Deployment, keys::server(&key.1)).await?.is_some() {
        return Ok(Stage::Inherited);
    }
    if let Some(job) = found(Kind::Job, keys::job(&key.1)).await? {
        hands.prune(Kind::Job, &job).await?;
    }
    // The claim is taken over, and the rest follows.
    Ok(Stage::Volume)
}

/// Writes the status where it changed, and tells of transitions.
async fn report(
    object: &MLModel,
    acceptance: &Acceptance,
    model: Option<&Validated>,
    before: &MLModelStatus,
    room: &Room,
) -> Result<(), Error> {
    let key = key_of(object);
    // What was just applied counts, so it is read again.
    let observed = observe(&key, &validate::owner(object), room);
    let stage = model.map(|model| stage_of(object, model, &observed, room));
    let status = status::status(&View {
        key: (&key.0, &key.1),
        generation: object.metadata.generation,
        acceptance,
        stage: stage.as_ref(),
        observed: &observed,
        storage_timeout: room.defaults.storage_timeout,
        before,
        now: super::status::now(),
    });
    let manager = names::managers::MLMODEL_STATUS;
    super::status::report(&room.context, manager, object, (before, status), &room.memories).await
}
