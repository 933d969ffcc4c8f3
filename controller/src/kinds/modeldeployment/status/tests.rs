use berth_crds::sathvik::ModelDeployment;
use serde_json::{Value, json};

use super::*;
use crate::cluster::{Container, Pod, Scheduling};
use crate::kinds::modeldeployment::fixtures::{
    annotated, children, deployment, job, model, read, sample, seen, sent, serving,
};
use crate::kinds::modeldeployment::stage::stage;
use crate::kinds::status::problems::Problems;

fn at(second: i64) -> Timestamp {
    let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    Timestamp::from_second(created.as_second() + second).unwrap()
}

/// The status of an object with these surroundings, a second after everything was made.
fn told(object: &ModelDeployment, observed: &Observed) -> ModelDeploymentStatus {
    told_after(object, observed, &ModelDeploymentStatus::default(), 1)
}

fn told_after(
    object: &ModelDeployment,
    observed: &Observed,
    before: &ModelDeploymentStatus,
    second: i64,
) -> ModelDeploymentStatus {
    let model = model(object);
    let stage = stage(&model, observed, std::time::Duration::from_secs(600), at(second));
    status(&View {
        generation: Some(3),
        acceptance: &Acceptance::Valid(vec![]),
        model: Some((&model, &stage)),
        observed,
        before,
        now: at(second),
    })
}

