//! MLModel: a model that is downloaded into a volume and served from there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of an MLModel. Everything may be left out in the schema, so that an object without a spec can be stored; what is missing
/// is reported in the condition `Accepted`.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "oda.tmforum.org.oda.tmforum.org",
    version = "v1beta1",
    kind = "MLModel",
    plural = "mlmodels",
    singular = "mlmodel",
    namespaced,
    status = "MLModelStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A model that is downloaded into a volume and served from there: a PersistentVolumeClaim, a Job, a Deployment and, where it is exposed, a Service.",
    printcolumn(name = "Framework", type_ = "string", json_path = ".spec.framework"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.serviceEndpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase", default)]
pub struct MLModelSpec {
    /// Where the model is: http, https or ftp. A tar archive is unpacked where the server reads folders.
    #[serde(rename = "modelURL", skip_serializing_if = "Option::is_none")]
    pub model_url: Option<String>,
    /// Size of the volume, e.g. `5Gi`. An archive needs room for itself and for what is in it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub storage_size: String,
    /// What the model is made for, and so which server it gets: `tensorflow`, `onnx`, `pytorch`, `sklearn`, `xgboost`, `lightgbm` or `keras`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub framework: String,
    /// Number of servers. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Whether there is a Service, and so an endpoint. Absent: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<bool>,
    /// SHA-256 that the downloaded file must have, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Image of the server, instead of the framework's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// StorageClass of the volume. Absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// How the volume is mounted. Absent: `ReadWriteOnce`, for which all servers have to run on one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
}

/// How a volume is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// On one node at a time.
    ReadWriteOnce,
    /// On many nodes.
    ReadWriteMany,
}

impl AccessMode {
    /// As in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteMany => "ReadWriteMany",
        }
    }
}

/// Observed state of an MLModel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MLModelStatus {
    /// `Pending`, `CreatingStorage`, `Downloading`, `Serving`, `Ready` or `Failed`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// What it waits for, or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `<name>-service.<namespace>.svc.cluster.local:<port>`, where the model is exposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_endpoint: Option<String>,
    /// Generation of the spec that this status is about.
    pub observed_generation: i64,
    /// Servers that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Servers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// `Accepted`, `Downloaded`, `Placed`, `Available`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
