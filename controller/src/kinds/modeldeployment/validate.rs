//! Spec → one model in which nothing is left to check. Nothing behind this room reads the spec.
//!
//! All problems are collected: an object is corrected once, not once a problem.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_crds::names;
use berth_crds::sathvik::{ModelDeployment, ModelDeploymentSpec, keys};
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

use super::runtime::{RUNTIMES, Runtime};
use super::served::Served;
use crate::args::Settings;
use crate::kinds::dns::{LABEL, is_dns_label};
use crate::kinds::status::problems::{Findings, Problems};
use crate::kinds::workload::gpus::{self, Wish, amount};

/// Longest name: the Deployment is `inference-<name>`.
const NAME: usize = 53;
/// Percentage of CPU requests that an autoscaler aims at, where the spec does not say.
const TARGET: i32 = 80;

/// A ModelDeployment that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The object as its children's controller.
    pub owner: OwnerReference,
    /// Known by all that is validated: a change of any of it is validated before it is served.
    pub revision: String,
    /// What serves.
    pub server: Server,
    /// What validates; `None`: nothing does.
    pub script: Option<String>,
    /// Its image.
    pub validator_image: String,
    /// Its resources.
    pub validator_resources: ResourceRequirements,
    /// Value of the annotation by which a failed validation is tried again.
    pub retry: Option<String>,
    /// Number of servers, where nothing scales them.
    pub replicas: i32,
    /// How they are scaled; `None`: not by us.
    pub autoscale: Option<Autoscale>,
    /// Whether the README's Service can have its name.
    pub has_alias: bool,
    /// What is accepted and has no effect, or may not work.
    pub ignored: Vec<String>,
}

impl Validated {
    /// Version that is asked for.
    pub fn version(&self) -> &str {
        &self.server.version
    }
}

/// What serves, at one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Version of the model.
    pub version: String,
    /// Where the model is.
    pub uri: String,
    /// Runtime.
    pub runtime: &'static Runtime,
    /// Image.
    pub image: String,
    /// Resources.
    pub resources: ResourceRequirements,
    /// GPUs of each server.
    pub gpus: Option<Wish>,
    /// Tolerations of pods with GPUs.
    pub gpu_tolerations: Vec<Toleration>,
    /// All of the above that is the user's, as it stands on what serves it.
    pub record: String,
}

impl PartialEq for Runtime {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// How servers are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// Fewest.
    pub min: i32,
    /// Most.
    pub max: i32,
    /// Percentage of their CPU requests that they use on average.
    pub target: i32,
}

/// What the installation sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Image that validates.
    pub validator_image: String,
    /// Servers' images by runtime, where they are not ours.
    pub images: BTreeMap<String, String>,
    /// Most servers of one that is scaled and does not say.
    pub max_replicas: i32,
    /// How long a validation may wait for a node.
    pub place_timeout: Duration,
    /// Tolerations of pods with GPUs.
    pub gpu_tolerations: Vec<Toleration>,
}

impl Defaults {
    /// From the command line.
    pub fn of(settings: &Settings) -> Self {
        let given = &settings.model_deployments;
        Self {
            validator_image: given.validator_image.clone(),
            images: given.images.iter().cloned().collect(),
            max_replicas: given.max_replicas,
            place_timeout: Duration::from_secs(given.place_timeout_seconds),
            gpu_tolerations: settings.gpu_tolerations.clone(),
        }
    }
}

/// Reads a ModelDeployment.
pub fn validate(object: &ModelDeployment, defaults: &Defaults) -> Result<Validated, Problems> {
    let mut findings = Findings::default();
    let spec = &object.spec;
    let name = object.name_any();
    if !(is_dns_label(&name) && name.len() <= NAME) {
        findings.invalid(
            "metadata.name",
            format_args!(
                "{name:?} cannot be part of the children's names: that takes at most {NAME} of a-z, 0-9 and '-', with a letter or digit at both ends"
            ),
            "create the ModelDeployment under such a name",
        );
    }
    let has_alias = name.starts_with(|c: char| c.is_ascii_lowercase()) && keys::alias(&name).len() <= LABEL;
    if !has_alias {
        findings.ignored(
            "metadata.name",
            format_args!(
                "{:?} cannot be a Service's name, so there is only {}",
                keys::alias(&name),
                keys::service(&name)
            ),
        );
    }
    if spec.version.trim().is_empty() {
        findings.invalid("spec.version", "is not set", "give the version of the model");
    }
    let server = server(spec, object.annotations(), defaults, &mut findings);
    if let Some((server, instead)) = server.as_ref().and_then(|s| Some((s, (s.runtime.unread)(&s.uri)?))) {
        findings.ignored("spec.modelURI", format_args!("{:?}: {instead}", server.uri));
    }
    check_resources("spec.resources", spec.resources.as_ref(), &mut findings);
    check_resources(
        "spec.validateResources",
        spec.validate_resources.as_ref(),
        &mut findings,
    );
    let script = text(spec.validate_script.as_deref());
    if script.is_none() && spec.validate_resources.is_some() {
        findings.ignored("spec.validateResources", "there is no spec.validateScript");
    }
    let autoscale = autoscale(spec, defaults, &mut findings);
    let replicas = spec.replicas.unwrap_or(1);
    if replicas < 0 {
        findings.invalid(
            "spec.replicas",
            format_args!("{replicas} is negative"),
            "give 0 or more",
        );
    }
    let Findings { problems, ignored } = findings;
    let Some(server) = server.filter(|_| problems.is_empty()) else {
        return Err(problems);
    };
    let validator_resources = spec
        .validate_resources
        .clone()
        .or_else(|| spec.resources.clone())
        .unwrap_or_default();
    let revision = revision(spec, &server, script.as_deref(), &validator_resources);
    let record = Served::of(revision.clone(), spec, object.annotations()).to_string();
    Ok(Validated {
        namespace: object.namespace().unwrap_or_default(),
        owner: owner(object),
        revision,
        server: Server { record, ..server },
        script,
        validator_image: defaults.validator_image.clone(),
        validator_resources,
        retry: object.annotations().get(names::RETRY).cloned(),
        replicas,
        autoscale,
        has_alias,
        name,
        ignored,
    })
}

