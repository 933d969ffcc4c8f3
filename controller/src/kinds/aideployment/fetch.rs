//! Everything that an AIDeployment is decided on, besides itself: read from what is watched, so that a look costs no request.

use std::collections::BTreeSet;

use berth_crds::conditions::Reason;

use super::build::engines::config_map_name;
use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::kinds::children::{Child, Children, Kind};
use crate::kinds::workload::pods;
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
    /// Pods of the Deployment that are being deleted and still have their node.
    pub leaving: usize,
    /// A pod of one version of the template fits nowhere, and would if the pods of the other versions were gone.
    pub fits_without_others: bool,
    /// HorizontalPodAutoscaler that drives the Deployment.
    pub autoscaler: Option<String>,
    /// Its HTTPRoutes; `None`: the API is not installed.
    pub http_routes: Option<Vec<Child>>,
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
        leaving: all_pods(key, picture)
            .filter(|pod| pod.terminating && pod.node.is_some())
            .count(),
        fits_without_others: fits_without_others(key, picture),
        autoscaler: None,
        http_routes: children
            .is_served(Kind::HttpRoute)
            .then(|| children.named_after(Kind::HttpRoute, key)),
        pods: pods::present((Served::AIDeployment, key), &key.1, picture),
        runtime_classes,
    }
}

/// Whether it takes no more than the pods of the other versions to go for a waiting pod to find a node. Where it takes something else,
/// such as a node of a class that there is none of, taking running pods away would help nobody.
fn fits_without_others(key: &ObjectKey, picture: &Picture) -> bool {
    let no_fit = |pod: &&Pod| {
        let outcome = picture.outcomes.get(&pod.uid);
        let waits = |o: &Outcome| {
            matches!(
                o,
                Outcome::Waiting {
                    reason: Reason::NoFit,
                    ..
                }
            )
        };
        pod.waits_for_us() && outcome.is_some_and(waits)
    };
    let mut waiting = all_pods(key, picture).filter(|p| !p.terminating).filter(no_fit);
    waiting.any(|pod| {
        let version = pod.labels.get("pod-template-hash");
        let others: Vec<&Pod> = all_pods(key, picture)
            .filter(|p| p.labels.get("pod-template-hash") != version && !p.terminating)
            .collect();
        crate::placement::fits_without(pod, &others, picture)
    })
}

fn all_pods<'a>(key: &ObjectKey, picture: &'a Picture) -> impl Iterator<Item = &'a Pod> {
    pods::of_deployment((Served::AIDeployment, key), &key.1, picture)
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

    /// A one-GPU node with `old` on it, and a waiting pod of another version.
    fn full_node(new: impl FnOnce(&mut Pod)) -> Cluster {
        let gpus = |n: i64| berth_core::placement::Resources([("nvidia.com/gpu".to_owned(), n * 1000)].into());
        let versioned = |name: &str, version: &str| {
            let mut pod = pod(name, "m-x");
            pod.labels.insert("pod-template-hash".into(), version.into());
            pod.requests = gpus(1);
            pod.ask.requests = gpus(1);
            pod
        };
        let cluster = Cluster::new();
        cluster.apply_node(crate::cluster::Node {
            name: "n".into(),
            allocatable: gpus(1),
            ..Default::default()
        });
        cluster.apply_pod(Pod {
            node: Some("n".into()),
            ready: true,
            ..versioned("m-x-old", "a")
        });
        let mut waiting = Pod {
            gates: vec![berth_crds::names::GATE.into()],
            ..versioned("m-x-new", "b")
        };
        new(&mut waiting);
        cluster.apply_pod(waiting);
        let message = "no".into();
        let reason = Reason::NoFit;
        cluster.set_outcome(&"m-x-new".to_owned(), Outcome::Waiting { reason, message });
        cluster
    }

    fn fits_without_others(cluster: &Cluster) -> bool {
        let key = ("shop".to_owned(), "m".to_owned());
        fetch(&key, &Children::default(), &cluster.read(), None).fits_without_others
    }

    #[test]
    fn old_pods_are_in_the_way_only_where_their_going_helps() {
        assert!(fits_without_others(&full_node(|_| {})));
        let of_class = full_node(|new| new.ask.classes = vec!["b200".into()]);
        assert!(
            !fits_without_others(&of_class),
            "no node has the class, with or without them"
        );
        let two = full_node(|new| {
            new.ask.requests.0.insert("nvidia.com/gpu".into(), 2000);
        });
        assert!(!fits_without_others(&two), "the node has one GPU in all");
        let same = full_node(|new| {
            new.labels.insert("pod-template-hash".into(), "a".into());
        });
        assert!(
            !fits_without_others(&same),
            "more replicas of one version are no rollout"
        );
    }

    #[test]
    fn what_was_concluded_before_a_sibling_went_is_open_again() {
        let cluster = full_node(|_| {});
        cluster.delete_pod(&"m-x-old".to_owned());
        let key = ("shop".to_owned(), "m".to_owned());
        let observed = fetch(&key, &Children::default(), &cluster.read(), None);
        assert_eq!(observed.pods[0].1, None);
    }
}
