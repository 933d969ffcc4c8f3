//! Keeps the picture in step with the API server.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};

use super::{Cluster, Node, Pod};
use crate::metrics::Metrics;
use crate::watches::watch;

/// Watches nodes and pods for ever.
pub async fn run(client: Client, cluster: Arc<Cluster>, metrics: Arc<Metrics>) {
    let config = watcher::Config::default();
    let nodes = watch(Api::<core::Node>::all(client.clone()), config.clone(), "Node", &metrics);
    let pods = watch(Api::<core::Pod>::all(client), config, "Pod", &metrics);
    let slim = {
        let cluster = cluster.clone();
        move |node: &core::Node| Node::from_api(node, &cluster.extra_conditions)
    };
    let nodes = follow(nodes, slim, {
        let cluster = cluster.clone();
        move |change| match change {
            Change::Reset(all) => cluster.reset_nodes(all),
            Change::Apply(node) => cluster.apply_node(node),
            Change::Delete(node) => cluster.delete_node(&node.name),
        }
    });
    let pods = follow(pods, Pod::from_api, move |change| match change {
        Change::Reset(all) => cluster.reset_pods(all),
        Change::Apply(pod) => cluster.apply_pod(pod),
        Change::Delete(pod) => cluster.delete_pod(&pod.uid),
    });
    tokio::join!(nodes, pods);
}

enum Change<T> {
    Reset(Vec<T>),
    Apply(T),
    Delete(T),
}

async fn follow<K, T>(
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    slim: impl Fn(&K) -> T,
    mut apply: impl FnMut(Change<T>),
) {
    let mut stream = std::pin::pin!(stream);
    let mut listed = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(slim(&object)),
            Ok(Event::InitDone) => apply(Change::Reset(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => apply(Change::Apply(slim(&object))),
            Ok(Event::Delete(object)) => apply(Change::Delete(slim(&object))),
            // Told where the watch is made.
            Err(_) => {}
        }
    }
}
