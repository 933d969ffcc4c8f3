//! When a ModelDeployment is looked at: on its own events, on those of its children and pods, on RuntimeClasses and autoscalers, when a
//! wait is over, and again after failures.

use std::sync::Arc;
use std::time::Duration;

use berth_crds::names;
use berth_crds::sathvik::{ModelDeployment, ModelDeploymentStatus, keys};
use futures::stream;
use kube::ResourceExt;

use super::validate::{Defaults, owner, validate};
use super::{Room, Seen, observe, reconcile, stage, stage_of, status};
use crate::cluster::{Cluster, ObjectKey, Queue};
use crate::context::Context;
use crate::kinds::children::adoption::finalizers;
use crate::kinds::error::Error;
use crate::kinds::status::unreadable;
use crate::kinds::watch::memory::Memories;
use crate::kinds::watch::{self, batches, key_of};

/// Longest wait for RuntimeClasses before the first look: without them only one message is missing.
const RUNTIME_CLASSES_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether the pods are complete.
const PODS_WAIT: Duration = Duration::from_millis(50);

/// Serves ModelDeployments, until the process ends; `wakes` are those that others found to be looked at.
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

/// ModelDeployments of which pods changed.
struct Pods(Arc<Cluster>);

impl AsRef<Queue<ObjectKey>> for Pods {
    fn as_ref(&self) -> &Queue<ObjectKey> {
        &self.0.modeldeployments
    }
}

impl watch::Room for Room {
    type Object = ModelDeployment;
    type Status = ModelDeploymentStatus;

    fn memories(&self) -> &Memories<ModelDeploymentStatus> {
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
            name: "ModelDeployment",
            manager: names::managers::MODELDEPLOYMENT_STATUS,
            own_fields: |status, message| {
                status.insert("phase".into(), status::phase::FAILED.into());
                status.insert("message".into(), message.into());
            },
        };
        unreadable::report::<ModelDeployment>(&self.context, kind, key).await
    }

    fn again(&self, object: &ModelDeployment) -> Option<Duration> {
        // The watch may show it for a moment after it was taken away: then the look comes for nothing.
        let finalizer = object.finalizers().iter().any(|f| f == keys::FINALIZER);
        let finalizer = finalizer.then_some(finalizers::PAUSE);
        let model = validate(object, &self.defaults).ok()?;
        let observed = observe(&key_of(object), &owner(object), self);
        let stage = stage_of(&model, &observed, self);
        let now = crate::kinds::status::now();
        let placed = stage::look_again(&stage, &observed, self.defaults.place_timeout, now);
        finalizer.into_iter().chain(placed).min()
    }

    async fn look(&self, object: &ModelDeployment) -> Result<(), Error> {
        Box::pin(reconcile(object, self)).await
    }
}
