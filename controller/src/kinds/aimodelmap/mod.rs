//! AIModelMap: variants of a model, for AIDeployments to refer to, and a ConfigMap with the configuration files among them.
//!
//! ```text
//! fetch (what is watched) ─► validate ─► build ─► apply ─► status
//!                            pure        pure     request  pure, one request where it changed
//! ```
//!
//! References are resolved by the AIDeployments that make them (`aideployment::models`), from the map itself: a map that is not accepted
//! still has its other variants, and a ConfigMap that could not be written keeps nobody waiting.

pub mod build;
pub mod fetch;
pub mod serve;
pub mod status;
pub mod validate;

use std::sync::Arc;

use berth_crds::names;
use berth_crds::premlabs::{AIModelMap, AIModelMapStatus};
use kube::ResourceExt;

use self::fetch::Observed;
use self::serve::Readers;
use self::status::View;
use self::validate::{Validated, validate};
use super::children::{Children, Kind};
use super::error::Error;
use super::watch::key_of;
use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::adoption::Terms;
use crate::kinds::children::apply::Writer;
use crate::kinds::children::hands::Hands;
use crate::kinds::status::acceptance::Acceptance;
use crate::kinds::watch::memory::Memories;

/// What every look at an AIModelMap is given.
pub struct Room {
    /// The controller's handles.
    pub context: Context,
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// Who is told of a map's change.
    pub readers: Readers,
    /// What is remembered between looks.
    pub memories: Memories<AIModelMapStatus>,
}

/// One look at one AIModelMap: its ConfigMap is brought in step with its spec, and its status with what is.
pub async fn reconcile(object: &AIModelMap, room: &Room) -> Result<(), Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // Its ConfigMap goes by its owner reference.
        return Ok(());
    }
    let key = key_of(object);
    let paused = object.annotations().contains_key(names::PAUSED);
    let (acceptance, outcome) = match validate(object) {
        _ if paused => (Acceptance::Paused, Ok(())),
        Err(problems) => (Acceptance::Invalid(problems), Ok(())),
        Ok(map) => {
            let terms = Terms::of(&object.metadata, room.children.contests(), super::status::now());
            let outcome = apply(&key, &map, &fetch::fetch(&key, &room.children), terms, room).await;
            let acceptance = match &outcome {
                Ok(()) => Acceptance::Valid(map.ignored),
                Err(error) => match Acceptance::of_failure(error, room.memories.get(&key).attempts) {
                    Some(acceptance) => acceptance,
                    None => return outcome,
                },
            };
            (acceptance, outcome)
        }
    };
    report(object, &acceptance, room).await?;
    outcome
}

async fn apply(
    key: &ObjectKey,
    map: &Validated,
    observed: &Observed,
    terms: Terms<'_>,
    room: &Room,
) -> Result<(), Error> {
    let hands = Hands {
        writer: Writer {
            client: &room.context.client,
            manager: names::managers::AIMODELMAP,
            owner: &map.owner,
            terms,
        },
        children: &room.children,
        memories: &room.memories,
        key,
    };
    let seen = observed.config_map.as_ref();
    match (build::build(map), seen) {
        (Some(wanted), _) => {
            let wanted = serde_json::to_value(&wanted).expect("plain data with text keys always serialises");
            hands.apply(Kind::ConfigMap, wanted, seen).await
        }
        // No variant has a configuration file any more.
        (None, Some(seen)) => hands.prune(Kind::ConfigMap, seen).await,
        (None, None) => Ok(()),
    }
}

/// Writes the status where it changed, and tells of transitions.
async fn report(object: &AIModelMap, acceptance: &Acceptance, room: &Room) -> Result<(), Error> {
    let before = super::status::last(object, object.status.as_ref(), &room.memories);
    let status = status::status(&View {
        generation: object.metadata.generation,
        acceptance,
        before: &before,
        now: super::status::now(),
    });
    let manager = names::managers::AIMODELMAP_STATUS;
    super::status::report(&room.context, manager, object, (&before, status), &room.memories).await
}

#[cfg(test)]
mod tests;
