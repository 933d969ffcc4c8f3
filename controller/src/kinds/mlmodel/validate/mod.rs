//! Spec → one model in which nothing is left to check. Nothing behind this room reads the spec.
//!
//! All problems are collected: an object is corrected once, not once a problem.

pub mod url;

use std::collections::BTreeMap;
use std::time::Duration;

use berth_crds::names;
use berth_crds::tmforum::MLModel;
use berth_crds::tmforum::mlmodel::AccessMode;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

use super::download::Download;
use super::framework::{FRAMEWORKS, Framework, OTHER, Place, Start};
use crate::args::Settings;
use crate::kinds::dns::is_dns_label;
use crate::kinds::status::problems::{Findings, Problems};
use crate::kinds::workload::gpus::{self, Wish, amount};

/// Longest name: the download's container is `<name>-download-container`, a DNS label.
const NAME: usize = 44;
/// Where the servers find the volume.
pub const MODELS: &str = "/models";
/// Name of a file whose URL names none.
const UNNAMED: &str = "model";

/// An MLModel that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The object as its children's controller.
    pub owner: OwnerReference,
    /// Size of the volume, as written.
    pub storage_size: String,
    /// StorageClass of the volume; `None`: the default.
    pub storage_class: Option<String>,
    /// How it is mounted.
    pub access_mode: AccessMode,
    /// What is downloaded.
    pub download: Download,
    /// Image that downloads.
    pub download_image: String,
    /// Image that serves.
    pub image: String,
    /// How it is started.
    pub start: Start,
    /// Port of its HTTP API.
    pub port: u16,
    /// Number of servers.
    pub replicas: i32,
    /// Whether there is a Service.
    pub expose: bool,
    /// GPUs of each server.
    pub gpus: Option<Wish>,
    /// Tolerations of pods with GPUs.
    pub gpu_tolerations: Vec<Toleration>,
    /// Seconds that a server may take to get ready; `None`: Kubernetes' own.
    pub start_seconds: Option<i32>,
    /// Value of the annotation by which a failed download is tried again.
    pub retry: Option<String>,
    /// What is accepted and has no effect, or may not work.
    pub ignored: Vec<String>,
}

/// What the installation sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Image that downloads.
    pub download_image: String,
    /// Servers' images by framework, where they are not ours.
    pub images: BTreeMap<String, String>,
    /// No download before the volume is bound.
    pub ensure_storage: bool,
    /// How long a volume may take.
    pub storage_timeout: Duration,
    /// Seconds that a server may take to get ready; `None`: Kubernetes' own.
    pub start_seconds: Option<i32>,
    /// Tolerations of pods with GPUs.
    pub gpu_tolerations: Vec<Toleration>,
}

impl Defaults {
    /// From the command line.
    pub fn of(settings: &Settings) -> Self {
        let given = &settings.mlmodels;
        Self {
            download_image: given.download_image.clone(),
            images: given.images.iter().cloned().collect(),
            ensure_storage: given.ensure_storage,
            storage_timeout: Duration::from_secs(given.storage_timeout_seconds),
            start_seconds: given.start_timeout_seconds,
            gpu_tolerations: settings.gpu_tolerations.clone(),
        }
    }
}

