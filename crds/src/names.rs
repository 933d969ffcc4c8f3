//! Every label, annotation, gate and field manager that Berth writes or reads on Kubernetes objects.

/// Our label and annotation domain, with the slash.
pub const DOMAIN: &str = "berth.dev/";

/// Scheduling gate of a pod that waits for Berth. Any pod of any owner may carry it.
pub const GATE: &str = "berth.dev/placement";

/// Node label: short slug of the one GPU product of a node. On pods and objects, an annotation: wanted classes, comma-separated, in
/// order of preference.
pub const GPU_CLASS: &str = berth_core::labels::GPU_CLASS;
/// Pod or object annotation: free VRAM that each GPU must have, a Kubernetes quantity.
pub const GPU_MEMORY: &str = "berth.dev/gpu-memory";
/// Pod or object annotation: least CUDA compute capability, `major` or `major.minor`.
pub const COMPUTE_CAPABILITY: &str = "berth.dev/compute-capability";
/// Object annotation: GPUs per replica, on kinds without a field for it.
pub const GPU_COUNT: &str = "berth.dev/gpu-count";
/// Pod annotation, `Wait` or `Release`: what happens to a pod that fits nowhere.
pub const ON_NO_FIT: &str = "berth.dev/on-no-fit";
/// Pod annotation written with the placement: one sentence, which node and why.
pub const PLACED_BECAUSE: &str = "berth.dev/placed-because";
/// Node label prefix for per-class counts: `berth.dev/gpu.<class>.count`, `.memory`.
pub const GPU_PER_CLASS: &str = berth_core::labels::GPU_PER_CLASS;

/// Annotation on children: hash of what was last applied.
pub const APPLIED: &str = "berth.dev/applied";
/// Annotation on any object: its reconcile stops while present.
pub const PAUSED: &str = "berth.dev/paused";
/// Annotation on an owner: apply children even where adoption would leave a pod template alone.
pub const REAPPLY: &str = "berth.dev/reapply";
/// Annotation on an adopted child whose pod template is still left as the original made it: the owner's generation at that time, and after
/// a slash, where there are any, a hash of the other objects that the template followed from.
pub const ADOPTED: &str = "berth.dev/adopted";

/// Annotation on an AIModelMap: namespaces, comma-separated, whose AIDeployments may refer to it besides its own; `*`: all.
pub const ALLOW_FROM: &str = "berth.dev/allow-from";
/// Pod annotation: hash of the engine's configuration files, so that pods are made anew when one changes. Absent without such files.
pub const CONFIG_HASH: &str = "berth.dev/config-hash";

/// Annotation on an MLModel: a download that failed is tried again when its value changes.
pub const RETRY: &str = "berth.dev/retry";
/// Annotation on the volume and the Job of an MLModel: hash of what is downloaded there and how the volume was asked for.
pub const MODEL_SOURCE: &str = "berth.dev/model-source";
/// Annotation on the volume of an MLModel that is complete: hash of what was downloaded. It outlives the Job.
pub const MODEL_DOWNLOADED: &str = "berth.dev/model-downloaded";
/// Annotation on the volume of an MLModel whose download failed: why. It outlives the Job.
pub const MODEL_DOWNLOAD_FAILED: &str = "berth.dev/model-download-failed";

/// Label on every child object (never in a pod template or a selector).
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_BERTH: &str = "berth";

/// Label that the leading controller puts on its own pod; the agents' Service selects it.
pub const LEADER: &str = "berth.dev/leader";

/// Extended resource of whole NVIDIA GPUs.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";
/// Extended resource of whole AMD GPUs.
pub const AMD_GPU: &str = "amd.com/gpu";
/// RuntimeClass of pods that use NVIDIA GPUs.
pub const NVIDIA_RUNTIME_CLASS: &str = "nvidia";

