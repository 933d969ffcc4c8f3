//! Spec → one model in which nothing is left to check. Nothing behind this room reads the spec.
//!
//! All problems are collected: an object is corrected once, not once a problem.

use std::collections::BTreeMap;

use berth_crds::youxam::aimodel::SecretKey;
use berth_crds::youxam::{AIModel, keys};
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::args::{Pulsar, Settings};
use crate::kinds::dns::{LABEL, is_dns_label};
use crate::kinds::status::problems::{Findings, Problems};
use crate::kinds::workload::gpus::{self, Wish};

/// Requests that a worker may work on at a time, where the spec does not say.
const MAX_PROCESS_NUM: i32 = 128;

/// An AIModel that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Name: of the container and in the names of the children.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The object as its children's controller.
    pub owner: OwnerReference,
    /// Labels of the pods, without the selector's.
    pub labels: BTreeMap<String, String>,
    /// `local` or `remote`.
    pub node_type: String,
    /// Name of the model.
    pub model: String,
    /// Image of the workers.
    pub image: String,
    /// Number of workers, at first or always.
    pub replicas: i32,
    /// Address of the remote API; empty: none.
    pub base_url: String,
    /// Key of the remote API.
    pub api_key: Text,
    /// Requests that a worker may work on at a time.
    pub max_process_num: i32,
    /// Node labels that the workers' nodes must have.
    pub node_selector: BTreeMap<String, String>,
    /// GPUs of each worker.
    pub gpus: Option<Wish>,
    /// What pods with GPUs tolerate.
    pub gpu_tolerations: Vec<Toleration>,
    /// Pulsar, as the workers reach it.
    pub pulsar_url: String,
    /// Token for Pulsar.
    pub pulsar_token: Text,
    /// Topic that the workers answer to.
    pub res_topic_name: String,
    /// How the number of workers follows the backlog.
    pub scaling: Option<Scaling>,
    /// What is accepted and has no effect.
    pub ignored: Vec<String>,
}

/// A text, or where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// As it is; may be empty.
    Plain(String),
    /// In a Secret of the namespace.
    Secret(SecretKey),
}

impl Text {
    /// Nothing is given.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Plain(text) if text.is_empty())
    }
}

/// How the number of workers follows the backlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// Waiting messages for each worker.
    pub threshold: i32,
    /// Admin API of Pulsar; `None`: the installation names none, so there is nothing to ask.
    pub admin_url: Option<String>,
}

/// What the spec leaves to the installation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// Where requests come from.
    pub pulsar: Pulsar,
    /// What pods with GPUs tolerate.
    pub gpu_tolerations: Vec<Toleration>,
}

impl Defaults {
    /// Those of an installation.
    pub fn of(settings: &Settings) -> Self {
        Self {
            pulsar: settings.pulsar.clone(),
            gpu_tolerations: settings.gpu_tolerations.clone(),
        }
    }
}

/// The object as its children's controller.
pub fn owner(object: &AIModel) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..object.controller_owner_ref(&()).unwrap_or_default()
    }
}

/// Reads an AIModel.
pub fn validate(object: &AIModel, defaults: &Defaults) -> Result<Validated, Problems> {
    let pulsar = &defaults.pulsar;
    let mut findings = Findings::default();
    let name = object.name_any();
    let spec = &object.spec;
    check_name(&name, spec.msg_backlog_threshold.is_some(), &mut findings);
    match spec.type_.as_str() {
        "local" | "remote" => {}
        "" => findings.invalid("spec.type", "is not set", "give local or remote"),
        other => findings.invalid(
            "spec.type",
            format_args!("{other:?} is no type"),
            "give local or remote",
        ),
    }
    for (path, value, what) in [
        ("spec.model", &spec.model, "the name of the model"),
        ("spec.image", &spec.image, "the image of the workers"),
    ] {
        if value.trim().is_empty() {
            findings.invalid(path, "is not set", format_args!("give {what}"));
        }
    }
    let replicas = spec.replicas.unwrap_or(1);
    if replicas < 0 {
        findings.invalid(
            "spec.replicas",
            format_args!("{replicas} is negative"),
            "give 0 or more",
        );
    }
    if let Some(threshold) = spec.msg_backlog_threshold.filter(|t| *t < 1) {
        findings.invalid(
            "spec.msgBacklogThreshold",
            format_args!("{threshold} waiting messages for each worker are no threshold"),
            "give 1 or more, or remove it",
        );
    }
    if spec.api_key.as_ref().is_some_and(|k| !k.is_empty()) && spec.api_key_secret_ref.is_some() {
        findings.ignored("spec.apiKey", "apiKeySecretRef is given");
    }
    let gpus = gpus::wish(object.annotations(), &mut findings);

    let Findings { problems, ignored } = findings;
    if !problems.is_empty() {
        return Err(problems);
    }
    let either = |secret: &Option<SecretKey>, plain: String| match secret {
        Some(key) => Text::Secret(key.clone()),
        None => Text::Plain(plain),
    };
    Ok(Validated {
        namespace: object.namespace().unwrap_or_default(),
        owner: owner(object),
        labels: object.labels().clone(),
        node_type: spec.type_.clone(),
        model: spec.model.clone(),
        image: spec.image.clone(),
        replicas,
        base_url: spec.base_url.clone().unwrap_or_default(),
        api_key: either(&spec.api_key_secret_ref, spec.api_key.clone().unwrap_or_default()),
        max_process_num: spec.max_process_num.unwrap_or(MAX_PROCESS_NUM),
        node_selector: spec.node_selector.clone(),
        gpus,
        gpu_tolerations: defaults.gpu_tolerations.clone(),
        pulsar_url: pulsar.url.clone(),
        pulsar_token: either(&spec.pulsar_token_secret_ref, pulsar.token.clone()),
        res_topic_name: pulsar.res_topic_name.clone(),
        scaling: spec.msg_backlog_threshold.map(|threshold| Scaling {
            threshold,
            admin_url: Some(pulsar.admin_url.clone()).filter(|url| !url.is_empty()),
        }),
        name,
        ignored,
    })
}

/// The name is that of the container and a value of the selector's label; KEDA makes a label of the ScaledObject's.
fn check_name(name: &str, is_scaled: bool, findings: &mut Findings) {
    if !is_dns_label(name) {
        findings.invalid(
            "metadata.name",
            format_args!(
                "{name:?} cannot be the name of a container: that takes at most {LABEL} of a-z, 0-9 and '-', not at its ends"
            ),
            "create the AIModel under such a name",
        );
    } else if is_scaled && keys::scaled_object(name).len() > LABEL {
        findings.invalid(
            "metadata.name",
            format_args!(
                "{name:?} is too long for KEDA, which makes a label of {:?}",
                keys::scaled_object(name)
            ),
            format_args!(
                "create the AIModel under a name of at most {} characters, or remove spec.msgBacklogThreshold",
                LABEL - keys::scaled_object("").len()
            ),
        );
    }
}

#[cfg(test)]
mod tests;
