use serde_json::json;

use super::*;
use crate::cluster::Pod;
use crate::kinds::mlmodel::fixtures::{SAVED_MODEL, claim, deployment, job, model};
use crate::kinds::mlmodel::validate::Validated;

const PREPARED: Stage = Stage::Prepared { is_busy: false };

fn at(model: &Validated, observed: &Observed) -> Stage {
    stage(&model.download.source, model.retry.as_deref(), false, observed)
}

fn failed(reason: &str) -> serde_json::Value {
    json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True", "reason": reason}]})
}

fn failure(message: &str, retry: Option<&str>) -> Failure {
    Failure {
        message: message.into(),
        retry: retry.map(str::to_owned),
    }
}

fn terminating(mut child: Child) -> Child {
    child.terminating = true;
    child
}

#[test]
fn every_step_follows_from_what_there_is() {
    let model = model(SAVED_MODEL);
    let fresh = claim(&model, &Stage::Volume, "Pending");
    let mut seen = Observed::default();
    assert_eq!(at(&model, &seen), Stage::Volume);
    seen.claim = Some(fresh);
    assert_eq!(at(&model, &seen), PREPARED);
    seen.job = Some(job(&model, json!({"active": 1})));
    assert_eq!(at(&model, &seen), Stage::Downloading);
    seen.job = Some(job(
        &model,
        json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}),
    ));
    assert_eq!(at(&model, &seen), Stage::Downloaded);
}

/// B7.11: only two reasons of a failed Job counted.
#[test]
fn a_job_fails_for_any_reason() {
    let model = model(SAVED_MODEL);
    for reason in [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "PodFailurePolicy",
        "FailedIndexes",
        "Whatever",
    ] {
        let seen = Observed {
            claim: Some(claim(&model, &PREPARED, "Bound")),
            job: Some(job(&model, failed(reason))),
            ..Observed::default()
        };
        let message = format!("Job net-download-job failed: {reason}");
        assert_eq!(at(&model, &seen), Stage::Failed(failure(&message, None)));
    }
}

/// B7.5: a Job that its TTL removed was waited for for ever.
#[test]
fn what_the_claim_remembers_outlives_the_job() {
    let model = model(SAVED_MODEL);
    let remembers = |stage: &Stage| Observed {
        claim: Some(claim(&model, stage, "Bound")),
        ..Observed::default()
    };
    assert_eq!(at(&model, &remembers(&Stage::Downloaded)), Stage::Downloaded);
    let failed = Stage::Failed(failure("x", Some("1")));
    assert_eq!(at(&model, &remembers(&failed)), failed);
    // Gone before anybody saw how it ended: once more; the script finds the model and ends at once.
    assert_eq!(at(&model, &remembers(&PREPARED)), PREPARED);
    // While it is going.
    let mut seen = remembers(&Stage::Downloaded);
    seen.job = Some(terminating(job(&model, json!({"succeeded": 1}))));
    assert_eq!(at(&model, &seen), Stage::Downloaded);
}

/// B7.2: an update met the volume that was still being deleted, and stopped there.
#[test]
fn whatever_is_left_of_another_source_goes_first() {
    let (old, new) = (model(SAVED_MODEL), model(&SAVED_MODEL.replace("4.tar", "5.tar")));
    let all = Observed {
        claim: Some(claim(&old, &Stage::Downloaded, "Bound")),
        job: Some(job(&old, json!({"succeeded": 1}))),
        deployment: Some(deployment(&old, json!({}))),
        ..Observed::default()
    };
    assert_eq!(at(&old, &all), Stage::Downloaded);
    assert_eq!(at(&new, &all), Stage::Clearing);
    // Step by step, in any order.
    let no_deployment = Observed {
        deployment: None,
        ..all.clone()
    };
    let leaving = Observed {
        claim: Some(terminating(claim(&new, &PREPARED, "Bound"))),
        ..Observed::default()
    };
    let only_job = Observed {
        claim: Some(claim(&new, &PREPARED, "Bound")),
        deployment: None,
        ..all.clone()
    };
    let no_claim = Observed {
        claim: None,
        job: None,
        ..all.clone()
    };
    let pods_leave = Observed {
        leaving: 1,
        ..Observed::default()
    };
    let downloads_end = Observed {
        downloads: vec![Pod::default()],
        ..Observed::default()
    };
    for (name, seen) in [
        ("no deployment", no_deployment),
        ("leaving", leaving),
        ("only the job", only_job),
        ("no claim", no_claim),
        ("pods leave", pods_leave),
        ("downloads end", downloads_end),
    ] {
        assert_eq!(at(&new, &seen), Stage::Clearing, "{name}");
    }
    assert_eq!(at(&new, &Observed::default()), Stage::Volume);
}

