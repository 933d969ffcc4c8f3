//! AIDeployment: a model with its engine, served by a Deployment, a Service and an Ingress.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DeploymentStrategy;
use k8s_openapi::api::core::v1::{
    EnvVar, HostPathVolumeSource, PersistentVolumeClaimVolumeSource, PodTemplateSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of an AIDeployment. Everything is optional in the schema, as in the original; what is missing for an engine is
/// reported in the condition `Accepted`.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "premlabs.io",
    version = "v1alpha1",
    kind = "AIDeployment",
    plural = "aideployments",
    singular = "aideployment",
    shortname = "aid",
    namespaced,
    status = "AIDeploymentStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A model and the engine that serves it, as a Deployment with a Service and, where endpoints are given, an Ingress.",
    scale(
        spec_replicas_path = ".spec.deployment.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.engine.name"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.deployment.accelerator.class"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct AIDeploymentSpec {
    /// Hosts under which the model is reachable from outside. Empty: no Ingress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoint: Vec<Endpoint>,
    /// The program that serves the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Environment of the engine's container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Arguments appended after those that the engine needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Labels, annotations and type of the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceOptions>,
    /// Labels, annotations, class and TLS of the Ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressOptions>,
    /// Publish the endpoints by a Gateway API HTTPRoute instead of an Ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayOptions>,
    /// Where the engine keeps the models that it downloads. Absent: in the pod, and gone with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<ModelCache>,
    /// How the pods run: hardware, resources, replicas, probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentOptions>,
    /// The models to serve; how many is up to the engine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Model>,
}

/// One host of the Ingress.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// Host name of the Ingress rule.
    pub domain: String,
    /// Port that the engine `generic` listens on; other engines have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// The program that serves the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    /// `localai`, `vllm`, `deepspeed-mii`, `triton` or `generic`.
    pub name: String,
    /// `imageRepository` and `imageTag` for every engine but `generic`; `dtype` and `quantization` for vllm.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Options of the Service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceOptions {
    /// Labels of the Service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How the Service is published. Absent: `ClusterIP`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
}

/// Values of `service.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Inside the cluster.
    ClusterIP,
    /// On a port of every node.
    NodePort,
    /// By the cloud's load balancer.
    LoadBalancer,
}

/// Options of the Ingress.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressOptions {
    /// Labels of the Ingress.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Ingress.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Serve all endpoints by TLS with the Secret `<name>-tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// IngressClass. Absent: the cluster's default, or what the annotations say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

/// How endpoints are published by the Gateway API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayOptions {
    /// Gateways that the HTTPRoute attaches to, one or more.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: Vec<ParentReference>,
}

/// A Gateway, as in `spec.parentRefs` of an HTTPRoute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// Name of the Gateway.
    pub name: String,
    /// Its namespace. Absent: the AIDeployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Listener of the Gateway. Absent: every one that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// A directory that outlives the pods, for downloaded models. Give one of the two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelCache {
    /// A PersistentVolumeClaim of the namespace. With more than one replica it has to be ReadWriteMany.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    /// A directory of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolumeSource>,
}

/// How the pods run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentOptions {
    /// Labels of the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Present: the model needs GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Resources of the engine's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Node labels that a node must have; laid over those of the template.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Number of pods. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pod template to build on. Required by the engine `generic`, whose first container is the engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplateSpec>,
    /// Overrides of the engine's startup probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<ProbeTiming>,
    /// Overrides of the engine's readiness probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ProbeTiming>,
    /// Overrides of the engine's liveness probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<ProbeTiming>,
    /// Who picks the node, and what happens when none fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How pods are replaced by those of a new version. Absent: chosen so that full nodes cannot block it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<DeploymentStrategy>,
    /// Seconds that the engine may take to start, downloads included. Absent: as long as its startup probe allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_timeout_seconds: Option<i32>,
}

/// The GPUs that each replica needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// `CUDA`.
    pub interface: String,
    /// Least CUDA compute capability: a preference; a requirement where `placement` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<MinVersion>,
    /// GPU class, as in the node label `berth.dev/gpu-class`: h100, a100, l40s, t4 …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// GPU classes in order of preference. Not together with `class`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Free VRAM that each GPU must have now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// GPUs per replica, where `resources` does not say. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// MIG slices of this profile instead of whole GPUs, e.g. `1g.10gb`; `count` is then their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
}

impl Accelerator {
    /// Wanted classes in order of preference; empty: any.
    pub fn wanted_classes(&self) -> Vec<&str> {
        self.class
            .as_deref()
            .into_iter()
            .chain(self.classes.iter().map(String::as_str))
            .collect()
    }
}

/// A CUDA compute capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MinVersion {
    /// Major version: 8 for Ampere, 9 for Hopper.
    pub major: i32,
    /// Minor version. Absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i32>,
}

/// Who picks the node, and what happens when none fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// `Managed`: Berth picks a node whose GPUs are free and healthy. `Scheduler`: kube-scheduler does. Absent: the installation's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PlacementPolicy>,
    /// `Wait`: a pod that fits nowhere waits. `Release`: it is left to kube-scheduler and the cluster autoscaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_no_fit: Option<OnNoFit>,
}

/// Values of `placement.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementPolicy {
    /// Berth picks the node.
    Managed,
    /// kube-scheduler picks the node.
    Scheduler,
}

/// Values of `placement.onNoFit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNoFit {
    /// Stay gated and be tried again when the picture changes.
    Wait,
    /// Drop the gate; only class labels bind the pod.
    Release,
}

/// Timing overrides of a probe; its handler stays the engine's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeTiming {
    /// Seconds before the first probe; an explicit 0 counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_delay_seconds: Option<i32>,
    /// Seconds until a probe counts as failed. 0: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i32>,
    /// Seconds between probes. 0: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<i32>,
    /// Successes until the probe counts as passed. 0: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<i32>,
    /// Failures until the probe counts as failed. 0: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<i32>,
    /// Grace period in seconds when this probe ends the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
}

/// One model, inline or by reference to an AIModelMap.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Model {
    /// A variant of an AIModelMap; fields set here win over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_map_ref: Option<ModelMapRef>,
    /// Where the engine finds the model: a name, a repository or a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Quantisation, e.g. `awq`, `gptq`; read by vllm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Data type, e.g. `float16`; read by vllm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<String>,
    /// Engine configuration file; read by localai.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_config_file: Option<String>,
    /// Free-form options; read by no engine.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Names a variant of an AIModelMap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelMapRef {
    /// Name of the AIModelMap.
    pub name: String,
    /// Variant in the list of the engine.
    pub variant: String,
    /// Namespace of the AIModelMap. Absent: the AIDeployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Observed state of an AIDeployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AIDeploymentStatus {
    /// `Ready` when a replica is available, `NotReady` when none is, `Failed` when the spec cannot be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The last failure, while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err_msg: Option<String>,
    /// `Accepted`, `Placed`, `Available`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Pods that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Label selector of the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where the replicas are, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<PodPlacement>,
}

/// Where one replica is, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodPlacement {
    /// Pod name.
    pub pod: String,
    /// Node name.
    pub node: String,
    /// One sentence: why this node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
}
