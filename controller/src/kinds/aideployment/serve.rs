//! When an AIDeployment is looked at: on its own events, on those of its children, its pods and the AIModelMaps that it refers to, on
//! RuntimeClasses, and again after failures.

use std::sync::Arc;
use std::time::Duration;

use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIDeploymentStatus, AIModelMap};
use futures::stream;

use super::references::References;
use super::{Room, reconcile};
use crate::cluster::{Cluster, ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::children::Children;
use crate::kinds::error::Error;
use crate::kinds::memory::Memories;
use crate::kinds::runtime_classes::RuntimeClasses;
use crate::kinds::unreadable;
use crate::kinds::watch::{self, News, Objects, batches};

/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether the pods are complete.
const PODS_WAIT: Duration = Duration::from_millis(50);

/// What others watch.
pub struct Seen {
    /// Children of all kinds.
    pub children: Arc<Children>,
    /// RuntimeClasses of the cluster.
    pub runtime_classes: Arc<RuntimeClasses>,
    /// All AIModelMaps.
    pub maps: Arc<Objects<AIModelMap>>,
    /// Filled here; a map's change is told by it.
    pub references: Arc<References>,
}

/// Serves AIDeployments, until the process ends; `wakes` are those that others found to be looked at.
pub async fn run(context: Context, seen: Seen, wakes: Arc<Queue<ObjectKey>>) {
    let room = Arc::new(Room {
        context: context.clone(),
        children: seen.children,
        runtime_classes: seen.runtime_classes,
        maps: seen.maps,
        references: seen.references,
        memories: Memories::default(),
    });
    let wakes = stream::select(batches(wakes), batches(Pods(context.cluster)));
    watch::serve(context.client, room, Arc::default(), wakes).await;
}

/// AIDeployments of which pods changed.
struct Pods(Arc<Cluster>);

impl AsRef<Queue<ObjectKey>> for Pods {
    fn as_ref(&self) -> &Queue<ObjectKey> {
        &self.0.aideployments
    }
}

impl watch::Room for Room {
    type Object = AIDeployment;
    type Status = AIDeploymentStatus;

    fn memories(&self) -> &Memories<AIDeploymentStatus> {
        &self.memories
    }

    async fn ready(&self) {
        self.children.wait_synced().await;
        self.maps.wait_synced().await;
        let _ = tokio::time::timeout(RUNTIME_CLASSES_WAIT, self.runtime_classes.wait_synced()).await;
        while !self.context.cluster.read().pods_synced {
            tokio::time::sleep(PODS_WAIT).await;
        }
    }

    fn news(&self, news: News<'_, AIDeployment>) {
        self.references.news(&news);
    }

    async fn unreadable(&self, key: &ObjectKey) -> Result<(), Error> {
        let kind = unreadable::Kind {
            name: "AIDeployment",
            manager: names::managers::AIDEPLOYMENT_STATUS,
            own_fields: |status, message| {
                status.insert("status".into(), "Failed".into());
                status.insert("errMsg".into(), message.into());
            },
        };
        unreadable::report::<AIDeployment>(&self.context, kind, key).await
    }

    async fn look(&self, object: &AIDeployment) -> Result<(), Error> {
        Box::pin(reconcile(object, self)).await
    }
}
