//! One file an engine: what it makes of a spec. To add one, write its file and list it in [`ENGINES`].

mod deepspeed_mii;
mod download;
mod generic;
mod localai;
mod names;
mod triton;
mod vllm;

use std::collections::BTreeMap;

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::aimodelmap::VariantList;
use berth_crds::premlabs::keys;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, HTTPGetAction, LocalObjectReference, Probe, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::aideployment::validate::{Defaults, Image};
use crate::kinds::status::problems::Findings;

/// Engines that are served.
pub const ENGINES: &[&Engine] = &[
    &localai::ENGINE,
    &vllm::ENGINE,
    &deepspeed_mii::ENGINE,
    &triton::ENGINE,
    &generic::ENGINE,
];

/// An engine.
pub struct Engine {
    /// `spec.engine.name`.
    pub name: &'static str,
    /// Keys of `spec.engine.options` that it reads.
    pub options: &'static [&'static str],
    /// Fields of `spec.models[]` beside `uri` that it reads.
    pub model_fields: &'static [ModelField],
    /// The list of an AIModelMap that its references are looked up in; `None`: it takes no models by name.
    pub variants: Option<VariantList>,
    /// Reads what is asked of it; `None` only where it found a problem.
    pub read: fn(&Asked<'_>, &mut Findings) -> Option<Serving>,
}

/// What an AIDeployment asks of its engine.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Name of the AIDeployment.
    pub name: &'a str,
    /// Its spec. The models are below, with what their maps add.
    pub spec: &'a AIDeploymentSpec,
    /// Models in the order of the spec.
    pub models: &'a [ResolvedModel],
    /// Whole GPUs of a pod, 0 where it has none.
    pub gpus: u32,
    /// What the installation sets.
    pub defaults: &'a Defaults,
}

/// Fields of a model that only some engines read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ModelField {
    Uri,
    Quantization,
    DataType,
    EngineConfigFile,
}

impl ModelField {
    /// As in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uri => "uri",
            Self::Quantization => "quantization",
            Self::DataType => "dataType",
            Self::EngineConfigFile => "engineConfigFile",
        }
    }
}

/// What an engine needs of its pod, before what is common to all engines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// The engine's container, named `serving`.
    pub container: Container,
    /// Index of the template's container that it takes the place of; `None`: it comes after all of them.
    pub replaces: Option<usize>,
    /// Environment that comes after `spec.env` and wins over it.
    pub env: Vec<EnvVar>,
    /// Pull secrets of a pod whose template names none.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Run after the template's.
    pub init_containers: Vec<Container>,
    /// Come after the template's; one of the template that has the same name stands instead.
    pub volumes: Vec<Volume>,
    /// Files for the engine, rendered into the ConfigMap of [`config_map_name`].
    pub config_files: Vec<ConfigFile>,
    /// Port of each endpoint, in their order.
    pub endpoint_ports: Vec<u16>,
    /// Ports of the Service: one or more, distinct.
    pub service_ports: Vec<u16>,
}

/// A configuration file of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Key in the ConfigMap: `<engine>-<variant>-engineConfigFile`, as in the ConfigMaps of AIModelMaps.
    pub key: String,
    /// Text of the file.
    pub text: String,
}

/// Name of the ConfigMap with the engine's files. Not the AIDeployment's own: AIModelMaps make ConfigMaps of their names.
pub fn config_map_name(aideployment: &str) -> String {
    format!("{aideployment}-engine-config")
}

impl Serving {
    /// An engine with one port of its own for everything.
    fn on_port(port: u16, spec: &AIDeploymentSpec, findings: &mut Findings) -> Self {
        for (i, endpoint) in spec.endpoint.iter().enumerate() {
            if endpoint.port.is_some_and(|p| p != i32::from(port)) {
                findings.ignored(
                    format_args!("spec.endpoint[{i}].port"),
                    format_args!("this engine listens on {port}"),
                );
            }
        }
        Self {
            endpoint_ports: vec![port; spec.endpoint.len()],
            service_ports: vec![port],
            ..Self::default()
        }
    }

    /// Starts from the template's own container of the name `serving`, where there is one.
    fn on_template(mut self, spec: &AIDeploymentSpec) -> Self {
        let containers = template_containers(spec);
        self.replaces = containers.iter().position(|c| c.name == keys::SERVING_CONTAINER);
        self.container = match self.replaces {
            Some(at) => containers[at].clone(),
            None => Container {
                name: keys::SERVING_CONTAINER.into(),
                ..Container::default()
            },
        };
        self
    }

