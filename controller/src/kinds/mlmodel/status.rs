//! What is told about an MLModel. Pure: from what was found, made and observed.

use std::time::Duration;

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::tmforum::{MLModelStatus, keys};
use jiff::Timestamp;
use serde_json::Value;

use super::fetch::Observed;
use super::stage::{Stage, is_bound};
use crate::kinds::children::Child;
use crate::kinds::status::acceptance::{Acceptance, accepted};
use crate::kinds::workload::{Sight, Workload, available, is_overdue, is_stuck, placed, trouble};

/// Values of `phase`, as the original has them.
pub mod phase {
    /// Nothing was made yet, or what is left of an earlier spec has to go first.
    pub const PENDING: &str = "Pending";
    /// The volume is asked for.
    pub const CREATING_STORAGE: &str = "CreatingStorage";
    /// The Job is at work.
    pub const DOWNLOADING: &str = "Downloading";
    /// The servers start.
    pub const SERVING: &str = "Serving";
    /// At least one server serves.
    pub const READY: &str = "Ready";
    /// It cannot go on as things stand.
    pub const FAILED: &str = "Failed";
}

/// What a try of the download said last, in a message.
const LAST_TRY: &str = "the last try ended with: ";

/// All that a status is computed from.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Namespace and name.
    pub key: (&'a str, &'a str),
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec could be carried out.
    pub acceptance: &'a Acceptance,
    /// How far it is; `None`: the spec cannot be read, so nothing says.
    pub stage: Option<&'a Stage>,
    /// The surroundings, after children were applied.
    pub observed: &'a Observed,
    /// How long a volume may take.
    pub storage_timeout: Duration,
    /// The status before.
    pub before: &'a MLModelStatus,
    /// Now.
    pub now: Timestamp,
}

/// The status as it should be.
pub fn status(view: &View<'_>) -> MLModelStatus {
    let observed = view.observed;
    let deployment = observed.deployment.as_ref().filter(|d| !d.terminating);
    let workload = deployment.map(Workload::of);
    let sight = Sight {
        generation: view.generation,
        pods: &observed.servers,
        runtime_classes: observed.runtime_classes.as_ref(),
        before: &view.before.conditions,
        may_run_earlier: view.acceptance.may_run_earlier(),
    };
    let accepted = accepted(view.acceptance);
    let downloaded = view.stage.map(|stage| downloaded(view, stage));
    let placed = workload.as_ref().filter(|d| d.is_gated).map(|d| placed(&sight, d));
    let waits = placed.as_ref().is_some_and(|p| p.status != Status::True);
    let mut available = available(&sight, workload.as_ref(), waits);
    if !waits && deployment.is_some_and(is_overdue) && available.reason == Reason::NotReady {
        available.reason = Reason::NotReadyInTime;
        available.message = "the pods run, and none has become ready in time; their logs say why".into();
    }
    let (phase, message) = phase_of(view, &accepted, downloaded.as_ref(), &available);
    let desired: Vec<_> = [Some(accepted), downloaded, placed, Some(available)]
        .into_iter()
        .flatten()
        .collect();
    MLModelStatus {
        phase,
        message: Some(message).filter(|m| !m.is_empty()),
        service_endpoint: observed
            .service
            .as_ref()
            .filter(|s| !s.terminating)
            .and_then(|s| endpoint(view.key, s)),
        observed_generation: view.generation.unwrap_or_default(),
        replicas: Some(workload.as_ref().map_or(0, |d| d.replicas)),
        ready_replicas: Some(workload.as_ref().map_or(0, |d| d.ready)),
        conditions: conditions::merge(&view.before.conditions, &desired, view.generation, view.now),
    }
}

/// When the status may change although nothing else does.
pub fn look_again(stage: &Stage, observed: &Observed, storage_timeout: Duration, now: Timestamp) -> Option<Duration> {
    let waits = matches!(stage, Stage::Prepared { .. } | Stage::Downloading);
    let claim = observed.claim.as_ref().filter(|c| waits && !is_bound(c))?;
    let age = age(claim, now)?;
    // Whole seconds are kept of a creation: one more, and it is over.
    (age <= storage_timeout).then(|| storage_timeout.saturating_sub(age) + Duration::from_secs(1))
}

fn age(claim: &Child, now: Timestamp) -> Option<Duration> {
    let created: Timestamp = claim.object["metadata"]["creationTimestamp"].as_str()?.parse().ok()?;
    Some(Duration::try_from(now.duration_since(created)).unwrap_or_default())
}

fn downloaded(view: &View<'_>, stage: &Stage) -> Desired {
    let condition = |status, reason, message: String| Desired::new(Type::Downloaded, status, reason, message);
    let no = |reason, message: String| condition(Status::False, reason, message);
    match stage {
        Stage::Clearing => no(
            Reason::Restarting,
            "objects of an earlier spec are being deleted; then it starts from the beginning".into(),
        ),
        Stage::Volume => no(Reason::Pending, "the volume is about to be asked for".into()),
        Stage::Failed(failure) => no(Reason::DownloadFailed, failure.message.clone()),
        Stage::Lost => no(
            Reason::VolumeLost,
            format!(
                "what PersistentVolumeClaim {} was bound to is gone; delete the claim to start from the beginning",
                keys::claim(view.key.1)
            ),
        ),
        Stage::Downloaded => condition(Status::True, Reason::DownloadComplete, String::new()),
        Stage::Inherited => {
            let message = "the original operator downloaded it; it is downloaded anew before the servers are changed";
            condition(Status::True, Reason::DownloadComplete, message.into())
        }
        Stage::Prepared { .. } | Stage::Downloading => under_way(view, stage),
    }
}

