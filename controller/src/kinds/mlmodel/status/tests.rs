use serde_json::json;

use super::*;
use crate::cluster::{Container, Pod};
use crate::kinds::children::wanted::Wanted;
use crate::kinds::mlmodel::build::build;
use crate::kinds::mlmodel::fixtures::{SAVED_MODEL, claim, deployment, job, model, seen, sent};
use crate::kinds::mlmodel::stage::{Failure, stage};
use crate::kinds::mlmodel::validate::Validated;
use crate::kinds::status::problems::Problems;

const TIMEOUT: Duration = Duration::from_secs(600);
/// Claims of fixtures are made at midnight.
const EARLY: &str = "2026-01-01T00:05:00Z";
const LATE: &str = "2026-01-01T00:11:00Z";

struct Told {
    before: MLModelStatus,
    acceptance: Acceptance,
    now: &'static str,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            before: MLModelStatus::default(),
            acceptance: Acceptance::Valid(vec![]),
            now: EARLY,
        }
    }
}

impl Told {
    fn of(&self, model: &Validated, observed: &Observed) -> MLModelStatus {
        let stage = stage(&model.download.source, model.retry.as_deref(), false, observed);
        let readable = !matches!(self.acceptance, Acceptance::Invalid(_));
        status(&View {
            key: ("shop", "net"),
            generation: Some(3),
            acceptance: &self.acceptance,
            stage: Some(&stage).filter(|_| readable),
            observed,
            storage_timeout: TIMEOUT,
            before: &self.before,
            now: self.now.parse().unwrap(),
        })
    }
}

fn told(model: &Validated, observed: &Observed) -> MLModelStatus {
    Told::default().of(model, observed)
}

fn reason(status: &MLModelStatus, type_: Type) -> &str {
    conditions::find(&status.conditions, type_).map_or("(none)", |c| c.reason.as_str())
}

fn message(status: &MLModelStatus) -> &str {
    status.message.as_deref().unwrap_or_default()
}

fn pod(name: &str, reason: &str, message: &str) -> Pod {
    let troubled = Container {
        name: "c".into(),
        reason: reason.into(),
        message: message.into(),
    };
    Pod {
        name: name.into(),
        node: Some("n".into()),
        troubled: (!reason.is_empty()).then_some(troubled).into_iter().collect(),
        ..Pod::default()
    }
}

const PREPARED: Stage = Stage::Prepared { is_busy: false };

fn downloading(model: &Validated, phase: &str) -> Observed {
    Observed {
        claim: Some(claim(model, &PREPARED, phase)),
        job: Some(job(model, json!({"active": 1}))),
        ..Observed::default()
    }
}

fn serving(model: &Validated, deployment_status: serde_json::Value) -> Observed {
    let built = build(model, &Stage::Downloaded, &Observed::default(), false);
    let service = match &built.service {
        Wanted::Like(_) => Some(seen(sent(&built.service), json!({}))),
        _ => None,
    };
    Observed {
        claim: Some(claim(model, &Stage::Downloaded, "Bound")),
        deployment: Some(deployment(model, deployment_status)),
        service,
        ..Observed::default()
    }
}

#[test]
fn every_phase_of_the_original() {
    let model = model(SAVED_MODEL);
    let prepared = Observed {
        claim: Some(claim(&model, &PREPARED, "Bound")),
        ..Observed::default()
    };
    for (observed, phase, endpoint) in [
        (Observed::default(), "Pending", false),
        (prepared, "CreatingStorage", false),
        (downloading(&model, "Bound"), "Downloading", false),
        (serving(&model, json!({"replicas": 1})), "Serving", true),
        (
            serving(
                &model,
                json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}),
            ),
            "Ready",
            true,
        ),
    ] {
        let status = told(&model, &observed);
        assert_eq!(
            (status.phase.as_str(), status.service_endpoint.is_some()),
            (phase, endpoint),
            "{status:?}"
        );
        assert_eq!(status.observed_generation, 3);
        assert_eq!(reason(&status, Type::Accepted), "Valid");
        assert!(status.conditions.iter().all(|c| c.observed_generation == Some(3)));
    }
}

