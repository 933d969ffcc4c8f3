//! The children that Berth made, as last seen: one watch a kind, filtered by the managed-by label, for all kinds of owners.
//!
//! ```text
//! hands (one child) ─► apply (decide, one request) ◄── subset (does it still hold?)
//!   └ repairs            └ adoption (what an original operator left behind)
//! ```
//!
//! Kept as compact JSON text: an object is looked at a few times in its life and held for all of it.

pub mod adoption;
pub mod apply;
pub mod braked;
pub mod hands;
pub mod optional;
pub mod repairs;
pub mod subset;
pub mod wanted;

mod child;
mod kind;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use berth_crds::names;
use futures::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch::Sender;

use self::adoption::contests::Contests;
pub use self::child::Child;
pub use self::kind::Kind;
use crate::cluster::ObjectKey;
use crate::metrics::Metrics;
use crate::watches::watch;

/// Where an object was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// In the answer to a write.
    Answer,
    /// In the course of a watch.
    Watch,
    /// In a list. It counts also where it is older than what was seen: the API server's data may have been restored from an earlier day.
    List,
}

/// A [`Child`] at rest.
#[derive(Debug)]
struct Kept {
    resource_version: String,
    json: Box<str>,
}

/// The object that a child says it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerKey {
    /// Kind, as in the owner reference.
    pub kind: String,
    /// Namespace and name.
    pub key: ObjectKey,
}

/// All children by kind and name.
#[derive(Debug)]
pub struct Children {
    kept: RwLock<BTreeMap<(Kind, ObjectKey), Kept>>,
    /// The newest version of each kind that its watch told of: whatever is older and not kept is gone.
    told_to: RwLock<BTreeMap<Kind, u64>>,
    /// Kinds that a look can rely on: listed, or an optional one that is not to be waited for.
    settled: Sender<BTreeSet<Kind>>,
    /// Optional kinds whose API is installed, and which were listed.
    served: RwLock<BTreeSet<Kind>>,
    contests: Contests,
}

impl Default for Children {
    fn default() -> Self {
        Self {
            kept: RwLock::default(),
            told_to: RwLock::default(),
            settled: Sender::new(BTreeSet::new()),
            served: RwLock::default(),
            contests: Contests::default(),
        }
    }
}

impl Children {
    /// The child of that name, if there is one that carries our label.
    pub fn get(&self, kind: Kind, key: &ObjectKey) -> Option<Child> {
        let kept = self.kept.read();
        let text = &kept.get(&(kind, key.clone()))?.json;
        let object: DynamicObject = serde_json::from_str(text).ok()?;
        drop(kept);
        Some(Child::new(object))
    }

    /// The children of that name, and of that name with a number after it.
    pub fn named_after(&self, kind: Kind, key: &ObjectKey) -> Vec<Child> {
        let names: Vec<ObjectKey> = {
            let kept = self.kept.read();
            let from = kept.range((kind, key.clone())..);
            let names = from.map(|((k, name), _)| (k, name));
            names
                .take_while(|(k, name)| **k == kind && name.0 == key.0 && name.1.starts_with(&key.1))
                .filter(|(_, name)| is_numbered(&name.1, &key.1))
                .map(|(_, name)| name.clone())
                .collect()
        };
        names.iter().filter_map(|name| self.get(kind, name)).collect()
    }

    /// Children that an original operator still writes.
    pub fn contests(&self) -> &Contests {
        &self.contests
    }

    /// Whether the API of a kind is there, as far as is known.
    pub fn is_served(&self, kind: Kind) -> bool {
        Kind::ALWAYS.contains(&kind) || self.served.read().contains(&kind)
    }

    /// The owners of all children of a kind.
    pub fn owners(&self, kind: Kind) -> Vec<OwnerKey> {
        let keys: Vec<ObjectKey> = {
            let kept = self.kept.read();
            kept.keys()
                .filter(|(k, _)| *k == kind)
                .map(|(_, key)| key.clone())
                .collect()
        };
        keys.into_iter()
            .filter_map(|key| Some(owner_of_reference(self.get(kind, &key)?.controller.as_ref(), key)))
            .collect()
    }

