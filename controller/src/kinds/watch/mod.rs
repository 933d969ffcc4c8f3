//! The loop that kinds share: all objects of a kind as last seen, and when each is looked at.
//!
//! ```text
//! watch ──► Objects (store) ──┬─► keys ─► applier ─► Room::look(object)
//!              └► Room::news  │            ▲    └► again after a failure, and at the heartbeat
//! what else wakes an object ──┘            └ not before Room::ready
//! ```
//!
//! A kind brings a [`Room`], and a stream of keys for whatever else than its own events wakes an object: children, pods, what it refers to.

pub mod memory;
pub mod wakes;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::controller::{Action, Error as ApplierError, ReconcileRequest};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{Config, WatchStreamExt, applier};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use self::memory::Memories;
use super::error::Error;
use crate::cluster::{ObjectKey, Queue};
use crate::context::Context;
use crate::watches::watch;

/// As watched: an object that cannot be read does not stop the watch of all others.
pub type Guarded<K> = DeserializeGuard<K>;

/// Objects of one kind that are looked at at the same time. Each has at most one request open, so this bounds what an ailing API server has
/// to bear.
const CONCURRENCY: u16 = 8;
/// A change seldom comes alone; this long the others are waited for.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Every object is looked at this often whatever happens, with up to as much again at random: watches can miss.
const HEARTBEAT: Duration = Duration::from_secs(600);

