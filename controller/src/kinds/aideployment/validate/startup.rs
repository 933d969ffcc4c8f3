//! How long the engine may take to start.

use berth_crds::premlabs::aideployment::DeploymentOptions;
use k8s_openapi::api::core::v1::Container;

use crate::kinds::status::problems::Findings;

const PATH: &str = "spec.deployment.startupTimeoutSeconds";
/// Longest budget, a week: beyond it nobody waits for a start.
const LONGEST: i32 = 7 * 24 * 3600;
/// What the API gives a Deployment for progress, and so what pulling an image and finding a node may take besides.
const PROGRESS: i32 = 600;
/// Period of a probe that names none.
const PERIOD: i32 = 10;

/// Gives the container's startup probe as many failures as the budget has periods, and says how long the Deployment waits for progress;
/// `None`: as long as the API does. Timings of `startupProbe` are there already, and count.
pub fn budget(container: &mut Container, options: &DeploymentOptions, findings: &mut Findings) -> Option<i32> {
    let seconds = options.startup_timeout_seconds?;
    if !(1..=LONGEST).contains(&seconds) {
        findings.invalid(
            PATH,
            format_args!("{seconds} is no number of seconds from 1 to {LONGEST}"),
            "write it like 3600",
        );
        return None;
    }
    let overridden = options.startup_probe.as_ref().and_then(|p| p.failure_threshold);
    match &mut container.startup_probe {
        None => findings.ignored(PATH, "the container has no startup probe"),
        Some(_) if overridden.is_some_and(|n| n != 0) => {
            findings.ignored(
                PATH,
                "spec.deployment.startupProbe.failureThreshold is given, and counts",
            );
        }
        Some(probe) => {
            let delay = probe.initial_delay_seconds.unwrap_or(0).max(0);
            let period = probe.period_seconds.filter(|p| *p > 0).unwrap_or(PERIOD);
            let left = seconds.saturating_sub(delay).max(1);
            // Rounded up: the budget is what the engine may take at least.
            probe.failure_threshold = Some((left - 1) / period + 1);
        }
    }
    // Kubernetes counts from the pod's creation on, so that there has to be time for the node and the image besides.
    Some(seconds.saturating_add(PROGRESS))
}
