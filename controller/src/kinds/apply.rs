//! Brings children about by server-side apply, and takes away those no longer wanted. Shared by all kinds.
//!
//! ```text
//! Intent + Child as seen ──► decide (pure): nothing to do | create | update | not ours ──► one request
//! ```
//!
//! One request is all that it takes: a create names a version that no object can have, so an object that is in the way refuses it; an
//! update names the UID that it was decided on.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::children::{Child, Kind};
use super::error::Error;
use super::subset;

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
        let digest = Sha256::digest(body.to_string());
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        body["metadata"]["annotations"][names::APPLIED] = hash.clone().into();
        Self {
            kind,
            namespace,
            name,
            body,
            hash,
        }
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
}

impl Writer<'_> {
    /// Brings one child about.
    pub async fn apply(
        &self,
        intent: &Intent,
        seen: Option<&Child>,
        settled: &BTreeSet<String>,
    ) -> Result<Applied, Error> {
        match decide(intent, self.owner, seen, settled) {
            Decision::Keep => Ok(Applied::Kept),
            Decision::Taken(holder) => Err(taken(intent, holder)),
            Decision::Update => self.update(intent, seen.map_or("", |c| &c.uid)).await,
            Decision::Create => match self.send(intent, json!({"resourceVersion": VERSION_OF_NOTHING})).await {
                Err(Error::Api { source, .. }) if is_conflict(&source) => self.claim(intent).await,
                other => other,
            },
        }
    }

    /// An object of the name exists that does not carry our label: ours if its owner reference says so.
    async fn claim(&self, intent: &Intent) -> Result<Applied, Error> {
        let found = self
            .request(intent.kind, "get", intent, self.api(intent).get_opt(&intent.name))
            .await?;
        let Some(found) = found.map(Child::new) else {
            // Gone between the two requests.
            return self.send(intent, json!({"resourceVersion": VERSION_OF_NOTHING})).await;
        };
        match foreign_holder(self.owner, &found) {
            Some(holder) => Err(taken(intent, holder)),
            None => self.update(intent, &found.uid).await,
        }
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
        // Without any owner: ours only with our marks.
        seen.controller = None;
        assert!(!matches!(decided(Some(&seen)), Decision::Taken(_)));
        seen.object["metadata"]["labels"] = json!({});
        assert!(matches!(decided(Some(&seen)), Decision::Taken(_)));
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
