//! Brings children about by server-side apply, and takes away those no longer wanted. Shared by all kinds.
//!
//! ```text
//! Intent + Child as seen ──► decide (pure): nothing to do | create | update | not ours ──► one request
//! ```
//!
//! One request is all that it takes: a create names a version that no object can have, so an object that is in the way refuses it; an
//! update names the UID that it was decided on. Only what an original operator made takes more: see [`super::adoption`].

use std::collections::BTreeSet;
use std::time::Duration;

use berth_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::adoption::{self, Evidence, Original, Terms};
use super::repairs::Deed;
use super::subset;
use super::{Child, Kind};
use crate::cluster::ObjectKey;
use crate::kinds::error::Error;
use crate::placement::patch::operations_patch;

/// Longest wait for one answer of the API server.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A version that no stored object has: applying with it creates, and is refused where an object of the name exists.
const VERSION_OF_NOTHING: &str = "1";

/// A child as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// Kind.
    pub kind: Kind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object with all that Berth sets, and nothing else.
    pub body: Value,
    /// Hash of the body; stands in the object as annotation.
    pub hash: String,
}

impl Intent {
    /// Adds to a child what every child carries: its owner, our label, and the hash of the intent.
    pub fn new(kind: Kind, owner: &OwnerReference, object: Value) -> Self {
        let mut body = subset::pruned(object);
        let text = |body: &Value, field: &str| body["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&body, "namespace"), text(&body, "name"));
        body["metadata"]["ownerReferences"] = json!([owner]);
        body["metadata"]["labels"][names::MANAGED_BY] = names::MANAGED_BY_BERTH.into();
        Self {
            kind,
            namespace,
            name,
            body,
            hash: String::new(),
        }
        .sealed()
    }

    /// The same but for these fields of its spec, which are left to whoever has them.
    pub fn without(&self, fields: &[&str]) -> Self {
        let mut less = self.clone();
        if let Some(spec) = less.body["spec"].as_object_mut() {
            spec.retain(|name, _| !fields.contains(&name.as_str()));
        }
        less.sealed()
    }

    fn sealed(mut self) -> Self {
        if let Some(annotations) = self.body["metadata"]["annotations"].as_object_mut() {
            annotations.remove(names::APPLIED);
        }
        self.body = subset::pruned(self.body);
        let digest = Sha256::digest(self.body.to_string());
        self.hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.body["metadata"]["annotations"][names::APPLIED] = self.hash.clone().into();
        self
    }

    fn key(&self) -> ObjectKey {
        (self.namespace.clone(), self.name.clone())
    }
}

/// What has to be done for an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The object is as it should be.
    Keep,
    /// There is none.
    Create,
    /// It differs.
    Update,
    /// It is not the owner's.
    Taken(Holder),
}

/// Whose an object is that is not the owner's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Of an earlier object of the owner's kind and name: the garbage collector has not come to it yet.
    Earlier,
    /// Of somebody else; the text says whose.
    Other(String),
}

/// Compares what is wanted with what was seen. `settled` are differences that were there in the API server's very answer to our last
/// apply: an admission rule makes them, and fighting it would never end.
pub fn decide(intent: &Intent, owner: &OwnerReference, seen: Option<&Child>, settled: &BTreeSet<String>) -> Decision {
    let Some(seen) = seen else { return Decision::Create };
    if let Some(holder) = foreign_holder(owner, seen) {
        return Decision::Taken(holder);
    }
    let same_intent = seen.annotation(names::APPLIED) == Some(intent.hash.as_str());
    let differences = differences(intent, seen);
    if same_intent && differences.is_subset(settled) {
        Decision::Keep
    } else {
        Decision::Update
    }
}

/// What of the intent the object does not hold. Items of a list do not say their kind, so that is no difference.
fn differences(intent: &Intent, seen: &Child) -> BTreeSet<String> {
    let mut found = subset::differences(&intent.body, &seen.object);
    found.retain(|path| path != "apiVersion" && path != "kind");
    found
}

/// What somebody did to an object since it was made as it should be. `was_made`: this process made it so last, and did not delete it.
pub fn done_by_others(
    intent: &Intent,
    seen: Option<&Child>,
    settled: &BTreeSet<String>,
    was_made: bool,
) -> Option<Deed> {
    let Some(seen) = seen else {
        return was_made.then_some(Deed::Deleted);
    };
    // Taking the annotation away hides no change.
    if seen.annotation(names::APPLIED) != Some(intent.hash.as_str()) && !was_made {
        return None;
    }
    let changed: Vec<String> = differences(intent, seen).difference(settled).cloned().collect();
    (!changed.is_empty()).then_some(Deed::Changed(changed))
}

