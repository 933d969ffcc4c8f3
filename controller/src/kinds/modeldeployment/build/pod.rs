//! The pods: one that validates, and those that serve.

use std::collections::BTreeMap;

use berth_crds::sathvik::keys;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HTTPGetAction, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kinds::modeldeployment::validate::{Server, Validated};

/// Images that are only on the nodes work, and those of registries too.
const PULL: &str = "IfNotPresent";

/// The pod that validates. No Service selects it: it has not the label that they go by.
pub fn validation(model: &Validated) -> PodTemplateSpec {
    let script = model.script.as_deref().unwrap_or_default();
    let container = Container {
        name: keys::VALIDATION_CONTAINER.into(),
        image: Some(model.validator_image.clone()),
        command: Some(vec!["python".into(), literal(script)]),
        ..container(&model.server.uri, &model.validator_resources)
    };
    let labels = BTreeMap::from([(keys::TYPE.to_owned(), keys::VALIDATION.to_owned())]);
    template(
        labels,
        PodSpec {
            restart_policy: Some("Never".into()),
            containers: vec![container],
            ..PodSpec::default()
        },
    )
}

/// A pod that serves.
pub fn server(model: &Validated, server: &Server, labels: BTreeMap<String, String>) -> PodTemplateSpec {
    let runtime = server.runtime;
    let port = i32::from(runtime.port);
    let named = |name: &str, port: u16| ContainerPort {
        name: Some(name.into()),
        container_port: port.into(),
        ..ContainerPort::default()
    };
    let mut ports = vec![named("http", runtime.port)];
    ports.extend(runtime.more.iter().map(|(name, port, _)| named(name, *port)));
    let container = Container {
        name: keys::SERVER_CONTAINER.into(),
        image: Some(server.image.clone()),
        command: Some(runtime.command.iter().map(|c| (*c).to_owned()).collect()),
        args: Some(
            (runtime.args)(&model.name, &server.uri)
                .iter()
                .map(|arg| literal(arg))
                .collect(),
        ),
        ports: Some(ports),
        readiness_probe: Some(Probe {
            http_get: runtime.ready.map(|path| HTTPGetAction {
                path: Some(path.into()),
                port: IntOrString::Int(port),
                ..HTTPGetAction::default()
            }),
            tcp_socket: runtime.ready.is_none().then_some(TCPSocketAction {
                port: IntOrString::Int(port),
                host: None,
            }),
            ..Probe::default()
        }),
        ..container(&server.uri, &server.resources)
    };
    let mut template = template(
        labels,
        PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        },
    );
    if let Some(wish) = &server.gpus {
        wish.put_on(&mut template, keys::SERVER_CONTAINER, &server.gpu_tolerations);
    }
    template
}

fn container(uri: &str, resources: &ResourceRequirements) -> Container {
    Container {
        image_pull_policy: Some(PULL.into()),
        env: Some(vec![EnvVar {
            name: keys::MODEL_URI.into(),
            value: Some(literal(uri)),
            value_from: None,
        }]),
        resources: Some(resources.clone()),
        ..Container::default()
    }
}

fn template(labels: BTreeMap<String, String>, spec: PodSpec) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// Kubernetes replaces `$(NAME)` in values and arguments; nothing in a script's name or an address means that.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}
