//! Telling what became of an object: its status, written only where it changed, and one Event a transition.

pub mod acceptance;
pub mod problems;
pub mod unreadable;

use berth_crds::conditions::{Reason, Type};
use berth_crds::premlabs::{AIDeploymentStatus, AIModelMapStatus};
use berth_crds::sathvik::ModelDeploymentStatus;
use berth_crds::tmforum::MLModelStatus;
use berth_crds::youxam::AIModelStatus;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::json;

use super::children::is_older;
use super::error::Error;
use super::watch::{Kind, key_of, kind_of};
use crate::context::Context;
use crate::events::Events;
use crate::kinds::children::apply::timed;
use crate::kinds::watch::memory::Memories;

/// A transition that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Something is wrong.
    is_warning: bool,
    /// Reason.
    reason: Reason,
    /// What happened.
    note: String,
}

/// Reasons that only say that something is on its way.
const QUIET: &[Reason] = &[
    Reason::Pending,
    Reason::NotReady,
    Reason::NoReplicaAvailable,
    Reason::PartiallyPlaced,
    Reason::IgnoredFields,
    Reason::Downloading,
    Reason::Validating,
    Reason::VolumePending,
];

/// The transitions between two lists of conditions. A failed `Accepted` is told again when its message changes: that is another edit.
pub fn notices(old: &[Condition], new: &[Condition]) -> Vec<Notice> {
    new.iter()
        .filter_map(|now| {
            let before = old.iter().find(|c| c.type_ == now.type_);
            let is_false = now.status == "False";
            let reworded = now.type_ == Type::Accepted.as_str() && is_false;
            let same = before.is_some_and(|b| {
                b.status == now.status && b.reason == now.reason && !(reworded && b.message != now.message)
            });
            let reason = Reason::ALL.iter().find(|r| r.as_str() == now.reason)?;
            // What is well from the start, or well in the same way as before under another reason, is no news.
            let was_fine = before.is_none_or(|b| b.status == "True");
            let is_news = match now.type_.as_str() {
                accepted if accepted == Type::Accepted.as_str() && !is_false => !was_fine,
                _ => !same,
            };
            (is_news && !QUIET.contains(reason)).then(|| Notice {
                is_warning: is_false && *reason != Reason::ScaledToZero,
                reason: *reason,
                note: match now.message.as_str() {
                    "" => format!("{} is {}", now.type_, now.status),
                    message => message.to_owned(),
                },
            })
        })
        .collect()
}

/// Writes the transitions as Events on the object.
pub fn tell(events: &Events, object: &ObjectReference, notices: Vec<Notice>) {
    for notice in notices {
        let tell = if notice.is_warning {
            Events::warning
        } else {
            Events::normal
        };
        tell(events, object.clone(), notice.reason, "Reconcile", &notice.note);
    }
}

/// The present moment as the API keeps it: in whole seconds.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The status as it stands: what the watch shows, or what was written since.
pub fn last<K: Kind, S: Clone + Default>(object: &K, shown: Option<&S>, memories: &Memories<S>) -> S {
    let version = object.resource_version().unwrap_or_default();
    match memories.get(&key_of(object)).status {
        Some((written, status)) if is_older(&version, &written) => status,
        _ => shown.cloned().unwrap_or_default(),
    }
}

/// A status with conditions.
pub trait Conditioned: Clone + PartialEq + Serialize {
    /// Its conditions.
    fn conditions(&self) -> &[Condition];
}

impl Conditioned for AIDeploymentStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditioned for AIModelMapStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditioned for MLModelStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditioned for ModelDeploymentStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditioned for AIModelStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// Writes a status where it changed, as this field manager, and tells of transitions.
pub async fn report<K: Kind, S: Conditioned>(
    context: &Context,
    manager: &str,
    object: &K,
    (before, status): (&S, S),
    memories: &Memories<S>,
) -> Result<(), Error> {
    if status == *before {
        return Ok(());
    }
    let key = key_of(object);
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // The UID: a namesake made anew must not get the status of the one before.
        "metadata": {"name": key.1, "uid": object.meta().uid},
        "status": status,
    });
    let api: Api<K> = Api::namespaced(context.client.clone(), &key.0);
    let params = PatchParams::apply(manager).force().validation_strict();
    let patch = Patch::Apply(&body);
    let call = api.patch_status(&key.1, &params, &patch);
    let answer = timed("write status of", (kind_of::<K>(), &key.0, &key.1), call).await?;
    let told = notices(before.conditions(), status.conditions());
    memories.change(&key, |m| {
        m.status = Some((answer.resource_version().unwrap_or_default(), status))
    });
    tell(&context.events, &object.object_ref(&()), told);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_crds::conditions::{Desired, Status, merge};

    fn conditions(type_: Type, status: Status, reason: Reason, message: &str) -> Vec<Condition> {
        merge(
            &[],
            &[Desired::new(type_, status, reason, message)],
            Some(1),
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn only_transitions_are_told() {
        use {Reason as R, Status as S, Type as T};
        let valid = || conditions(T::Accepted, S::True, R::Valid, "");
        let bad = |m| conditions(T::Accepted, S::False, R::InvalidSpec, m);
        let placed = |s, r| conditions(T::Placed, s, r, "x");
        type Case = (&'static str, Vec<Condition>, Vec<Condition>, Option<(bool, R)>);
        let cases: Vec<Case> = vec![
            ("first and well", vec![], valid(), None),
            ("first and bad", vec![], bad("a"), Some((true, R::InvalidSpec))),
            ("the same", bad("a"), bad("a"), None),
            ("another edit", bad("a"), bad("b"), Some((true, R::InvalidSpec))),
            ("corrected", bad("a"), valid(), Some((false, R::Valid))),
            (
                "no fit",
                placed(S::False, R::Pending),
                placed(S::False, R::NoFit),
                Some((true, R::NoFit)),
            ),
            (
                "placed",
                placed(S::False, R::NoFit),
                placed(S::True, R::AllPlaced),
                Some((false, R::AllPlaced)),
            ),
            ("on its way", vec![], placed(S::False, R::Pending), None),
        ];
        for (name, old, new, want) in cases {
            let told = notices(&old, &new);
            let told = told.first().map(|n| (n.is_warning, n.reason));
            assert_eq!(told, want, "{name}");
        }
    }
}