/// B7.1: the endpoint was told whether or not anything answered there.
#[test]
fn the_endpoint_is_that_of_the_service_that_is_there() {
    let ready = json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1});
    let status = told(&model(SAVED_MODEL), &serving(&model(SAVED_MODEL), ready.clone()));
    assert_eq!(
        status.service_endpoint.as_deref(),
        Some("net-service.shop.svc.cluster.local:8501")
    );
    let hidden = model(&SAVED_MODEL.replace("expose: true", "expose: false"));
    assert_eq!(told(&hidden, &serving(&hidden, ready)).service_endpoint, None);
}

/// B7.6: Ready meant that a Deployment object was made.
#[test]
fn ready_means_that_a_server_is() {
    let model = model(SAVED_MODEL);
    for (why, words, reason_) in [
        ("ImagePullBackOff", "Back-off pulling", "ImagePullBackOff"),
        ("CrashLoopBackOff", "", "CrashLoopBackOff"),
        ("OOMKilled", "", "OOMKilled"),
    ] {
        let mut observed = serving(&model, json!({"replicas": 1}));
        observed.servers = vec![(pod("net-server-x-1", why, words), None)];
        let status = told(&model, &observed);
        assert_eq!(
            (status.phase.as_str(), reason(&status, Type::Available)),
            ("Failed", reason_)
        );
        assert!(message(&status).starts_with(reason_), "{status:?}");
    }
    let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
    let mut observed = serving(&model, json!({"replicas": 1, "conditions": [late]}));
    observed.servers = vec![(pod("net-server-x-1", "", ""), None)];
    let status = told(&model, &observed);
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Available)),
        ("Failed", "NotReadyInTime")
    );
    let quota = json!({"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"});
    let status = told(&model, &serving(&model, json!({"conditions": [quota]})));
    assert_eq!(
        (status.phase.as_str(), message(&status)),
        ("Failed", "PodsForbidden: exceeded quota")
    );
}

#[test]
fn pods_that_wait_for_a_gpu_have_not_failed() {
    let mut gpus = model(SAVED_MODEL);
    gpus.gpus = Some(crate::kinds::workload::gpus::Wish {
        count: 1,
        asked: [].into(),
    });
    let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
    let status = told(&gpus, &serving(&gpus, json!({"replicas": 1, "conditions": [late]})));
    assert_eq!(status.phase, "Serving");
    assert_eq!(reason(&status, Type::Placed), "Pending");
}

#[test]
fn a_volume_that_never_comes_is_a_failure_until_it_does() {
    let model = model(SAVED_MODEL);
    let observed = downloading(&model, "Pending");
    let early = told(&model, &observed);
    assert_eq!(
        (early.phase.as_str(), reason(&early, Type::Downloaded)),
        ("Downloading", "VolumePending")
    );
    let late = Told {
        now: LATE,
        ..Told::default()
    };
    let status = late.of(&model, &observed);
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Downloaded)),
        ("Failed", "VolumeNotBound")
    );
    assert!(message(&status).contains("net-pvc"), "{status:?}");
    assert_eq!(late.of(&model, &downloading(&model, "Bound")).phase, "Downloading");
    // Somebody has to look when the time is over.
    let look =
        |now: &str, observed: &Observed| look_again(&Stage::Downloading, observed, TIMEOUT, now.parse().unwrap());
    assert_eq!(look(EARLY, &observed), Some(Duration::from_secs(301)));
    assert_eq!(look(LATE, &observed), None);
    assert_eq!(look(EARLY, &downloading(&model, "Bound")), None);
}

#[test]
fn an_image_that_does_not_come_is_a_failure_of_the_download_until_it_does() {
    let model = model(SAVED_MODEL);
    let mut observed = downloading(&model, "Bound");
    observed.downloads = vec![pod("net-download-job-x", "ErrImagePull", "no such tag")];
    let status = told(&model, &observed);
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Downloaded)),
        ("Failed", "ImagePullBackOff")
    );
    assert!(message(&status).contains("no such tag"), "{status:?}");
}