#[test]
fn a_file_of_the_original_is_downloaded_anew_before_its_servers_are_changed() {
    let model = model(SAVED_MODEL);
    let seen = Observed {
        claim: Some(claim(&model, &Stage::Inherited, "Bound")),
        deployment: Some(deployment(&model, json!({}))),
        ..Observed::default()
    };
    let held = |is_held| stage(&model.download.source, None, is_held, &seen);
    assert_eq!(held(true), Stage::Inherited);
    assert_eq!(held(false), PREPARED);
}

#[test]
fn what_lost_its_annotation_is_no_reason_to_delete_a_volume() {
    let model = model(SAVED_MODEL);
    let all = || Observed {
        claim: Some(claim(&model, &Stage::Downloaded, "Bound")),
        job: Some(job(&model, json!({"succeeded": 1}))),
        deployment: Some(deployment(&model, json!({}))),
        ..Observed::default()
    };
    let strip = |child: &mut Option<Child>| {
        let child = child.as_mut().unwrap();
        child.object["metadata"]["annotations"][names::MODEL_SOURCE].take();
    };
    for part in 0..3 {
        let mut seen = all();
        strip([&mut seen.claim, &mut seen.job, &mut seen.deployment][part]);
        assert_ne!(at(&model, &seen), Stage::Clearing, "{part}");
    }
}

/// B7.4: an edit was noticed when the download had ended.
#[test]
fn an_edit_in_the_middle_of_a_download_counts_at_once() {
    let (old, new) = (model(SAVED_MODEL), model(&SAVED_MODEL.replace("4.tar", "5.tar")));
    let seen = Observed {
        claim: Some(claim(&old, &PREPARED, "Bound")),
        job: Some(job(&old, json!({"active": 1}))),
        ..Observed::default()
    };
    assert_eq!(at(&old, &seen), Stage::Downloading);
    assert_eq!(at(&new, &seen), Stage::Clearing);
}

/// B7.13: nothing but an edit of the spec tried again.
#[test]
fn the_annotation_tries_a_failed_download_again_and_only_a_failed_one() {
    let model = model(SAVED_MODEL);
    let with = |retry: Option<&str>, seen: &Observed| stage(&model.download.source, retry, false, seen);
    let failed_job = Observed {
        claim: Some(claim(&model, &Stage::Failed(failure("x", None)), "Bound")),
        job: Some(job(&model, failed("BackoffLimitExceeded"))),
        ..Observed::default()
    };
    assert_eq!(with(None, &failed_job), Stage::Failed(failure("x", None)));
    assert_eq!(with(Some("1"), &failed_job), Stage::Prepared { is_busy: true });
    let remembered = Observed {
        claim: Some(claim(&model, &Stage::Failed(failure("x", Some("1"))), "Bound")),
        ..Observed::default()
    };
    assert_eq!(with(Some("1"), &remembered), Stage::Failed(failure("x", Some("1"))));
    assert_eq!(
        with(None, &remembered),
        Stage::Failed(failure("x", Some("1"))),
        "taken away"
    );
    assert_eq!(with(Some("2"), &remembered), PREPARED);
    let done = Observed {
        claim: Some(claim(&model, &Stage::Downloaded, "Bound")),
        ..Observed::default()
    };
    assert_eq!(with(Some("3"), &done), Stage::Downloaded);
    let running = Observed {
        claim: Some(claim(&model, &PREPARED, "Bound")),
        job: Some(job(&model, json!({"active": 1}))),
        ..Observed::default()
    };
    assert_eq!(with(Some("3"), &running), Stage::Downloading);
}

#[test]
fn a_job_that_was_deleted_by_hand_is_made_again_when_its_pods_are_gone() {
    let model = model(SAVED_MODEL);
    let mut seen = Observed {
        claim: Some(claim(&model, &PREPARED, "Bound")),
        downloads: vec![Pod::default()],
        ..Observed::default()
    };
    assert_eq!(at(&model, &seen), Stage::Prepared { is_busy: true });
    seen.downloads.clear();
    assert_eq!(at(&model, &seen), PREPARED);
}

#[test]
fn a_volume_that_is_lost_is_said() {
    let model = model(SAVED_MODEL);
    let seen = Observed {
        claim: Some(claim(&model, &Stage::Downloaded, "Lost")),
        ..Observed::default()
    };
    assert_eq!(at(&model, &seen), Stage::Lost);
}
