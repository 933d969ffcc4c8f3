use serde_json::{Value, json};

use super::*;
use crate::cluster::Scheduling;
use crate::kinds::modeldeployment::fixtures::{annotated, job, model, sample, serving};

const TIMEOUT: Duration = Duration::from_secs(600);

fn at(second: i64) -> Timestamp {
    // The creation of what fixtures show as seen.
    let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    Timestamp::from_second(created.as_second() + second).unwrap()
}

fn now(model: &Validated, observed: &Observed) -> Stage {
    stage(model, observed, TIMEOUT, at(1))
}

fn with_job(model: &Validated, status: Value) -> Observed {
    Observed {
        job: Some(job(model, status)),
        ..Observed::default()
    }
}

fn failed() -> Value {
    json!({"failed": 2, "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
        "message": "Job has reached the specified backoff limit"}]})
}

/// C7.2: the original runs `python ""`, which fails.
#[test]
fn without_a_script_it_is_served_at_once() {
    for script in [json!(null), json!(""), json!(" ")] {
        let model = model(&sample(json!({"validateScript": script})));
        assert_eq!(now(&model, &Observed::default()), Stage::Passed);
    }
}

#[test]
fn a_job_is_made_and_its_end_decides() {
    let model = model(&sample(json!({})));
    assert_eq!(now(&model, &Observed::default()), Stage::Begin);
    for (status, want) in [
        (json!({}), Stage::Running),
        (json!({"active": 1}), Stage::Running),
        (
            json!({"conditions": [{"type": "FailureTarget", "status": "True"}]}),
            Stage::Running,
        ),
        (
            json!({"conditions": [{"type": "Complete", "status": "False"}]}),
            Stage::Running,
        ),
        (
            json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}),
            Stage::Passed,
        ),
        (
            failed(),
            Stage::Failed("Job has reached the specified backoff limit".into()),
        ),
        (
            json!({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}),
            Stage::Failed("DeadlineExceeded".into()),
        ),
    ] {
        assert_eq!(now(&model, &with_job(&model, status.clone())), want, "{status}");
    }
}

/// C7.3: a Job of another version says nothing of this one, and a failure is not for ever.
#[test]
fn a_job_of_another_revision_makes_way() {
    let before = model(&sample(json!({})));
    let after = model(&sample(json!({"version": "v2"})));
    for status in [json!({"active": 1}), json!({"succeeded": 1}), failed()] {
        assert_eq!(
            now(&after, &with_job(&before, status.clone())),
            Stage::Clearing,
            "{status}"
        );
    }
    let mut going = with_job(&after, json!({"succeeded": 1}));
    going.job.as_mut().unwrap().terminating = true;
    assert_eq!(now(&after, &going), Stage::Clearing);
}

#[test]
fn a_failure_is_tried_again_when_it_is_asked_for() {
    let asked = |retry: &str| model(&annotated(sample(json!({})), &[(names::RETRY, retry)]));
    let plain = model(&sample(json!({})));
    let first = with_job(&plain, failed());
    assert_eq!(now(&asked("1"), &first), Stage::Clearing);
    let second = with_job(&asked("1"), failed());
    assert!(matches!(now(&asked("1"), &second), Stage::Failed(_)));
    assert!(
        matches!(now(&plain, &second), Stage::Failed(_)),
        "taking it away asks for nothing"
    );
    assert_eq!(now(&asked("2"), &second), Stage::Clearing);
    assert_eq!(
        now(&asked("2"), &with_job(&plain, json!({"active": 1}))),
        Stage::Running
    );
}

/// The Job may be deleted: what serves has passed.
#[test]
fn what_is_served_is_not_validated_again() {
    let model = model(&sample(json!({})));
    let mut observed = serving(&model);
    assert_eq!(now(&model, &observed), Stage::Passed);
    observed.deployment = None;
    assert_eq!(now(&model, &observed), Stage::Passed, "the Service remembers");
    observed.service = None;
    assert_eq!(now(&model, &observed), Stage::Begin);
}

fn pod(node: Option<&str>, words: Option<&str>) -> crate::cluster::Pod {
    crate::cluster::Pod {
        name: "validate-net-x".into(),
        node: node.map(str::to_owned),
        created: Some(at(10)),
        unscheduled: words.map(|w| Scheduling {
            message: w.into(),
            ..Scheduling::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_validation_without_a_node_fails_in_time_and_goes_on_when_it_has_one() {
    let model = model(&sample(json!({})));
    let waits = |pods: Vec<crate::cluster::Pod>, status: Value, second: i64| {
        let observed = Observed {
            validations: pods,
            ..with_job(&model, status)
        };
        let stage = stage(&model, &observed, TIMEOUT, at(second));
        let again = look_again(&stage, &observed, TIMEOUT, at(second));
        (stage, again.map(|d| d.as_secs()))
    };
    let active = || json!({"active": 1});
    let full = || vec![pod(None, Some("0/3 nodes are available: 3 Insufficient cpu."))];
    assert_eq!(waits(full(), active(), 610), (Stage::Running, Some(1)));
    let (stage, again) = waits(full(), active(), 611);
    let words = "pod validate-net-x has no node: 0/3 nodes are available: 3 Insufficient cpu.";
    assert_eq!((stage, again), (Stage::Unplaced(words.into()), None));
    assert_eq!(
        waits(vec![pod(Some("n"), None)], active(), 5000),
        (Stage::Running, None)
    );
    // A quota may keep its pod from being made at all.
    assert_eq!(waits(vec![], json!({}), 600), (Stage::Running, Some(1)));
    assert!(matches!(waits(vec![], json!({}), 601).0, Stage::Unplaced(_)));
    // Finished pods are not seen: the Job is about to say how that went.
    for status in [
        json!({"active": 1}),
        json!({"failed": 1}),
        json!({"uncountedTerminatedPods": {"failed": ["u"]}}),
    ] {
        assert_eq!(waits(vec![], status, 5000).0, Stage::Running);
    }
}

#[test]
fn a_rollout_is_done_when_no_pod_of_another_template_is_left() {
    let model = model(&sample(json!({})));
    let deployment = |status: Value| crate::kinds::modeldeployment::fixtures::deployment(&model, status);
    for (status, want) in [
        (json!({}), false),
        (json!({"observedGeneration": 1}), true),
        (
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1}),
            false,
        ),
        (
            json!({"observedGeneration": 0, "replicas": 1, "updatedReplicas": 1}),
            false,
        ),
        (
            json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}),
            true,
        ),
    ] {
        assert_eq!(is_rolled_out(&deployment(status.clone())), want, "{status}");
    }
}
