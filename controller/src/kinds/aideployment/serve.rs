//! When an AIDeployment is looked at: on its own events, on those of its children and pods, on RuntimeClasses, and again after failures.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use berth_crds::names::managers;
use berth_crds::premlabs::AIDeployment;
use futures::{Stream, StreamExt, stream};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Error as ApplierError, ReconcileRequest};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{Config, WatchStreamExt, applier, watcher as watch_stream};
use kube::{Api, Resource, ResourceExt};

use super::{Room, reconcile};
use crate::cluster::{ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::children::{Children, OwnerKey};
use crate::kinds::error::Error;
use crate::kinds::memory::Memories;
use crate::kinds::runtime_classes::RuntimeClasses;
use crate::kinds::unreadable;

/// As watched: an object that cannot be read does not stop the watch of all others.
type Guarded = DeserializeGuard<AIDeployment>;

/// What is told of an AIDeployment that cannot be read.
const UNREADABLE: unreadable::Kind = unreadable::Kind {
    name: "AIDeployment",
    manager: managers::AIDEPLOYMENT_STATUS,
    own_fields: |status, message| {
        status.insert("status".into(), "Failed".into());
        status.insert("errMsg".into(), message.into());
    },
};

/// Objects looked at at the same time. Each has at most one request open, so this bounds what an ailing API server has to bear.
const CONCURRENCY: u16 = 8;
/// A change seldom comes alone; this long the others are waited for.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Every object is looked at this often whatever happens, with up to as much again at random: watches can miss.
const HEARTBEAT: Duration = Duration::from_secs(600);
/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);

/// Serves AIDeployments, until the process ends.
pub async fn run(
    context: Context,
    children: Arc<Children>,
    runtime_classes: Arc<RuntimeClasses>,
    changed: Arc<Queue<OwnerKey>>,
) {
    let room = Arc::new(Room {
        context: context.clone(),
        children,
        runtime_classes: runtime_classes.clone(),
        memories: Memories::default(),
    });
    let (store, writer) = reflector::store::<Guarded>();
    let own = watch_stream(Api::<Guarded>::all(context.client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .flat_map({
            let (room, store) = (room.clone(), store.clone());
            move |event| stream::iter(own_event(event, &room, &store))
        });
    let owned = batches(changed).filter_map(|owner| {
        let ours = owner.kind.is_empty() || owner.kind == AIDeployment::kind(&());
        std::future::ready(ours.then_some(owner.key))
    });
    let pods = stream::unfold(context.cluster.clone(), |cluster| async move {
        let batch = cluster.aideployments.next_batch(Duration::ZERO).await;
        Some((stream::iter(batch), cluster))
    })
    .flatten();

    // What a look needs has to be there before the first of them, or it would see children and pods gone.
    room.children.wait_synced().await;
    let _ = tokio::time::timeout(RUNTIME_CLASSES_WAIT, runtime_classes.wait_synced()).await;
    while !context.cluster.read().pods_synced {
        tokio::time::sleep(DEBOUNCE).await;
    }
    let keys = stream::select(own, stream::select(owned, pods));
    let requests = keys.map(|key| Ok::<_, Infallible>(reference(&key)));
    let config = Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY);
    applier(look, after_failure, room, store, requests, config)
        .for_each(|result| {
            match result {
                // Children and pods outlive their object by a moment; failures were told where they were classed.
                Ok(_) | Err(ApplierError::ObjectNotFound(_) | ApplierError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::debug!(%error, "a look at an AIDeployment was not taken"),
            }
            std::future::ready(())
        })
        .await;
}

fn look(
    object: Arc<Guarded>,
    room: Arc<Room>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<Action, Error>> + Send>> {
    Box::pin(async move {
        let object = match &object.0 {
            Ok(object) => object,
            Err(invalid) => {
                let (key, is_alive) = (key_of(object.as_ref()), invalid.metadata.deletion_timestamp.is_none());
                if is_alive {
                    unreadable::report::<AIDeployment>(&room.context, UNREADABLE, &key).await?;
                }
                room.memories.change(&key, |m| m.attempts = 0);
                return Ok(Action::await_change());
            }
        };
        // Boxed for its size: it holds whole objects across its requests.
        Box::pin(reconcile(object, &room)).await?;
        room.memories.change(&key_of(object), |m| m.attempts = 0);
        Ok(Action::requeue(HEARTBEAT.mul_f64(1.0 + rand::random::<f64>())))
    })
}

fn after_failure(object: Arc<Guarded>, error: &Error, room: Arc<Room>) -> Action {
    let key = key_of(object.as_ref());
    let class = error.class();
    let wait = room.memories.failed(&key, class, rand::random());
    tracing::warn!(namespace = key.0, name = key.1, ?class, ?wait, %error, "AIDeployment is not as it should be");
    Action::requeue(wait)
}

/// The objects that an event gives rise to look at. During a (re)list the store still shows what was before it, so the list is looked at
/// when it is complete.
fn own_event(event: Result<Event<Guarded>, watcher::Error>, room: &Room, store: &Store<Guarded>) -> Vec<ObjectKey> {
    match event {
        Ok(Event::Apply(object)) => vec![key_of(&object)],
        Ok(Event::Delete(object)) => {
            room.memories.forget(&key_of(&object));
            vec![]
        }
        Ok(Event::InitDone) => {
            let listed: BTreeSet<ObjectKey> = store.state().iter().map(|o| key_of(o.as_ref())).collect();
            room.memories.retain(|key| listed.contains(key));
            listed.into_iter().collect()
        }
        Ok(Event::Init | Event::InitApply(_)) => vec![],
        Err(error) => {
            tracing::warn!(%error, watch = "AIDeployment", "watch broke; it is taken up again");
            vec![]
        }
    }
}

fn batches<K: Ord + Clone + Send + 'static>(queue: Arc<Queue<K>>) -> impl Stream<Item = K> {
    stream::unfold(queue, |queue| async move {
        let batch = queue.next_batch(Duration::ZERO).await;
        Some((stream::iter(batch), queue))
    })
    .flatten()
}

fn reference((namespace, name): &ObjectKey) -> ReconcileRequest<Guarded> {
    ReconcileRequest::from(ObjectRef::new(name).within(namespace))
}

fn key_of(object: &impl ResourceExt) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}
