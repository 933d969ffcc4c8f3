//! How far an MLModel is, read off what there is: never off its status. Pure.
//!
//! ```text
//! Volume ─► Prepared ─► Downloading ─► Downloaded
//!    ▲          ▲            └► Failed ──┐ berth.dev/retry changes
//!    │          └────────────────────────┘
//!    └── Clearing ◄── any of them, where an object of another source is left
//! ```

use berth_crds::names;
use serde::{Deserialize, Serialize};

use super::fetch::Observed;
use crate::kinds::children::Child;
use crate::kinds::workload::jobs::outcome;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Objects of an earlier spec, or of a volume that is gone, have to go before anything is made.
    Clearing,
    /// There is no claim.
    Volume,
    /// There is a claim, and nothing else.
    Prepared {
        /// Pods of an earlier download still run.
        is_busy: bool,
    },
    /// There is a Job.
    Downloading,
    /// The download failed.
    Failed(Failure),
    /// What the claim was bound to is gone.
    Lost,
    /// The model is on the volume.
    Downloaded,
    /// The original's servers run as it made them, with a file that only they find. It is downloaded anew before they are changed.
    Inherited,
}

/// How a download failed; stands on the claim, since the Job goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In words.
    pub message: String,
    /// Value of the annotation [`names::RETRY`] on the MLModel when the Job was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
}

impl Failure {
    /// Whether it is to be tried again: the annotation has another value now. Taking it away changes nothing.
    fn is_void(&self, retry: Option<&str>) -> bool {
        retry.is_some() && retry != self.retry.as_deref()
    }
}

/// How far it is, for a model of this source, with this value of the annotation [`names::RETRY`]. `is_held`: the Deployment is to stay as
/// the original made it.
pub fn stage(source: &str, retry: Option<&str>, is_held: bool, observed: &Observed) -> Stage {
    // One that lost the annotation is repaired: it says nothing, and a volume is not deleted for that.
    let is_other = |child: &Child| {
        child
            .annotation(names::MODEL_SOURCE)
            .is_some_and(|other| other != source)
    };
    let Some(claim) = &observed.claim else {
        let is_clear = observed.job.is_none()
            && observed.deployment.is_none()
            && observed.downloads.is_empty()
            && observed.servers.is_empty()
            && observed.leaving == 0;
        return if is_clear { Stage::Volume } else { Stage::Clearing };
    };
    let others = [&observed.claim, &observed.job, &observed.deployment];
    if claim.terminating || others.into_iter().flatten().any(is_other) {
        return Stage::Clearing;
    }
    if claim.object["status"]["phase"] == "Lost" {
        return Stage::Lost;
    }
    if claim.annotation(names::MODEL_DOWNLOADED) == Some(source) {
        return Stage::Downloaded;
    }
    if is_held {
        return Stage::Inherited;
    }
    let job = observed.job.as_ref();
    match job.map(|job| (job, outcome(job))) {
        Some((_, Some(Ok(())))) => Stage::Downloaded,
        Some((job, Some(Err(failed)))) => {
            let failure = Failure {
                message: format!("Job {} failed: {}", name(job), failed.reason),
                retry: job.annotation(names::RETRY).map(str::to_owned),
            };
            match failure.is_void(retry) || job.terminating && recorded(claim).is_none() {
                true => Stage::Prepared { is_busy: true },
                // What was written down at first says more than the Job alone.
                false => Stage::Failed(recorded(claim).filter(|f| f.retry == failure.retry).unwrap_or(failure)),
            }
        }
        Some((_, None)) => Stage::Downloading,
        None => match recorded(claim) {
            Some(failure) if !failure.is_void(retry) => Stage::Failed(failure),
            _ => Stage::Prepared {
                is_busy: !observed.downloads.is_empty(),
            },
        },
    }
}

/// The failure that stands on the claim. One that cannot be read is still one.
fn recorded(claim: &Child) -> Option<Failure> {
    let text = claim.annotation(names::MODEL_DOWNLOAD_FAILED)?;
    let read = serde_json::from_str(text);
    Some(read.unwrap_or_else(|_| Failure {
        message: text.to_owned(),
        retry: None,
    }))
}

fn name(child: &Child) -> &str {
    child.object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether a claim has its volume.
pub fn is_bound(claim: &Child) -> bool {
    claim.object["status"]["phase"] == "Bound"
}

#[cfg(test)]
mod tests;
