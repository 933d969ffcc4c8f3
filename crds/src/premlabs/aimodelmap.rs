//! AIModelMap: names for models, each with what an engine needs to serve it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Variants of one model, in a list an engine.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "premlabs.io",
    version = "v1alpha1",
    kind = "AIModelMap",
    plural = "aimodelmaps",
    singular = "aimodelmap",
    namespaced,
    status = "AIModelMapStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Variants of a model, for AIDeployments to refer to by name.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(default)]
pub struct AIModelMapSpec {
    /// For the engine `localai`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub localai: Vec<ModelVariant>,
    /// For the engine `vllm`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vllm: Vec<ModelVariant>,
    /// For the engine `deepspeed-mii`.
    #[serde(rename = "deepspeed-mii", skip_serializing_if = "Vec::is_empty")]
    pub deepspeed_mii: Vec<ModelVariant>,
    /// For the engine `triton`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensor_rt: Vec<ModelVariant>,
}

impl AIModelMapSpec {
    /// One of the lists.
    pub fn list(&self, list: VariantList) -> &[ModelVariant] {
        match list {
            VariantList::LocalAi => &self.localai,
            VariantList::Vllm => &self.vllm,
            VariantList::DeepspeedMii => &self.deepspeed_mii,
            VariantList::TensorRt => &self.tensor_rt,
        }
    }
}

/// The lists of an AIModelMap: one for each engine that serves models by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariantList {
    /// `localai`
    LocalAi,
    /// `vllm`
    Vllm,
    /// `deepspeed-mii`
    DeepspeedMii,
    /// `tensor_rt`
    TensorRt,
}

impl VariantList {
    /// All of them, in the order in which the original has them.
    pub const ALL: &'static [VariantList] = &[Self::LocalAi, Self::Vllm, Self::DeepspeedMii, Self::TensorRt];

    /// The key in the spec.
    pub fn field(self) -> &'static str {
        match self {
            Self::LocalAi => "localai",
            Self::Vllm => "vllm",
            Self::DeepspeedMii => "deepspeed-mii",
            Self::TensorRt => "tensor_rt",
        }
    }

    /// The engine that reads it.
    pub fn engine(self) -> &'static str {
        match self {
            Self::LocalAi => "localai",
            Self::Vllm => "vllm",
            Self::DeepspeedMii => "deepspeed-mii",
            Self::TensorRt => "triton",
        }
    }

    /// The key under which a variant's configuration file stands in a ConfigMap.
    pub fn config_key(self, variant: &str) -> String {
        format!("{}-{variant}-engineConfigFile", self.engine())
    }
}

/// A variant of the model: what is not set here has to be set in the AIDeployment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelVariant {
    /// Name of the variant; AIDeployments refer to it by this.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub variant: String,
    /// Where the engine finds the model: a name, a repository or a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Quantisation, e.g. `awq`, `gptq`; read by vllm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Data type, e.g. `float16`; read by vllm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_type: Option<String>,
    /// Engine configuration file; read by localai, and published in a ConfigMap for every engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_config_file: Option<String>,
}

/// Observed state of an AIModelMap.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AIModelMapStatus {
    /// `Accepted`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_original_with_the_engine_that_reads_them() {
        let keys: Vec<String> = VariantList::ALL.iter().map(|l| l.config_key("q4")).collect();
        assert_eq!(
            keys,
            [
                "localai-q4-engineConfigFile",
                "vllm-q4-engineConfigFile",
                "deepspeed-mii-q4-engineConfigFile",
                "triton-q4-engineConfigFile"
            ]
        );
    }

    #[test]
    fn every_list_is_read_under_its_own_key() {
        for list in VariantList::ALL {
            let spec: AIModelMapSpec =
                serde_json::from_value(serde_json::json!({list.field(): [{"variant": "a"}]})).unwrap();
            for other in VariantList::ALL {
                assert_eq!(spec.list(*other).len(), usize::from(other == list), "{list:?}");
            }
        }
    }
}
