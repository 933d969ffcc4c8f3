//! The one way in which labels get onto a node.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::Labels;

/// Longest wait for the API server's answer to one write; a call that hangs must not hold a writer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Labels did not get onto a node.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server's answer.
    #[error("the API server refused the labels of node {node}: {source}")]
    Refused {
        /// Node name.
        node: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("no answer to the labels of node {node} within {} s", DEADLINE.as_secs())]
    NoAnswer {
        /// Node name.
        node: String,
    },
}

/// Applies `labels` as the whole set that `manager` owns on a node: its other labels there go, unless somebody else owns them too.
/// With the UID, a node that was deleted meanwhile is not made anew: the API server answers with a conflict. The answer is the node's metadata
/// as it is now, for [`observe_node`](crate::cluster::Cluster::observe_node).
pub async fn write(
    client: &Client,
    manager: &str,
    node: &str,
    uid: &str,
    labels: &Labels,
) -> Result<ObjectMeta, WriteError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut metadata = json!({"name": node, "uid": uid});
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    let patch = Patch::Apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}));
    let params = PatchParams::apply(manager).force().validation_strict();
    match tokio::time::timeout(DEADLINE, nodes.patch_metadata(node, &params, &patch)).await {
        Ok(Ok(answer)) => Ok(answer.metadata),
        Ok(Err(source)) => Err(WriteError::Refused {
            node: node.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(WriteError::NoAnswer { node: node.to_owned() }),
    }
}
