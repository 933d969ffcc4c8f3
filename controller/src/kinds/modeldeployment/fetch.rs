//! Everything that a ModelDeployment is decided on, besides itself: read from what is watched, so that a look costs no request.

use std::collections::BTreeSet;

use berth_crds::names;
use berth_crds::sathvik::keys;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::served::Served as Record;
use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::kinds::children::apply::{Holder, foreign_holder};
use crate::kinds::children::{Child, Children, Kind};
use crate::kinds::workload::pods;
use crate::placement::Outcome;

/// The surroundings of one ModelDeployment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// What validates.
    pub job: Option<Child>,
    /// The servers.
    pub deployment: Option<Child>,
    /// Their address.
    pub service: Option<Child>,
    /// Their other address.
    pub alias: Option<Child>,
    /// What scales them, of ours.
    pub autoscaler: Option<Child>,
    /// What scales them, of anybody's.
    pub driver: Option<String>,
    /// The servers' pods that are not finished and not being deleted, by name, each with what placement concluded on it.
    pub servers: Vec<(Pod, Option<Outcome>)>,
    /// The Job's pods that are not finished and not being deleted.
    pub validations: Vec<Pod>,
    /// RuntimeClasses of the cluster; `None`: not known.
    pub runtime_classes: Option<BTreeSet<String>>,
}

impl Observed {
    /// What is served, as it is written down: on the servers, or where they are gone on their Service.
    pub fn record(&self) -> Option<Record> {
        let on = |child: &Option<Child>| {
            let child = child.as_ref().filter(|c| !c.terminating)?;
            Record::read(child.annotation(names::SERVED)?)
        };
        on(&self.deployment).or_else(|| on(&self.service))
    }
}

/// Reads the surroundings. What belongs to somebody else is none of them: bringing the child about will say so.
pub fn fetch(
    key: &ObjectKey,
    owner: &OwnerReference,
    children: &Children,
    picture: &Picture,
    runtime_classes: Option<BTreeSet<String>>,
) -> Observed {
    let (namespace, name) = key;
    let child = |kind, child: String| {
        let found = children.get(kind, &(namespace.clone(), child));
        found.filter(|c| !matches!(foreign_holder(owner, c), Some(Holder::Other(_))))
    };
    let of = (Served::ModelDeployment, key);
    let server = keys::server(name);
    let job = child(Kind::Job, keys::job(name));
    // Those of a Job before may still be there under its name.
    let is_of_job = |pod: &&Pod| {
        let owner = pod.controller.as_ref().map(|c| c.uid.as_str());
        owner.is_some() && owner == job.as_ref().map(|j| j.uid.as_str())
    };
    let mut validations: Vec<Pod> = pods::of_job(of, &keys::job(name), picture)
        .filter(|pod| !pod.terminating)
        .filter(is_of_job)
        .cloned()
        .collect();
    validations.sort_by(|a, b| a.name.cmp(&b.name));
    Observed {
        service: child(Kind::Service, keys::service(name)),
        alias: child(Kind::Service, keys::alias(name)),
        autoscaler: child(Kind::HorizontalPodAutoscaler, server.clone()),
        driver: None,
        servers: pods::present(of, &server, picture),
        deployment: child(Kind::Deployment, server),
        validations,
        job,
        runtime_classes,
    }
}