/// What the loop asks of the type of a kind.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// What became known of the objects of a kind. The store shows it already.
#[derive(Debug)]
pub enum News<'a, K> {
    /// One was made or changed.
    Is(&'a Guarded<K>),
    /// One is gone.
    Gone(&'a ObjectKey),
    /// A list is complete: whatever is not in it is gone.
    All(&'a [Arc<Guarded<K>>]),
}

/// A kind, as the loop sees it.
pub trait Room: Send + Sync + 'static {
    /// The kind.
    type Object: Kind;
    /// Its status.
    type Status: Clone + Send + 'static;

    /// What is remembered of each object between looks.
    fn memories(&self) -> &Memories<Self::Status>;

    /// Returns when everything that a look needs is there: before, it would see children gone that are not.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// Takes news of the objects, before any of them is looked at because of it.
    fn news(&self, _news: News<'_, Self::Object>) {}

    /// When an object is to be looked at again after a look that went well, although nothing changes. `None`: at the heartbeat.
    fn again(&self, _object: &Self::Object) -> Option<Duration> {
        None
    }

    /// Tells an object that it cannot be read.
    fn unreadable(&self, _key: &ObjectKey) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// One look at one object: everything is brought in step with it.
    fn look(&self, object: &Self::Object) -> impl Future<Output = Result<(), Error>> + Send;
}

/// All objects of a kind as last seen; whoever refers to them reads them here too.
pub struct Objects<K: Kind> {
    store: Store<Guarded<K>>,
    /// Until the watch takes it.
    writer: Mutex<Option<Writer<Guarded<K>>>>,
}

impl<K: Kind> Default for Objects<K> {
    fn default() -> Self {
        let (store, writer) = reflector::store();
        Self {
            store,
            writer: Mutex::new(Some(writer)),
        }
    }
}

impl<K: Kind> Objects<K> {
    /// The object of that name.
    pub fn get(&self, (namespace, name): &ObjectKey) -> Option<Arc<Guarded<K>>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Waits until they were listed once.
    pub async fn wait_synced(&self) {
        if self.store.wait_until_ready().await.is_err() {
            // The watch ended before its first list, which only the end of the process does.
            std::future::pending::<()>().await;
        }
    }
}

/// Serves a kind, until the process ends. `objects` belong to this loop alone to fill.
pub async fn serve<R: Room>(
    context: &Context,
    room: Arc<R>,
    objects: Arc<Objects<R::Object>>,
    wakes: impl Stream<Item = ObjectKey> + Send,
) {
    let kind = kind_of::<R::Object>();
    let Some(writer) = objects.writer.lock().take() else {
        tracing::error!(kind, "these objects are watched already");
        return;
    };
    let changed = Arc::new(Queue::default());
    let api = Api::<Guarded<R::Object>>::all(context.client.clone());
    let events = watch(api, watcher::Config::default(), kind, &context.metrics)
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        // The store is filled whether or not anything may be looked at yet: others wait for it.
        .for_each(|event| {
            follow(event, room.as_ref(), &objects.store, &changed);
            std::future::ready(())
        });
    let looks = async {
        room.ready().await;
        let keys = stream::select(batches(changed.clone()), wakes);
        let requests = keys.map(|key| Ok::<_, Infallible>(reference(&key)));
        let config = Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY);
        applier(
            look,
            after_failure,
            room.clone(),
            objects.store.clone(),
            requests,
            config,
        )
        .for_each(|result| {
            match result {
                // Children and pods outlive their object by a moment; failures were told where they were classed.
                Ok(_) | Err(ApplierError::ObjectNotFound(_) | ApplierError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::debug!(kind, %error, "an object was not looked at"),
            }
            std::future::ready(())
        })
        .await;
    };
    tokio::join!(events, looks);
}

/// What an event gives rise to. During a (re)list the store still shows what was before it, so the list is looked at when it is complete.
fn follow<R: Room>(
    event: Result<Event<Guarded<R::Object>>, watcher::Error>,
    room: &R,
    store: &Store<Guarded<R::Object>>,
    changed: &Queue<ObjectKey>,
) {
    match event {
        Ok(Event::Apply(object)) => {
            room.news(News::Is(&object));
            changed.push(key_of(&object));
        }
        Ok(Event::Delete(object)) => {
            let key = key_of(&object);
            room.memories().forget(&key);
            room.news(News::Gone(&key));
        }
        Ok(Event::InitDone) => {
            let all = store.state();
            let listed: BTreeSet<ObjectKey> = all.iter().map(|o| key_of(o.as_ref())).collect();
            room.memories().retain(|key| listed.contains(key));
            room.memories().relisted();
            room.news(News::All(&all));
            listed.into_iter().for_each(|key| changed.push(key));
        }
        Ok(Event::Init | Event::InitApply(_)) => {}
        // Told where the watch is made.
        Err(_) => {}
    }
}

fn look<R: Room>(
    object: Arc<Guarded<R::Object>>,
    room: Arc<R>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<Action, Error>> + Send>> {
    // Boxed for its size: it holds whole objects across its requests.
    Box::pin(async move {
        let object = match &object.0 {
            Ok(object) => object,
            Err(invalid) => {
                let meta = &invalid.metadata;
                tracing::warn!(kind = kind_of::<R::Object>(), namespace = ?meta.namespace, name = ?meta.name, error = %invalid.error,
                    "an object cannot be read; nothing is made of it until it changes");
                if meta.deletion_timestamp.is_none() {
                    room.unreadable(&key_of(object.as_ref())).await?;
                }
                room.memories().succeeded(&key_of(object.as_ref()));
                return Ok(Action::await_change());
            }
        };
        room.look(object).await?;
        room.memories().succeeded(&key_of(object));
        let heartbeat = HEARTBEAT.mul_f64(1.0 + rand::random::<f64>());
        Ok(Action::requeue(
            room.again(object).map_or(heartbeat, |again| again.min(heartbeat)),
        ))
    })
}

fn after_failure<R: Room>(object: Arc<Guarded<R::Object>>, error: &Error, room: Arc<R>) -> Action {
    let key = key_of(object.as_ref());
    let class = error.class();
    let wait = room.memories().failed(&key, class, rand::random());
    let wait = error.retry_after().unwrap_or(wait);
    tracing::warn!(kind = kind_of::<R::Object>(), namespace = key.0, name = key.1, ?class, ?wait, %error,
        "an object is not as it should be");
    Action::requeue(wait)
}

/// What is in a queue, one by one, as long as somebody asks.
pub fn batches<Q, K>(queue: Q) -> impl Stream<Item = K> + Send
where
    Q: AsRef<Queue<K>> + Send,
    K: Ord + Clone + Send,
{
    stream::unfold(queue, |queue| async move {
        let batch = queue.as_ref().next_batch(Duration::ZERO).await;
        Some((stream::iter(batch), queue))
    })
    .flatten()
}

fn reference<K: Kind>((namespace, name): &ObjectKey) -> ReconcileRequest<Guarded<K>> {
    ReconcileRequest::from(ObjectRef::new(name).within(namespace))
}

/// The kind's name, as in manifests.
pub fn kind_of<K: Resource<DynamicType = ()>>() -> &'static str {
    match K::kind(&()) {
        Cow::Borrowed(name) => name,
        Cow::Owned(_) => "object",
    }
}

/// Namespace and name.
pub fn key_of(object: &impl ResourceExt) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use berth_crds::premlabs::{AIModelMap, AIModelMapStatus};
    use futures::FutureExt;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Default)]
    struct Notes {
        memories: Memories<AIModelMapStatus>,
        news: Mutex<Vec<String>>,
    }

    impl Room for Notes {
        type Object = AIModelMap;
        type Status = AIModelMapStatus;

        fn memories(&self) -> &Memories<AIModelMapStatus> {
            &self.memories
        }

        async fn ready(&self) {}

        fn news(&self, news: News<'_, AIModelMap>) {
            self.news.lock().push(match news {
                News::Is(object) => format!("is {}", object.name_any()),
                News::Gone((_, name)) => format!("gone {name}"),
                News::All(all) => format!("all {}", all.len()),
            });
        }

        async fn look(&self, _: &AIModelMap) -> Result<(), Error> {
            Ok(())
        }
    }

    fn map(name: &str, spec: Value) -> Guarded<AIModelMap> {
        let object = json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap",
            "metadata": {"namespace": "ns", "name": name}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    /// The store, what is to be looked at, and what was told, after these events.
    fn after(room: &Notes, events: Vec<Event<Guarded<AIModelMap>>>) -> (Objects<AIModelMap>, Vec<String>, Vec<String>) {
        let objects = Objects::default();
        let changed = Queue::default();
        let mut writer = objects.writer.lock().take().unwrap();
        for event in events {
            writer.apply_watcher_event(&event);
            follow(Ok(event), room, &objects.store, &changed);
        }
        let batch = changed.next_batch(Duration::ZERO).now_or_never().unwrap_or_default();
        let keys = batch.into_iter().map(|(_, name)| name).collect();
        (objects, keys, std::mem::take(&mut *room.news.lock()))
    }

    #[test]
    fn a_list_is_looked_at_when_it_is_complete() {
        let map = |name| map(name, json!({}));
        let room = Notes::default();
        let (_, keys, news) = after(&room, vec![Event::Init, Event::InitApply(map("a"))]);
        assert!(keys.is_empty() && news.is_empty(), "{keys:?} {news:?}");
        let events = vec![
            Event::Init,
            Event::InitApply(map("a")),
            Event::InitApply(map("b")),
            Event::InitDone,
            Event::Apply(map("c")),
        ];
        let (objects, keys, news) = after(&room, events);
        assert_eq!(keys, ["a", "b", "c"]);
        assert_eq!(news, ["all 2", "is c"]);
        assert!(objects.wait_synced().now_or_never().is_some());
        assert!(objects.get(&("ns".into(), "c".into())).is_some());
        assert!(objects.get(&("ns".into(), "d".into())).is_none());
    }

    #[test]
    fn what_is_gone_is_forgotten_and_told() {
        let map = |name| map(name, json!({}));
        let room = Notes::default();
        let attempts = |name: &str| room.memories.get(&("ns".into(), name.into())).attempts;
        for name in ["a", "b"] {
            room.memories.change(&("ns".into(), name.into()), |m| m.attempts = 3);
        }
        let events = vec![Event::Apply(map("a")), Event::Apply(map("b")), Event::Delete(map("a"))];
        let (objects, _, news) = after(&room, events);
        assert_eq!(news, ["is a", "is b", "gone a"]);
        assert_eq!((attempts("a"), attempts("b")), (0, 3));
        assert!(objects.get(&("ns".into(), "a".into())).is_none());
        // Gone while nobody looked.
        after(&room, vec![Event::Init, Event::InitDone]);
        assert_eq!(attempts("b"), 0);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_left_alone() {
        let broken = map("a", json!({"vllm": "not a list"}));
        assert!(broken.0.is_err());
        let looked = look(Arc::new(broken), Arc::new(Notes::default()))
            .now_or_never()
            .unwrap();
        assert_eq!(looked.unwrap(), Action::await_change());
    }
}