    /// Takes what a write answered, so that the next look does not decide on what was before it.
    pub fn observe(&self, kind: Kind, key: &ObjectKey, child: &Child) {
        let carries_label = child.label(names::MANAGED_BY) == Some(names::MANAGED_BY_BERTH);
        if carries_label {
            self.keep(kind, key.clone(), &child.resource_version, &child.object, Seen::Answer);
        }
    }

    fn keep(&self, kind: Kind, key: ObjectKey, resource_version: &str, object: &Value, from: Seen) {
        let mut kept = self.kept.write();
        let slot = (kind, key);
        // Somebody was quick, and the watch overtook the answer: nothing would tell of the deletion again.
        if from == Seen::Answer && !kept.contains_key(&slot) && self.was_told(kind, resource_version) {
            return;
        }
        // A watch may tell of what was before our own write; versions of one kind only grow.
        let is_older = kept
            .get(&slot)
            .is_some_and(|k| is_older(resource_version, &k.resource_version));
        if is_older && from != Seen::List {
            return;
        }
        let json = object.to_string().into_boxed_str();
        let resource_version = resource_version.to_owned();
        kept.insert(slot, Kept { resource_version, json });
    }

    /// Whether the watch has come to this version.
    fn was_told(&self, kind: Kind, resource_version: &str) -> bool {
        let told_to = self.told_to.read().get(&kind).copied();
        told_to.is_some_and(|told_to| resource_version.parse().is_ok_and(|version: u64| version <= told_to))
    }

    /// The watch has come to this version. Before anything is made of it.
    fn told(&self, kind: Kind, object: &DynamicObject) {
        let version = object.metadata.resource_version.as_deref();
        if let Some(version) = version.and_then(|v| v.parse::<u64>().ok()) {
            let mut told_to = self.told_to.write();
            let newest = told_to.entry(kind).or_default();
            *newest = version.max(*newest);
        }
    }

    fn forget(&self, kind: Kind, key: &ObjectKey, resource_version: &str) {
        let mut kept = self.kept.write();
        let slot = (kind, key.clone());
        if kept
            .get(&slot)
            .is_some_and(|k| !is_older(resource_version, &k.resource_version))
        {
            kept.remove(&slot);
        }
    }

    /// Waits until every kind that is always there was listed once, and it is known which others are. An optional API that ails is not
    /// waited for longer than [`optional::LONGEST_WAIT`]: then it counts as not served until it is listed.
    pub async fn wait_synced(&self) {
        let mut settled = self.settled.subscribe();
        let all = || Kind::ALWAYS.iter().chain(Kind::OPTIONAL);
        // The sender lives in self: waiting cannot fail.
        let _ = settled.wait_for(|kinds| all().all(|kind| kinds.contains(kind))).await;
    }

    fn settle(&self, kind: Kind) {
        self.settled.send_if_modified(|kinds| kinds.insert(kind));
    }

    /// Watches every kind, and tells the owner of each child that changed. Ends never.
    pub async fn run(self: &Arc<Self>, client: Client, metrics: &Arc<Metrics>, changed: impl Fn(OwnerKey) + Sync) {
        let selector = format!("{}={}", names::MANAGED_BY, names::MANAGED_BY_BERTH);
        let changed = &changed;
        let follow = |kind: Kind| {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
            let config = watcher::Config::default().labels(&selector);
            // A backoff of its own, and errors that stay here: one broken watch does not hold up the others.
            self.follow(kind, watch(api, config, kind.as_str(), metrics), changed)
        };
        let always = futures::future::join_all(Kind::ALWAYS.iter().map(|kind| follow(*kind)));
        let optional = Kind::OPTIONAL.iter().map(|kind| {
            // Nobody waits for an API that may never come.
            let absent = || self.settle(*kind);
            let ended = || self.no_longer_served(*kind, changed);
            let serve = optional::while_installed(&client, *kind, || follow(*kind), absent, ended);
            let give_up = async move {
                tokio::time::sleep(optional::LONGEST_WAIT).await;
                self.settle(*kind);
            };
            futures::future::join(serve, give_up)
        });
        futures::future::join(always, futures::future::join_all(optional)).await;
    }