/// The object as its children's controller.
pub fn owner(object: &ModelDeployment) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..object.controller_owner_ref(&()).unwrap_or_default()
    }
}

fn text(given: Option<&str>) -> Option<String> {
    given.map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned)
}

/// What serves a spec; `None`: something is wrong with it, which the findings tell. The record is still to be written.
pub fn server(
    spec: &ModelDeploymentSpec,
    annotations: &BTreeMap<String, String>,
    defaults: &Defaults,
    findings: &mut Findings,
) -> Option<Server> {
    let uri = text(Some(&spec.model_uri));
    if uri.is_none() {
        findings.invalid("spec.modelURI", "is not set", "give the address of the model");
    }
    let runtime = RUNTIMES.iter().find(|r| r.name == spec.runtime.trim());
    if runtime.is_none() {
        let known: Vec<_> = RUNTIMES.iter().map(|r| r.name).collect();
        findings.invalid(
            "spec.runtime",
            format_args!("{:?} is unknown", spec.runtime),
            format_args!("give one of {}", known.join(", ")),
        );
    }
    let resources = spec.resources.clone().unwrap_or_default();
    let mut wish = gpus::wish(annotations, findings);
    if let (Some(wish), false) = (&mut wish, annotations.contains_key(names::GPU_COUNT)) {
        // The spec's own number, where only the kind of GPU is asked for by annotation.
        let own = [&resources.limits, &resources.requests]
            .into_iter()
            .find_map(|a| a.as_ref()?.get(names::NVIDIA_GPU)?.0.trim().parse().ok());
        wish.count = own.filter(|n| *n > 0).unwrap_or(wish.count);
    }
    let (uri, runtime) = (uri?, runtime?);
    let image = text(spec.runtime_image.as_deref())
        .or_else(|| defaults.images.get(runtime.name).cloned())
        .unwrap_or_else(|| runtime.image.to_owned());
    Some(Server {
        version: spec.version.trim().to_owned(),
        uri,
        runtime,
        image,
        resources,
        gpus: wish,
        gpu_tolerations: defaults.gpu_tolerations.clone(),
        record: String::new(),
    })
}

fn check_resources(path: &str, resources: Option<&ResourceRequirements>, findings: &mut Findings) {
    let Some(resources) = resources else { return };
    for (field, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, quantity) in amounts.iter().flatten() {
            if amount(quantity).is_none_or(|n| n < 0.0) {
                findings.invalid(
                    format!("{path}.{field}.{name}"),
                    format_args!("{:?} is no amount", quantity.0),
                    "write it like 500m, 2 or 4Gi",
                );
            }
        }
    }
}

fn autoscale(spec: &ModelDeploymentSpec, defaults: &Defaults, findings: &mut Findings) -> Option<Autoscale> {
    let bounds = [
        ("spec.minReplicas", spec.min_replicas),
        ("spec.maxReplicas", spec.max_replicas),
        (
            "spec.targetCPUUtilizationPercentage",
            spec.target_cpu_utilization_percentage,
        ),
    ];
    for (path, given) in bounds {
        match given {
            Some(n) if n < 1 => findings.invalid(path, format_args!("{n} is too small"), "give 1 or more"),
            Some(_) if spec.autoscale != Some(true) => findings.ignored(path, "spec.autoscale is not true"),
            _ => {}
        }
    }
    if spec.autoscale != Some(true) {
        return None;
    }
    if spec.replicas.is_some() {
        findings.ignored("spec.replicas", "spec.autoscale is true");
    }
    let cpu = |amounts: &Option<BTreeMap<String, _>>| amounts.as_ref().is_some_and(|a| a.contains_key("cpu"));
    if !spec
        .resources
        .as_ref()
        .is_some_and(|r| cpu(&r.requests) || cpu(&r.limits))
    {
        findings.ignored(
            "spec.autoscale",
            "spec.resources has no cpu, of which a percentage could be measured",
        );
    }
    let min = spec.min_replicas.unwrap_or(1);
    let max = spec.max_replicas.unwrap_or_else(|| defaults.max_replicas.max(min));
    if max < min {
        findings.invalid(
            "spec.maxReplicas",
            format_args!("{max} is less than spec.minReplicas, {min}"),
            "give at least as many",
        );
    }
    Some(Autoscale {
        min,
        max,
        target: spec.target_cpu_utilization_percentage.unwrap_or(TARGET),
    })
}

/// Nothing of Berth's own is in it, so that a new version of it validates nothing again.
fn revision(
    spec: &ModelDeploymentSpec,
    server: &Server,
    script: Option<&str>,
    validator: &ResourceRequirements,
) -> String {
    let json =
        |r: &ResourceRequirements| serde_json::to_string(r).expect("plain data with text keys always serialises");
    let (resources, validator) = (json(&server.resources), json(validator));
    let gpus = server.gpus.as_ref().map(|w| format!("{} {:?}", w.count, w.asked));
    let image = text(spec.runtime_image.as_deref());
    let parts = [
        server.uri.as_str(),
        server.runtime.name,
        image.as_deref().unwrap_or_default(),
        server.version.as_str(),
        script.unwrap_or_default(),
        resources.as_str(),
        validator.as_str(),
        gpus.as_deref().unwrap_or_default(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    // Half of it is far more than enough to tell revisions apart.
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