/// Whose an object is, where it is not the owner's. One that lost its owner reference but still carries our marks is the owner's: it was
/// orphaned on purpose or by mistake, and nobody else claims it.
pub fn foreign_holder(owner: &OwnerReference, seen: &Child) -> Option<Holder> {
    match &seen.controller {
        Some(c) if c.uid == owner.uid => None,
        Some(c) if c.kind == owner.kind && c.name == owner.name => Some(Holder::Earlier),
        Some(c) => Some(Holder::Other(format!("{} {}", c.kind, c.name))),
        // Some originals own their children without the flag.
        None if is_owned(owner, seen) => None,
        None if seen.label(names::MANAGED_BY) == Some(names::MANAGED_BY_BERTH)
            && seen.annotation(names::APPLIED).is_some() =>
        {
            None
        }
        None => Some(Holder::Other(
            "somebody else: it has no owner reference to this one".into(),
        )),
    }
}

fn is_owned(owner: &OwnerReference, seen: &Child) -> bool {
    let references = seen.object["metadata"]["ownerReferences"].as_array();
    references.into_iter().flatten().any(|r| r["uid"] == owner.uid.as_str())
}

/// What an apply came to.
#[derive(Debug)]
pub enum Applied {
    /// Nothing was written.
    Kept,
    /// Written; the object as the API server answered, and what of the intent it does not hold all the same.
    Written {
        /// The answer.
        child: Box<Child>,
        /// Paths that an admission rule changed.
        settled: BTreeSet<String>,
    },
}

/// The API server, as the one that children are written to.
pub struct Writer<'a> {
    /// Client.
    pub client: &'a Client,
    /// Field manager.
    pub manager: &'a str,
    /// The owner of the children.
    pub owner: &'a OwnerReference,
    /// What holds for children that an original made.
    pub terms: Terms<'a>,
}

