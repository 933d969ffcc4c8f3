//! Which Deployments a HorizontalPodAutoscaler drives. KEDA works by making such objects, so that its ScaledObjects are seen here too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::cluster::ObjectKey;

/// Autoscaler → Deployment, both of one namespace.
#[derive(Debug)]
pub struct Autoscalers {
    targets: RwLock<BTreeMap<ObjectKey, String>>,
    synced: watch::Sender<bool>,
}

impl Default for Autoscalers {
    fn default() -> Self {
        Self {
            targets: RwLock::default(),
            synced: watch::Sender::new(false),
        }
    }
}

impl Autoscalers {
    /// The autoscaler that drives a Deployment; the first by name where there are several.
    pub fn of(&self, (namespace, deployment): &ObjectKey) -> Option<String> {
        let targets = self.targets.read();
        let in_namespace = targets.range((namespace.clone(), String::new())..);
        in_namespace
            .take_while(|((n, _), _)| n == namespace)
            .find(|(_, target)| *target == deployment)
            .map(|((_, name), _)| name.clone())
    }

    /// Waits until they were listed once.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in self: waiting cannot fail.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// Watches them, and names each Deployment that one begins or ceases to drive. Ends never.
    pub async fn run(self: &Arc<Self>, client: Client, changed: impl Fn(ObjectKey)) {
        let api: Api<HorizontalPodAutoscaler> = Api::all(client);
        self.follow(watch_stream(api, watcher::Config::default()).default_backoff(), changed)
            .await;
    }

    async fn follow(
        &self,
        stream: impl Stream<Item = Result<Event<HorizontalPodAutoscaler>, watcher::Error>>,
        changed: impl Fn(ObjectKey),
    ) {
        let mut stream = std::pin::pin!(stream);
        let mut listed = BTreeSet::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.insert(key_of(&object));
                    self.set(key_of(&object), target(&object), &changed);
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<ObjectKey> = {
                        let targets = self.targets.read();
                        targets.keys().filter(|k| !listed.contains(*k)).cloned().collect()
                    };
                    gone.into_iter().for_each(|key| self.set(key, None, &changed));
                    listed.clear();
                    self.synced.send_replace(true);
                }
                Ok(Event::Apply(object)) => self.set(key_of(&object), target(&object), &changed),
                Ok(Event::Delete(object)) => self.set(key_of(&object), None, &changed),
                Err(error) => {
                    tracing::warn!(%error, watch = "HorizontalPodAutoscaler", "watch broke; it is taken up again");
                }
            }
        }
    }

    fn set(&self, key: ObjectKey, target: Option<String>, changed: &impl Fn(ObjectKey)) {
        let namespace = key.0.clone();
        let mut targets = self.targets.write();
        let before = match &target {
            Some(target) => targets.insert(key, target.clone()),
            None => targets.remove(&key),
        };
        drop(targets);
        if before != target {
            let both = [before, target];
            both.into_iter()
                .flatten()
                .for_each(|name| changed((namespace.clone(), name)));
        }
    }
}

/// The Deployment that one drives. One that drives the AIDeployment writes the AIDeployment's spec, and that is all there is to it.
fn target(object: &HorizontalPodAutoscaler) -> Option<String> {
    let target = &object.spec.as_ref()?.scale_target_ref;
    let group = target
        .api_version
        .as_deref()
        .and_then(|v| v.split_once('/'))
        .map(|(group, _)| group);
    (object.metadata.deletion_timestamp.is_none() && target.kind == "Deployment" && group == Some("apps"))
        .then(|| target.name.clone())
}

fn key_of(object: &HorizontalPodAutoscaler) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    fn autoscaler(name: &str, kind: &str, target: &str) -> HorizontalPodAutoscaler {
        let group = if kind == "Deployment" {
            "apps/v1"
        } else {
            "premlabs.io/v1alpha1"
        };
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": {
            "maxReplicas": 3, "scaleTargetRef": {"apiVersion": group, "kind": kind, "name": target}}}))
        .unwrap()
    }

    #[tokio::test]
    async fn only_what_drives_a_deployment_counts_and_only_while_it_is_there() {
        let autoscalers = Autoscalers::default();
        let told = Mutex::new(Vec::new());
        let events = vec![
            Event::Init,
            Event::InitApply(autoscaler("a", "Deployment", "m")),
            Event::InitApply(autoscaler("b", "AIDeployment", "n")),
            Event::InitDone,
        ];
        let tell = |key: ObjectKey| told.lock().unwrap().push(key.1);
        autoscalers
            .follow(futures::stream::iter(events.into_iter().map(Ok)), tell)
            .await;
        let of = |name: &str| autoscalers.of(&("shop".into(), name.into()));
        assert_eq!((of("m").as_deref(), of("n")), (Some("a"), None));
        assert_eq!(autoscalers.of(&("other".into(), "m".into())), None);

        let moved = vec![Event::Apply(autoscaler("a", "Deployment", "o"))];
        autoscalers
            .follow(futures::stream::iter(moved.into_iter().map(Ok)), tell)
            .await;
        assert_eq!((of("m"), of("o").as_deref()), (None, Some("a")));
        let gone = vec![Event::Init, Event::InitDone];
        autoscalers
            .follow(futures::stream::iter(gone.into_iter().map(Ok)), tell)
            .await;
        assert_eq!(of("o"), None);
        assert_eq!(*told.lock().unwrap(), ["m", "m", "o", "o"]);
    }
}
