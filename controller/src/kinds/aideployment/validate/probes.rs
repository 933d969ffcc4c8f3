//! Timing overrides of probes.

use berth_crds::premlabs::aideployment::{DeploymentOptions, ProbeTiming};
use k8s_openapi::api::core::v1::{Container, Probe};

use crate::kinds::status::problems::Findings;

/// Lays the timings over the container's probes. `has_container` is false where the engine could not be read: then a probe that is not
/// there is no finding.
pub fn overlay(container: &mut Container, options: &DeploymentOptions, has_container: bool, findings: &mut Findings) {
    let probes = [
        ("startupProbe", &options.startup_probe, &mut container.startup_probe),
        (
            "readinessProbe",
            &options.readiness_probe,
            &mut container.readiness_probe,
        ),
        ("livenessProbe", &options.liveness_probe, &mut container.liveness_probe),
    ];
    for (name, timing, probe) in probes {
        let Some(timing) = timing.as_ref().filter(|t| **t != ProbeTiming::default()) else {
            continue;
        };
        let path = format!("spec.deployment.{name}");
        check(timing, name, &path, findings);
        match probe {
            Some(probe) => lay(timing, name, probe),
            None if has_container => findings.invalid(
                path,
                "overrides timings of a probe that the container does not have",
                format_args!("add {name} to the first container of spec.deployment.template, or remove the override"),
            ),
            None => {}
        }
    }
}

fn check(timing: &ProbeTiming, name: &str, path: &str, findings: &mut Findings) {
    let fields = [
        ("initialDelaySeconds", timing.initial_delay_seconds.map(i64::from)),
        ("timeoutSeconds", timing.timeout_seconds.map(i64::from)),
        ("periodSeconds", timing.period_seconds.map(i64::from)),
        ("successThreshold", timing.success_threshold.map(i64::from)),
        ("failureThreshold", timing.failure_threshold.map(i64::from)),
        ("terminationGracePeriodSeconds", timing.termination_grace_period_seconds),
    ];
    for (field, value) in fields {
        if let Some(value) = value.filter(|v| *v < 0) {
            findings.invalid(
                format!("{path}.{field}"),
                format_args!("{value} is negative"),
                "give 0 or more",
            );
        }
    }
    let is_readiness = name == "readinessProbe";
    if !is_readiness && timing.success_threshold.is_some_and(|n| n > 1) {
        findings.invalid(
            format!("{path}.successThreshold"),
            "is more than 1, which Kubernetes takes only for readinessProbe",
            "remove it",
        );
    }
    if is_readiness && timing.termination_grace_period_seconds.is_some() {
        findings.ignored(
            format_args!("{path}.terminationGracePeriodSeconds"),
            "a readiness probe ends no container",
        );
    }
}

/// An explicit initial delay of 0 counts; a 0 elsewhere leaves the default.
fn lay(timing: &ProbeTiming, name: &str, probe: &mut Probe) {
    let over = |field: &mut Option<i32>, value: Option<i32>| {
        if let Some(value) = value.filter(|v| *v != 0) {
            *field = Some(value);
        }
    };
    if timing.initial_delay_seconds.is_some() {
        probe.initial_delay_seconds = timing.initial_delay_seconds;
    }
    over(&mut probe.timeout_seconds, timing.timeout_seconds);
    over(&mut probe.period_seconds, timing.period_seconds);
    over(&mut probe.success_threshold, timing.success_threshold);
    over(&mut probe.failure_threshold, timing.failure_threshold);
    if let Some(grace) = timing
        .termination_grace_period_seconds
        .filter(|g| *g > 0 && name != "readinessProbe")
    {
        probe.termination_grace_period_seconds = Some(grace);
    }
}