impl Writer<'_> {
    /// Brings one child about.
    pub async fn apply(
        &self,
        intent: &Intent,
        seen: Option<&Child>,
        settled: &BTreeSet<String>,
    ) -> Result<Applied, Error> {
        let part = seen.and_then(|s| self.terms.part_of(intent, s));
        let now = part.as_ref().unwrap_or(intent);
        match (decide(now, self.owner, seen, settled), seen) {
            (Decision::Keep, _) => Ok(Applied::Kept),
            (Decision::Taken(holder), _) => Err(taken(intent, holder)),
            (Decision::Update, Some(seen)) => {
                if let Some(evidence) = adoption::evidence(seen, self.owner) {
                    self.unless_contested(intent, &evidence)?;
                }
                if adoption::must_move(seen, self.owner, &self.terms) {
                    self.claim(intent).await
                } else {
                    self.update(now, &seen.uid).await
                }
            }
            // The original took its marks away, so the watch does not show it: to try and create it again would be refused.
            (Decision::Create, None) if self.terms.contests.is_open(intent.kind, &intent.key()) => {
                self.claim(intent).await
            }
            (Decision::Create | Decision::Update, _) => match self.create(intent).await {
                Err(Error::Api { source, .. }) if is_conflict(&source) => self.claim(intent).await,
                other => other,
            },
        }
    }

    /// An object of the name exists that does not carry our label, or whose fields must become ours first: ours if its owner reference says
    /// so.
    async fn claim(&self, intent: &Intent) -> Result<Applied, Error> {
        let found = self
            .request(intent.kind, "get", intent, self.api(intent).get_opt(&intent.name))
            .await?;
        let Some(found) = found else {
            // Gone between the two requests.
            return self.create(intent).await;
        };
        let seen = Child::new(found.clone());
        if let Some(holder) = foreign_holder(self.owner, &seen) {
            return Err(taken(intent, holder));
        }
        let plan = adoption::plan(&found, intent, self.manager, self.owner, &self.terms);
        if let Some(evidence) = &plan.evidence {
            self.unless_contested(intent, evidence)?;
        }
        if !plan.patch.is_empty() {
            self.take_over(intent, plan.patch).await?;
        }
        let applied = self.update(plan.part.as_ref().unwrap_or(intent), &seen.uid).await?;
        self.terms.contests.settle(intent.kind, &intent.key(), self.terms.now);
        Ok(applied)
    }

    async fn take_over(&self, intent: &Intent, operations: Vec<Value>) -> Result<(), Error> {
        let params = PatchParams {
            field_manager: Some(self.manager.into()),
            ..PatchParams::default()
        };
        let (api, patch) = (self.api(intent), operations_patch(operations));
        self.request(intent.kind, "adopt", intent, api.patch(&intent.name, &params, &patch))
            .await?;
        tracing::info!(
            kind = intent.kind.as_str(),
            namespace = intent.namespace,
            name = intent.name,
            "adopted"
        );
        Ok(())
    }

    /// Berth does not fight: what the original writes is left to it until it is quiet.
    fn unless_contested(&self, intent: &Intent, evidence: &Evidence) -> Result<(), Error> {
        let wait = self
            .terms
            .contests
            .wait(intent.kind, &intent.key(), evidence, self.terms.now);
        let Some(wait) = wait else { return Ok(()) };
        let name = Original::of(self.owner).map_or("another operator", |o| o.name);
        Err(Error::AnotherOperator {
            kind: intent.kind.as_str(),
            namespace: intent.namespace.clone(),
            name: intent.name.clone(),
            operator: match &evidence.manager {
                Some(manager) => format!("{name} (field manager {manager:?})"),
                None => name.into(),
            },
            since: wait.since,
            remaining: wait.remaining,
        })
    }

    async fn create(&self, intent: &Intent) -> Result<Applied, Error> {
        self.send(intent, json!({"resourceVersion": VERSION_OF_NOTHING})).await
    }

    async fn update(&self, intent: &Intent, uid: &str) -> Result<Applied, Error> {
        self.send(intent, json!({"uid": uid})).await
    }

    async fn send(&self, intent: &Intent, precondition: Value) -> Result<Applied, Error> {
        let mut body = intent.body.clone();
        if let (Some(metadata), Some(more)) = (body["metadata"].as_object_mut(), precondition.as_object()) {
            metadata.extend(more.clone());
        }
        let params = PatchParams::apply(self.manager).force().validation_strict();
        let api = self.api(intent);
        let patch = Patch::Apply(&body);
        let answer = self
            .request(intent.kind, "apply", intent, api.patch(&intent.name, &params, &patch))
            .await?;
        let child = Child::new(answer);
        let settled = differences(intent, &child);
        if !settled.is_empty() {
            tracing::info!(kind = intent.kind.as_str(), namespace = intent.namespace, name = intent.name, fields = ?settled,
                "an admission rule of this cluster changed what was applied; it is left so");
        }
        Ok(Applied::Written {
            child: Box::new(child),
            settled,
        })
    }

    /// Deletes a child that is no longer wanted, if it is ours. True: it was there.
    pub async fn prune(&self, kind: Kind, namespace: &str, name: &str, seen: Option<&Child>) -> Result<bool, Error> {
        let Some(seen) = seen.filter(|s| !s.terminating && foreign_holder(self.owner, s).is_none()) else {
            return Ok(false);
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(seen.uid.clone()),
                resource_version: None,
            }),
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource());
        let what = (kind.as_str(), namespace, name);
        match timed("delete", what, api.delete(name, &params)).await {
            Ok(_) => Ok(true),
            Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_not_found()) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn api(&self, intent: &Intent) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &intent.namespace, &intent.kind.resource())
    }

    async fn request<T>(
        &self,
        kind: Kind,
        verb: &'static str,
        intent: &Intent,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        timed(verb, (kind.as_str(), &intent.namespace, &intent.name), call).await
    }
}

/// Runs one request to the API server under [`REQUEST_TIMEOUT`], and says in errors what it was for: kind, namespace, name.
pub async fn timed<T>(
    verb: &'static str,
    (kind, namespace, name): (&'static str, &str, &str),
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Api {
            verb,
            kind,
            namespace,
            name,
            source: Box::new(source),
        }),
        Err(_) => Err(Error::Timeout {
            verb,
            kind,
            namespace,
            name,
            seconds: REQUEST_TIMEOUT.as_secs(),
        }),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}

