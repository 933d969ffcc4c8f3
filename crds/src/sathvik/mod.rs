//! `mlops.sathvik.dev/v1`, field for field as the original operator has it, plus Berth's optional additions.

// kube's `printcolumn(..)` repeats its keys by design.
#![allow(clippy::duplicated_attributes)]

pub mod modeldeployment;

pub use modeldeployment::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};

/// Names of the original operator that selectors and users rely on.
pub mod keys {
    /// The API group.
    pub const GROUP: &str = "mlops.sathvik.dev";
    /// Label on the servers' pods (and the only selector), on the Deployment and on the Job: the ModelDeployment's name. Pods that validate
    /// do not have it: Services go by it.
    pub const MODEL: &str = "model";
    /// Label on Deployment, Job and the pods that validate: [`VALIDATION`] or [`INFERENCE`].
    pub const TYPE: &str = "type";
    /// What validates.
    pub const VALIDATION: &str = "validation";
    /// What serves.
    pub const INFERENCE: &str = "inference";
    /// What the original left in `metadata.finalizers`, and nothing takes away when it is gone.
    pub const FINALIZER: &str = "mlops.sathvik.dev/finalizer";
    /// The Job's container.
    pub const VALIDATION_CONTAINER: &str = "validate";
    /// The servers' container.
    pub const SERVER_CONTAINER: &str = "inference";
    /// Variable that tells both where the model is.
    pub const MODEL_URI: &str = "MODEL_URI";
    /// Port of the Service that the original makes.
    pub const SERVICE_PORT: i32 = 80;
    /// Port of the Service that the original's README tells of.
    pub const ALIAS_PORT: i32 = 8000;

    const JOB_PREFIX: &str = "validate-";
    const SERVER_PREFIX: &str = "inference-";

    /// Name of the Job that validates.
    pub fn job(name: &str) -> String {
        format!("{JOB_PREFIX}{name}")
    }

    /// Name of the servers' Deployment, and of its autoscaler.
    pub fn server(name: &str) -> String {
        format!("{SERVER_PREFIX}{name}")
    }

    /// Name of their Service.
    pub fn service(name: &str) -> String {
        format!("svc-{name}")
    }

    /// Name of their other Service.
    pub fn alias(name: &str) -> String {
        format!("{name}-service")
    }

    /// The ModelDeployment whose Job has this name.
    pub fn of_job(job: &str) -> Option<&str> {
        job.strip_prefix(JOB_PREFIX)
    }

    /// The ModelDeployment whose servers' Deployment has this name.
    pub fn of_server(deployment: &str) -> Option<&str> {
        deployment.strip_prefix(SERVER_PREFIX)
    }
}
