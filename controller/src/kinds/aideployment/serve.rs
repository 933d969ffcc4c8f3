//! When an AIDeployment is looked at: on its own events, on those of its children, its pods and the AIModelMaps that it refers to, on
//! RuntimeClasses, and again after failures.

use std::sync::Arc;
use std::time::Duration;

use berth_crds::names;
use berth_crds::premlabs::{AIDeployment, AIDeploymentStatus};
use futures::stream;

use super::validate::Defaults;
use super::{Room, Seen, reconcile};
use crate::cluster::{Cluster, ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::error::Error;
use crate::kinds::status::unreadable;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{self, News, batches};

/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether the pods are complete.
const PODS_WAIT: Duration = Duration::from_millis(50);

/// Serves AIDeployments, until the process ends; `wakes` are those that others found to be looked at.
pub async fn run(context: Context, seen: Seen, wakes: Arc<Queue<ObjectKey>>) {
    let room = Arc::new(Room {
        defaults: Defaults::of(&context.settings),
        context: context.clone(),
        seen,
        memories: Memories::default(),
    });
    let wakes = stream::select(batches(wakes), batches(Pods(context.cluster.clone())));
    watch::serve(&context, room, Arc::default(), wakes).await;
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
        let seen = &self.seen;
        seen.children.wait_synced().await;
        seen.maps.wait_synced().await;
        // Without them a Deployment that is driven by another is taken back for a moment.
        seen.autoscalers.wait_synced().await;
        let _ = tokio::time::timeout(RUNTIME_CLASSES_WAIT, seen.runtime_classes.wait_synced()).await;
        while !self.context.cluster.read().pods_synced {
            tokio::time::sleep(PODS_WAIT).await;
        }
    }

    fn news(&self, news: News<'_, AIDeployment>) {
        self.seen.references.news(&news);
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
