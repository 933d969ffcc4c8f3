//! `premlabs.io/v1alpha1`, field for field as the original operator has it, plus Berth's optional additions.

// kube's `printcolumn(..)` repeats its keys by design.
#![allow(clippy::duplicated_attributes)]

pub mod aideployment;
pub mod aimodelmap;
pub mod autonodelabeler;

pub use aideployment::{AIDeployment, AIDeploymentSpec, AIDeploymentStatus};
pub use aimodelmap::{AIModelMap, AIModelMapSpec, AIModelMapStatus};
pub use autonodelabeler::{AutoNodeLabeler, AutoNodeLabelerSpec, AutoNodeLabelerStatus};

/// Label and annotation keys of the original operator that users and selectors rely on.
pub mod keys {
    /// Label on pods (and the only selector), annotation on Service and Ingress: the AIDeployment's name.
    pub const AI_DEPLOYMENT: &str = "mlcontroller.premlabs.io/ai-deployment";
    /// Label on pods that spreads them over nodes.
    pub const SPREAD_TOPOLOGY: &str = "mlcontroller.premlabs.io/spread-topology";
    /// Value of [`SPREAD_TOPOLOGY`].
    pub const SPREAD_TOPOLOGY_VALUE: &str = "ai-model";
    /// Label and annotation on a generated ConfigMap: the AIModelMap's name.
    pub const AI_MODEL_MAP: &str = "mlcontroller.premlabs.io/aimodelmap";
    /// Name of the engine's container in every pod.
    pub const SERVING_CONTAINER: &str = "serving";
}
