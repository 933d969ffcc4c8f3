//! Spec → one model in which nothing is left to check. Nothing behind this room reads the spec.
//!
//! All problems are collected: an object is corrected once, not once a problem.

mod cache;
mod engine;
mod gateway;
mod gpu;
mod metadata;
mod names;
mod probes;
mod quantities;
mod resources;
mod startup;

use std::collections::BTreeMap;

use berth_crds::premlabs::AIDeployment;
use berth_crds::premlabs::aideployment::{
    AIDeploymentSpec, DeploymentOptions, IngressOptions, ParentReference, PlacementPolicy, ServiceOptions,
};
use berth_crds::premlabs::keys;
use k8s_openapi::api::apps::v1::DeploymentStrategy;
use k8s_openapi::api::core::v1::{EnvVar, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

use super::build::engines::{Serving, template_containers};
use super::models::Maps;
pub use crate::args::Image;
use crate::args::Settings;
use crate::kinds::status::problems::{Findings, Problems};
use crate::kinds::workload::gpus;

pub use gpu::{Placed, Placing};

/// An AIDeployment that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Name, and so that of every child.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The object as its children's controller.
    pub owner: OwnerReference,
    /// Wanted number of pods.
    pub replicas: i32,
    /// The engine, its container complete with arguments, environment, probes and resources.
    pub serving: Serving,
    /// The template's pod spec, to build on.
    pub base: PodSpec,
    /// Labels of the pods: template's, then those of the options.
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations of the pods: template's, then those of the options.
    pub pod_annotations: BTreeMap<String, String>,
    /// Node labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Whether the pods use GPUs.
    pub uses_gpus: bool,
    /// Whether the pods need NVIDIA's container runtime.
    pub needs_nvidia_runtime: bool,
    /// What pods with GPUs tolerate besides.
    pub gpu_tolerations: Vec<Toleration>,
    /// Who picks the node, and by what.
    pub placing: Placing,
    /// Compute capability from which on a node is rather taken.
    pub rather_capability: Option<(i32, i32)>,
    /// How pods are replaced; `None`: nothing is said.
    pub strategy: Option<DeploymentStrategy>,
    /// How long the Deployment waits for progress; `None`: as long as the API does.
    pub progress_deadline: Option<i32>,
    /// Hosts of the Ingress; the port of each is in `serving`.
    pub hosts: Vec<String>,
    /// Labels, annotations and type of the Service.
    pub service: ServiceOptions,
    /// Labels, annotations, class and TLS of the Ingress.
    pub ingress: IngressOptions,
    /// Gateways that publish the hosts instead of an Ingress; none: an Ingress does.
    pub gateways: Vec<ParentReference>,
    /// What is accepted and has no effect.
    pub ignored: Vec<String>,
}

/// What the spec leaves to the installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Who places pods that ask for a GPU.
    pub policy: PlacementPolicy,
    /// Images by engine, where they are not the original's.
    pub images: BTreeMap<String, Image>,
    /// What pods with GPUs tolerate besides.
    pub gpu_tolerations: Vec<Toleration>,
}

impl Defaults {
    /// Those of an installation.
    pub fn of(settings: &Settings) -> Self {
        Self {
            policy: settings.placement_default,
            images: settings.engine_images.iter().cloned().collect(),
            gpu_tolerations: settings.gpu_tolerations.clone(),
        }
    }
}

/// What an AIDeployment is read with.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// What the installation sets.
    pub defaults: &'a Defaults,
    /// AIModelMaps that the spec names.
    pub maps: &'a Maps,
}