    /// The API of an optional kind is there: whoever wants such children is looked at again.
    fn served(&self, kind: Kind, changed: &impl Fn(OwnerKey)) {
        if Kind::OPTIONAL.contains(&kind) && self.served.write().insert(kind) {
            tracing::info!(kind = kind.as_str(), "its API is installed");
            self.owners(Kind::Deployment).into_iter().for_each(changed);
        }
    }

    /// And no more: its objects went with it.
    fn no_longer_served(&self, kind: Kind, changed: &impl Fn(OwnerKey)) {
        if self.served.write().remove(&kind) {
            tracing::info!(kind = kind.as_str(), "its API is no longer installed");
            self.kept.write().retain(|(k, _), _| *k != kind);
            self.owners(Kind::Deployment).into_iter().for_each(changed);
        }
    }

    async fn follow(
        &self,
        kind: Kind,
        stream: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
        changed: &(impl Fn(OwnerKey) + Sync),
    ) {
        let mut stream = std::pin::pin!(stream);
        let mut listed: HashSet<ObjectKey> = HashSet::new();
        let mut first = true;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => {
                    listed.clear();
                    // The API server's data may have been restored from an earlier day.
                    self.told_to.write().remove(&kind);
                }
                Ok(Event::InitApply(object)) => {
                    self.told(kind, &object);
                    let key = key_of(&object);
                    listed.insert(key.clone());
                    self.apply(kind, key, object, Seen::List, changed);
                }
                Ok(Event::InitDone) => {
                    self.drop_unlisted(kind, &listed, changed);
                    listed.clear();
                    if std::mem::take(&mut first) {
                        self.served(kind, changed);
                        self.settle(kind);
                    }
                }
                Ok(Event::Apply(object)) => {
                    self.told(kind, &object);
                    self.apply(kind, key_of(&object), object, Seen::Watch, changed);
                }
                Ok(Event::Delete(object)) => {
                    self.told(kind, &object);
                    let key = key_of(&object);
                    let version = object.metadata.resource_version.clone().unwrap_or_default();
                    self.forget(kind, &key, &version);
                    changed(owner_of(&object, key));
                }
                // Told where the watch is made.
                Err(_) => {}
            }
        }
    }

    fn apply(&self, kind: Kind, key: ObjectKey, mut object: DynamicObject, from: Seen, changed: &impl Fn(OwnerKey)) {
        adoption::slim(&mut object.metadata);
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let owner = owner_of(&object, key.clone());
        // Whoever lost a child by its owner reference cannot be told from the child any more.
        let before = owner
            .kind
            .is_empty()
            .then(|| self.get(kind, &key)?.controller)
            .flatten()
            .map(|controller| owner_of_reference(Some(&controller), key.clone()));
        self.keep(
            kind,
            key,
            &version,
            &serde_json::to_value(&object).unwrap_or_default(),
            from,
        );
        before.into_iter().for_each(changed);
        changed(owner);
    }

    /// After a relist: whatever is kept and was not listed is gone. What was written after the list was made is not in it either: the watch
    /// that goes on from the list tells of it in a moment, and a look before that costs a few requests; one child too many would cost the
    /// child, as nothing would tell of its deletion any more.
    fn drop_unlisted(&self, kind: Kind, listed: &HashSet<ObjectKey>, changed: &impl Fn(OwnerKey)) {
        let gone: Vec<ObjectKey> = self
            .kept
            .read()
            .keys()
            .filter(|(k, key)| *k == kind && !listed.contains(key))
            .map(|(_, key)| key.clone())
            .collect();
        for key in gone {
            let owner = self
                .get(kind, &key)
                .map(|c| owner_of_reference(c.controller.as_ref(), key.clone()));
            self.kept.write().remove(&(kind, key));
            if let Some(owner) = owner {
                changed(owner);
            }
        }
    }
}

