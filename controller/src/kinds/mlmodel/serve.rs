//! When an MLModel is looked at: on its own events, on those of its children and pods, on RuntimeClasses, when a wait is over, and again
//! after failures.

use std::sync::Arc;
use std::time::Duration;

use berth_crds::names;
use berth_crds::tmforum::{MLModel, MLModelStatus};
use futures::stream;

use super::validate::{Defaults, owner, validate};
use super::{Room, observe, reconcile, stage_of, status};
use crate::cluster::{Cluster, ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::children::Children;
use crate::kinds::error::Error;
use crate::kinds::status::unreadable;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{self, batches, key_of};
use crate::kinds::workload::runtime_classes::RuntimeClasses;

/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether the pods are complete.
const PODS_WAIT: Duration = Duration::from_millis(50);

/// Serves MLModels, until the process ends; `wakes` are those that others found to be looked at.
pub async fn run(
    context: Context,
    children: Arc<Children>,
    runtime_classes: Arc<RuntimeClasses>,
    wakes: Arc<Queue<ObjectKey>>,
) {
    let room = Arc::new(Room {
        defaults: Defaults::of(&context.settings),
        context: context.clone(),
        children,
        runtime_classes,
        memories: Memories::default(),
    });
    let wakes = stream::select(batches(wakes), batches(Pods(context.cluster.clone())));
    watch::serve(&context, room, Arc::default(), wakes).await;
}

/// MLModels of which pods changed.
struct Pods(Arc<Cluster>);

impl AsRef<Queue<ObjectKey>> for Pods {
    fn as_ref(&self) -> &Queue<ObjectKey> {
        &self.0.mlmodels
    }
}

impl watch::Room for Room {
    type Object = MLModel;
    type Status = MLModelStatus;

    fn memories(&self) -> &Memories<MLModelStatus> {
        &self.memories
    }

    async fn ready(&self) {
        self.children.wait_synced().await;
        let _ = tokio::time::timeout(RUNTIME_CLASSES_WAIT, self.runtime_classes.wait_synced()).await;
        while !self.context.cluster.read().pods_synced {
            tokio::time::sleep(PODS_WAIT).await;
        }
    }

    fn again(&self, object: &MLModel) -> Option<Duration> {
        let model = validate(object, &self.defaults).ok()?;
        let observed = observe(&key_of(object), &owner(object), self);
        let stage = stage_of(object, &model, &observed, self);
        let now = crate::kinds::status::now();
        status::look_again(&stage, &observed, self.defaults.storage_timeout, now)
    }

    async fn unreadable(&self, key: &ObjectKey) -> Result<(), Error> {
        let kind = unreadable::Kind {
            name: "MLModel",
            manager: names::managers::MLMODEL_STATUS,
            own_fields: |status, message| {
                status.insert("phase".into(), status::phase::FAILED.into());
                status.insert("message".into(), message.into());
            },
        };
        unreadable::report::<MLModel>(&self.context, kind, key).await
    }

    async fn look(&self, object: &MLModel) -> Result<(), Error> {
        Box::pin(reconcile(object, self)).await
    }
}
