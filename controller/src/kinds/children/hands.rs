//! Brings the children of one object about, one by one, in the order that its kind gives. Shared by all kinds.
//!
//! What the API server answers is known at once to the next look ([`Children`]), and what an admission rule made of it is remembered
//! ([`Memories`]).

use std::time::Duration;

use berth_crds::names;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::apply::{Applied, Decision, Intent, Writer, decide, done_by_others, timed};
use super::repairs::{Repairs, THEN_EVERY};
use super::{Child, Children, Kind};
use crate::cluster::ObjectKey;
use crate::kinds::error::Error;
use crate::kinds::watch::memory::Memories;

/// All that it takes for one object.
pub struct Hands<'a, S> {
    /// Requests.
    pub writer: Writer<'a>,
    /// Where what they answer is kept.
    pub children: &'a Children,
    /// Where what an admission rule made of it is kept.
    pub memories: &'a Memories<S>,
    /// The owner.
    pub key: &'a ObjectKey,
}

impl<S: Clone> Hands<'_, S> {
    /// Brings one child about. A Deployment without a number of replicas leaves it to others.
    pub async fn apply(&self, kind: Kind, object: Value, seen: Option<&Child>) -> Result<(), Error> {
        let intent = Intent::new(kind, self.writer.owner, object);
        let slot = (kind, intent.name.clone());
        let memory = self.memories.get(self.key);
        let settled = memory.settled.get(&slot).cloned().unwrap_or_default();
        let part = seen.and_then(|seen| self.writer.terms.part_of(&intent, seen));
        let now = part.as_ref().unwrap_or(&intent);
        let before = memory.repairs.get(&slot).cloned().unwrap_or_default();
        let mut repairs = before.clone();
        let child_key = (intent.namespace.clone(), intent.name.clone());
        // An original that takes the child back is no stranger: that is told, and waited for, as a contest.
        let is_contested = self.children.contests.is_known(kind, &child_key, self.writer.terms.now);
        let done = done_by_others(now, seen, &settled, repairs.is_applied(&now.hash)).filter(|_| !is_contested);
        let is_repair = done.is_some();
        if let Some(deed) = done
            && let Some(remaining) = repairs.disturbed(deed, self.writer.terms.now)
        {
            let error = keeps_changing(&intent, &repairs, remaining);
            if repairs != before {
                self.memories
                    .change(self.key, |m| drop(m.repairs.insert(slot, repairs)));
            }
            return Err(error);
        }
        if let (Kind::Deployment, Some(seen), None) = (kind, seen, intent.body.pointer("/spec/replicas"))
            && decide(now, self.writer.owner, Some(seen), &settled) == Decision::Update
        {
            self.hand_over_replicas(&intent, seen).await?;
        }
        let remaining = match self.writer.apply(&intent, seen, &settled).await? {
            Applied::Kept => repairs.unchanged(self.writer.terms.now),
            Applied::Written { child, settled } => {
                tracing::info!(
                    kind = kind.as_str(),
                    namespace = self.key.0,
                    name = self.key.1,
                    "applied"
                );
                self.children.observe(kind, &child_key, &child);
                self.memories
                    .change(self.key, |m| drop(m.settled.insert(slot.clone(), settled)));
                // Without the label no look sees it: that it is not seen does not say that it was deleted.
                let is_seen = child.label(names::MANAGED_BY) == Some(names::MANAGED_BY_BERTH);
                repairs.applied(child.annotation(names::APPLIED).filter(|_| is_seen));
                match is_repair {
                    true => repairs.repaired(self.writer.terms.now),
                    false => {
                        repairs.written();
                        None
                    }
                }
            }
        };
        let told = remaining.map(|remaining| keeps_changing(&intent, &repairs, remaining));
        if repairs != before {
            self.memories
                .change(self.key, |m| drop(m.repairs.insert(slot, repairs)));
        }
        told.map_or(Ok(()), Err)
    }

    /// An object as it is now, also one without our label, which is not watched: what an original left behind, or what lost the label.
    pub async fn unlabelled(&self, kind: Kind, name: &str) -> Result<Option<Child>, Error> {
        let namespace = &self.key.0;
        let api: Api<DynamicObject> = Api::namespaced_with(self.writer.client.clone(), namespace, &kind.resource());
        let what = (kind.as_str(), namespace.as_str(), name);
        let found = timed("get", what, api.get_opt(name)).await?;
        Ok(found.map(Child::new))
    }

    /// Takes away a child that is no longer wanted, if it is ours.
    pub async fn prune(&self, kind: Kind, seen: &Child) -> Result<(), Error> {
        let name = seen.object["metadata"]["name"].as_str().unwrap_or_default();
        // Before it is gone: a look after that may want it again.
        self.memories.change(self.key, |m| {
            if let Some(repairs) = m.repairs.get_mut(&(kind, name.to_owned())) {
                repairs.pruned();
            }
        });
        if self.writer.prune(kind, &self.key.0, name, Some(seen)).await? {
            tracing::info!(
                kind = kind.as_str(),
                namespace = self.key.0,
                name,
                "deleted: the spec no longer asks for it"
            );
        }
        Ok(())
    }

    /// Makes the number of replicas another manager's before ours lets go of it: what nobody owns falls back to 1. An autoscaler that has
    /// not scaled yet owns nothing. The version is that of the number: a change in between is not undone.
    async fn hand_over_replicas(&self, intent: &Intent, seen: &Child) -> Result<(), Error> {
        let Some(replicas) = seen.object.pointer("/spec/replicas").and_then(Value::as_i64) else {
            return Ok(());
        };
        let resource = intent.kind.resource();
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": intent.name, "namespace": intent.namespace, "uid": seen.uid, "resourceVersion": seen.resource_version},
            "spec": {"replicas": replicas},
        });
        let api: Api<DynamicObject> = Api::namespaced_with(self.writer.client.clone(), &intent.namespace, &resource);
        let params = PatchParams::apply(names::managers::SCALING).force().validation_strict();
        let what = (intent.kind.as_str(), intent.namespace.as_str(), intent.name.as_str());
        let patch = Patch::Apply(&body);
        timed(
            "hand over the replicas of",
            what,
            api.patch(&intent.name, &params, &patch),
        )
        .await?;
        Ok(())
    }
}

fn keeps_changing(intent: &Intent, repairs: &Repairs, remaining: Duration) -> Error {
    Error::KeepsChanging {
        kind: intent.kind.as_str(),
        namespace: intent.namespace.clone(),
        name: intent.name.clone(),
        deeds: repairs.deeds(),
        minutes: THEN_EVERY.as_secs() / 60,
        remaining,
    }
}

#[cfg(test)]
#[path = "hands_tests.rs"]
mod tests;
