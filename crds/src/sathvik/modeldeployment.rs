//! ModelDeployment: a model that is validated, and then served.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of a ModelDeployment. Everything may be left out in the schema, so that an object without a spec can be stored; what is
/// missing is reported in the condition `Accepted`.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "mlops.sathvik.dev",
    version = "v1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    singular = "modeldeployment",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A model that is validated by a Job, where it has a script for that, and then served: a Deployment, two Services and, where it is asked for, a HorizontalPodAutoscaler. A version that fails its validation leaves the one before serving.",
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.runtime"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Serving", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelDeploymentSpec {
    /// Where the model is: what validates and what serves find it in MODEL_URI.
    #[serde(rename = "modelURI", skip_serializing_if = "String::is_empty")]
    pub model_uri: String,
    /// What serves it: `triton`, `torchserve` or `fastapi-pytorch`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// Image of the runtime, instead of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_image: Option<String>,
    /// Resources of what serves, and of what validates unless `validateResources` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Script in the validator's image, given to python before this version is served. Absent: it is served at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_script: Option<String>,
    /// Resources of what validates. Absent: `resources`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_resources: Option<ResourceRequirements>,
    /// Whether the number of servers follows their use of CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<bool>,
    /// Fewest servers with `autoscale`. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    /// Most servers with `autoscale`. Absent: what the installation sets, 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<i32>,
    /// Percentage of their CPU requests that servers use on average with `autoscale`. Absent: 80.
    #[serde(rename = "targetCPUUtilizationPercentage", skip_serializing_if = "Option::is_none")]
    pub target_cpu_utilization_percentage: Option<i32>,
    /// Number of servers without `autoscale`. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Version of the model.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// Observed state of a ModelDeployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelDeploymentStatus {
    /// `Validating`, `Deploying`, `Ready` or `Failed`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// What it waits for, or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Version that was made ready last: it goes on serving while another is validated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Servers that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Servers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// `Accepted`, `Validated`, `Placed`, `Available`, `ScalingActive`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
