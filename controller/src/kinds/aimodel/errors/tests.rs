use berth_crds::conditions::{Desired, Reason, Status, merge};
use serde_json::json;

use super::*;
use crate::kinds::aimodel::fixtures::aimodel;

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).unwrap()
}

fn report(event: &str, count: i32, at: i64, is_live: bool) -> Report {
    Report {
        event: event.into(),
        mark: Mark {
            count,
            time: second(at),
        },
        object: None,
        text: format!("GeneralError: {event}"),
        is_live,
    }
}

/// The status after a failure of generation `generation` by the event `a` at second 100.
fn failed(generation: i64) -> AIModelStatus {
    told(generation, Status::False, Reason::ErrorReported, "GeneralError: a")
}

/// The status after that failure and an edit.
fn reset(generation: i64) -> AIModelStatus {
    told(generation, Status::True, Reason::NoErrorReported, "")
}

fn told(generation: i64, status: Status, reason: Reason, message: &str) -> AIModelStatus {
    let healthy = Desired::new(Type::WorkersHealthy, status, reason, message);
    AIModelStatus {
        last_error: Some(ReportedError {
            event: "a".into(),
            count: 1,
            time: Time(second(100)),
        }),
        conditions: merge(&[], &[healthy], Some(generation), second(1)),
        ..AIModelStatus::default()
    }
}

/// Of generation 7.
fn failure(before: &AIModelStatus, report: Option<&Report>, changed: Changed) -> Option<String> {
    judge(&aimodel(|_| {}), before, report, changed).failure
}

fn text(event: &str) -> Option<String> {
    Some(format!("GeneralError: {event}"))
}

#[test]
fn a_report_fails_the_model_until_its_spec_is_changed() {
    let fresh = AIModelStatus::default();
    assert_eq!(failure(&fresh, None, Changed::NotAsked), None);
    let live = report("a", 1, 100, true);
    let verdict = judge(&aimodel(|_| {}), &fresh, Some(&live), Changed::NotAsked);
    assert_eq!(verdict.failure, text("a"));
    let last = verdict.last.unwrap();
    assert_eq!((last.event.as_str(), last.count, last.time.0), ("a", 1, second(100)));

    assert_eq!(
        failure(&failed(7), None, Changed::NotAsked),
        text("a"),
        "it stands without the Event"
    );
    let later = report("b", 1, 90, true);
    assert_eq!(
        failure(&failed(7), Some(&later), Changed::NotAsked),
        text("b"),
        "the latest is told"
    );
}

/// A7.3: in the original only an edit that changed the Deployment did.
#[test]
fn any_change_of_the_spec_begins_anew() {
    assert_eq!(failure(&failed(6), None, Changed::NotAsked), None);
    let again = report("a", 2, 100, true);
    assert_eq!(
        failure(&failed(6), Some(&again), Changed::NotAsked),
        text("a"),
        "and it may fail again"
    );
}

#[test]
fn an_occurrence_counts_once() {
    let same = report("a", 1, 100, true);
    assert_eq!(failure(&reset(7), Some(&same), Changed::NotAsked), None);
    let listed = report("a", 1, 100, false);
    assert!(
        !depends_on_change(&aimodel(|_| {}), &reset(7), Some(&listed)),
        "nothing has to be asked"
    );
    assert_eq!(
        failure(&reset(7), Some(&report("a", 2, 100, true)), Changed::NotAsked),
        text("a")
    );
}

/// Errors that were reported while no controller ran.
#[test]
fn what_is_found_later_counts_if_the_spec_was_not_changed_since() {
    let listed = report("b", 1, 200, false);
    assert!(depends_on_change(&aimodel(|_| {}), &reset(7), Some(&listed)));
    let at = |n| failure(&reset(7), Some(&listed), Changed::At(second(n)));
    assert_eq!(at(150), text("b"));
    assert_eq!(at(200), text("b"), "the second of the change");
    assert_eq!(at(201), None);
    let older = report("z", 1, 99, false);
    assert!(
        !depends_on_change(&aimodel(|_| {}), &reset(7), Some(&older)),
        "older than what was told"
    );
}

#[test]
fn a_report_on_an_earlier_namesake_does_not_count() {
    let of = |uid: &str| Report {
        object: Some(uid.into()),
        ..report("b", 1, 200, true)
    };
    assert_eq!(failure(&reset(7), Some(&of("uid-of-it")), Changed::NotAsked), text("b"));
    assert_eq!(failure(&reset(7), Some(&of("gone")), Changed::NotAsked), None);
}

#[test]
fn a_failure_that_the_original_told_stands() {
    let before = AIModelStatus {
        state: Some("Failed".into()),
        message: Some("GeneralError: a".into()),
        ..AIModelStatus::default()
    };
    assert_eq!(failure(&before, None, Changed::NotAsked), text("a"));
}

#[test]
fn when_the_spec_was_changed_is_read_off_the_object() {
    let meta = |generation: i64| {
        serde_json::from_value::<ObjectMeta>(json!({
            "generation": generation, "creationTimestamp": second(10).to_string(),
            "managedFields": [
                {"manager": "kubectl", "operation": "Apply", "time": second(50).to_string()},
                {"manager": "berth/aimodel-status", "operation": "Apply", "subresource": "status", "time": second(90).to_string()},
            ],
        }))
        .unwrap()
    };
    assert_eq!(changed_at(&meta(1)), Some(second(10)));
    assert_eq!(changed_at(&meta(2)), Some(second(50)));
}