#[test]
fn what_a_try_said_is_told_while_it_is_tried_again() {
    let model = model(SAVED_MODEL);
    let mut observed = downloading(&model, "Bound");
    observed.downloads = vec![pod("p", "Error", "curl: (22) 404\nerror: the server answers 404\n")];
    let status = told(&model, &observed);
    assert_eq!(status.phase, "Downloading");
    assert_eq!(
        message(&status),
        "the last try ended with: error: the server answers 404"
    );
    assert_eq!(last_try(&status, Some(3)), Some("error: the server answers 404"));
    assert_eq!(last_try(&status, Some(4)), None);
    // The next try runs: its words are those of the last.
    observed.downloads = vec![pod("p", "", "")];
    let next = Told {
        before: status,
        ..Told::default()
    };
    assert_eq!(
        message(&next.of(&model, &observed)),
        "the last try ended with: error: the server answers 404"
    );
}

/// B7.11, B7.13: Failed says how, and stays.
#[test]
fn a_failed_download_says_how() {
    let model = model(SAVED_MODEL);
    let failure = Failure {
        message: "Job net-download-job failed: PodFailurePolicy".into(),
        retry: None,
    };
    let observed = Observed {
        claim: Some(claim(&model, &Stage::Failed(failure), "Bound")),
        ..Observed::default()
    };
    let status = told(&model, &observed);
    assert_eq!(
        (status.phase.as_str(), message(&status)),
        ("Failed", "Job net-download-job failed: PodFailurePolicy")
    );
    assert_eq!(reason(&status, Type::Downloaded), "DownloadFailed");
}

/// B7.2: waiting for what is being deleted is a state, not an end.
#[test]
fn a_clean_start_is_pending() {
    let (old, new) = (model(SAVED_MODEL), model(&SAVED_MODEL.replace("4.tar", "5.tar")));
    let observed = Observed {
        claim: Some(claim(&old, &Stage::Downloaded, "Bound")),
        ..Observed::default()
    };
    let status = told(&new, &observed);
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Downloaded)),
        ("Pending", "Restarting")
    );
    assert_eq!(status.service_endpoint, None);
}

#[test]
fn what_cannot_be_carried_out_has_failed_and_what_is_paused_stays() {
    let model = model(SAVED_MODEL);
    let mut problems = Problems::default();
    problems.invalid("spec.storageSize", "is bad", "mend it");
    let invalid = Told {
        acceptance: Acceptance::Invalid(problems),
        ..Told::default()
    };
    let status = invalid.of(&model, &Observed::default());
    assert_eq!(
        (status.phase.as_str(), message(&status)),
        ("Failed", "InvalidSpec: spec.storageSize: is bad; mend it")
    );
    assert_eq!(reason(&status, Type::Downloaded), "(none)");
    let paused = Told {
        acceptance: Acceptance::Paused,
        before: MLModelStatus {
            phase: "Ready".into(),
            ..MLModelStatus::default()
        },
        ..Told::default()
    };
    assert_eq!(paused.of(&model, &Observed::default()).phase, "Ready");
}

#[test]
fn a_lost_volume_has_failed() {
    let model = model(SAVED_MODEL);
    let mut observed = serving(&model, json!({}));
    observed.claim = Some(claim(&model, &Stage::Downloaded, "Lost"));
    let status = told(&model, &observed);
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Downloaded)),
        ("Failed", "VolumeLost")
    );
}

#[test]
fn no_replicas_are_wanted() {
    let model = model(&SAVED_MODEL.replace("replicas: 1", "replicas: 0"));
    let status = told(&model, &serving(&model, json!({})));
    assert_eq!(
        (status.phase.as_str(), reason(&status, Type::Available)),
        ("Serving", "ScaledToZero")
    );
}
