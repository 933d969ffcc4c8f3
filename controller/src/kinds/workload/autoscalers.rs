//! Which Deployments an autoscaler drives: a HorizontalPodAutoscaler, or a ScaledObject of KEDA, which works by making such objects, and
//! takes them away while it is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_crds::names;
use futures::{Stream, StreamExt};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use parking_lot::RwLock;
use tokio::sync::watch::Sender;

use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::Kind;
use crate::kinds::children::optional;
use crate::watches::watch;

/// Kinds of autoscalers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    HorizontalPodAutoscaler,
    ScaledObject,
}

const ALL: [By; 2] = [By::HorizontalPodAutoscaler, By::ScaledObject];

/// Autoscaler → Deployment, both of one namespace.
#[derive(Debug)]
pub struct Autoscalers {
    /// By namespace, kind and name.
    targets: RwLock<BTreeMap<(String, By, String), String>>,
    synced: Sender<BTreeSet<By>>,
}

impl Default for Autoscalers {
    fn default() -> Self {
        Self {
            targets: RwLock::default(),
            synced: Sender::new(BTreeSet::new()),
        }
    }
}

impl Autoscalers {
    /// The autoscaler that drives a Deployment; the first by kind and name where there are several.
    pub fn of(&self, (namespace, deployment): &ObjectKey) -> Option<String> {
        let targets = self.targets.read();
        let in_namespace = targets.range((namespace.clone(), By::HorizontalPodAutoscaler, String::new())..);
        in_namespace
            .take_while(|((n, ..), _)| n == namespace)
            .find(|(_, target)| *target == deployment)
            .map(|((_, _, name), _)| name.clone())
    }

