use serde_json::{Value, json};

use super::*;
use crate::kinds::aimodel::fixtures::{child, observed};
use crate::kinds::status::problems::Problems;

fn scaling() -> Scaling {
    Scaling {
        threshold: 2,
        admin_url: Some("http://pulsar:8080".into()),
    }
}

fn failure() -> Verdict {
    Verdict {
        failure: Some("ConfigurationError: no such model".into()),
        last: None,
    }
}

struct Case {
    acceptance: Acceptance,
    verdict: Verdict,
    scaling: Option<Scaling>,
    observed: Observed,
    before: AIModelStatus,
}

impl Default for Case {
    fn default() -> Self {
        let deployment =
            json!({"spec": {"replicas": 3}, "status": {"replicas": 3, "readyReplicas": 2, "availableReplicas": 2}});
        Self {
            acceptance: Acceptance::Valid(vec![]),
            verdict: Verdict::default(),
            scaling: None,
            observed: Observed {
                deployment: Some(child(deployment)),
                ..observed()
            },
            before: AIModelStatus::default(),
        }
    }
}

impl Case {
    fn told(&self) -> AIModelStatus {
        status(&View {
            generation: Some(7),
            acceptance: &self.acceptance,
            verdict: &self.verdict,
            scaling: self.scaling.as_ref(),
            observed: &self.observed,
            before: &self.before,
            now: Timestamp::UNIX_EPOCH,
        })
    }
}

fn short(status: &AIModelStatus, type_: Type) -> String {
    conditions::find(&status.conditions, type_).map_or("-".into(), |c| format!("{} {}", c.status, c.reason))
}

fn words(status: &AIModelStatus) -> (&str, &str) {
    (
        status.state.as_deref().unwrap_or("-"),
        status.message.as_deref().unwrap_or("-"),
    )
}

#[test]
fn all_is_well() {
    let status = Case::default().told();
    assert_eq!(words(&status), ("Running", WELL));
    assert_eq!((status.replicas, status.ready_replicas), (Some(3), Some(2)));
    let types: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["Accepted", "WorkersHealthy", "Available"]);
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.status == "True" && c.observed_generation == Some(7))
    );
}

#[test]
fn a_worker_s_error_is_told_in_its_own_words() {
    let status = Case {
        verdict: failure(),
        ..Case::default()
    }
    .told();
    assert_eq!(words(&status), ("Failed", "ConfigurationError: no such model"));
    assert_eq!(short(&status, Type::WorkersHealthy), "False ErrorReported");
    assert_eq!(short(&status, Type::Accepted), "True Valid");
}

/// A7.7: the state stays the original's; what the pods are doing is told beside it.
#[test]
fn pods_that_do_not_run_are_told_in_a_condition() {
    let deployment = json!({"spec": {"replicas": 1}, "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}});
    let status = Case {
        observed: Observed {
            deployment: Some(child(deployment)),
            ..observed()
        },
        ..Case::default()
    }
    .told();
    assert_eq!(words(&status), ("Running", WELL));
    assert_eq!(short(&status, Type::Available), "False PodsForbidden");
}

#[test]
fn a_spec_that_cannot_be_carried_out_fails_in_the_same_form() {
    let mut problems = Problems::default();
    problems.invalid("spec.type", "is not set", "give local or remote");
    let status = Case {
        acceptance: Acceptance::Invalid(problems),
        ..Case::default()
    }
    .told();
    assert_eq!(
        words(&status),
        ("Failed", "InvalidSpec: spec.type: is not set; give local or remote")
    );
    let paused = Case {
        acceptance: Acceptance::Paused,
        before: status.clone(),
        ..Case::default()
    }
    .told();
    assert_eq!(words(&paused), words(&status), "what was told last stays");
}

fn keda(conditions: Value) -> Observed {
    Observed {
        scaled_object: Some(child(json!({"status": {"conditions": conditions}}))),
        ..Case::default().observed
    }
}

/// A7.9, A7.10
#[test]
fn what_scaling_lacks_is_named() {
    let told = |scaling, observed, verdict| {
        let status = Case {
            scaling,
            observed,
            verdict,
            ..Case::default()
        }
        .told();
        let message = conditions::find(&status.conditions, Type::ScalingActive).map(|c| c.message.clone());
        (short(&status, Type::ScalingActive), message.unwrap_or_default())
    };
    let plain = || Case::default().observed;
    let without_keda = Observed { keda: false, ..plain() };
    let well = Verdict::default;
    let ready = |status: &str| {
        keda(
            json!([{"type": "Active", "status": "False"}, {"type": "Ready", "status": status, "message": "no adminURL"}]),
        )
    };
    let unset = Scaling {
        admin_url: None,
        ..scaling()
    };
    for (name, scaling, observed, verdict, want, words) in [
        ("not asked for", None, plain(), well(), "-", ""),
        (
            "no KEDA",
            Some(scaling()),
            without_keda,
            well(),
            "False ApiNotInstalled",
            "keda.sh",
        ),
        (
            "no address",
            Some(unset),
            plain(),
            well(),
            "False NotConfigured",
            "pulsar.adminURL",
        ),
        (
            "on its way",
            Some(scaling()),
            plain(),
            well(),
            "Unknown Pending",
            "no ScaledObject",
        ),
        (
            "just made",
            Some(scaling()),
            keda(json!([])),
            well(),
            "Unknown Pending",
            "KEDA",
        ),
        (
            "well",
            Some(scaling()),
            ready("True"),
            well(),
            "True ScalerReady",
            "follows",
        ),
        (
            "ill",
            Some(scaling()),
            ready("False"),
            well(),
            "False ScalerNotReady",
            "no adminURL",
        ),
        (
            "failed",
            Some(scaling()),
            plain(),
            failure(),
            "False ErrorReported",
            "until the spec",
        ),
    ] {
        let (got, message) = told(scaling, observed, verdict);
        assert_eq!(got, want, "{name}");
        assert!(message.contains(words), "{name}: {message}");
    }
}
