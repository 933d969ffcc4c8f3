//! `oda.tmforum.org.oda.tmforum.org/v1beta1`, field for field as the original operator has it, plus Berth's optional additions. The doubled
//! group is the original's.

// kube's `printcolumn(..)` repeats its keys by design.
#![allow(clippy::duplicated_attributes)]

pub mod mlmodel;

pub use mlmodel::{MLModel, MLModelSpec, MLModelStatus};

/// Names of the original operator that selectors and users rely on.
pub mod keys {
    /// The API group.
    pub const GROUP: &str = "oda.tmforum.org.oda.tmforum.org";
    /// Label on the servers' pods (and the only selector): the Deployment's name.
    pub const APP: &str = "app";
    /// Label on the download's pods: the Job's name. Kubernetes sets it too.
    pub const JOB_NAME: &str = "job-name";
    /// What the original left in `metadata.finalizers`, and nothing takes away when it is gone.
    pub const FINALIZER: &str = "mlmodel.finalizer";
    /// Volume of the pods.
    pub const VOLUME: &str = "model-storage";
    /// The servers' container, whatever the server.
    pub const SERVER_CONTAINER: &str = "tf-serving";

    const PVC_SUFFIX: &str = "-pvc";
    const JOB_SUFFIX: &str = "-download-job";
    const SERVER_SUFFIX: &str = "-server";

    /// Name of the volume's claim.
    pub fn claim(name: &str) -> String {
        format!("{name}{PVC_SUFFIX}")
    }

    /// Name of the Job that downloads.
    pub fn job(name: &str) -> String {
        format!("{name}{JOB_SUFFIX}")
    }

    /// Name of its container.
    pub fn download_container(name: &str) -> String {
        format!("{name}-download-container")
    }

    /// Name of the servers' Deployment.
    pub fn server(name: &str) -> String {
        format!("{name}{SERVER_SUFFIX}")
    }

    /// Name of their Service.
    pub fn service(name: &str) -> String {
        format!("{name}-service")
    }

    /// The MLModel whose servers' Deployment has this name.
    pub fn of_server(deployment: &str) -> Option<&str> {
        deployment.strip_suffix(SERVER_SUFFIX)
    }

    /// The MLModel whose download's Job has this name.
    pub fn of_job(job: &str) -> Option<&str> {
        job.strip_suffix(JOB_SUFFIX)
    }
}
