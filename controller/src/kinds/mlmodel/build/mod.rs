//! Validated model + how far it is → the children as they should be. Pure.

mod pod;

use std::collections::BTreeMap;

use berth_crds::names;
use berth_crds::tmforum::keys;
use berth_crds::tmforum::mlmodel::AccessMode;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Service, ServicePort, ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fetch::Observed;
use super::stage::{Failure, Stage, is_bound};
use super::validate::Validated;
use crate::kinds::children::wanted::Wanted;
use crate::kinds::workload::gpus::amount;

/// Times that the download's pods may fail before the Job does.
const BACKOFF_LIMIT: i32 = 3;
/// Seconds that a finished Job stays. The claim remembers how it ended.
const JOB_TTL: i32 = 120;

/// The children of one MLModel.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    /// The volume.
    pub claim: Wanted<PersistentVolumeClaim>,
    /// What downloads. It is never changed: its template cannot be.
    pub job: Wanted<Job>,
    /// The servers.
    pub deployment: Wanted<Deployment>,
    /// Their address.
    pub service: Wanted<Service>,
}

/// The children as they should be.
pub fn build(model: &Validated, stage: &Stage, observed: &Observed, ensure_storage: bool) -> Children {
    let nothing_served = |claim, job| Children {
        claim,
        job,
        deployment: Wanted::Left,
        service: Wanted::Left,
    };
    match stage {
        Stage::Clearing => Children {
            claim: Wanted::Gone,
            job: Wanted::Gone,
            deployment: Wanted::Gone,
            service: Wanted::Gone,
        },
        Stage::Volume => nothing_served(Wanted::like(claim(model, &Record::Nothing, observed)), Wanted::Left),
        Stage::Prepared { is_busy } => {
            let waits = ensure_storage && !observed.claim.as_ref().is_some_and(is_bound);
            let job = match (is_busy, waits) {
                // One that failed has to make way.
                (true, _) => Wanted::Gone,
                (false, true) => Wanted::Left,
                (false, false) => Wanted::like(job(model, observed)),
            };
            nothing_served(Wanted::like(claim(model, &Record::Nothing, observed)), job)
        }
        Stage::Downloading => nothing_served(Wanted::like(claim(model, &Record::Nothing, observed)), Wanted::Left),
        Stage::Failed(failure) => nothing_served(
            Wanted::like(claim(model, &Record::Failed(failure), observed)),
            Wanted::Left,
        ),
        Stage::Lost => nothing_served(Wanted::Left, Wanted::Left),
        Stage::Downloaded | Stage::Inherited => Children {
            claim: Wanted::like(claim(
                model,
                match stage {
                    Stage::Inherited => &Record::Nothing,
                    _ => &Record::Downloaded,
                },
                observed,
            )),
            job: Wanted::Left,
            deployment: Wanted::like(deployment(model)),
            service: match model.expose {
                true => Wanted::like(service(model)),
                false => Wanted::Gone,
            },
        },
    }
}

/// What the claim remembers of the download.
enum Record<'a> {
    Nothing,
    Failed(&'a Failure),
    Downloaded,
}

fn metadata(model: &Validated, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(model.namespace.clone()),
        annotations: Some([(names::MODEL_SOURCE.to_owned(), model.download.source.clone())].into()),
        ..ObjectMeta::default()
    }
}

fn claim(model: &Validated, record: &Record<'_>, observed: &Observed) -> PersistentVolumeClaim {
    let mut metadata = metadata(model, keys::claim(&model.name));
    let annotations = metadata.annotations.get_or_insert_default();
    match record {
        Record::Nothing => {}
        Record::Failed(failure) => {
            let text = serde_json::to_string(failure).expect("two texts always serialise");
            annotations.insert(names::MODEL_DOWNLOAD_FAILED.into(), text);
        }
        Record::Downloaded => {
            annotations.insert(names::MODEL_DOWNLOADED.into(), model.download.source.clone());
        }
    }
    PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![model.access_mode.as_str().into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size(model, observed))].into()),
                limits: None,
            }),
            storage_class_name: model.storage_class.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// One that was made larger by hand cannot be made smaller again.
fn size(model: &Validated, observed: &Observed) -> Quantity {
    let wanted = Quantity(model.storage_size.clone());
    let seen = observed
        .claim
        .as_ref()
        .and_then(|c| c.object.pointer("/spec/resources/requests/storage")?.as_str());
    let seen = seen.map(|text| Quantity(text.to_owned()));
    match seen {
        Some(seen) if amount(&seen) > amount(&wanted) => seen,
        _ => wanted,
    }
}

fn job(model: &Validated, observed: &Observed) -> Job {
    // An original's servers may be at work on the volume, and only their node has it.
    let at_work = (!observed.servers.is_empty()).then(|| selector(&keys::server(&model.name)));
    let name = keys::job(&model.name);
    let label = BTreeMap::from([(keys::JOB_NAME.to_owned(), name.clone())]);
    let mut metadata = metadata(model, name);
    metadata.labels = Some(label.clone());
    if let Some(retry) = &model.retry {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(names::RETRY.into(), retry.clone());
    }
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            ttl_seconds_after_finished: Some(JOB_TTL),
            template: pod::download(model, label, at_work.as_ref()),
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn deployment(model: &Validated) -> Deployment {
    let name = keys::server(&model.name);
    // A second pod could not mount the volume on another node, and the first one would not go before it is ready.
    let strategy = (model.access_mode == AccessMode::ReadWriteOnce).then(|| DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(0)),
            max_unavailable: Some(IntOrString::String("100%".into())),
        }),
    });
    Deployment {
        metadata: metadata(model, name.clone()),
        spec: Some(DeploymentSpec {
            replicas: Some(model.replicas),
            selector: LabelSelector {
                match_labels: Some(selector(&name)),
                ..LabelSelector::default()
            },
            strategy,
            progress_deadline_seconds: model.start_seconds,
            template: pod::server(model, selector(&name)),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// What finds the servers' pods.
fn selector(deployment: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(keys::APP.to_owned(), deployment.to_owned())])
}

fn service(model: &Validated) -> Service {
    let port = i32::from(model.port);
    Service {
        metadata: ObjectMeta {
            annotations: None,
            ..metadata(model, keys::service(&model.name))
        },
        spec: Some(ServiceSpec {
            ports: Some(vec![ServicePort {
                port,
                target_port: Some(IntOrString::Int(port)),
                ..ServicePort::default()
            }]),
            selector: Some(selector(&keys::server(&model.name))),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests;
