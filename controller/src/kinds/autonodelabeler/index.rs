//! All AutoNodeLabelers, as the watch last saw them.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_crds::names::{self, managers};
use berth_crds::premlabs::AutoNodeLabeler;
use berth_crds::premlabs::autonodelabeler::AutoNodeLabelerStatus;
use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use parking_lot::Mutex;

use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::status::unreadable;
use crate::watches;

/// What is told of one that cannot be read.
const UNREADABLE: unreadable::Kind = unreadable::Kind {
    name: "AutoNodeLabeler",
    manager: managers::AUTONODELABELER_STATUS,
    own_fields: |_, _| {},
};

/// Objects by namespace and name.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Arc<AutoNodeLabeler>>,
    synced: bool,
}

impl Index {
    /// All objects in order of age, which is the order in which they win; `None` before the first list is complete.
    pub fn by_age(&self) -> Option<Vec<(ObjectKey, Arc<AutoNodeLabeler>)>> {
        if !self.synced {
            return None;
        }
        let mut objects: Vec<_> = self
            .objects
            .iter()
            .filter(|(_, o)| o.metadata.deletion_timestamp.is_none())
            .map(|(key, o)| (key.clone(), o.clone()))
            .collect();
        // Stable: objects of one second stay in order of namespace and name.
        objects.sort_by_key(|(_, o)| o.metadata.creation_timestamp.as_ref().map(|t| t.0));
        Some(objects)
    }

    /// What was just written, so that the next pass does not compare with what was there before.
    pub fn set_status(&mut self, key: &ObjectKey, uid: Option<&str>, status: AutoNodeLabelerStatus) {
        if let Some(object) = self.objects.get_mut(key)
            && object.metadata.uid.as_deref() == uid
        {
            Arc::make_mut(object).status = Some(status);
        }
    }

    /// Whether a pass can come out differently now.
    fn apply(&mut self, object: AutoNodeLabeler) -> bool {
        let key = key_of(&object);
        let before = self.objects.insert(key.clone(), Arc::new(object));
        let now = &self.objects[&key];
        before.is_none_or(|before| {
            before.metadata.uid != now.metadata.uid
                || before.spec != now.spec
                || before.metadata.generation != now.metadata.generation
                || is_paused(&before) != is_paused(now)
                || before.metadata.deletion_timestamp.is_some() != now.metadata.deletion_timestamp.is_some()
                // Somebody else's hand in the status is put right.
                || before.status != now.status
        })
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        self.objects.remove(key).is_some()
    }

    fn reset(&mut self, objects: Vec<AutoNodeLabeler>) {
        self.objects = objects.into_iter().map(|o| (key_of(&o), Arc::new(o))).collect();
        self.synced = true;
    }
}

/// Whether `berth.dev/paused` is on the object.
pub fn is_paused(object: &AutoNodeLabeler) -> bool {
    let annotations = object.metadata.annotations.as_ref();
    annotations.is_some_and(|a| a.contains_key(names::PAUSED))
}

fn key_of(object: &impl Resource) -> ObjectKey {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// Keeps the index in step, and asks for a pass whenever it may come out differently, until the process ends.
pub async fn watch(context: &Context, index: &Mutex<Index>) {
    let api: Api<DeserializeGuard<AutoNodeLabeler>> = Api::all(context.client.clone());
    let events = watches::watch(api, watcher::Config::default(), UNREADABLE.name, &context.metrics);
    let mut stream = std::pin::pin!(events);
    let (mut listed, mut unread) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        let changed = match event {
            Ok(Event::Init) => {
                listed.clear();
                false
            }
            Ok(Event::InitApply(object)) => {
                match decoded(object) {
                    Ok(object) => listed.push(object),
                    Err(key) => unread.push(key),
                }
                false
            }
            Ok(Event::InitDone) => {
                index.lock().reset(std::mem::take(&mut listed));
                true
            }
            Ok(Event::Apply(object)) => match decoded(object) {
                Ok(object) => index.lock().apply(object),
                Err(key) => {
                    unread.push(key.clone());
                    index.lock().remove(&key)
                }
            },
            Ok(Event::Delete(object)) => index.lock().remove(&key_of(&object)),
            // Told where the watch is made.
            Err(_) => false,
        };
        if changed {
            context.cluster.rules.push(());
        }
        for key in unread.drain(..) {
            if let Err(error) = unreadable::report::<AutoNodeLabeler>(context, UNREADABLE, &key).await {
                tracing::warn!(%error, "an AutoNodeLabeler that cannot be read was not told so");
            }
        }
    }
}

/// The object, or the key of one that cannot be read: it counts as absent, and hurts no other.
fn decoded(object: DeserializeGuard<AutoNodeLabeler>) -> Result<AutoNodeLabeler, ObjectKey> {
    let key = key_of(&object);
    object.0.map_err(|invalid| {
        tracing::warn!(namespace = key.0, name = key.1, error = %invalid.error, "AutoNodeLabeler cannot be read; it is skipped");
        key
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn object(namespace: &str, name: &str, created: i64) -> AutoNodeLabeler {
        let mut object = AutoNodeLabeler::new(name, Default::default());
        object.metadata.namespace = Some(namespace.into());
        object.metadata.uid = Some(format!("{namespace}-{name}"));
        object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        object
    }

    #[test]
    fn age_decides_then_namespace_then_name() {
        let mut index = Index::default();
        assert!(index.by_age().is_none(), "not listed yet");
        index.reset(vec![
            object("b", "a", 5),
            object("a", "z", 5),
            object("a", "b", 5),
            object("z", "z", 1),
        ]);
        let keys: Vec<String> = index
            .by_age()
            .unwrap()
            .iter()
            .map(|((ns, n), _)| format!("{ns}/{n}"))
            .collect();
        assert_eq!(keys, ["z/z", "a/b", "a/z", "b/a"]);
    }

    #[test]
    fn an_object_on_its_way_out_no_longer_takes_part() {
        let mut index = Index::default();
        let mut terminating = object("a", "a", 1);
        index.reset(vec![terminating.clone()]);
        terminating.metadata.deletion_timestamp = terminating.metadata.creation_timestamp.clone();
        assert!(index.apply(terminating));
        assert!(index.by_age().unwrap().is_empty());
    }

    #[test]
    fn our_own_status_write_asks_for_no_pass() {
        let mut index = Index::default();
        let mut written = object("a", "a", 1);
        index.reset(vec![written.clone()]);
        let status = AutoNodeLabelerStatus {
            matched_nodes: Some(1),
            ..Default::default()
        };
        index.set_status(&("a".into(), "a".into()), Some("a-a"), status.clone());
        written.status = Some(status);
        written.metadata.resource_version = Some("2".into());
        assert!(!index.apply(written.clone()));
        written.spec.labels.insert("a".into(), "b".into());
        assert!(index.apply(written));
    }
}
