//! What is told about an AIDeployment. Pure: from what was found, made and observed.

use berth_crds::conditions::{self, Status};
use berth_crds::names;
use berth_crds::premlabs::AIDeploymentStatus;
use berth_crds::premlabs::aideployment::PodPlacement;
use jiff::Timestamp;

use super::build::selector;
use super::fetch::Observed;
pub use crate::kinds::status::acceptance::Acceptance;
use crate::kinds::status::acceptance::accepted;
use crate::kinds::workload::{Sight, Workload, available, node_of, placed};
use crate::placement::Outcome;

/// Most placements that the status lists.
const PLACEMENTS: usize = 20;

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
