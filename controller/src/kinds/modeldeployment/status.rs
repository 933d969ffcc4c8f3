//! What is told about a ModelDeployment. Pure: from what was found, made and observed.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::names;
use berth_crds::sathvik::{ModelDeploymentStatus, keys};
use jiff::Timestamp;

use super::fetch::Observed;
use super::stage::{Stage, is_rolled_out};
use super::validate::Validated;
use crate::kinds::children::Child;
use crate::kinds::status::acceptance::{Acceptance, accepted};
use crate::kinds::workload::{Sight, Workload, available, is_overdue, is_stuck, placed, trouble};
use crate::metrics::Validation;

/// Values of `phase`, as the original has them.
pub mod phase {
    /// The validation of this version is under way.
    pub const VALIDATING: &str = "Validating";
    /// Its servers start.
    pub const DEPLOYING: &str = "Deploying";
    /// At least one of its servers serves, and none of another version.
    pub const READY: &str = "Ready";
    /// It cannot go on as things stand.
    pub const FAILED: &str = "Failed";
}

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// What is asked for and how far it is; `None`: the spec cannot be read, so nothing says.
    pub model: Option<(&'a Validated, &'a Stage)>,
    /// The surroundings, after children were applied.
    pub observed: &'a Observed,
    /// The status before.
    pub before: &'a ModelDeploymentStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> ModelDeploymentStatus {
    let observed = view.observed;
    let deployment = observed.deployment.as_ref().filter(|d| !d.terminating);
    let workload = deployment.map(Workload::of);
    let is_rolled_out = deployment.is_some_and(is_rolled_out);
    let is_of_spec = matches!(view.model, Some((_, Stage::Passed))) && is_rolled_out;
    let sight = Sight {
        generation: view.generation,
        pods: &observed.servers,
        runtime_classes: observed.runtime_classes.as_ref(),
        before: &view.before.conditions,
        may_run_earlier: view.acceptance.may_run_earlier() || !is_of_spec,
    };
    let accepted = accepted(view.acceptance);
    let placed = workload.as_ref().filter(|d| d.is_gated).map(|d| placed(&sight, d));
    let waits = placed.as_ref().is_some_and(|p| p.status != Status::True);
    let overdue = |mut condition: Desired| {
        if !waits && deployment.is_some_and(is_overdue) && condition.reason == Reason::NotReady {
            condition.reason = Reason::NotReadyInTime;
            condition.message = "the pods run, and none has become ready in time; their logs say why".into();
        }
        condition
    };
    let available_now = overdue(available(&sight, workload.as_ref(), waits));
    let validated = view.model.map(|(model, stage)| validated(view, model, stage));
    // Of the pods that are to replace others: those that serve are not theirs. True only when no others are left.
    let fresh = match &workload {
        Some(workload) if !is_rolled_out && workload.available > 0 => {
            let unready: Vec<_> = observed.servers.iter().filter(|(p, _)| !p.ready).cloned().collect();
            let sight = Sight {
                pods: &unready,
                ..sight
            };
            let none = Workload {
                available: 0,
                ..workload.clone()
            };
            overdue(available(&sight, Some(&none), waits))
        }
        _ => available_now.clone(),
    };
    let (phase, message) = phase_of(view, &accepted, validated.as_ref(), &fresh);
    let version = version(view, deployment, is_rolled_out && available_now.status == Status::True);
    let desired: Vec<_> = [
        Some(accepted),
        validated,
        placed,
        Some(available_now),
        scaling_active(view),
    ]
    .into_iter()
    .flatten()
    .collect();
    ModelDeploymentStatus {
        phase,
        message: Some(message).filter(|m| !m.is_empty()),
        version,
        replicas: Some(workload.as_ref().map_or(0, |d| d.replicas)),
        ready_replicas: Some(workload.as_ref().map_or(0, |d| d.ready)),
        conditions: conditions::merge(&view.before.conditions, &desired, view.generation, view.now),
    }
}

/// The version that was made ready last.
fn version(view: &View<'_>, deployment: Option<&Child>, is_ready: bool) -> Option<String> {
    let before = view.before.version.clone().filter(|v| !v.is_empty());
    // Pods of an adopted Deployment are what the original made of the version that it told.
    let is_held = deployment.is_some_and(|d| d.annotation(names::ADOPTED).is_some());
    let served = view.observed.record().filter(|_| is_ready);
    let served = served.map(|record| record.version().to_owned());
    match is_held {
        true => before.or(served),
        false => served.or(before),
    }
}

fn validated(view: &View<'_>, model: &Validated, stage: &Stage) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Validated, status, reason, message);
    let no = |reason, message: String| condition(Status::False, reason, message);
    let version = &model.version();
    match stage {
        Stage::Begin | Stage::Clearing => no(Reason::Validating, "starting validation".into()),
        Stage::Running => running(view, version),
        Stage::Unplaced(words) => no(
            Reason::ValidationNotPlaced,
            format!("the validation of version {version} has waited for a node for too long: {words}"),
        ),
        Stage::Failed(words) => no(
            Reason::ValidationFailed,
            format!(
                "Validation failed for version {version}: {words}; the log of Job {} says why",
                keys::job(&model.name)
            ),
        ),
        Stage::Passed if model.script.is_none() => condition(
            Status::True,
            Reason::ValidationNotAsked,
            "there is no spec.validateScript".into(),
        ),
        Stage::Passed => condition(
            Status::True,
            Reason::ValidationSucceeded,
            format!("version {version} may be served"),
        ),
    }
}

