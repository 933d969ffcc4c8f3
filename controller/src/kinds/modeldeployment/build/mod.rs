//! Validated model + what there is → the children as they should be. Pure.

mod pod;

use std::collections::BTreeMap;

use berth_crds::names;
use berth_crds::sathvik::keys;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
    ResourceMetricSource,
};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fetch::Observed;
use super::stage::Stage;
use super::validate::{Autoscale, Defaults, Server, Validated};
use crate::kinds::children::wanted::Wanted;

/// Times that the validation's pods may fail before the Job does.
const BACKOFF_LIMIT: i32 = 1;

/// The children of one ModelDeployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    /// What validates. It is never changed: its template cannot be.
    pub job: Wanted<Job>,
    /// The servers.
    pub deployment: Wanted<Deployment>,
    /// Their address.
    pub service: Wanted<Service>,
    /// Their address as the original's README has it.
    pub alias: Wanted<Service>,
    /// What scales them.
    pub autoscaler: Wanted<HorizontalPodAutoscaler>,
}

/// The children as they should be.
pub fn build(model: &Validated, stage: &Stage, observed: &Observed, defaults: &Defaults) -> Children {
    let job = match stage {
        Stage::Begin => Wanted::like(job(model)),
        Stage::Clearing => Wanted::Gone,
        Stage::Running | Stage::Unplaced(_) | Stage::Failed(_) | Stage::Passed => Wanted::Left,
    };
    // Until a version has passed, what was served before goes on as it was.
    let served = match stage {
        Stage::Passed => Some(model.server.clone()),
        Stage::Begin | Stage::Clearing | Stage::Running | Stage::Unplaced(_) | Stage::Failed(_) => {
            observed.record().and_then(|record| record.server(defaults))
        }
    };
    let is_held = observed
        .deployment
        .as_ref()
        .is_some_and(|d| d.annotation(names::ADOPTED).is_some());
    let Some(server) = served else {
        return Children {
            job,
            deployment: Wanted::Left,
            service: Wanted::Left,
            alias: Wanted::Left,
            autoscaler: match model.autoscale {
                Some(_) => Wanted::Left,
                None => Wanted::Gone,
            },
        };
    };
    Children {
        job,
        deployment: match is_held && *stage != Stage::Passed {
            // Its pods are still the original's, and applying ours would restart them for a version that is on its way out.
            true => Wanted::Left,
            false => Wanted::like(deployment(model, &server, observed)),
        },
        service: Wanted::like(service(model, &server)),
        alias: match model.has_alias {
            true => Wanted::like(alias(model, &server)),
            false => Wanted::Left,
        },
        autoscaler: match &model.autoscale {
            Some(scale) => Wanted::like(autoscaler(model, scale)),
            None => Wanted::Gone,
        },
    }
}

fn metadata(model: &Validated, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(model.namespace.clone()),
        ..ObjectMeta::default()
    }
}

fn labels(model: &Validated, type_: &str) -> BTreeMap<String, String> {
    let pairs = [(keys::MODEL, model.name.as_str()), (keys::TYPE, type_)];
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

fn annotation(key: &str, value: &str) -> BTreeMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

fn job(model: &Validated) -> Job {
    let mut annotations = annotation(names::REVISION, &model.revision);
    if let Some(retry) = &model.retry {
        annotations.insert(names::RETRY.into(), retry.clone());
    }
    Job {
        metadata: ObjectMeta {
            labels: Some(labels(model, keys::VALIDATION)),
            annotations: Some(annotations),
            ..metadata(model, keys::job(&model.name))
        },
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            template: pod::validation(model),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// What finds the servers' pods: the original's, which cannot be changed in place.
fn selector(model: &Validated) -> BTreeMap<String, String> {
    annotation(keys::MODEL, &model.name)
}

fn deployment(model: &Validated, server: &Server, observed: &Observed) -> Deployment {
    let is_scaled = model.autoscale.is_some() || observed.driver.is_some();
    Deployment {
        metadata: ObjectMeta {
            labels: Some(labels(model, keys::INFERENCE)),
            annotations: Some(annotation(names::SERVED, &server.record)),
            ..metadata(model, keys::server(&model.name))
        },
        spec: Some(DeploymentSpec {
            replicas: (!is_scaled).then_some(model.replicas),
            selector: LabelSelector {
                match_labels: Some(selector(model)),
                ..LabelSelector::default()
            },
            template: pod::server(model, server, selector(model)),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn service(model: &Validated, server: &Server) -> Service {
    Service {
        metadata: ObjectMeta {
            annotations: Some(annotation(names::SERVED, &server.record)),
            ..metadata(model, keys::service(&model.name))
        },
        ..address(model, server, keys::SERVICE_PORT)
    }
}

fn alias(model: &Validated, server: &Server) -> Service {
    Service {
        metadata: metadata(model, keys::alias(&model.name)),
        ..address(model, server, keys::ALIAS_PORT)
    }
}

fn address(model: &Validated, server: &Server, port: i32) -> Service {
    let runtime = server.runtime;
    let one = |name: &str, port: i32, target: u16| ServicePort {
        name: Some(name.into()),
        port,
        target_port: Some(IntOrString::Int(target.into())),
        ..ServicePort::default()
    };
    let mut ports = vec![one("http", port, runtime.port)];
    let more = runtime.more.iter().filter(|(.., is_served)| *is_served);
    ports.extend(more.map(|(name, port, _)| one(name, (*port).into(), *port)));
    Service {
        metadata: ObjectMeta::default(),
        spec: Some(ServiceSpec {
            ports: Some(ports),
            selector: Some(selector(model)),
            type_: Some("ClusterIP".into()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn autoscaler(model: &Validated, scale: &Autoscale) -> HorizontalPodAutoscaler {
    let name = keys::server(&model.name);
    HorizontalPodAutoscaler {
        metadata: ObjectMeta {
            labels: Some(annotation(keys::MODEL, &model.name)),
            ..metadata(model, name.clone())
        },
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".into()),
                kind: "Deployment".into(),
                name,
            },
            min_replicas: Some(scale.min),
            max_replicas: scale.max,
            metrics: Some(vec![MetricSpec {
                type_: "Resource".into(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".into(),
                    target: MetricTarget {
                        type_: "Utilization".into(),
                        average_utilization: Some(scale.target),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]),
            ..HorizontalPodAutoscalerSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests;