fn condition(status: &ModelDeploymentStatus, type_: Type) -> (String, String) {
    let condition = conditions::find(&status.conditions, type_).unwrap();
    assert_eq!(condition.observed_generation, Some(3));
    (condition.status.clone(), condition.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

fn pod(name: &str, trouble: Option<(&str, &str)>) -> Pod {
    Pod {
        name: name.into(),
        node: Some("n".into()),
        ready: trouble.is_none(),
        troubled: trouble
            .map(|(reason, message)| Container {
                name: "c".into(),
                reason: reason.into(),
                message: message.into(),
            })
            .into_iter()
            .collect(),
        ..Pod::default()
    }
}

/// C7.8: the original is Ready when it has made a Deployment.
#[test]
fn ready_means_that_a_server_of_this_version_is() {
    let object = sample(json!({}));
    let model = model(&object);
    let with = |status: Value| Observed {
        deployment: Some(deployment(&model, status)),
        ..serving(&model)
    };
    let none = told(&object, &with(json!({"observedGeneration": 1})));
    assert_eq!((none.phase.as_str(), none.version.clone()), (phase::DEPLOYING, None));
    assert_eq!(condition(&none, Type::Available), pair("False", "NoReplicaAvailable"));
    let all = told(&object, &serving(&model));
    assert_eq!((all.phase.as_str(), all.version.as_deref()), (phase::READY, Some("v1")));
    assert_eq!(
        condition(&all, Type::Available),
        pair("True", "MinimumReplicasAvailable")
    );
    assert_eq!(condition(&all, Type::Validated), pair("True", "ValidationSucceeded"));
    assert_eq!((all.replicas, all.ready_replicas), (Some(1), Some(1)));
    // Somebody deleted the Deployment: what stood in the status before says nothing.
    let gone = Observed {
        deployment: None,
        ..serving(&model)
    };
    assert_eq!(told_after(&object, &gone, &all, 2).phase, phase::DEPLOYING);
}

#[test]
fn the_phases_of_a_validation() {
    let object = sample(json!({}));
    let model = model(&object);
    let with = |status: Value| Observed {
        job: Some(job(&model, status)),
        ..Observed::default()
    };
    let begin = told(&object, &Observed::default());
    assert_eq!(
        (begin.phase.as_str(), begin.message.as_deref()),
        (phase::VALIDATING, Some("starting validation"))
    );
    let running = told(&object, &with(json!({"active": 1})));
    assert_eq!(running.phase, phase::VALIDATING);
    assert_eq!(condition(&running, Type::Validated), pair("False", "Validating"));
    let failed = json!({"conditions": [{"type": "Failed", "status": "True", "message": "Job has reached the specified backoff limit"}]});
    let failed = told(&object, &with(failed));
    assert_eq!(failed.phase, phase::FAILED);
    let message = failed.message.clone().unwrap();
    assert!(
        message.starts_with("Validation failed for version v1: Job has reached the specified backoff limit"),
        "{message}"
    );
    assert_eq!(condition(&failed, Type::Validated), pair("False", "ValidationFailed"));
    let passed = told(&object, &with(json!({"succeeded": 1})));
    assert_eq!(passed.phase, phase::DEPLOYING);

    let counted = |before, now| ended(before, now);
    assert_eq!(counted(&begin, &running), None);
    assert_eq!(counted(&running, &failed), Some(Validation::Failure));
    assert_eq!(counted(&running, &passed), Some(Validation::Success));
    assert_eq!(counted(&failed, &failed), None);
    assert_eq!(
        counted(&ModelDeploymentStatus::default(), &passed),
        None,
        "it ended before this process began"
    );
}

#[test]
fn what_holds_a_validation_up_is_said() {
    let object = sample(json!({}));
    let model = model(&object);
    let with = |pod: Pod| Observed {
        job: Some(job(&model, json!({"active": 1}))),
        validations: vec![pod],
        ..Observed::default()
    };
    let pull = told(&object, &with(pod("v", Some(("ErrImagePull", "no such host")))));
    assert_eq!(pull.phase, phase::FAILED);
    assert_eq!(condition(&pull, Type::Validated), pair("False", "ImagePullBackOff"));
    assert!(pull.message.unwrap().contains("no such host"));
    let waits = Pod {
        name: "v".into(),
        created: Some(at(0)),
        unscheduled: Some(Scheduling {
            message: "3 Insufficient cpu".into(),
            ..Scheduling::default()
        }),
        ..Pod::default()
    };
    let waiting = told(&object, &with(waits.clone()));
    assert_eq!(waiting.phase, phase::VALIDATING);
    assert!(waiting.message.as_ref().unwrap().contains("3 Insufficient cpu"));
    let late = told_after(&object, &with(waits), &waiting, 601);
    assert_eq!(late.phase, phase::FAILED);
    assert_eq!(condition(&late, Type::Validated), pair("False", "ValidationNotPlaced"));
    assert!(late.message.as_ref().unwrap().contains("3 Insufficient cpu"));
    // A node comes free.
    let placed = told_after(&object, &with(pod("v", None)), &late, 700);
    assert_eq!(placed.phase, phase::VALIDATING);
}

/// C7.4: what serves goes on serving, and the status says which it is.
#[test]
fn a_version_that_fails_leaves_the_one_before_available() {
    let before = model(&sample(json!({})));
    let object = sample(json!({"version": "v2"}));
    let after = model(&object);
    let failed = json!({"conditions": [{"type": "Failed", "status": "True", "message": "no"}]});
    let observed = Observed {
        job: Some(job(&after, failed)),
        ..serving(&before)
    };
    let status = told(&object, &observed);
    assert_eq!(
        (status.phase.as_str(), status.version.as_deref()),
        (phase::FAILED, Some("v1"))
    );
    assert_eq!(
        condition(&status, Type::Available),
        pair("True", "MinimumReplicasAvailable")
    );
}

#[test]
fn servers_that_cannot_take_over_are_failed_while_those_before_serve() {
    let object = sample(json!({"validateScript": null}));
    let model = model(&object);
    let rolling = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1});
    let with = |fresh: Pod| Observed {
        deployment: Some(deployment(&model, rolling.clone())),
        servers: vec![(pod("old", None), None), (fresh, None)],
        ..serving(&model)
    };
    let before = ModelDeploymentStatus {
        version: Some("v0".into()),
        ..ModelDeploymentStatus::default()
    };
    let unready = Pod {
        ready: false,
        ..pod("new", None)
    };
    let starting = told_after(&object, &with(unready), &before, 1);
    assert_eq!(
        (starting.phase.as_str(), starting.version.as_deref()),
        (phase::DEPLOYING, Some("v0"))
    );
    assert_eq!(
        condition(&starting, Type::Validated),
        pair("True", "ValidationNotAsked")
    );
    let stuck = told_after(
        &object,
        &with(pod("new", Some(("ImagePullBackOff", "ErrImagePull: denied")))),
        &before,
        1,
    );
    assert_eq!(
        (stuck.phase.as_str(), stuck.version.as_deref()),
        (phase::FAILED, Some("v0"))
    );
    assert!(
        stuck.message.as_ref().unwrap().contains("denied"),
        "{:?}",
        stuck.message
    );
    assert_eq!(
        condition(&stuck, Type::Available),
        pair("True", "MinimumReplicasAvailable")
    );
}