/// Reads an AIDeployment.
pub fn validate(object: &AIDeployment, around: Surroundings<'_>) -> Result<Validated, Problems> {
    let mut findings = Findings::default();
    let name = object.metadata.name.clone().unwrap_or_default();
    names::service_name(&name, &mut findings);
    let spec = &object.spec;
    let none = DeploymentOptions::default();
    let options = spec.deployment.as_ref().unwrap_or(&none);

    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let own = (namespace, name.clone());
    let serving = engine::read(&own, spec, around, &mut findings);
    other_serving_containers(spec, serving.as_ref(), &mut findings);
    for (i, endpoint) in spec.endpoint.iter().enumerate() {
        names::host(&endpoint.domain, &format!("spec.endpoint[{i}].domain"), &mut findings);
    }
    metadata::check(spec, &mut findings);
    let replicas = options.replicas.unwrap_or(1);
    if replicas < 0 {
        findings.invalid(
            "spec.deployment.replicas",
            format_args!("{replicas} is negative"),
            "give 0 or more",
        );
    }
    if options.labels.get(keys::AI_DEPLOYMENT).is_some_and(|v| *v != name) {
        findings.ignored(
            format_args!("spec.deployment.labels[{}]", keys::AI_DEPLOYMENT),
            "the label is what the selector finds the pods by",
        );
    }

    // Checks go on without an engine, so that its problems do not hide others.
    let mut serving_or_none = serving.clone().unwrap_or_default();
    probes::overlay(
        &mut serving_or_none.container,
        options,
        serving.is_some(),
        &mut findings,
    );
    let progress_deadline = startup::budget(&mut serving_or_none.container, options, &mut findings);
    let own_resources = serving_or_none.container.resources.take();
    let template = options.template.clone().unwrap_or_default();
    let mut base = template.spec.unwrap_or_default();
    if let (Some(cache), Some(engine), true) = (&spec.cache, &spec.engine, serving.is_some()) {
        cache::mount(cache, &engine.name, &mut serving_or_none, &mut base, &mut findings);
    }
    quantities::check(&spec.env, &base, &mut findings);
    let gateways = gateway::parents(spec, &mut findings);
    let node_selector = overlaid(base.node_selector.clone(), &options.node_selector);
    let mut resources = resources::merged(own_resources, options.resources.as_ref(), &mut findings);
    let gpus = gpu::count(options, &resources, &mut findings);
    gpus::set_gpus(&mut resources, &gpus);
    resources::claims(&resources, &base, &mut findings);
    let Placed { by: placing, rather } =
        gpu::placing(options, &gpus, around.defaults.policy, &node_selector, &mut findings);

    let Findings { problems, ignored } = findings;
    if !problems.is_empty() {
        return Err(problems);
    }
    let last = std::mem::take(&mut serving_or_none.env);
    let container = &mut serving_or_none.container;
    container.resources = (resources != Default::default()).then_some(resources);
    container.env = Some(last_of_each(
        container
            .env
            .take()
            .into_iter()
            .flatten()
            .chain(spec.env.clone())
            .chain(last),
    ));
    container.args.get_or_insert_default().extend(spec.args.clone());

    let template_metadata = template.metadata.unwrap_or_default();
    Ok(Validated {
        namespace: own.0,
        owner: OwnerReference {
            block_owner_deletion: Some(true),
            ..object.controller_owner_ref(&()).unwrap_or_default()
        },
        name,
        replicas,
        serving: serving_or_none,
        base,
        pod_labels: overlaid(template_metadata.labels, &options.labels),
        pod_annotations: overlaid(template_metadata.annotations, &options.annotations),
        node_selector,
        uses_gpus: !gpus.is_empty(),
        needs_nvidia_runtime: gpu::needs_nvidia_runtime(&gpus),
        gpu_tolerations: around.defaults.gpu_tolerations.clone(),
        placing,
        rather_capability: rather,
        strategy: options.strategy.clone(),
        progress_deadline,
        hosts: spec.endpoint.iter().map(|e| e.domain.clone()).collect(),
        service: spec.service.clone().unwrap_or_default(),
        ingress: spec.ingress.clone().unwrap_or_default(),
        gateways,
        ignored,
    })
}

/// The name `serving` belongs to one container.
fn other_serving_containers(spec: &AIDeploymentSpec, serving: Option<&Serving>, findings: &mut Findings) {
    let Some(serving) = serving else { return };
    for (i, container) in template_containers(spec).iter().enumerate() {
        if container.name == keys::SERVING_CONTAINER && serving.replaces != Some(i) {
            findings.invalid(
                format!("spec.deployment.template.spec.containers[{i}].name"),
                format_args!("{:?} is the name of the engine's container", keys::SERVING_CONTAINER),
                "give this container another name",
            );
        }
    }
}

/// A variable that is set twice has its last value, as in a pod; applying it twice is not possible.
fn last_of_each(env: impl Iterator<Item = EnvVar>) -> Vec<EnvVar> {
    let mut kept: Vec<EnvVar> = Vec::new();
    for variable in env {
        kept.retain(|v| v.name != variable.name);
        kept.push(variable);
    }
    kept
}

fn overlaid(base: Option<BTreeMap<String, String>>, over: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut map = base.unwrap_or_default();
    map.extend(over.clone());
    map
}

#[cfg(test)]
mod tests;
