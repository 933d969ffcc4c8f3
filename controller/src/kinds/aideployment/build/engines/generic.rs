//! Any program: the first container of the template is the engine.

use berth_crds::conditions::Reason;
use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::keys;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Asked, Engine, Serving, template_containers};
use crate::kinds::status::problems::Findings;

/// Service port where nothing says which port the program listens on, as in the original.
const PORT: u16 = 8000;

/// Any program.
pub const ENGINE: Engine = Engine {
    name: "generic",
    options: &[],
    model_fields: &[],
    variants: None,
    read,
};

fn read(asked: &Asked<'_>, findings: &mut Findings) -> Option<Serving> {
    let spec = asked.spec;
    for (i, model) in spec.models.iter().enumerate() {
        if model.model_map_ref.is_some() {
            findings.problems.push(
                Reason::InvalidSpec,
                format!("spec.models[{i}].modelMapRef"),
                "the engine generic takes no models",
                "pass the model to the container by args or env",
            );
        } else {
            findings.ignored(format_args!("spec.models[{i}]"), "the engine generic takes no models");
        }
    }
    let Some(first) = template_containers(spec).first() else {
        findings.invalid(
            "spec.deployment.template.spec.containers",
            "is empty, and the engine generic runs its first container",
            "give a container with an image",
        );
        return None;
    };
    if first.image.as_deref().is_none_or(str::is_empty) {
        findings.invalid(
            "spec.deployment.template.spec.containers[0].image",
            "is empty",
            "name the image to run",
        );
    }

    let (endpoint_ports, service_ports) = ports(spec, first, findings)?;
    let mut container = first.clone();
    container.name = keys::SERVING_CONTAINER.into();
    if !spec.endpoint.is_empty() {
        let declared = container.ports.get_or_insert_default();
        for port in &service_ports {
            let port = i32::from(*port);
            let is_tcp = |p: &ContainerPort| p.protocol.as_deref().is_none_or(|p| p == "TCP" || p.is_empty());
            if !declared.iter().any(|p| p.container_port == port && is_tcp(p)) {
                declared.push(ContainerPort {
                    container_port: port,
                    ..ContainerPort::default()
                });
            }
        }
    }
    Some(Serving {
        container,
        replaces: Some(0),
        endpoint_ports,
        service_ports,
        ..Serving::default()
    })
}

/// Port of each endpoint, and the Service's ports. An endpoint without a port uses that of the first endpoint that has one (the
/// original's rule), else what the container declares or is probed at.
fn ports(spec: &AIDeploymentSpec, container: &Container, findings: &mut Findings) -> Option<(Vec<u16>, Vec<u16>)> {
    let mut valid = true;
    let mut given = Vec::new();
    for (i, endpoint) in spec.endpoint.iter().enumerate() {
        let port = endpoint.port.map(|p| port_number(p).ok_or(p));
        if let Some(Err(wrong)) = port {
            valid = false;
            findings.invalid(
                format!("spec.endpoint[{i}].port"),
                format_args!("{wrong} is no port"),
                "give the port that the container listens on, 1 to 65535",
            );
        }
        given.push(port.and_then(Result::ok));
    }
    let default = given.iter().flatten().next().copied().or_else(|| listens_on(container));
    if !valid {
        return None;
    }
    let mut endpoint_ports = Vec::new();
    for (i, port) in given.iter().enumerate() {
        match port.or(default) {
            Some(port) => endpoint_ports.push(port),
            None => findings.invalid(
                format!("spec.endpoint[{i}].port"),
                "is not set, and the container has neither a containerPort nor a probe to take it from",
                "give the port that the container listens on",
            ),
        }
    }
    if endpoint_ports.len() < given.len() {
        return None;
    }
    let mut service_ports: Vec<u16> = Vec::new();
    for port in &endpoint_ports {
        if !service_ports.contains(port) {
            service_ports.push(*port);
        }
    }
    if service_ports.is_empty() {
        service_ports.push(default.unwrap_or(PORT));
    }
    Some((endpoint_ports, service_ports))
}

/// The port that the container says it listens on: the first declared one, else one that it is probed at.
fn listens_on(container: &Container) -> Option<u16> {
    let declared = container
        .ports
        .iter()
        .flatten()
        .find_map(|p| port_number(p.container_port));
    let probes = [
        &container.readiness_probe,
        &container.startup_probe,
        &container.liveness_probe,
    ];
    declared.or_else(|| probes.into_iter().flatten().find_map(probe_port))
}

fn probe_port(probe: &Probe) -> Option<u16> {
    let http = probe.http_get.as_ref().map(|h| &h.port);
    let tcp = probe.tcp_socket.as_ref().map(|t| &t.port);
    let grpc = probe.grpc.as_ref().and_then(|g| port_number(g.port));
    match http.or(tcp) {
        Some(IntOrString::Int(port)) => port_number(*port),
        // A name stands for a declared port, and those were looked at first.
        Some(IntOrString::String(text)) => text.parse().ok().and_then(port_number),
        None => grpc,
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p > 0)
}
