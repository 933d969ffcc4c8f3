//! When an AIModel is looked at: on its own events, on those of its children and pods, when a worker reported an error, on RuntimeClasses
//! and autoscalers, and again after failures.

use std::sync::Arc;
use std::time::Duration;

use berth_crds::names;
use berth_crds::youxam::{AIModel, AIModelStatus};
use futures::stream;

use super::errors::FAILED;
use super::reports::Reports;
use super::validate::Defaults;
use super::{Room, Seen, reconcile};
use crate::cluster::{Cluster, ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::error::Error;
use crate::kinds::status::unreadable;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{self, batches};

/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether the pods are complete.
const PODS_WAIT: Duration = Duration::from_millis(50);

/// Serves AIModels, until the process ends; `wakes` are those that others found to be looked at.
pub async fn run(context: Context, seen: Seen, wakes: Arc<Queue<ObjectKey>>) {
    let room = Arc::new(Room {
        defaults: Defaults::of(&context.settings),
        context: context.clone(),
        seen,
        reports: Reports::default(),
        memories: Memories::default(),
    });
    let hear = {
        let (room, wakes, context) = (room.clone(), wakes.clone(), &context);
        async move { room.reports.run(context, |key| wakes.push(key)).await }
    };
    let wakes = stream::select(batches(wakes), batches(Pods(context.cluster.clone())));
    tokio::join!(hear, watch::serve(&context, room, Arc::default(), wakes));
}

/// AIModels of which pods changed.
struct Pods(Arc<Cluster>);

impl AsRef<Queue<ObjectKey>> for Pods {
    fn as_ref(&self) -> &Queue<ObjectKey> {
        &self.0.aimodels
    }
}

impl watch::Room for Room {
    type Object = AIModel;
    type Status = AIModelStatus;

    fn memories(&self) -> &Memories<AIModelStatus> {
        &self.memories
    }

    async fn ready(&self) {
        self.seen.children.wait_synced().await;
        // Without them a Deployment that is driven by another is taken back for a moment.
        self.seen.autoscalers.wait_synced().await;
        let _ = tokio::time::timeout(RUNTIME_CLASSES_WAIT, self.seen.runtime_classes.wait_synced()).await;
        while !self.context.cluster.read().pods_synced {
            tokio::time::sleep(PODS_WAIT).await;
        }
    }

    async fn unreadable(&self, key: &ObjectKey) -> Result<(), Error> {
        let kind = unreadable::Kind {
            name: "AIModel",
            manager: names::managers::AIMODEL_STATUS,
            own_fields: |status, message| {
                status.insert("state".into(), FAILED.into());
                status.insert("message".into(), message.into());
            },
        };
        unreadable::report::<AIModel>(&self.context, kind, key).await
    }

    async fn look(&self, object: &AIModel) -> Result<(), Error> {
        Box::pin(reconcile(object, self)).await
    }
}
