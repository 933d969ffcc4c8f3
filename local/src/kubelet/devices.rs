//! Hands devices to the pods of anybody: KWOK runs them, but which device a pod got is the kubelet's to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};

use super::{Context, fields};

/// Follows every pod until the cluster ends.
pub async fn follow(context: Arc<Context>) {
    let pods: Api<core::Pod> = Api::all(context.client.clone());
    let mut stream = std::pin::pin!(watcher(pods, watcher::Config::default()).default_backoff());
    // UID → node.
    let mut bound: BTreeMap<String, String> = BTreeMap::new();
    let mut listed: BTreeMap<String, String> = BTreeMap::new();
    while let Some(Some(event)) = context.shutdown.run_until_cancelled(stream.next()).await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => drop(observe(&context, &mut listed, &pod)),
            Ok(watcher::Event::InitDone) => {
                for (uid, node) in std::mem::replace(&mut bound, listed.clone()) {
                    if !bound.contains_key(&uid) {
                        release(&context, &node, &uid);
                    }
                }
            }
            Ok(watcher::Event::Apply(pod)) => drop(observe(&context, &mut bound, &pod)),
            Ok(watcher::Event::Delete(pod)) => {
                let uid = fields::uid(&pod);
                if let Some(node) = bound.remove(&uid) {
                    release(&context, &node, &uid);
                }
            }
            Err(error) => tracing::debug!(%error, "watch of pods interrupted"),
        }
    }
}

fn observe(context: &Context, bound: &mut BTreeMap<String, String>, pod: &core::Pod) -> Option<()> {
    let node = context.nodes.get(fields::node(pod)?).ok()?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let uid = fields::uid(pod);
    if matches!(phase, Some("Succeeded" | "Failed")) {
        bound.remove(&uid);
        node.devices().release(&uid);
    } else {
        node.devices().hold(pod);
        bound.insert(uid, node.name().to_owned());
    }
    Some(())
}

fn release(context: &Context, node: &str, uid: &str) {
    if let Ok(node) = context.nodes.get(node) {
        node.devices().release(uid);
    }
}
