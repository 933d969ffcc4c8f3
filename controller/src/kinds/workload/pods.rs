//! The pods of a Deployment and of a Job, out of the picture of the cluster.

use crate::cluster::{ObjectKey, Picture, Pod, Served};
use crate::placement::Outcome;

/// Pods that name the object and are of its Deployment, those that are being deleted too.
pub fn of_deployment<'a>(
    (kind, key): (Served, &ObjectKey),
    deployment: &str,
    picture: &'a Picture,
) -> impl Iterator<Item = &'a Pod> {
    let uids = picture.pods_of.get(&(kind, key.clone())).into_iter().flatten();
    let deployment = deployment.to_owned();
    uids.filter_map(|uid| picture.pods.get(uid))
        .filter(move |pod| is_of_deployment(pod, &deployment))
}

/// Pods that name the object and are of its Job, those that are being deleted too.
pub fn of_job<'a>((kind, key): (Served, &ObjectKey), job: &str, picture: &'a Picture) -> impl Iterator<Item = &'a Pod> {
    let uids = picture.pods_of.get(&(kind, key.clone())).into_iter().flatten();
    let job = job.to_owned();
    uids.filter_map(|uid| picture.pods.get(uid)).filter(move |pod| {
        pod.controller
            .as_ref()
            .is_some_and(|c| c.kind == "Job" && c.name == job)
    })
}

/// The pods of a Deployment that are not being deleted, by name, each with what placement concluded on it.
pub fn present(of: (Served, &ObjectKey), deployment: &str, picture: &Picture) -> Vec<(Pod, Option<Outcome>)> {
    let mut pods: Vec<_> = of_deployment(of, deployment, picture)
        .filter(|pod| !pod.terminating)
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