fn running(view: &View<'_>, version: &str) -> Desired {
    let no = |reason, message: String| Desired::new(Type::Validated, Status::False, reason, message);
    let troubled = view
        .observed
        .validations
        .iter()
        .find_map(|p| Some((p, p.troubled.first()?)));
    if let Some((pod, container)) = troubled {
        let (reason, words) = trouble(container);
        // Its pods are not started again: only an image that cannot be had holds one up for ever.
        if reason == Reason::ImagePullBackOff {
            return no(reason, format!("pod {}: {words}", pod.name));
        }
    }
    let unscheduled = view
        .observed
        .validations
        .iter()
        .find_map(|p| p.unscheduled.as_ref().filter(|_| p.node.is_none()));
    no(
        Reason::Validating,
        match unscheduled {
            Some(scheduling) => format!(
                "the validation of version {version} has no node: {}",
                scheduling.message
            ),
            None => format!("version {version} is being validated"),
        },
    )
}

/// Absent where nobody asked for scaling.
fn scaling_active(view: &View<'_>) -> Option<Desired> {
    let (model, _) = view.model?;
    model.autoscale?;
    let condition = |status, reason, message: String| Some(Desired::new(Type::ScalingActive, status, reason, message));
    let autoscaler = view.observed.autoscaler.as_ref().filter(|a| !a.terminating);
    let Some(autoscaler) = autoscaler else {
        let message = "there is no HorizontalPodAutoscaler yet".into();
        return condition(Status::Unknown, Reason::Pending, message);
    };
    let conditions = autoscaler.object["status"]["conditions"].as_array();
    let said = |type_: &str| conditions.into_iter().flatten().find(|c| c["type"] == type_);
    let refused = ["AbleToScale", "ScalingActive"]
        .into_iter()
        .filter_map(said)
        .find(|c| c["status"] == "False");
    match (refused, said("ScalingActive")) {
        (Some(refused), _) => condition(
            Status::False,
            Reason::ScalerNotReady,
            refused["message"].as_str().unwrap_or_default().to_owned(),
        ),
        (None, Some(active)) if active["status"] == "True" => condition(
            Status::True,
            Reason::ScalerReady,
            "the HorizontalPodAutoscaler follows the servers' use of CPU".into(),
        ),
        (None, _) => condition(
            Status::Unknown,
            Reason::Pending,
            "the HorizontalPodAutoscaler has not measured yet".into(),
        ),
    }
}

/// The original's two fields; `fresh` tells of the servers of this version alone.
fn phase_of(view: &View<'_>, accepted: &Desired, validated: Option<&Desired>, fresh: &Desired) -> (String, String) {
    let told = |phase: &str, message: &str| (phase.to_owned(), message.to_owned());
    let failed = |condition: &Desired| {
        let message = format!("{}: {}", condition.reason.as_str(), condition.message);
        (phase::FAILED.to_owned(), message)
    };
    match (accepted.status, view.model, validated) {
        (Status::False, ..) | (Status::True, None, _) | (Status::True, _, None) => failed(accepted),
        // Paused: what was told last, if anything was.
        (Status::Unknown, ..) => (
            view.before.phase.clone(),
            view.before.message.clone().unwrap_or_default(),
        ),
        (Status::True, Some((_, stage)), Some(validated)) => match stage {
            Stage::Failed(_) => told(phase::FAILED, &validated.message),
            Stage::Unplaced(_) => failed(validated),
            Stage::Begin | Stage::Clearing | Stage::Running => match validated.reason {
                Reason::ImagePullBackOff => failed(validated),
                _ => told(phase::VALIDATING, &validated.message),
            },
            Stage::Passed if fresh.status == Status::True => told(phase::READY, &fresh.message),
            Stage::Passed if is_stuck(fresh.reason) => failed(fresh),
            Stage::Passed => told(phase::DEPLOYING, &fresh.message),
        },
    }
}

/// Validations that ended between two statuses.
pub fn ended(before: &ModelDeploymentStatus, now: &ModelDeploymentStatus) -> Option<Validation> {
    let reason = |status: &ModelDeploymentStatus| {
        let condition = conditions::find(&status.conditions, Type::Validated)?;
        Some(condition.reason.clone())
    };
    let (before, now) = (reason(before), reason(now)?);
    // A validation of another revision passes through Validating.
    if before.as_deref() != Some(Reason::Validating.as_str())
        && before.as_deref() != Some(Reason::ValidationNotPlaced.as_str())
        && before.as_deref() != Some(Reason::ImagePullBackOff.as_str())
    {
        return None;
    }
    match now {
        succeeded if succeeded == Reason::ValidationSucceeded.as_str() => Some(Validation::Success),
        failed if failed == Reason::ValidationFailed.as_str() => Some(Validation::Failure),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