/// Whether `name` is `base`, or `base` with a dash and a number.
fn is_numbered(name: &str, base: &str) -> bool {
    let rest = name.strip_prefix(base);
    rest.is_some_and(|rest| {
        let number = rest.strip_prefix('-').unwrap_or_default();
        rest.is_empty() || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn key_of(object: &DynamicObject) -> ObjectKey {
    let meta = &object.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

fn owner_of(object: &DynamicObject, key: ObjectKey) -> OwnerKey {
    let controller = object
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true));
    owner_of_reference(controller, key)
}

/// A child whose owner reference was taken away is its namesake's to look at.
fn owner_of_reference(controller: Option<&OwnerReference>, key: ObjectKey) -> OwnerKey {
    match controller {
        Some(owner) => OwnerKey {
            kind: owner.kind.clone(),
            key: (key.0, owner.name.clone()),
        },
        None => OwnerKey {
            kind: String::new(),
            key,
        },
    }
}

fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => std::cmp::Ordering::Equal,
    }
}

/// Whether version `a` is before `b`. Versions that are no numbers cannot be ordered: then the later news is believed.
pub fn is_older(a: &str, b: &str) -> bool {
    compare_versions(a, b).is_lt()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn object(version: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "ns", "name": "m", "uid": "u", "resourceVersion": version,
                "labels": {"app.kubernetes.io/managed-by": "berth"},
                "ownerReferences": [{"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "name": "o", "uid": "x", "controller": true}]},
            "spec": {"v": version},
        }))
        .unwrap()
    }

    async fn after(events: Vec<Event<DynamicObject>>) -> (Arc<Children>, Vec<OwnerKey>) {
        let children = Arc::new(Children::default());
        let told = Mutex::new(Vec::new());
        let stream = futures::stream::iter(events.into_iter().map(Ok));
        children
            .follow(Kind::Service, stream, &|o| told.lock().unwrap().push(o))
            .await;
        (children, told.into_inner().unwrap())
    }

    fn version(children: &Children) -> Option<String> {
        children
            .get(Kind::Service, &("ns".into(), "m".into()))
            .map(|c| c.resource_version)
    }

    #[test]
    fn a_look_waits_for_every_kind_and_no_kind_counts_twice() {
        let children = Children::default();
        let (last, others) = Kind::ALWAYS.split_last().unwrap();
        for kind in others.iter().chain(Kind::OPTIONAL).chain(Kind::OPTIONAL) {
            children.settle(*kind);
        }
        assert!(children.wait_synced().now_or_never().is_none());
        children.settle(*last);
        assert!(children.wait_synced().now_or_never().is_some());
    }

    #[tokio::test]
    async fn news_is_kept_and_its_owner_told() {
        let (children, told) = after(vec![Event::Init, Event::InitApply(object("5")), Event::InitDone]).await;
        assert_eq!(version(&children).as_deref(), Some("5"));
        assert_eq!(told[0].kind, "AIDeployment");
        assert_eq!(told[0].key, ("ns".into(), "o".into()));
    }

    #[tokio::test]
    async fn an_own_write_is_not_undone_by_older_news() {
        let (children, _) = after(vec![Event::Apply(object("9")), Event::Apply(object("8"))]).await;
        assert_eq!(version(&children).as_deref(), Some("9"));
        children.forget(Kind::Service, &("ns".into(), "m".into()), "8");
        assert_eq!(
            version(&children).as_deref(),
            Some("9"),
            "the deletion of an earlier namesake"
        );
    }

    #[tokio::test]
    async fn an_answer_that_the_watch_has_overtaken_brings_nothing_back() {
        let answer = |children: &Children, version: &str| {
            let key = ("ns".to_owned(), "m".to_owned());
            children.observe(Kind::Service, &key, &Child::new(object(version)));
        };
        let mut other = object("9");
        other.metadata.name = Some("other".into());
        for (what, events, answered, want) in [
            ("the watch is late", vec![], "5", Some("5")),
            ("of nothing yet", vec![Event::Apply(object("4"))], "5", Some("5")),
            (
                "made and deleted",
                vec![Event::Apply(object("5")), Event::Delete(object("6"))],
                "5",
                None,
            ),
            (
                "made anew since",
                vec![Event::Apply(object("5")), Event::Delete(object("6"))],
                "7",
                Some("7"),
            ),
            (
                "changed since",
                vec![Event::Apply(object("5")), Event::Apply(object("8"))],
                "5",
                Some("8"),
            ),
            (
                "listed as gone",
                vec![Event::Init, Event::InitApply(other.clone()), Event::InitDone],
                "5",
                None,
            ),
            (
                "of an earlier day",
                vec![Event::Apply(other), Event::Init, Event::InitDone],
                "5",
                Some("5"),
            ),
        ] {
            let (children, _) = after(events).await;
            answer(&children, answered);
            assert_eq!(version(&children).as_deref(), want, "{what}");
        }
    }

    #[tokio::test]
    async fn a_child_that_loses_its_owner_is_told_to_the_owner() {
        let mut orphan = object("6");
        orphan.metadata.owner_references = None;
        let (_, told) = after(vec![Event::Apply(object("5")), Event::Apply(orphan)]).await;
        let told: Vec<_> = told.iter().map(|o| (o.kind.as_str(), o.key.1.as_str())).collect();
        assert_eq!(told, [("AIDeployment", "o"), ("AIDeployment", "o"), ("", "m")]);
    }

    #[tokio::test]
    async fn a_relist_drops_what_is_gone() {
        let mut other = object("7");
        other.metadata.name = Some("other".into());
        let events = vec![
            Event::Apply(object("5")),
            Event::Init,
            Event::InitApply(other),
            Event::InitDone,
        ];
        let (children, told) = after(events).await;
        assert_eq!(version(&children), None);
        assert_eq!(told.len(), 3, "applied, listed, gone");

        // Its sibling is the older of the two.
        let mut sibling = object("3");
        sibling.metadata.name = Some("sibling".into());
        let events = vec![
            Event::Apply(object("5")),
            Event::Apply(sibling.clone()),
            Event::Init,
            Event::InitApply(sibling),
            Event::InitDone,
        ];
        let (children, told) = after(events).await;
        assert_eq!(version(&children), None, "nothing tells of its deletion any more");
        assert_eq!(told.len(), 4);
        let (children, _) = after(vec![Event::Apply(object("5")), Event::Delete(object("6"))]).await;
        assert_eq!(version(&children), None);
    }

    #[test]
    fn names_with_a_number_belong_together() {
        let children = Children::default();
        for name in ["m", "m-81", "m-8a", "m-8081", "mm", "m-", "l"] {
            let key = ("ns".to_owned(), name.to_owned());
            children.keep(
                Kind::HttpRoute,
                key,
                "1",
                &json!({"metadata": {"name": name, "namespace": "ns"}}),
                Seen::Watch,
            );
        }
        let found = children.named_after(Kind::HttpRoute, &("ns".into(), "m".into()));
        let names: Vec<&str> = found
            .iter()
            .filter_map(|c| c.object["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, ["m", "m-8081", "m-81"]);
        assert!(
            children
                .named_after(Kind::Service, &("ns".into(), "m".into()))
                .is_empty()
        );
        assert!(!children.is_served(Kind::HttpRoute) && children.is_served(Kind::Service));
    }

    #[test]
    fn what_is_listed_counts_even_where_it_is_older() {
        let children = Children::default();
        let service = |version: &str| {
            let object = json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": "ns", "name": "m", "resourceVersion": version}});
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        let key = ("ns".to_owned(), "m".to_owned());
        let version = || children.get(Kind::Service, &key).unwrap().resource_version;
        let tell = |_: OwnerKey| ();
        children.apply(Kind::Service, key.clone(), service("900"), Seen::Watch, &tell);
        children.apply(Kind::Service, key.clone(), service("100"), Seen::Watch, &tell);
        assert_eq!(version(), "900", "the watch may be late");
        children.apply(Kind::Service, key.clone(), service("100"), Seen::List, &tell);
        assert_eq!(version(), "100", "the data were restored from an earlier day");
    }
}
