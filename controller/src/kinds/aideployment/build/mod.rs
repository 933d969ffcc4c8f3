//! Validated model + what was observed → the children as they should be. Pure.

pub mod engines;
mod http_route;
mod node_affinity;
mod pod;
mod strategy;

use std::collections::BTreeMap;

use berth_crds::premlabs::aideployment::ServiceType;
use berth_crds::premlabs::keys;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    IngressTLS, ServiceBackendPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use self::engines::config_map_name;
use super::fetch::Observed;
use super::validate::Validated;

/// The children of one AIDeployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    /// Files of the engine, where it has any.
    pub config_map: Option<ConfigMap>,
    /// The pods.
    pub deployment: Deployment,
    /// Their address in the cluster.
    pub service: Service,
    /// Their address outside; absent without endpoints, and where Gateways publish them.
    pub ingress: Option<Ingress>,
    /// HTTPRoutes to Gateways, one a port.
    pub http_routes: Vec<Value>,
}

/// The children as they should be.
pub fn build(model: &Validated, observed: &Observed) -> Children {
    Children {
        config_map: config_map(model),
        deployment: deployment(model, observed),
        service: service(model),
        ingress: ingress(model),
        http_routes: http_route::http_routes(model),
    }
}

/// Who owns the number of replicas: the spec, unless a HorizontalPodAutoscaler drives the Deployment. `None` leaves it to that one. What
/// does not exist yet it cannot drive.
fn replicas(model: &Validated, observed: &Observed) -> Option<i32> {
    let is_driven = observed.autoscaler.is_some() && observed.deployment.is_some();
    (!is_driven).then_some(model.replicas)
}

fn config_map(model: &Validated) -> Option<ConfigMap> {
    let files = &model.serving.config_files;
    let data = files.iter().map(|file| (file.key.clone(), file.text.clone()));
    (!files.is_empty()).then(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(config_map_name(&model.name)),
            ..metadata(model)
        },
        data: Some(data.collect()),
        ..ConfigMap::default()
    })
}

fn deployment(model: &Validated, observed: &Observed) -> Deployment {
    Deployment {
        metadata: metadata(model),
        spec: Some(DeploymentSpec {
            replicas: replicas(model, observed),
            selector: LabelSelector {
                match_labels: Some(selector(&model.name)),
                ..LabelSelector::default()
            },
            template: pod::template(model),
            strategy: strategy::strategy(model, observed),
            progress_deadline_seconds: model.progress_deadline,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// What finds the pods. The one label alone, so that other labels may change while old pods still serve.
pub fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(keys::AI_DEPLOYMENT.to_owned(), name.to_owned())])
}

fn service(model: &Validated) -> Service {
    let ports = &model.serving.service_ports;
    let mut metadata = metadata(model);
    metadata.labels = Some(model.service.labels.clone());
    metadata.annotations = Some(with_name(model, &model.service.annotations));
    Service {
        metadata,
        spec: Some(ServiceSpec {
            ports: Some(
                ports
                    .iter()
                    .map(|port| ServicePort {
                        // Kubernetes wants names only where there is more than one.
                        name: (ports.len() > 1).then(|| format!("port-{port}")),
                        port: i32::from(*port),
                        target_port: Some(IntOrString::Int(i32::from(*port))),
                        ..ServicePort::default()
                    })
                    .collect(),
            ),
            selector: Some(selector(&model.name)),
            type_: model.service.type_.map(|t| service_type(t).to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn service_type(type_: ServiceType) -> &'static str {
    match type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    }
}

fn ingress(model: &Validated) -> Option<Ingress> {
    if model.hosts.is_empty() || !model.gateways.is_empty() {
        return None;
    }
    let rule = |host: &String, port: u16| IngressRule {
        host: Some(host.clone()),
        http: Some(HTTPIngressRuleValue {
            paths: vec![HTTPIngressPath {
                path: Some("/".into()),
                path_type: "Prefix".into(),
                backend: IngressBackend {
                    service: Some(IngressServiceBackend {
                        name: model.name.clone(),
                        port: Some(ServiceBackendPort {
                            number: Some(i32::from(port)),
                            name: None,
                        }),
                    }),
                    resource: None,
                },
            }],
        }),
    };
    let hosts = model.hosts.iter().zip(&model.serving.endpoint_ports);
    let tls = IngressTLS {
        hosts: Some(model.hosts.clone()),
        secret_name: Some(format!("{}-tls", model.name)),
    };
    let mut metadata = metadata(model);
    metadata.labels = Some(model.ingress.labels.clone());
    metadata.annotations = Some(with_name(model, &model.ingress.annotations));
    Some(Ingress {
        metadata,
        spec: Some(IngressSpec {
            rules: Some(hosts.map(|(host, port)| rule(host, *port)).collect()),
            tls: (model.ingress.tls == Some(true)).then(|| vec![tls]),
            ingress_class_name: model.ingress.class_name.clone().filter(|c| !c.is_empty()),
            ..IngressSpec::default()
        }),
        status: None,
    })
}

fn metadata(model: &Validated) -> ObjectMeta {
    ObjectMeta {
        name: Some(model.name.clone()),
        namespace: Some(model.namespace.clone()),
        ..ObjectMeta::default()
    }
}

/// Service and Ingress name the AIDeployment by annotation; the user's own annotations win.
fn with_name(model: &Validated, annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = selector(&model.name);
    all.extend(annotations.clone());
    all
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fields_tests;
