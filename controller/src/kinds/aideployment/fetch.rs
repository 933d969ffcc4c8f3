//! Everything that an AIDeployment is decided on, besides itself: read from what is watched, so that a look costs no request.

use std::collections::BTreeSet;

use super::build::engines::config_map_name;
use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::kinds::children::{Child, Children, Kind};
use crate::kinds::pods;
use crate::placement::Outcome;

/// The surroundings of one AIDeployment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Its Deployment, if there is one with our label.
    pub deployment: Option<Child>,
    /// Its Service.
    pub service: Option<Child>,
    /// Its Ingress.
    pub ingress: Option<Child>,
    /// Its ConfigMap with the engine's files.
    pub config_map: Option<Child>,
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
    Observed {
        deployment: children.get(Kind::Deployment, key),
        service: children.get(Kind::Service, key),
        ingress: children.get(Kind::Ingress, key),
        config_map: children.get(Kind::ConfigMap, &(key.0.clone(), config_map_name(&key.1))),
        pods: pods::of_deployment((Served::AIDeployment, key), &key.1, picture),
        runtime_classes,
    }
}

#[cfg(test)]
mod tests {
    use berth_crds::premlabs::keys;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::cluster::Cluster;

    fn pod(name: &str, replica_set: &str) -> Pod {
        Pod {
            uid: name.into(),
            namespace: "shop".into(),
            name: name.into(),
            labels: [(keys::AI_DEPLOYMENT.to_owned(), "m".to_owned())].into(),
            controller: Some(OwnerReference {
                kind: "ReplicaSet".into(),
                name: replica_set.into(),
                ..OwnerReference::default()
            }),
            ..Pod::default()
        }
    }

    fn seen(cluster: &Cluster) -> Vec<String> {
        let key = ("shop".to_owned(), "m".to_owned());
        let observed = fetch(&key, &Children::default(), &cluster.read(), None);
        observed.pods.into_iter().map(|(pod, _)| pod.name).collect()
    }

    #[test]
    fn pods_are_those_of_the_deployment_and_in_order() {
        let cluster = Cluster::new();
        cluster.apply_pod(pod("m-x-2", "m-x"));
        cluster.apply_pod(pod("m-x-1", "m-x"));
        // Labelled by hand, and of the Deployment `m-other`, whose name starts the same.
        cluster.apply_pod(pod("stranger", "n-x"));
        cluster.apply_pod(pod("m-other-x-1", "m-other-x"));
        cluster.apply_pod(Pod {
            terminating: true,
            ..pod("m-x-3", "m-x")
        });
        assert_eq!(seen(&cluster), ["m-x-1", "m-x-2"]);
    }

    #[test]
    fn a_pod_that_is_gone_or_changed_its_label_is_not_seen() {
        let cluster = Cluster::new();
        cluster.apply_pod(pod("m-x-1", "m-x"));
        cluster.apply_pod(pod("m-x-2", "m-x"));
        cluster.delete_pod(&"m-x-1".to_owned());
        assert_eq!(seen(&cluster), ["m-x-2"]);
        cluster.apply_pod(Pod {
            labels: [].into(),
            ..pod("m-x-2", "m-x")
        });
        assert!(cluster.read().pods_of.is_empty());
    }
}