    /// Waits until they were listed once, or it is known that they cannot be.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in self: waiting cannot fail.
        let _ = synced
            .wait_for(|kinds| ALL.iter().all(|kind| kinds.contains(kind)))
            .await;
    }

    fn settle(&self, by: By) {
        self.synced.send_if_modified(|kinds| kinds.insert(by));
    }

    /// Watches them, and names each Deployment that one begins or ceases to drive. Ends never.
    pub async fn run(self: &Arc<Self>, context: &Context, changed: impl Fn(ObjectKey)) {
        let Context { client, metrics, .. } = context;
        let horizontal: Api<HorizontalPodAutoscaler> = Api::all(client.clone());
        let kind = Kind::HorizontalPodAutoscaler.as_str();
        let horizontal = watch(horizontal, watcher::Config::default(), kind, metrics);
        let horizontal = self.follow(By::HorizontalPodAutoscaler, horizontal, horizontal_target, &changed);

        let by = By::ScaledObject;
        let scaled: Api<DynamicObject> = Api::all_with(client.clone(), &Kind::ScaledObject.resource());
        let follow = || {
            // Our own come and go with the model that they scale, and say nothing of its number beyond their HorizontalPodAutoscaler.
            let config =
                watcher::Config::default().labels(&format!("{}!={}", names::MANAGED_BY, names::MANAGED_BY_BERTH));
            let stream = watch(scaled.clone(), config, Kind::ScaledObject.as_str(), metrics);
            self.follow(by, stream, scaled_target, &changed)
        };
        let absent = || self.settle(by);
        let ended = || self.keep_listed(by, &BTreeSet::new(), &changed);
        let scaled = optional::while_installed(client, Kind::ScaledObject, follow, absent, ended);
        let give_up = async {
            tokio::time::sleep(optional::LONGEST_WAIT).await;
            self.settle(by);
        };
        tokio::join!(horizontal, scaled, give_up);
    }

    async fn follow<K: Resource + 'static>(
        &self,
        by: By,
        stream: impl Stream<Item = Result<Event<K>, watcher::Error>>,
        target: impl Fn(&K) -> Option<String>,
        changed: &impl Fn(ObjectKey),
    ) {
        let mut stream = std::pin::pin!(stream);
        let mut listed = BTreeSet::new();
        let target = |object: &K| target(object).filter(|_| object.meta().deletion_timestamp.is_none());
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.insert(key_of(&object));
                    self.set(by, key_of(&object), target(&object), changed);
                }
                Ok(Event::InitDone) => {
                    self.keep_listed(by, &std::mem::take(&mut listed), changed);
                    self.settle(by);
                }
                Ok(Event::Apply(object)) => self.set(by, key_of(&object), target(&object), changed),
                Ok(Event::Delete(object)) => self.set(by, key_of(&object), None, changed),
                // Told where the watch is made.
                Err(_) => {}
            }
        }
    }

    /// Whatever is not in a list is gone.
    fn keep_listed(&self, by: By, listed: &BTreeSet<ObjectKey>, changed: &impl Fn(ObjectKey)) {
        let gone: Vec<ObjectKey> = {
            let targets = self.targets.read();
            let known = targets.keys().filter(|(_, of, _)| *of == by);
            known
                .map(|(namespace, _, name)| (namespace.clone(), name.clone()))
                .filter(|key| !listed.contains(key))
                .collect()
        };
        gone.into_iter().for_each(|key| self.set(by, key, None, changed));
    }

    fn set(&self, by: By, (namespace, name): ObjectKey, target: Option<String>, changed: &impl Fn(ObjectKey)) {
        let key = (namespace.clone(), by, name);
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
fn horizontal_target(object: &HorizontalPodAutoscaler) -> Option<String> {
    let target = &object.spec.as_ref()?.scale_target_ref;
    deployment(target.api_version.as_deref(), Some(&target.kind), &target.name)
}

/// The same of a ScaledObject, whose target is a Deployment where it says nothing else.
fn scaled_target(object: &DynamicObject) -> Option<String> {
    let target = object.data.pointer("/spec/scaleTargetRef")?;
    let text = |field: &str| target[field].as_str().filter(|text| !text.is_empty());
    deployment(
        text("apiVersion").or(Some("apps/v1")),
        text("kind").or(Some("Deployment")),
        text("name")?,
    )
}

fn deployment(api_version: Option<&str>, kind: Option<&str>, name: &str) -> Option<String> {
    let group = api_version.and_then(|v| v.split_once('/')).map(|(group, _)| group);
    (kind == Some("Deployment") && group == Some("apps")).then(|| name.to_owned())
}

fn key_of(object: &impl Resource) -> ObjectKey {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
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
            .follow(
                By::HorizontalPodAutoscaler,
                futures::stream::iter(events.into_iter().map(Ok)),
                horizontal_target,
                &tell,
            )
            .await;
        let of = |name: &str| autoscalers.of(&("shop".into(), name.into()));
        assert_eq!((of("m").as_deref(), of("n")), (Some("a"), None));
        assert_eq!(autoscalers.of(&("other".into(), "m".into())), None);

        let moved = vec![Event::Apply(autoscaler("a", "Deployment", "o"))];
        autoscalers
            .follow(
                By::HorizontalPodAutoscaler,
                futures::stream::iter(moved.into_iter().map(Ok)),
                horizontal_target,
                &tell,
            )
            .await;
        assert_eq!((of("m"), of("o").as_deref()), (None, Some("a")));
        let gone = vec![Event::Init, Event::InitDone];
        autoscalers
            .follow(
                By::HorizontalPodAutoscaler,
                futures::stream::iter(gone.into_iter().map(Ok)),
                horizontal_target,
                &tell,
            )
            .await;
        assert_eq!(of("o"), None);
        assert_eq!(*told.lock().unwrap(), ["m", "m", "o", "o"]);
    }

    #[tokio::test]
    async fn a_scaled_object_drives_a_deployment_while_it_has_no_autoscaler_of_its_own() {
        let autoscalers = Autoscalers::default();
        let scaled = |name: &str, target: serde_json::Value| -> DynamicObject {
            serde_json::from_value(json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
                "metadata": {"namespace": "shop", "name": name}, "spec": {"scaleTargetRef": target}}))
            .unwrap()
        };
        let events = vec![
            Event::Init,
            Event::InitApply(scaled("a", json!({"name": "m"}))),
            Event::InitApply(scaled("b", json!({"name": "n", "kind": "StatefulSet"}))),
            Event::InitDone,
        ];
        autoscalers
            .follow(
                By::ScaledObject,
                futures::stream::iter(events.into_iter().map(Ok)),
                scaled_target,
                &|_| (),
            )
            .await;
        // A list of the other kind takes nothing away.
        let none = vec![Event::Init, Event::InitDone];
        autoscalers
            .follow(
                By::HorizontalPodAutoscaler,
                futures::stream::iter(none.into_iter().map(Ok)),
                horizontal_target,
                &|_| (),
            )
            .await;
        let of = |name: &str| autoscalers.of(&("shop".into(), name.into()));
        assert_eq!((of("m").as_deref(), of("n")), (Some("a"), None));
        autoscalers.wait_synced().await;
        autoscalers.keep_listed(By::ScaledObject, &BTreeSet::new(), &|_| ());
        assert_eq!(of("m"), None);
    }
}
