//! How far a ModelDeployment's validation is, read off what there is: never off its status. Pure.
//!
//! ```text
//! Begin ─► Running ─► Passed                 a script is asked for, and this revision is not served yet
//!   ▲         ├► Failed                      until the spec or berth.dev/retry changes, or the Job is deleted
//!   │         └► Unplaced ─► Running         no node in time: told, and gone on with when there is one
//!   └ Clearing ◄── the Job is of another revision
//! ```

use std::time::Duration;

use berth_crds::names;
use jiff::Timestamp;
use serde_json::Value;

use super::fetch::Observed;
use super::validate::Validated;
use crate::kinds::children::Child;
use crate::kinds::workload::jobs::outcome;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// There is no Job.
    Begin,
    /// The Job of another revision has to go.
    Clearing,
    /// The Job is at work.
    Running,
    /// It has waited for a node for too long; why it gets none.
    Unplaced(String),
    /// The Job failed; its words.
    Failed(String),
    /// This revision may be served.
    Passed,
}

/// How far it is, at this moment.
pub fn stage(model: &Validated, observed: &Observed, place_timeout: Duration, now: Timestamp) -> Stage {
    let is_served = observed.record().is_some_and(|r| r.revision == model.revision);
    if model.script.is_none() || is_served {
        return Stage::Passed;
    }
    let Some(job) = &observed.job else {
        return Stage::Begin;
    };
    if job.terminating || job.annotation(names::REVISION) != Some(&model.revision) {
        return Stage::Clearing;
    }
    match outcome(job) {
        Some(Ok(())) => Stage::Passed,
        // Taking the annotation away changes nothing.
        Some(Err(_)) if model.retry.is_some() && model.retry.as_deref() != job.annotation(names::RETRY) => {
            Stage::Clearing
        }
        Some(Err(failure)) if failure.message.is_empty() => Stage::Failed(failure.reason),
        Some(Err(failure)) => Stage::Failed(failure.message),
        None => match waiting(observed) {
            Some((since, words)) if elapsed(since, now) > place_timeout => Stage::Unplaced(words),
            _ => Stage::Running,
        },
    }
}

/// When the stage may change although nothing else does.
pub fn look_again(stage: &Stage, observed: &Observed, place_timeout: Duration, now: Timestamp) -> Option<Duration> {
    let (since, _) = waiting(observed).filter(|_| *stage == Stage::Running)?;
    // Whole seconds are kept of a creation: one more, and it is over.
    Some(place_timeout.saturating_sub(elapsed(since, now)) + Duration::from_secs(1))
}

/// Since when the validation has waited for a node, and why it gets none. `None`: it has one, or had.
fn waiting(observed: &Observed) -> Option<(Timestamp, String)> {
    let job = observed.job.as_ref()?;
    let pods = &observed.validations;
    if pods.iter().any(|p| p.node.is_some()) {
        return None;
    }
    if let Some(pod) = pods.first() {
        let words = match &pod.unscheduled {
            Some(scheduling) => format!("pod {} has no node: {}", pod.name, scheduling.message),
            None => format!("pod {} has no node", pod.name),
        };
        return Some((pod.created?, words));
    }
    // Pods that are finished are not seen; the Job counts them.
    let is_counted = ["active", "failed", "succeeded", "terminating"]
        .into_iter()
        .any(|n| job.object["status"][n].as_i64().unwrap_or(0) > 0)
        || job.object["status"]["uncountedTerminatedPods"]
            .as_object()
            .is_some_and(|u| u.values().any(|v| v.as_array().is_some_and(|a| !a.is_empty())));
    let created = created(job).filter(|_| !is_counted)?;
    let words = "no pod could be made; the Job's Events say why".to_owned();
    Some((created, words))
}

fn created(child: &Child) -> Option<Timestamp> {
    let text = child.object["metadata"]["creationTimestamp"].as_str();
    text.and_then(|t| t.parse().ok())
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

/// Whether a Deployment runs nothing but what it is to run. How many there are is another question.
pub fn is_rolled_out(deployment: &Child) -> bool {
    let number = |path: &str| deployment.object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    number("/metadata/generation") <= number("/status/observedGeneration")
        && number("/status/replicas") == number("/status/updatedReplicas")
}

#[cfg(test)]
mod tests;
