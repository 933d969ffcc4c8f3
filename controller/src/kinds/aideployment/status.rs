//! What is told about an AIDeployment. Pure: from what was found, made and observed.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::names;
use berth_crds::premlabs::AIDeploymentStatus;
use berth_crds::premlabs::aideployment::PodPlacement;
use jiff::Timestamp;
use serde_json::Value;

use super::build::selector;
use super::fetch::Observed;
use crate::cluster::{Container, Pod};
use crate::kinds::problems::Problems;
use crate::placement::Outcome;

/// Most placements that the status lists.
const PLACEMENTS: usize = 20;

/// Whether the spec could be carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Acceptance {
    /// It was; the list names fields without effect.
    Valid(Vec<String>),
    /// It cannot be.
    Invalid(Problems),
    /// `berth.dev/paused` is set.
    Paused,
    /// A child's name belongs to somebody else.
    NameTaken(String),
    /// The original operator still writes a child.
    AnotherOperator(String),
    /// The API server refused a child; its answer.
    ApplyFailed(String),
    /// Everything was done but what needs an API that this cluster does not have.
    ApiNotInstalled(String),
}

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Name of the AIDeployment.
    pub name: &'a str,
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// The surroundings, after children were applied.
    pub observed: &'a Observed,
    /// The status before.
    pub before: &'a AIDeploymentStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> AIDeploymentStatus {
    let deployment = Deployment::of(view.observed);
    let accepted = accepted(view.acceptance);
    let placed = deployment.as_ref().filter(|d| d.is_gated).map(|d| placed(view, d));
    let waits = placed.as_ref().is_some_and(|p| p.status != Status::True);
    let available = available(view, deployment.as_ref(), waits);
    // Beside the original both would write this field, and what it left behind goes on serving.
    let failed = accepted.status == Status::False && !matches!(view.acceptance, Acceptance::AnotherOperator(_));
    let is_available = available.status == Status::True;
    AIDeploymentStatus {
        status: Some(
            match (failed, is_available) {
                (true, _) => "Failed",
                (false, true) => "Ready",
                (false, false) => "NotReady",
            }
            .into(),
        ),
        err_msg: failed.then(|| accepted.message.clone()),
        replicas: Some(deployment.as_ref().map_or(0, |d| d.replicas)),
        ready_replicas: Some(deployment.as_ref().map_or(0, |d| d.ready)),
        selector: selector(view.name).into_iter().map(|(k, v)| format!("{k}={v}")).next(),
        placements: placements(view.observed),
        conditions: {
            let desired: Vec<_> = [Some(accepted), placed, Some(available)]
                .into_iter()
                .flatten()
                .collect();
            conditions::merge(&view.before.conditions, &desired, view.generation, view.now)
        },
    }
}

fn accepted(acceptance: &Acceptance) -> Desired {
    let (status, reason, message) = match acceptance {
        Acceptance::Valid(ignored) if ignored.is_empty() => (Status::True, Reason::Valid, String::new()),
        Acceptance::Valid(ignored) => {
            let message = format!("without effect: {}", ignored.join(" | "));
            (Status::True, Reason::IgnoredFields, message)
        }
        Acceptance::Invalid(problems) => (Status::False, problems.reason(), problems.to_string()),
        Acceptance::Paused => {
            let message = format!("the annotation {} is set: children are left as they are", names::PAUSED);
            (Status::Unknown, Reason::Paused, message)
        }
        Acceptance::NameTaken(message) => (Status::False, Reason::NameTaken, message.clone()),
        Acceptance::AnotherOperator(message) => (Status::False, Reason::AnotherOperatorActive, message.clone()),
        Acceptance::ApplyFailed(message) => (Status::False, Reason::ApplyFailed, message.clone()),
        Acceptance::ApiNotInstalled(message) => (Status::False, Reason::ApiNotInstalled, message.clone()),
    };
    Desired::new(Type::Accepted, status, reason, message)
}

/// What is read off the Deployment as it stands in the cluster.
struct Deployment {
    wanted: i32,
    replicas: i32,
    ready: i32,
    available: i32,
    is_gated: bool,
    runtime_class: Option<String>,
    /// Why pods cannot be created, in the API server's words.
    refused: Option<String>,
}