#[test]
fn what_the_original_said_of_its_version_stays_while_its_pods_do() {
    let object = sample(json!({"version": "v2"}));
    let mut observed = serving(&model(&object));
    observed.deployment.as_mut().unwrap().object["metadata"]["annotations"][names::ADOPTED] = "3".into();
    let before = ModelDeploymentStatus {
        version: Some("v1".into()),
        ..ModelDeploymentStatus::default()
    };
    let status = told_after(&object, &observed, &before, 1);
    assert_eq!(
        (status.phase.as_str(), status.version.as_deref()),
        (phase::READY, Some("v1"))
    );
    assert_eq!(told(&object, &observed).version.as_deref(), Some("v2"));
}

#[test]
fn the_autoscaler_s_words_are_told() {
    let object = sample(json!({"autoscale": true}));
    let model = model(&object);
    let plain = told(&sample(json!({})), &serving(&model));
    assert!(conditions::find(&plain.conditions, Type::ScalingActive).is_none());
    let with = |status: Value| {
        let made = sent(&children(&model, &Stage::Passed, &Observed::default()).autoscaler);
        told(
            &object,
            &Observed {
                autoscaler: Some(seen(made, status)),
                ..serving(&model)
            },
        )
    };
    let one =
        |type_: &str, status: &str| json!({"conditions": [{"type": type_, "status": status, "message": "no metrics"}]});
    assert_eq!(
        condition(&told(&object, &serving(&model)), Type::ScalingActive),
        pair("Unknown", "Pending")
    );
    assert_eq!(
        condition(&with(json!({})), Type::ScalingActive),
        pair("Unknown", "Pending")
    );
    assert_eq!(
        condition(&with(one("ScalingActive", "True")), Type::ScalingActive),
        pair("True", "ScalerReady")
    );
    for refused in ["ScalingActive", "AbleToScale"] {
        let status = with(one(refused, "False"));
        assert_eq!(condition(&status, Type::ScalingActive), pair("False", "ScalerNotReady"));
        assert_eq!(status.phase, phase::READY, "it serves all the same");
    }
}

#[test]
fn a_spec_that_cannot_be_carried_out_is_failed_and_a_paused_one_stays() {
    let before = told(&sample(json!({})), &serving(&model(&sample(json!({})))));
    let view = |acceptance: &Acceptance| {
        status(&View {
            generation: Some(3),
            acceptance,
            model: None,
            observed: &serving(&model(&sample(json!({})))),
            before: &before,
            now: at(5),
        })
    };
    let problems: Problems = read(&sample(json!({"runtime": "onnx"}))).unwrap_err();
    let invalid = view(&Acceptance::Invalid(problems));
    assert_eq!(invalid.phase, phase::FAILED);
    assert!(
        invalid
            .message
            .as_ref()
            .unwrap()
            .starts_with("InvalidSpec: spec.runtime"),
        "{:?}",
        invalid.message
    );
    assert_eq!(condition(&invalid, Type::Available).0, "True");
    assert_eq!(invalid.version.as_deref(), Some("v1"));
    let paused = view(&Acceptance::Paused);
    assert_eq!(
        (paused.phase, paused.message),
        (before.phase.clone(), before.message.clone())
    );
}

#[test]
fn gated_servers_have_a_place_or_say_why_not() {
    let object = annotated(sample(json!({"validateScript": null})), &[(names::GPU_CLASS, "h100")]);
    let observed = Observed {
        deployment: Some(deployment(&model(&object), json!({"observedGeneration": 1}))),
        ..Observed::default()
    };
    let status = told(&object, &observed);
    assert_eq!(condition(&status, Type::Placed), pair("False", "Pending"));
    assert_eq!(status.phase, phase::DEPLOYING);
}