/// Field managers, one a purpose, so that each write owns exactly its own fields.
pub mod managers {
    /// Labels from hardware facts; applied only while an inventory is held.
    pub const NODES_HARDWARE: &str = "berth/nodes-hardware";
    /// Labels from AutoNodeLabelers; applied only after nodes and rules have synced.
    pub const NODES_RULES: &str = "berth/nodes-rules";
    /// Pins and gates.
    pub const PLACEMENT: &str = "berth/placement";
    /// Replica counts.
    pub const SCALING: &str = "berth/scaling";
    /// Secret, ConfigMap and leader label of the controller itself.
    pub const CONTROLLER: &str = "berth/controller";
    /// Children of AIDeployments.
    pub const AIDEPLOYMENT: &str = "berth/aideployment";
    /// Status of AIDeployments.
    pub const AIDEPLOYMENT_STATUS: &str = "berth/aideployment-status";
    /// ConfigMaps of AIModelMaps.
    pub const AIMODELMAP: &str = "berth/aimodelmap";
    /// Status of AIModelMaps.
    pub const AIMODELMAP_STATUS: &str = "berth/aimodelmap-status";
    /// Children of AIModels.
    pub const AIMODEL: &str = "berth/aimodel";
    /// Status of AIModels.
    pub const AIMODEL_STATUS: &str = "berth/aimodel-status";
    /// Children of MLModels.
    pub const MLMODEL: &str = "berth/mlmodel";
    /// Status of MLModels.
    pub const MLMODEL_STATUS: &str = "berth/mlmodel-status";
    /// Status of AutoNodeLabelers.
    pub const AUTONODELABELER_STATUS: &str = "berth/autonodelabeler-status";

    /// Pod templates of adopted children that are still as the original made them. Nothing is ever written under this name: managed
    /// fields are moved to it, so that our applies neither need to hold them nor take them away.
    pub const ADOPTED: &str = "berth/adopted";
    /// Replica counts of adopted children whose owner names none: the number at adoption stays.
    pub const ADOPTED_REPLICAS: &str = "berth/adopted-replicas";

    /// Whether a managed-fields entry is one of ours.
    pub fn is_ours(manager: &str) -> bool {
        manager.starts_with("berth/")
    }
}

/// Label domains that an AutoNodeLabeler may not write unless an admin allows the key: the domain itself and everything below it.
pub const PROTECTED_DOMAINS: &[&str] = &[
    "kubernetes.io",
    "k8s.io",
    "berth.dev",
    "nvidia.com",
    "amd.com",
    "gpu.intel.com",
    // clouds
    "cloud.google.com",
    "gke.io",
    "kubernetes.azure.com",
    "azure.com",
    "amazonaws.com",
    "aws.amazon.com",
    "eks.amazonaws.com",
    "k8s.aws",
    "digitalocean.com",
    "oraclecloud.com",
    "ibm.com",
    "alibabacloud.com",
    "coreweave.com",
    "coreweave.cloud",
    // autoscalers and cluster lifecycle
    "karpenter.sh",
    "karpenter.azure.com",
    "x-k8s.io",
];

/// Whether a label key belongs to a [`PROTECTED_DOMAINS`] entry. Keys without a prefix are nobody's.
pub fn is_protected(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else {
        return false;
    };
    PROTECTED_DOMAINS
        .iter()
        .any(|p| domain == *p || domain.strip_suffix(p).is_some_and(|rest| rest.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_domains_cover_subdomains_and_nothing_else() {
        for key in [
            "kubernetes.io/arch",
            "node-role.kubernetes.io/worker",
            "node-restriction.kubernetes.io/x",
            "beta.amd.com/gpu.family",
            "gpu.nvidia.com/class",
            "berth.dev/gpu-class",
            "karpenter.k8s.aws/instance-gpu-name",
            "feature.node.kubernetes.io/pci-10de.present",
        ] {
            assert!(is_protected(key), "{key}");
        }
        for key in ["foo/bar.com", "team", "notnvidia.com/x", "example.com/kubernetes.io"] {
            assert!(!is_protected(key), "{key}");
        }
    }
}
