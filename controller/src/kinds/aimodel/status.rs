//! What is told about an AIModel. Pure: from what was found, made and observed.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::youxam::AIModelStatus;
use jiff::Timestamp;

use super::errors::{FAILED, RUNNING, Verdict};
use super::fetch::Observed;
use super::validate::Scaling;
use crate::kinds::children::Child;
use crate::kinds::status::acceptance::{Acceptance, accepted};
use crate::kinds::workload::{Sight, Workload, available, placed};

/// `message` while all is well.
const WELL: &str = "AIModel is running successfully";

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// Whether the workers have failed.
    pub verdict: &'a Verdict,
    /// What the spec says of scaling, where it can be read.
    pub scaling: Option<&'a Scaling>,
    /// The surroundings, after children were applied.
    pub observed: &'a Observed,
    /// The status before.
    pub before: &'a AIModelStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> AIModelStatus {
    let deployment = view.observed.deployment.as_ref().map(Workload::of);
    let sight = Sight {
        generation: view.generation,
        pods: &view.observed.pods,
        runtime_classes: view.observed.runtime_classes.as_ref(),
        before: &view.before.conditions,
        may_run_earlier: view.acceptance.may_run_earlier(),
    };
    let accepted = accepted(view.acceptance);
    let placed = deployment.as_ref().filter(|d| d.is_gated).map(|d| placed(&sight, d));
    let waits = placed.as_ref().is_some_and(|p| p.status != Status::True);
    let available = available(&sight, deployment.as_ref(), waits);
    let (state, message) = state(view, &accepted);
    let desired: Vec<_> = [
        Some(accepted),
        Some(workers_healthy(view.verdict)),
        placed,
        Some(available),
        scaling_active(view),
    ]
    .into_iter()
    .flatten()
    .collect();
    AIModelStatus {
        state,
        message,
        replicas: Some(deployment.as_ref().map_or(0, |d| d.replicas)),
        ready_replicas: Some(deployment.as_ref().map_or(0, |d| d.ready)),
        last_error: view.verdict.last.clone(),
        conditions: conditions::merge(&view.before.conditions, &desired, view.generation, view.now),
    }
}

/// The original's two fields. Pods that are not ready change nothing: workers start late and are not asked whether they are ready.
fn state(view: &View<'_>, accepted: &Desired) -> (Option<String>, Option<String>) {
    let failed = |text: String| (Some(FAILED.to_owned()), Some(text));
    match (&view.verdict.failure, accepted.status) {
        // The original writes these two as long as it runs, and both of us would write in turns.
        _ if matches!(view.acceptance, Acceptance::AnotherOperator(_)) => {
            (view.before.state.clone(), view.before.message.clone())
        }
        (Some(text), _) => failed(text.clone()),
        (None, Status::False) => failed(format!("{}: {}", accepted.reason.as_str(), accepted.message)),
        (None, Status::True) => (Some(RUNNING.into()), Some(WELL.into())),
        // Paused: what was told last, if anything was.
        (None, Status::Unknown) => (view.before.state.clone(), view.before.message.clone()),
    }
}

fn workers_healthy(verdict: &Verdict) -> Desired {
    let (status, reason, message) = match &verdict.failure {
        Some(text) => (Status::False, Reason::ErrorReported, text.as_str()),
        None => (
            Status::True,
            Reason::NoErrorReported,
            "no worker has reported an error since the spec was changed last",
        ),
    };
    Desired::new(Type::WorkersHealthy, status, reason, message)
}

/// Absent where nobody asked for scaling.
fn scaling_active(view: &View<'_>) -> Option<Desired> {
    let condition = |status, reason, message: String| Some(Desired::new(Type::ScalingActive, status, reason, message));
    let no = |reason, message: &str| condition(Status::False, reason, message.to_owned());
    let made = view.observed.scaled_object.as_ref().filter(|o| !o.terminating);
    match (view.scaling, made) {
        (None, None) => None,
        (Some(_), _) if !view.observed.keda => no(
            Reason::ApiNotInstalled,
            "spec.msgBacklogThreshold needs KEDA, and the API keda.sh/v1alpha1 is not installed; the number of workers is spec.replicas",
        ),
        (Some(scaling), _) if scaling.admin_url.is_none() => no(
            Reason::NotConfigured,
            "spec.msgBacklogThreshold needs the address of Pulsar's admin API: set the chart's pulsar.adminURL; the number of workers is spec.replicas",
        ),
        (Some(_), None) if view.verdict.failure.is_some() => no(
            Reason::ErrorReported,
            "a worker reported an error: the number of workers stays as it is until the spec is changed",
        ),
        (Some(_), None) => condition(Status::Unknown, Reason::Pending, "there is no ScaledObject yet".into()),
        (_, Some(scaled_object)) => match ready(scaled_object) {
            Some((true, _)) => condition(Status::True, Reason::ScalerReady, "KEDA follows the backlog".into()),
            Some((false, words)) => no(Reason::ScalerNotReady, &words),
            None => condition(
                Status::Unknown,
                Reason::Pending,
                "KEDA has not looked at the ScaledObject yet".into(),
            ),
        },
    }
}

/// KEDA's condition `Ready`, and its words; `None`: it has said nothing.
fn ready(scaled_object: &Child) -> Option<(bool, String)> {
    let conditions = scaled_object.object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
    let words = ready["message"].as_str().unwrap_or_default().to_owned();
    match ready["status"].as_str()? {
        "True" => Some((true, words)),
        "False" => Some((false, words)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