    /// A directory of the engine in a volume of its own, unless the template mounts something there already.
    fn with_volume(&mut self, volume: Volume, mount_path: &str) {
        let mounts = self.container.volume_mounts.get_or_insert_default();
        if mounts.iter().any(|m| m.mount_path.trim_end_matches('/') == mount_path) {
            return;
        }
        mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: mount_path.into(),
            ..VolumeMount::default()
        });
        self.volumes.push(volume);
    }

    /// Processes of one engine, one for each GPU, exchange data through shared memory; what a container has by itself (64 MiB) is too little.
    fn shared_memory(&mut self, gpus: u32) {
        if gpus < 2 {
            return;
        }
        let memory = EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            ..EmptyDirVolumeSource::default()
        };
        self.with_volume(
            Volume {
                name: "dshm".into(),
                empty_dir: Some(memory),
                ..Volume::default()
            },
            "/dev/shm",
        );
    }

    /// The engine's image, always looked up anew unless the template says otherwise.
    fn image(&mut self, asked: &Asked<'_>, engine: &str, repository: &str, tag: &str) {
        let container = &mut self.container;
        container.image = Some(image(asked, engine, container, repository, tag));
        container.image_pull_policy.get_or_insert_with(|| "Always".into());
    }

    /// The engine's arguments come before the template's.
    fn args(&mut self, mut args: Vec<String>) {
        args.extend(self.container.args.take().unwrap_or_default());
        self.container.args = Some(args);
    }

    /// The engine's probes, where the template has none of its own.
    fn probes(&mut self, probes: Probes) {
        let container = &mut self.container;
        container.startup_probe.get_or_insert(probes.startup);
        container.readiness_probe.get_or_insert(probes.readiness);
        container.liveness_probe.get_or_insert(probes.liveness);
    }
}

/// The probes of an engine.
struct Probes {
    startup: Probe,
    readiness: Probe,
    liveness: Probe,
}

/// Containers of the template, none where there is no template.
pub fn template_containers(spec: &AIDeploymentSpec) -> &[Container] {
    spec.deployment
        .as_ref()
        .and_then(|d| d.template.as_ref())
        .and_then(|t| t.spec.as_ref())
        .map_or(&[], |s| &s.containers)
}

/// A non-empty option.
fn option<'a>(spec: &'a AIDeploymentSpec, key: &str) -> Option<&'a str> {
    let options: Option<&BTreeMap<String, String>> = spec.engine.as_ref().map(|e| &e.options);
    options?.get(key).map(|v| v.trim()).filter(|v| !v.is_empty())
}

/// The engine's image: the options' parts over the installation's, over the engine's own, unless a template names an image and the options
/// do not.
fn image(asked: &Asked<'_>, engine: &str, container: &Container, repository: &str, tag: &str) -> String {
    let (wanted_repository, wanted_tag) = (option(asked.spec, "imageRepository"), option(asked.spec, "imageTag"));
    match (&container.image, wanted_repository, wanted_tag) {
        (Some(own), None, None) if !own.is_empty() => own.clone(),
        _ => {
            let installed = asked.defaults.images.get(engine);
            let of = |part: fn(&Image) -> &Option<String>| installed.and_then(|i| part(i).as_deref());
            format!(
                "{}:{}",
                wanted_repository.or(of(|i| &i.repository)).unwrap_or(repository),
                wanted_tag.or(of(|i| &i.tag)).unwrap_or(tag)
            )
        }
    }
}

/// An HTTP probe with the API's own timings.
fn http_probe(path: &str, port: u16) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(port.into()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// The one model of an engine that serves exactly one, with its uri.
fn one_model<'a>(engine: &str, asked: &Asked<'a>, findings: &mut Findings) -> Option<(&'a ResolvedModel, &'a str)> {
    // Those of the spec: one that could not be resolved is a problem of its own.
    let given = asked.spec.models.len();
    if given != 1 {
        findings.invalid(
            "spec.models",
            format_args!("{given} models are given and {engine} serves exactly one"),
            "give one",
        );
    }
    let uris: Vec<_> = asked.models.iter().map(|model| uri(model, findings)).collect();
    match (asked.models, uris.as_slice()) {
        ([model], [Some(uri)]) => Some((model, uri)),
        _ => None,
    }
}

/// The uri of a model.
fn uri<'a>(model: &'a ResolvedModel, findings: &mut Findings) -> Option<&'a str> {
    let uri = model.uri.as_deref();
    if uri.is_none() {
        findings.invalid(
            model.field(ModelField::Uri),
            "is empty",
            "name the model, e.g. mistralai/Mistral-7B-v0.1",
        );
    }
    uri
}

#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests;