impl Deployment {
    fn of(observed: &Observed) -> Option<Self> {
        let object = &observed.deployment.as_ref()?.object;
        let number = |path: &str| {
            let n = object.pointer(path).and_then(Value::as_i64);
            n.and_then(|n| i32::try_from(n).ok())
        };
        let pod = &object["spec"]["template"]["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let failure = list(&object["status"]["conditions"])
            .into_iter()
            .find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True");
        Some(Self {
            wanted: number("/spec/replicas").unwrap_or(1),
            replicas: number("/status/replicas").unwrap_or(0),
            ready: number("/status/readyReplicas").unwrap_or(0),
            available: number("/status/availableReplicas").unwrap_or(0),
            is_gated: list(&pod["schedulingGates"]).iter().any(|g| g["name"] == names::GATE),
            runtime_class: pod["runtimeClassName"].as_str().map(str::to_owned),
            refused: failure.map(|c| c["message"].as_str().unwrap_or_default().to_owned()),
        })
    }
}

fn node_of(pod: &Pod) -> Option<&String> {
    pod.node.as_ref().or(pod.pinned_to.as_ref())
}

fn placed(view: &View<'_>, deployment: &Deployment) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Placed, status, reason, message);
    let pods = &view.observed.pods;
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

fn why_waiting(pod: &Pod, outcome: Option<&Outcome>, view: &View<'_>) -> (Reason, String) {
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
fn kept(view: &View<'_>) -> Option<(Reason, String)> {
    const LASTING: &[Reason] = &[
        Reason::NoFit,
        Reason::NoDevicePlugin,
        Reason::WaitingForAgents,
        Reason::PinRefused,
    ];
    let before = conditions::find(&view.before.conditions, Type::Placed)?;
    let same_spec = before.observed_generation == view.generation;
    let reason = LASTING.iter().find(|r| same_spec && r.as_str() == before.reason)?;
    Some((*reason, before.message.clone()))
}

fn available(view: &View<'_>, deployment: Option<&Deployment>, waits_for_node: bool) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Available, status, reason, message);
    let no = |reason, message| condition(Status::False, reason, message);
    let Some(deployment) = deployment else {
        return no(Reason::NoReplicaAvailable, "there is no Deployment".into());
    };
    let earlier = match view.acceptance {
        Acceptance::Invalid(_) | Acceptance::NameTaken(_) | Acceptance::ApplyFailed(_) => {
            "; they may run an earlier spec"
        }
        Acceptance::Valid(_) | Acceptance::Paused | Acceptance::AnotherOperator(_) | Acceptance::ApiNotInstalled(_) => {
            ""
        }
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
    let exists = |class: &String| {
        view.observed
            .runtime_classes
            .as_ref()
            .is_none_or(|known| known.contains(class))
    };
    if let Some(class) = deployment.runtime_class.as_ref().filter(|c| !exists(c)) {
        let message = format!(
            "the pods name the RuntimeClass {class:?}, which does not exist, so the API server refuses them; install it or set runtimeClassName in the template"
        );
        return no(Reason::RuntimeClassMissing, message);
    }
    if let Some(words) = &deployment.refused {
        return no(Reason::PodsForbidden, words.clone());
    }
    let pods = || view.observed.pods.iter().map(|(pod, _)| pod);
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
fn trouble(container: &Container) -> (Reason, String) {
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

fn placements(observed: &Observed) -> Vec<PodPlacement> {
    let placed = observed.pods.iter().filter_map(|(pod, outcome)| {
        let because = match (pod.annotations.get(names::PLACED_BECAUSE), outcome) {
            (Some(written), _) => written.clone(),
            (None, Some(Outcome::Placed { because, .. })) => because.clone(),
            (None, _) => String::new(),
        };
        Some(PodPlacement {
            pod: pod.name.clone(),
            node: node_of(pod)?.clone(),
            because,
        })
    });
    placed.take(PLACEMENTS).collect()
}

#[cfg(test)]
mod tests;
