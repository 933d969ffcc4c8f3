//! A Deployment and its pods, and what is told about them: the conditions `Placed` and `Available`. Pure.

pub mod autoscalers;
pub mod gpus;
pub mod jobs;
pub mod pods;
pub mod runtime_classes;

use std::collections::BTreeSet;

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;

use super::children::Child;
use crate::cluster::{Container, Pod};
use crate::placement::Outcome;

/// What is read off a Deployment as it stands in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Pods that are wanted.
    pub wanted: i32,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are available.
    pub available: i32,
    /// Its pods are born with our gate.
    pub is_gated: bool,
    /// RuntimeClass of its pods.
    pub runtime_class: Option<String>,
    /// Why pods cannot be created, in the API server's words.
    pub refused: Option<String>,
}

/// What else its conditions are told from.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// Generation of the owner.
    pub generation: Option<i64>,
    /// Its pods, each with what placement concluded on it.
    pub pods: &'a [(Pod, Option<Outcome>)],
    /// RuntimeClasses of the cluster; `None`: not known.
    pub runtime_classes: Option<&'a BTreeSet<String>>,
    /// The owner's conditions before.
    pub before: &'a [Condition],
    /// The pods may run an earlier spec than the present one.
    pub may_run_earlier: bool,
}

impl Workload {
    /// Reads it off a Deployment.
    pub fn of(deployment: &Child) -> Self {
        let object = &deployment.object;
        let number = |path: &str| {
            let n = object.pointer(path).and_then(Value::as_i64);
            n.and_then(|n| i32::try_from(n).ok())
        };
        let pod = &object["spec"]["template"]["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let failure = list(&object["status"]["conditions"])
            .into_iter()
            .find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True");
        Self {
            wanted: number("/spec/replicas").unwrap_or(1),
            replicas: number("/status/replicas").unwrap_or(0),
            ready: number("/status/readyReplicas").unwrap_or(0),
            available: number("/status/availableReplicas").unwrap_or(0),
            is_gated: list(&pod["schedulingGates"]).iter().any(|g| g["name"] == names::GATE),
            runtime_class: pod["runtimeClassName"].as_str().map(str::to_owned),
            refused: failure.map(|c| c["message"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

/// The Deployment controller waits no longer.
pub fn is_overdue(deployment: &Child) -> bool {
    let conditions = deployment.object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Progressing" && c["status"] == "False" && c["reason"] == "ProgressDeadlineExceeded")
}

/// Reasons of `Available` that do not pass by waiting.
pub fn is_stuck(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ImagePullBackOff
            | Reason::CrashLoopBackOff
            | Reason::OOMKilled
            | Reason::PodsForbidden
            | Reason::RuntimeClassMissing
            | Reason::NotReadyInTime
    )
}

/// The node that a pod is bound or pinned to.
pub fn node_of(pod: &Pod) -> Option<&String> {
    pod.node.as_ref().or(pod.pinned_to.as_ref())
}

/// The condition `Placed`, for a Deployment whose pods wait for Berth.
pub fn placed(view: &Sight<'_>, deployment: &Workload) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Placed, status, reason, message);
    let pods = view.pods;
    let wanted = usize::try_from(deployment.wanted).unwrap_or(0);
    let have = pods.iter().filter(|(pod, _)| node_of(pod).is_some()).count();
    let mut waiting = pods.iter().filter(|(pod, _)| node_of(pod).is_none());
    // A pod on which placement has concluded says more than one that it has not come to yet.
    let told = waiting.clone().find(|(_, outcome)| outcome.is_some());
    let Some((pod, outcome)) = told.or_else(|| waiting.next()) else {
        let count = format!("{} of {wanted} replicas have a node", have.min(wanted));
        return match have >= wanted {
            true => condition(Status::True, Reason::AllPlaced, count),
            false if have > 0 => condition(
                Status::False,
                Reason::PartiallyPlaced,
                format!("{count}; the others have no pod yet"),
            ),
            false => condition(Status::False, Reason::Pending, "there are no pods yet".into()),
        };
    };
    let (reason, message) = why_waiting(pod, outcome.as_ref(), view);
    if have > 0 {
        let pods = pods.len();
        let message = format!("{have} of {pods} pods have a node; {message}");
        return condition(Status::False, Reason::PartiallyPlaced, message);
    }
    condition(Status::False, reason, message)
}

fn why_waiting(pod: &Pod, outcome: Option<&Outcome>, view: &Sight<'_>) -> (Reason, String) {
    let others: Vec<&str> = pod
        .gates
        .iter()
        .map(String::as_str)
        .filter(|g| *g != names::GATE)
        .collect();
    match outcome {
        Some(Outcome::Waiting { reason, message }) => (*reason, format!("pod {}: {message}", pod.name)),
        Some(Outcome::Released { message }) => {
            let message = format!("pod {} was left to kube-scheduler: {message}", pod.name);
            (Reason::Released, message)
        }
        Some(Outcome::Placed { node, .. }) => {
            let message = format!("pod {} is being bound to {node}", pod.name);
            (Reason::Pending, message)
        }
        None if !others.is_empty() => {
            let message = format!(
                "pod {} is held by other scheduling gates too: {}",
                pod.name,
                others.join(", ")
            );
            (Reason::OtherGates, message)
        }
        None if pod.gates.is_empty() => {
            let words = pod.unscheduled.as_ref().map_or("", |s| s.message.as_str());
            (
                Reason::Released,
                format!("pod {} is left to kube-scheduler: {words}", pod.name),
            )
        }
        // After a restart nothing was concluded yet; what stood there before is the best that is known.
        None => kept(view).unwrap_or_else(|| (Reason::Pending, format!("pod {} waits for a decision", pod.name))),
    }
}

/// The conclusion that the status already tells, where it is one that stays true until placement says otherwise.
fn kept(view: &Sight<'_>) -> Option<(Reason, String)> {
    const LASTING: &[Reason] = &[
        Reason::NoFit,
        Reason::NoDevicePlugin,
        Reason::WaitingForAgents,
        Reason::PinRefused,
    ];
    let before = conditions::find(view.before, Type::Placed)?;
    let same_spec = before.observed_generation == view.generation;
    let reason = LASTING.iter().find(|r| same_spec && r.as_str() == before.reason)?;
    Some((*reason, before.message.clone()))
}

/// The condition `Available`.
pub fn available(view: &Sight<'_>, deployment: Option<&Workload>, waits_for_node: bool) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Available, status, reason, message);
    let no = |reason, message| condition(Status::False, reason, message);
    let Some(deployment) = deployment else {
        return no(Reason::NoReplicaAvailable, "there is no Deployment".into());
    };
    let earlier = if view.may_run_earlier {
        "; they may run an earlier spec"
    } else {
        ""
    };
    if deployment.available > 0 {
        let message = format!(
            "{} of {} replicas are available{earlier}",
            deployment.available, deployment.wanted
        );
        return condition(Status::True, Reason::MinimumReplicasAvailable, message);
    }
    if deployment.wanted == 0 {
        return no(Reason::ScaledToZero, "0 replicas are wanted".into());
    }
    let exists = |class: &String| view.runtime_classes.is_none_or(|known| known.contains(class));
    if let Some(class) = deployment.runtime_class.as_ref().filter(|c| !exists(c)) {
        let message = format!(
            "the pods name the RuntimeClass {class:?}, which does not exist, so the API server refuses them; install it or set runtimeClassName in the template"
        );
        return no(Reason::RuntimeClassMissing, message);
    }
    if let Some(words) = &deployment.refused {
        return no(Reason::PodsForbidden, words.clone());
    }
    let pods = || view.pods.iter().map(|(pod, _)| pod);
    let trouble = pods().filter(|p| !p.ready).find_map(|pod| {
        let (reason, message) = trouble(pod.troubled.first()?);
        Some((reason, format!("pod {}: {message}", pod.name)))
    });
    if let Some((reason, message)) = trouble {
        return no(reason, message);
    }
    if waits_for_node {
        let message = "the pods wait for a node: see the condition Placed".to_owned();
        return no(Reason::NoReplicaAvailable, message);
    }
    if let Some((pod, words)) = pods().find_map(|p| Some((p, p.unscheduled.as_ref().filter(|_| p.node.is_none())?))) {
        return no(
            Reason::NoReplicaAvailable,
            format!("pod {} has no node: {}", pod.name, words.message),
        );
    }
    if pods().any(|p| p.node.is_some()) {
        return no(
            Reason::NotReady,
            "the pods are starting; none has passed its probes".into(),
        );
    }
    no(Reason::NoReplicaAvailable, "there are no running pods yet".into())
}

/// Reason and words for a container that does not run. Words that count seconds or alternate are left out: the status would change with
/// every try of the kubelet.
pub fn trouble(container: &Container) -> (Reason, String) {
    let Container { name, reason, message } = container;
    match reason.as_str() {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => {
            let words = match (message.split_once("ErrImagePull: "), message.starts_with("Back-off")) {
                (Some((_, words)), _) => words,
                (None, true) => "",
                (None, false) => message.as_str(),
            };
            let separator = if words.is_empty() { "" } else { ": " };
            (
                Reason::ImagePullBackOff,
                format!("container {name} cannot get its image{separator}{words}"),
            )
        }
        "OOMKilled" => (
            Reason::OOMKilled,
            format!("container {name} ran out of memory; raise its memory limit"),
        ),
        "CrashLoopBackOff" | "Error" | "StartError" | "RunContainerError" | "ContainerCannotRun" => (
            Reason::CrashLoopBackOff,
            format!("container {name} ends and is started again; its log says why"),
        ),
        other => (
            Reason::NoReplicaAvailable,
            format!("container {name}: {other}: {message}"),
        ),
    }
}
