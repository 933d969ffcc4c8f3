//! `model.youxam.com/v1alpha1`, field for field as the original operator has it, plus Berth's optional additions.

// kube's `printcolumn(..)` repeats its keys by design.
#![allow(clippy::duplicated_attributes)]

pub mod aimodel;

pub use aimodel::{AIModel, AIModelSpec, AIModelStatus};

/// Names of the original operator that workers, selectors and users rely on.
pub mod keys {
    /// The API group.
    pub const GROUP: &str = "model.youxam.com";
    /// Label on pods (and the only selector): the AIModel's name. Spelt like this by the original.
    pub const SELECTOR: &str = "aimodel-internel-selector";
    /// Pod annotation: when the ServiceAccount was made that the pods' tokens are bound to.
    pub const SERVICE_ACCOUNT_SEEN: &str = "last-serviceaccount-update";

    /// Name of the Deployment.
    pub fn deployment(name: &str) -> String {
        format!("{name}-deployment")
    }

    /// Name of the workers' ServiceAccount.
    pub fn service_account(name: &str) -> String {
        format!("{name}-deployment-sa")
    }

    /// Name of the Role that lets workers report errors.
    pub fn role(name: &str) -> String {
        format!("{name}-deployment-event-role")
    }

    /// Name of its RoleBinding.
    pub fn role_binding(name: &str) -> String {
        format!("{name}-deployment-event-rolebinding")
    }

    /// Name of the ScaledObject, and of its TriggerAuthentication.
    pub fn scaled_object(name: &str) -> String {
        format!("{name}-scaledobject")
    }
}
