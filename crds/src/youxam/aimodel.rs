//! AIModel: workers that take a model's requests from a Pulsar topic.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of an AIModel. Everything is optional in the schema, so that an object without a spec can be stored, as in the
/// original; what is missing is reported in the condition `Accepted`.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "model.youxam.com",
    version = "v1alpha1",
    kind = "AIModel",
    plural = "aimodels",
    singular = "aimodel",
    namespaced,
    status = "AIModelStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Workers that take a model's requests from a Pulsar topic, as a Deployment that KEDA scales by the topic's backlog.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state")
)]
#[serde(rename_all = "camelCase", default)]
pub struct AIModelSpec {
    /// `local`: the worker runs the model itself. `remote`: it calls the API at `baseURL`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    /// Name of the model; the topic and the subscription are named after it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Image of the workers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Number of workers. Absent: 1. With `msgBacklogThreshold`: how many there are at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Address of the API, for `remote`.
    #[serde(rename = "baseURL", skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Key of the API in plain text, for `remote`. `apiKeySecretRef` keeps it out of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// Requests that a worker may work on at a time. Absent: 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_process_num: Option<i32>,
    /// Waiting messages for each worker above which KEDA adds workers. Absent: the number of workers stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_backlog_threshold: Option<i32>,
    /// Key of the API in a Secret of the namespace, instead of `apiKey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKey>,
    /// Pulsar token in a Secret of the namespace, instead of the installation's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_token_secret_ref: Option<SecretKey>,
    /// Node labels that the workers' nodes must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// One key of a Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Observed state of an AIModel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AIModelStatus {
    /// `Running`, or `Failed` when a worker reported an error or the spec cannot be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// `Failed`: `<reason>: <message>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Workers that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Workers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// The error that a worker reported last, also when the spec was changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ReportedError>,
    /// `Accepted`, `WorkersHealthy`, `Placed`, `Available`, `ScalingActive`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// An error that a worker reported by an Event, so that each of its occurrences counts once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportedError {
    /// UID of the Event.
    pub event: String,
    /// How often the Event had occurred.
    pub count: i32,
    /// When it occurred last.
    pub time: Time,
}
