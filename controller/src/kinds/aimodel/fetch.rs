//! Everything that an AIModel is decided on, besides itself: read from what is watched, so that a look costs no request.

use std::collections::BTreeSet;

use berth_crds::youxam::keys;

use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::kinds::children::{Child, Children, Kind};
use crate::kinds::workload::pods;
use crate::placement::Outcome;

/// The surroundings of one AIModel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Its children, if there are any with our label.
    pub service_account: Option<Child>,
    /// What lets workers report errors.
    pub role: Option<Child>,
    /// That for its ServiceAccount.
    pub role_binding: Option<Child>,
    /// The workers.
    pub deployment: Option<Child>,
    /// What KEDA scales them by.
    pub scaled_object: Option<Child>,
    /// How KEDA gets at the backlog.
    pub trigger_authentication: Option<Child>,
    /// A HorizontalPodAutoscaler that drives the Deployment: KEDA's, or the user's own.
    pub autoscaler: Option<String>,
    /// Whether KEDA's API is installed.
    pub keda: bool,
    /// Its pods that are not finished and not being deleted, by name, each with what placement concluded on it.
    pub pods: Vec<(Pod, Option<Outcome>)>,
    /// RuntimeClasses of the cluster; `None`: not known.
    pub runtime_classes: Option<BTreeSet<String>>,
}

/// Reads the surroundings.
pub fn fetch(
    key: &ObjectKey,
    children: &Children,
    picture: &Picture,
    runtime_classes: Option<BTreeSet<String>>,
) -> Observed {
    let (namespace, name) = key;
    let child = |kind, child: String| children.get(kind, &(namespace.clone(), child));
    let deployment = keys::deployment(name);
    Observed {
        service_account: child(Kind::ServiceAccount, keys::service_account(name)),
        role: child(Kind::Role, keys::role(name)),
        role_binding: child(Kind::RoleBinding, keys::role_binding(name)),
        scaled_object: child(Kind::ScaledObject, keys::scaled_object(name)),
        trigger_authentication: child(Kind::TriggerAuthentication, keys::scaled_object(name)),
        autoscaler: None,
        keda: children.is_served(Kind::ScaledObject),
        pods: pods::present((Served::AIModel, key), &deployment, picture),
        deployment: child(Kind::Deployment, deployment),
        runtime_classes,
    }
}