/// From the claim to the end of the Job.
fn under_way(view: &View<'_>, stage: &Stage) -> Desired {
    let no = |reason, message: String| Desired::new(Type::Downloaded, Status::False, reason, message);
    let pods = || view.observed.downloads.iter().filter(|p| !p.terminating);
    let is_job_there = matches!(stage, Stage::Downloading);
    let troubled = pods()
        .filter(|_| is_job_there)
        .find_map(|p| Some((p, p.troubled.first()?)));
    if let Some((pod, container)) = troubled {
        let (reason, message) = trouble(container);
        // A try that failed is tried again; the Job says when that is over.
        return match reason {
            Reason::CrashLoopBackOff if !container.message.is_empty() => no(
                Reason::Downloading,
                format!("{LAST_TRY}{}", last_line(&container.message)),
            ),
            Reason::CrashLoopBackOff | Reason::OOMKilled => {
                no(Reason::Downloading, format!("pod {}: {message}", pod.name))
            }
            other => no(other, format!("pod {}: {message}", pod.name)),
        };
    }
    let unscheduled = pods().find_map(|p| p.unscheduled.as_ref().filter(|_| p.node.is_none()));
    let words = unscheduled.map_or(String::new(), |s| format!(": {}", s.message));
    let claim = view.observed.claim.as_ref().filter(|c| !is_bound(c));
    if let Some(claim) = claim {
        let name = keys::claim(view.key.1);
        let is_late = age(claim, view.now).is_some_and(|age| age > view.storage_timeout);
        return match is_late {
            true => no(
                Reason::VolumeNotBound,
                format!(
                    "PersistentVolumeClaim {name} has not got a volume within {} s{words}; its Events say why",
                    view.storage_timeout.as_secs()
                ),
            ),
            false => no(
                Reason::VolumePending,
                format!("PersistentVolumeClaim {name} waits for its volume{words}"),
            ),
        };
    }
    match stage {
        Stage::Downloading if unscheduled.is_some() => {
            no(Reason::Downloading, format!("the download has no node{words}"))
        }
        // A reason that says no more than before keeps the words of the last try.
        Stage::Downloading => {
            let before = conditions::find(&view.before.conditions, Type::Downloaded);
            let kept = before.filter(|b| b.observed_generation == view.generation && b.message.starts_with(LAST_TRY));
            no(
                Reason::Downloading,
                kept.map_or_else(|| "the model is being downloaded".into(), |b| b.message.clone()),
            )
        }
        _ => no(Reason::Pending, "the download is about to start".into()),
    }
}

/// Words of the last try, if they are known, to write down when the Job has failed.
pub fn last_try(before: &MLModelStatus, generation: Option<i64>) -> Option<&str> {
    let condition = conditions::find(&before.conditions, Type::Downloaded)?;
    let words = condition.message.strip_prefix(LAST_TRY);
    words.filter(|_| condition.observed_generation == generation)
}

/// The script's last words; before them is what curl said.
fn last_line(message: &str) -> &str {
    message.trim_end().lines().last().unwrap_or_default()
}

/// The original's two fields.
fn phase_of(
    view: &View<'_>,
    accepted: &Desired,
    downloaded: Option<&Desired>,
    available: &Desired,
) -> (String, String) {
    let told = |phase: &str, message: &str| (phase.to_owned(), message.to_owned());
    let failed = |condition: &Desired| {
        let message = format!("{}: {}", condition.reason.as_str(), condition.message);
        (phase::FAILED.to_owned(), message)
    };
    match (accepted.status, view.stage, downloaded) {
        (Status::False, ..) | (Status::True, None, _) | (Status::True, _, None) => failed(accepted),
        // Paused: what was told last, if anything was.
        (Status::Unknown, ..) => (
            view.before.phase.clone(),
            view.before.message.clone().unwrap_or_default(),
        ),
        (Status::True, Some(stage), Some(downloaded)) => match stage {
            Stage::Clearing | Stage::Volume => told(phase::PENDING, &downloaded.message),
            Stage::Failed(_) => told(phase::FAILED, &downloaded.message),
            Stage::Lost => failed(downloaded),
            Stage::Prepared { .. } | Stage::Downloading => match (downloaded.reason, stage) {
                (Reason::Downloading | Reason::Pending | Reason::VolumePending, Stage::Downloading) => {
                    told(phase::DOWNLOADING, &downloaded.message)
                }
                (Reason::Downloading | Reason::Pending | Reason::VolumePending, _) => {
                    told(phase::CREATING_STORAGE, &downloaded.message)
                }
                _ => failed(downloaded),
            },
            Stage::Downloaded | Stage::Inherited if available.status == Status::True => {
                told(phase::READY, &available.message)
            }
            Stage::Downloaded | Stage::Inherited if is_stuck(available.reason) => failed(available),
            Stage::Downloaded | Stage::Inherited => told(phase::SERVING, &available.message),
        },
    }
}

/// Where the Service answers.
fn endpoint((namespace, name): (&str, &str), service: &Child) -> Option<String> {
    let port = service.object.pointer("/spec/ports/0/port").and_then(Value::as_i64)?;
    Some(format!("{}.{namespace}.svc.cluster.local:{port}", keys::service(name)))
}

#[cfg(test)]
mod tests;
