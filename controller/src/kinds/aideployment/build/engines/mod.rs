//! One file an engine: what it makes of a spec. To add one, write its file and list it in [`ENGINES`].

mod generic;
mod vllm;

use std::collections::BTreeMap;

use berth_crds::conditions::Reason;
use berth_crds::premlabs::aideployment::{AIDeploymentSpec, Model};
use berth_crds::premlabs::keys;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kinds::problems::Findings;

/// Engines that are served.
pub const ENGINES: &[&Engine] = &[&vllm::ENGINE, &generic::ENGINE];

/// Engines of the original that are not served yet.
pub const NOT_YET: &[&str] = &["localai", "deepspeed-mii", "triton"];

/// An engine.
pub struct Engine {
    /// `spec.engine.name`.
    pub name: &'static str,
    /// Keys of `spec.engine.options` that it reads.
    pub options: &'static [&'static str],
    /// Fields of `spec.models[]` beside `uri` that it reads.
    pub model_fields: &'static [ModelField],
    /// Reads a spec; `None` only where it found a problem.
    pub read: fn(&AIDeploymentSpec, &mut Findings) -> Option<Serving>,
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

/// What an engine needs of its pod, before what is common to all engines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// The engine's container, named `serving`.
    pub container: Container,
    /// Index of the template's container that it takes the place of; `None`: it comes after all of them.
    pub replaces: Option<usize>,
    /// Run after the template's.
    pub init_containers: Vec<Container>,
    /// Come after the template's; one of the template that has the same name stands instead.
    pub volumes: Vec<Volume>,
    /// Port of each endpoint, in their order.
    pub endpoint_ports: Vec<u16>,
    /// Ports of the Service: one or more, distinct.
    pub service_ports: Vec<u16>,
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
        if mounts.iter().any(|m| m.mount_path == mount_path) {
            return;
        }
        mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: mount_path.into(),
            ..VolumeMount::default()
        });
        self.volumes.push(volume);
    }
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

/// The engine's image: the options' parts over the engine's own, unless a template names an image and the options do not.
fn image(spec: &AIDeploymentSpec, container: &Container, repository: &str, tag: &str) -> String {
    let (wanted_repository, wanted_tag) = (option(spec, "imageRepository"), option(spec, "imageTag"));
    match (&container.image, wanted_repository, wanted_tag) {
        (Some(own), None, None) if !own.is_empty() => own.clone(),
        _ => format!(
            "{}:{}",
            wanted_repository.unwrap_or(repository),
            wanted_tag.unwrap_or(tag)
        ),
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
fn one_model<'a>(engine: &str, spec: &'a AIDeploymentSpec, findings: &mut Findings) -> Option<(&'a Model, &'a str)> {
    if spec.models.len() != 1 {
        findings.invalid(
            "spec.models",
            format_args!("{} models are given and {engine} serves exactly one", spec.models.len()),
            "give one",
        );
    }
    let uris: Vec<_> = (0..spec.models.len()).map(|i| uri(spec, i, findings)).collect();
    match (spec.models.as_slice(), uris.as_slice()) {
        ([model], [Some(uri)]) => Some((model, uri)),
        _ => None,
    }
}

/// The uri of a model.
fn uri<'a>(spec: &'a AIDeploymentSpec, index: usize, findings: &mut Findings) -> Option<&'a str> {
    let model = &spec.models[index];
    if let Some(reference) = &model.model_map_ref {
        findings.problems.push(
            Reason::ReferenceNotFound,
            format!("spec.models[{index}].modelMapRef"),
            format_args!(
                "names AIModelMap {:?}, and this version of Berth does not serve AIModelMaps",
                reference.name
            ),
            "write the model's uri here",
        );
        return None;
    }
    let uri = model.uri.as_deref().map(str::trim).filter(|u| !u.is_empty());
    if uri.is_none() {
        findings.invalid(
            format!("spec.models[{index}].uri"),
            "is empty",
            "name the model, e.g. mistralai/Mistral-7B-v0.1",
        );
    }
    uri
}
