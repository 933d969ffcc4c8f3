//! How old pods give way to new ones.
//!
//! The API's default starts a new pod beside the old ones and takes an old one away when the new one is Ready. Where the old pods hold the
//! last GPUs that never happens: the new pod waits for a node, and the old ones wait for the new. So a rollout goes as the API has it
//! while new pods find nodes, and from the moment one of them does not, as many old pods may be missing as it takes to make room for one.
//!
//! All of it is read off the cluster: that a rollout was let go on is what the Deployment says itself.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::cluster::Pod;
use crate::kinds::aideployment::fetch::Observed;
use crate::kinds::aideployment::validate::{Placing, Validated};

/// Label that a Deployment's controller puts on the pods of each version.
const VERSION: &str = "pod-template-hash";

/// The Deployment's strategy; `None`: what the API has for it.
pub fn strategy(model: &Validated, observed: &Observed) -> Option<DeploymentStrategy> {
    if model.strategy.is_some() {
        return model.strategy.clone();
    }
    if !matches!(model.placing, Placing::Managed(_)) {
        return None;
    }
    let rollout = Rollout::of(observed)?;
    let most = rollout.may_be_missing()?;
    Some(DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_unavailable: Some(IntOrString::Int(most)),
            // A new pod may still come first: a GPU may have become free.
            max_surge: None,
        }),
    })
}

/// A rollout that is going on.
struct Rollout {
    /// Wanted pods.
    replicas: i32,
    /// What was let go missing already.
    allowed: Option<i32>,
    /// Pods that have a node, also those that are on their way out.
    holding: i32,
    /// A pod waits, for want of nothing but what pods of another version hold.
    is_stuck: bool,
    /// Something is about to change: a pod is on its way out, or placement has yet to look at one.
    is_moving: bool,
}

impl Rollout {
    /// `None`: there is none.
    fn of(observed: &Observed) -> Option<Self> {
        let object = &observed.deployment.as_ref()?.object;
        let number = |path: &str| {
            let n = object.pointer(path).and_then(Value::as_i64);
            n.and_then(|n| i32::try_from(n).ok())
        };
        let replicas = number("/spec/replicas").unwrap_or(1);
        let versions: BTreeSet<&String> = observed.pods.iter().filter_map(|(pod, _)| version(pod)).collect();
        let updated = number("/status/updatedReplicas").unwrap_or(0);
        let is_known = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let is_over = is_known && versions.len() <= 1 && updated == number("/status/replicas").unwrap_or(0);
        if is_over || replicas <= 0 {
            return None;
        }
        let has_node = |pod: &Pod| pod.node.is_some() || pod.pinned_to.is_some();
        let holding = observed.pods.iter().filter(|(pod, _)| has_node(pod)).count() + observed.leaving;
        let undecided = |(pod, outcome): &(Pod, _)| pod.waits_for_us() && Option::is_none(outcome);
        Some(Self {
            replicas,
            allowed: number("/spec/strategy/rollingUpdate/maxUnavailable").filter(|n| *n > 0),
            holding: i32::try_from(holding).unwrap_or(i32::MAX),
            is_stuck: observed.fits_without_others,
            is_moving: observed.leaving > 0 || observed.pods.iter().any(undecided),
        })
    }

    /// How many of the wanted pods may be missing; `None`: as many as the API has it. Once let go, a rollout goes on so to its end, and
    /// more is let go only when all that was is gone and room is still lacking.
    fn may_be_missing(&self) -> Option<i32> {
        if self.is_stuck && !self.is_moving {
            let missing = self.replicas.saturating_sub(self.holding).max(0);
            let most = missing.saturating_add(1).min(self.replicas);
            return Some(most.max(self.allowed.unwrap_or(0)));
        }
        self.allowed
    }
}

fn version(pod: &Pod) -> Option<&String> {
    pod.labels.get(VERSION)
}

#[cfg(test)]
#[path = "strategy_tests.rs"]
mod tests;