/// Reads an MLModel.
pub fn validate(object: &MLModel, defaults: &Defaults) -> Result<Validated, Problems> {
    let mut findings = Findings::default();
    let name = object.name_any();
    let spec = &object.spec;
    let expose = spec.expose.unwrap_or(false);
    check_name(&name, expose, &mut findings);
    let size = amount(&Quantity(spec.storage_size.clone())).filter(|n| *n > 0.0);
    if size.is_none() {
        findings.invalid(
            "spec.storageSize",
            format_args!("{:?} is no size of a volume", spec.storage_size),
            "write it like 5Gi",
        );
    }
    let replicas = spec.replicas.unwrap_or(1);
    if replicas < 0 {
        findings.invalid(
            "spec.replicas",
            format_args!("{replicas} is negative"),
            "give 0 or more",
        );
    }
    let sha256 = spec
        .sha256
        .as_deref()
        .map(|text| text.trim().to_ascii_lowercase())
        .filter(|s| !s.is_empty());
    if let Some(text) = sha256
        .as_ref()
        .filter(|s| s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        findings.invalid(
            "spec.sha256",
            format_args!("{text:?} is no SHA-256"),
            "give 64 hexadecimal digits, as sha256sum prints them",
        );
    }
    let url = url(spec.model_url.as_deref().unwrap_or_default(), &mut findings);
    let (framework, image) = server(spec, defaults, &mut findings);
    let gpus = gpus::wish(object.annotations(), &mut findings);
    let access_mode = spec.access_mode.unwrap_or(AccessMode::ReadWriteOnce);
    if gpus.is_some() && replicas > 1 && access_mode == AccessMode::ReadWriteOnce {
        findings.invalid(
            "spec.replicas",
            format_args!(
                "{replicas} servers with GPUs cannot be bound to the one node that a ReadWriteOnce volume is mounted on"
            ),
            "set accessMode: ReadWriteMany with a storageClassName that has it, or replicas: 1",
        );
    }

    let own_name = url::file_name(&url);
    if let Some((ending, instead)) = own_name.as_ref().and_then(|file| {
        framework
            .unread
            .iter()
            .find(|(ending, _)| file.to_ascii_lowercase().ends_with(ending))
    }) && spec.image.is_none()
    {
        findings.ignored(
            "spec.modelURL",
            format_args!(
                "the server of {} does not read {ending} files; give {instead}",
                framework.name
            ),
        );
    }
    let Findings { problems, ignored } = findings;
    if !problems.is_empty() {
        return Err(problems);
    }
    let source = source(object, &url, sha256.as_deref(), size, access_mode);
    let file = framework
        .file
        .map(str::to_owned)
        .or(own_name)
        .unwrap_or_else(|| UNNAMED.to_owned());
    let folder = format!("{MODELS}/{name}");
    let start = (framework.start)(&Place {
        name: &name,
        folder: &folder,
        file: &file,
    });
    Ok(Validated {
        namespace: object.namespace().unwrap_or_default(),
        owner: owner(object),
        storage_size: spec.storage_size.clone(),
        storage_class: spec.storage_class_name.clone(),
        access_mode,
        download: Download {
            url,
            name: name.clone(),
            file,
            unpack: framework.unpack,
            marker: framework.marker,
            rename: framework.file,
            sha256,
            source,
        },
        download_image: defaults.download_image.clone(),
        image,
        start,
        port: framework.port,
        replicas,
        expose,
        gpus,
        gpu_tolerations: defaults.gpu_tolerations.clone(),
        start_seconds: defaults.start_seconds,
        retry: object.annotations().get(names::RETRY).cloned(),
        name,
        ignored,
    })
}

/// The object as its children's controller.
pub fn owner(object: &MLModel) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..object.controller_owner_ref(&()).unwrap_or_default()
    }
}

/// The Service's name starts with the MLModel's, and must start with a letter (RFC 1035).
fn check_name(name: &str, expose: bool, findings: &mut Findings) {
    let starts = !expose || name.starts_with(|c: char| c.is_ascii_lowercase());
    if !(starts && is_dns_label(name) && name.len() <= NAME) {
        findings.invalid(
            "metadata.name",
            format_args!(
                "{name:?} cannot be part of the children's names: that takes at most {NAME} of a-z, 0-9 and '-', starting with a letter"
            ),
            "create the MLModel under such a name",
        );
    }
}

fn url(given: &str, findings: &mut Findings) -> String {
    if given.trim().is_empty() {
        findings.invalid("spec.modelURL", "is not set", "give the address of the model");
        return String::new();
    }
    url::escaped(given).unwrap_or_else(|wrong| {
        // The address itself may hold a password.
        findings.invalid("spec.modelURL", wrong, "give an address with http, https or ftp");
        String::new()
    })
}

fn server(
    spec: &berth_crds::tmforum::MLModelSpec,
    defaults: &Defaults,
    findings: &mut Findings,
) -> (&'static Framework, String) {
    let name = spec.framework.trim().to_ascii_lowercase();
    let known = FRAMEWORKS.iter().find(|f| f.name == name);
    let given = spec
        .image
        .clone()
        .map(|i| i.trim().to_owned())
        .filter(|i| !i.is_empty());
    let image = given
        .or_else(|| defaults.images.get(&name).cloned())
        .or_else(|| known?.image.map(str::to_owned));
    if image.is_none() {
        let names: Vec<_> = FRAMEWORKS
            .iter()
            .filter(|f| f.image.is_some())
            .map(|f| f.name)
            .collect();
        findings.invalid(
            "spec.framework",
            format_args!("{:?} has no server here", spec.framework),
            format_args!("give spec.image, or one of {}", names.join(", ")),
        );
    }
    (known.unwrap_or(&OTHER), image.unwrap_or_default())
}

/// What the download is known by: a change of any of it is a clean start. Nothing of Berth's own is in it, so that a new version of it
/// starts nothing again.
fn source(object: &MLModel, url: &str, sha256: Option<&str>, size: Option<f64>, access_mode: AccessMode) -> String {
    let spec = &object.spec;
    let parts = [
        url,
        sha256.unwrap_or_default(),
        &size.unwrap_or_default().to_string(),
        spec.storage_class_name.as_deref().unwrap_or("(default)"),
        access_mode.as_str(),
        &spec.framework.trim().to_ascii_lowercase(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    // Half of it is far more than enough to tell sources apart.
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
