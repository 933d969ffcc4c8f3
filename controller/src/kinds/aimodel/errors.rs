//! Whether the workers have failed: from what stands in the status and what was reported. Pure.
//!
//! The status is the only memory there is: the API server forgets Events after an hour, and a failure holds until the spec is changed.

use berth_crds::conditions::{self, Type};
use berth_crds::youxam::aimodel::ReportedError;
use berth_crds::youxam::{AIModel, AIModelStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::reports::{Mark, Report};

/// The states of the original.
pub const RUNNING: &str = "Running";
/// A worker reported an error, or the spec cannot be carried out.
pub const FAILED: &str = "Failed";

/// What was concluded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// `<reason>: <message>` of the error, if the workers have failed.
    pub failure: Option<String>,
    /// The error that was reported last.
    pub last: Option<ReportedError>,
}

/// When the spec was changed last, where it takes a request to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Then, or shortly before.
    At(Timestamp),
    /// Nobody asked.
    NotAsked,
}

/// Whether an error that was found in a list decides, so that it matters whether the spec was changed since.
pub fn depends_on_change(object: &AIModel, before: &AIModelStatus, report: Option<&Report>) -> bool {
    report.is_some_and(|r| !r.is_live && is_about(r, object) && !is_recorded(r, before))
}

/// Concludes.
pub fn judge(object: &AIModel, before: &AIModelStatus, report: Option<&Report>, changed: Changed) -> Verdict {
    let counts = |r: &Report| {
        let is_late = match changed {
            // In the second of the change both may be: better one failure too many than one that nobody hears of.
            Changed::At(at) => r.mark.time.as_second() >= at.as_second(),
            Changed::NotAsked => false,
        };
        is_about(r, object) && !is_recorded(r, before) && (r.is_live || is_late)
    };
    match report.filter(|r| counts(r)) {
        Some(report) => Verdict {
            failure: Some(report.text.clone()),
            last: Some(ReportedError {
                event: report.event.clone(),
                count: report.mark.count,
                time: Time(report.mark.time),
            }),
        },
        None => Verdict {
            failure: standing(object, before),
            last: before.last_error.clone(),
        },
    }
}

/// The failure that the status tells of the present spec.
fn standing(object: &AIModel, before: &AIModelStatus) -> Option<String> {
    match conditions::find(&before.conditions, Type::WorkersHealthy) {
        Some(told) => {
            let is_present = told.observed_generation == object.metadata.generation;
            (is_present && told.status == "False").then(|| told.message.clone())
        }
        // The status is the original's, which knows no generations.
        None if before.state.as_deref() == Some(FAILED) => Some(before.message.clone().unwrap_or_default()),
        None => None,
    }
}

/// A namesake that is gone may have been meant: by UID, or by time where the worker does not know the UID.
fn is_about(report: &Report, object: &AIModel) -> bool {
    match (&report.object, &object.metadata.creation_timestamp) {
        (Some(uid), _) => object.metadata.uid.as_ref() == Some(uid),
        (None, Some(made)) => report.mark.time.as_second() >= made.0.as_second(),
        (None, None) => true,
    }
}

/// Whether this occurrence was taken note of: the same one, or one that was found in a list and is older.
fn is_recorded(report: &Report, before: &AIModelStatus) -> bool {
    before.last_error.as_ref().is_some_and(|last| {
        let recorded = Mark {
            count: last.count,
            time: last.time.0,
        };
        match last.event == report.event {
            true => report.mark <= recorded,
            false => !report.is_live && report.mark.time < recorded.time,
        }
    })
}

/// When the spec was changed last, or shortly after: the latest moment at which somebody changed the object otherwise than by a
/// subresource. Nothing else in an object tells.
pub fn changed_at(meta: &ObjectMeta) -> Option<Timestamp> {
    let made = meta.creation_timestamp.as_ref().map(|t| t.0);
    if meta.generation == Some(1) {
        return made;
    }
    let writes = meta.managed_fields.iter().flatten();
    let spec = writes.filter(|w| w.subresource.as_deref().unwrap_or_default().is_empty());
    spec.filter_map(|w| w.time.as_ref().map(|t| t.0)).chain(made).max()
}

#[cfg(test)]
mod tests;
