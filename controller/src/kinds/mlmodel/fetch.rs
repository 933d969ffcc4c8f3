//! Everything that an MLModel is decided on, besides itself: read from what is watched, so that a look costs no request.

use std::collections::BTreeSet;

use berth_crds::tmforum::keys;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::kinds::children::apply::{Holder, foreign_holder};
use crate::kinds::children::{Child, Children, Kind};
use crate::kinds::workload::pods;
use crate::placement::Outcome;

/// The surroundings of one MLModel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The volume's claim.
    pub claim: Option<Child>,
    /// What downloads.
    pub job: Option<Child>,
    /// The servers.
    pub deployment: Option<Child>,
    /// Their address.
    pub service: Option<Child>,
    /// The servers' pods that are not finished and not being deleted, by name, each with what placement concluded on it.
    pub servers: Vec<(Pod, Option<Outcome>)>,
    /// The download's pods that are not finished, by name, those that are being deleted too.
    pub downloads: Vec<Pod>,
    /// Servers' pods that are being deleted.
    pub leaving: usize,
    /// RuntimeClasses of the cluster; `None`: not known.
    pub runtime_classes: Option<BTreeSet<String>>,
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
    let of = (Served::MLModel, key);
    let server = keys::server(name);
    let mut downloads: Vec<Pod> = pods::of_job(of, &keys::job(name), picture).cloned().collect();
    downloads.sort_by(|a, b| a.name.cmp(&b.name));
    Observed {
        claim: child(Kind::PersistentVolumeClaim, keys::claim(name)),
        job: child(Kind::Job, keys::job(name)),
        service: child(Kind::Service, keys::service(name)),
        servers: pods::present(of, &server, picture),
        downloads,
        leaving: pods::of_deployment(of, &server, picture)
            .filter(|p| p.terminating)
            .count(),
        deployment: child(Kind::Deployment, server),
        runtime_classes,
    }
}
