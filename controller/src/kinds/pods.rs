//! The pods of a Deployment, out of the picture of the cluster.

use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::placement::Outcome;

/// Pods that name the object and are of its Deployment, neither finished nor being deleted, by name, each with what placement concluded on
/// it.
pub fn of_deployment(
    (kind, key): (Served, &ObjectKey),
    deployment: &str,
    picture: &Picture,
) -> Vec<(Pod, Option<Outcome>)> {
    let uids = picture.pods_of.get(&(kind, key.clone())).into_iter().flatten();
    let mut pods: Vec<_> = uids
        .filter_map(|uid| picture.pods.get(uid))
        .filter(|pod| !pod.terminating && is_of_deployment(pod, deployment))
        .map(|pod| (pod.clone(), picture.outcomes.get(&pod.uid).cloned()))
        .collect();
    pods.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    pods
}

/// Whether a pod that carries the label is of the Deployment, and not one that somebody labelled: its ReplicaSet is named
/// `<deployment>-<hash>`.
fn is_of_deployment(pod: &Pod, deployment: &str) -> bool {
    pod.controller.as_ref().is_some_and(|owner| {
        let hash = owner
            .name
            .strip_prefix(deployment)
            .and_then(|rest| rest.strip_prefix('-'));
        owner.kind == "ReplicaSet" && hash.is_some_and(|hash| !hash.contains('-'))
    })
}
