//! When an AIModelMap is looked at: on its own events and those of its ConfigMap, and again after failures; and who is told of its changes.

use std::collections::HashMap;
use std::sync::Arc;

use berth_crds::names;
use berth_crds::premlabs::{AIModelMap, AIModelMapStatus};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;

use super::{Room, reconcile};
use crate::cluster::{ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::children::Children;
use crate::kinds::error::Error;
use crate::kinds::status::unreadable;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{self, Guarded, News, Objects, batches, key_of};

/// Serves AIModelMaps, until the process ends; `wakes` are those that others found to be looked at. `changed` is told when what a reference
/// to a map comes to may have changed.
pub async fn run(
    context: Context,
    children: Arc<Children>,
    maps: Arc<Objects<AIModelMap>>,
    wakes: Arc<Queue<ObjectKey>>,
    changed: impl Fn(&ObjectKey) + Send + Sync + 'static,
) {
    let room = Arc::new(Room {
        context: context.clone(),
        children,
        readers: Readers::new(changed),
        memories: Memories::default(),
    });
    watch::serve(&context, room, maps, batches(wakes)).await;
}

impl watch::Room for Room {
    type Object = AIModelMap;
    type Status = AIModelMapStatus;

    fn memories(&self) -> &Memories<AIModelMapStatus> {
        &self.memories
    }

    async fn ready(&self) {
        self.children.wait_synced().await;
    }

    fn news(&self, news: News<'_, AIModelMap>) {
        self.readers.news(&news);
    }

    async fn unreadable(&self, key: &ObjectKey) -> Result<(), Error> {
        let kind = unreadable::Kind {
            name: "AIModelMap",
            manager: names::managers::AIMODELMAP_STATUS,
            own_fields: |_, _| {},
        };
        unreadable::report::<AIModelMap>(&self.context, kind, key).await
    }

    async fn look(&self, object: &AIModelMap) -> Result<(), Error> {
        Box::pin(reconcile(object, self)).await
    }
}

/// What of a map a reference to it depends on: not its status, nor other people's annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edition {
    uid: Option<String>,
    generation: Option<i64>,
    allow_from: Option<String>,
}

impl Edition {
    fn of(map: &Guarded<AIModelMap>) -> Self {
        Self {
            uid: map.uid(),
            generation: map.meta().generation,
            allow_from: map.annotations().get(names::ALLOW_FROM).cloned(),
        }
    }
}

/// Tells those who refer to a map of each new edition of it, and of no other change.
pub struct Readers {
    editions: Mutex<HashMap<ObjectKey, Edition>>,
    changed: Box<dyn Fn(&ObjectKey) + Send + Sync>,
}

impl Readers {
    /// `changed` is told.
    pub fn new(changed: impl Fn(&ObjectKey) + Send + Sync + 'static) -> Self {
        Self {
            editions: Mutex::default(),
            changed: Box::new(changed),
        }
    }

    /// Takes what became known of maps.
    pub fn news(&self, news: &News<'_, AIModelMap>) {
        let mut editions = self.editions.lock();
        match news {
            News::Is(map) => {
                let (key, edition) = (key_of(*map), Edition::of(map));
                if editions.get(&key) != Some(&edition) {
                    (self.changed)(&key);
                    editions.insert(key, edition);
                }
            }
            News::Gone(key) => {
                editions.remove(*key);
                (self.changed)(key);
            }
            News::All(maps) => {
                let now: HashMap<_, _> = maps.iter().map(|m| (key_of(m.as_ref()), Edition::of(m))).collect();
                let before = std::mem::replace(&mut *editions, now);
                let gone = before.keys().filter(|key| !editions.contains_key(*key));
                let news = editions
                    .iter()
                    .filter(|(key, edition)| before.get(*key) != Some(*edition));
                gone.chain(news.map(|(key, _)| key)).for_each(|key| (self.changed)(key));
            }
        }
    }
}