fn taken(intent: &Intent, holder: Holder) -> Error {
    let (kind, namespace, name) = (intent.kind.as_str(), intent.namespace.clone(), intent.name.clone());
    match holder {
        Holder::Earlier => Error::NotYetDeleted { kind, namespace, name },
        Holder::Other(holder) => Error::NameTaken {
            kind,
            namespace,
            name,
            holder,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "premlabs.io/v1alpha1".into(),
            kind: "AIDeployment".into(),
            name: "m".into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn intent() -> Intent {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]}});
        Intent::new(Kind::Service, &owner("u"), object)
    }

    fn stored(intent: &Intent) -> Child {
        let mut object = intent.body.clone();
        // As in a list.
        object["apiVersion"].take();
        object["kind"].take();
        object["metadata"]["uid"] = "s".into();
        object["spec"]["clusterIP"] = "10.0.0.1".into();
        Child::new(serde_json::from_value(object).unwrap())
    }

    fn decided(seen: Option<&Child>) -> Decision {
        decide(&intent(), &owner("u"), seen, &BTreeSet::new())
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        assert_eq!(decided(None), Decision::Create);
        assert_eq!(decided(Some(&stored(&intent()))), Decision::Keep);
    }

    #[test]
    fn an_edit_by_hand_and_a_changed_intent_are_written() {
        let mut edited = stored(&intent());
        edited.object["spec"]["ports"][0]["port"] = 81.into();
        assert_eq!(decided(Some(&edited)), Decision::Update);

        // A field that is no longer wanted leaves no difference: only the hash shows it.
        let object = json!({"metadata": {"name": "m", "namespace": "ns"}, "spec": {"ports": [{"port": 80}], "type": "NodePort"}});
        let before = stored(&Intent::new(Kind::Service, &owner("u"), object));
        assert_eq!(decided(Some(&before)), Decision::Update);
    }

    #[test]
    fn what_others_did_is_told_from_what_is_asked_anew() {
        let right = stored(&intent());
        let mut edited = stored(&intent());
        edited.object["spec"]["ports"][0]["port"] = 81.into();
        let edit = || Some(Deed::Changed(vec!["spec.ports.80/TCP".into()]));
        let mut stripped = stored(&intent());
        stripped.object["metadata"]["annotations"] = json!({"of": "others"});
        let mut forged = stored(&intent());
        forged.object["metadata"]["annotations"][names::APPLIED] = "other".into();
        let of_annotation = || Some(Deed::Changed(vec![format!("metadata.annotations.{}", names::APPLIED)]));
        for (what, seen, was_made, want) in [
            ("never made", None, false, None),
            ("deleted", None, true, Some(Deed::Deleted)),
            ("as it should be", Some(&right), true, None),
            ("as it should be, made before a restart", Some(&right), false, None),
            ("edited", Some(&edited), true, edit()),
            ("edited, made before a restart", Some(&edited), false, edit()),
            ("stripped of the annotation", Some(&stripped), true, of_annotation()),
            ("with another hash", Some(&forged), true, of_annotation()),
            ("of another intent", Some(&forged), false, None),
        ] {
            assert_eq!(
                done_by_others(&intent(), seen, &BTreeSet::new(), was_made),
                want,
                "{what}"
            );
        }
        let settled = BTreeSet::from(["spec.ports.80/TCP".to_owned()]);
        assert_eq!(
            done_by_others(&intent(), Some(&edited), &settled, true),
            None,
            "an admission rule does it"
        );
    }

    #[test]
    fn what_an_admission_rule_changes_is_not_fought_over() {
        let mut mutated = stored(&intent());
        mutated.object["spec"]["ports"][0]["port"] = 81.into();
        let settled = differences(&intent(), &mutated);
        assert_eq!(decide(&intent(), &owner("u"), Some(&mutated), &settled), Decision::Keep);
    }

    #[test]
    fn an_object_of_another_owner_is_not_taken_over() {
        let mut seen = stored(&intent());
        seen.controller = Some(OwnerReference {
            kind: "Other".into(),
            ..owner("z")
        });
        assert_eq!(decided(Some(&seen)), Decision::Taken(Holder::Other("Other m".into())));
        seen.controller = Some(owner("z"));
        assert_eq!(decided(Some(&seen)), Decision::Taken(Holder::Earlier));
        // Owned without the flag, as some originals do.
        seen.controller = None;
        let marks = seen.object["metadata"]["labels"].take();
        assert!(!matches!(decided(Some(&seen)), Decision::Taken(_)));
        // Without any owner: ours only with our marks.
        seen.object["metadata"]["ownerReferences"] = json!([]);
        assert!(matches!(decided(Some(&seen)), Decision::Taken(_)));
        seen.object["metadata"]["labels"] = marks;
        assert!(!matches!(decided(Some(&seen)), Decision::Taken(_)));
    }

    #[test]
    fn the_hash_follows_the_intent_alone() {
        assert_eq!(intent().hash, intent().hash);
        assert_eq!(intent().hash.len(), 64);
        let other = Intent::new(
            Kind::Service,
            &owner("v"),
            json!({"metadata": {"name": "m", "namespace": "ns"}}),
        );
        assert_ne!(intent().hash, other.hash);
        assert_eq!(
            intent().body["metadata"]["labels"]["app.kubernetes.io/managed-by"],
            "berth"
        );
    }
}
