use std::sync::Mutex as StdMutex;

use serde_json::{Value, json};

use super::*;

/// As the original's worker writes it.
fn event(uid: &str, count: i32, second: i64) -> Value {
    let time = Timestamp::from_second(second).unwrap().to_string();
    json!({
        "metadata": {"name": format!("m-error-{uid}"), "namespace": "shop", "uid": uid, "creationTimestamp": Timestamp::from_second(100).unwrap().to_string()},
        "involvedObject": {"kind": "AIModel", "namespace": "shop", "name": "m"},
        "source": {"component": "worker"}, "type": "Warning", "reason": "ConfigurationError", "message": "no such model",
        "firstTimestamp": time, "lastTimestamp": time, "count": count,
    })
}

fn parsed(event: Value) -> core::Event {
    serde_json::from_value(event).unwrap()
}

fn key() -> ObjectKey {
    ("shop".into(), "m".into())
}

#[test]
fn what_a_worker_writes_is_a_report() {
    let (of, report) = read(&parsed(event("a", 1, 100)), true).unwrap();
    assert_eq!(of, key());
    assert_eq!(report.text, "ConfigurationError: no such model");
    assert_eq!((report.object, report.mark.count), (None, 1));
}

/// A7.5: another group's AIModel is not ours, and neither are our own words.
#[test]
fn only_warnings_on_our_aimodels_by_others_count() {
    let with = |path: &str, value: Value| {
        let mut event = event("a", 1, 100);
        let (parent, field) = path.rsplit_once('/').unwrap();
        event.pointer_mut(parent).unwrap()[field] = value;
        read(&parsed(event), true).is_some()
    };
    for (path, value, want) in [
        ("/involvedObject/apiVersion", json!("model.youxam.com/v1alpha1"), true),
        ("/involvedObject/apiVersion", json!("model.youxam.com/v1"), true),
        ("/involvedObject/apiVersion", json!(""), true),
        ("/involvedObject/apiVersion", json!("other.example/v1alpha1"), false),
        ("/involvedObject/apiVersion", json!("v1"), false),
        ("/involvedObject/kind", json!("Deployment"), false),
        ("/type", json!("Normal"), false),
        ("/source/component", json!("berth-controller"), false),
        ("/reportingComponent", json!("berth-controller"), false),
        ("/reportingComponent", json!("some-worker"), true),
    ] {
        assert_eq!(with(path, value.clone()), want, "{path} {value}");
    }
}

#[test]
fn a_clock_that_runs_behind_does_not_make_a_report_old() {
    let (_, report) = read(&parsed(event("a", 1, 5)), false).unwrap();
    assert_eq!(report.mark.time.as_second(), 100, "the API server's");
    let mut series = event("a", 1, 5);
    series["series"] = json!({"count": 4, "lastObservedTime": "1970-01-01T00:10:00.000000Z"});
    let (_, report) = read(&parsed(series), false).unwrap();
    assert_eq!((report.mark.count, report.mark.time.as_second()), (4, 600));
}

async fn told(reports: &Reports, events: Vec<Event<core::Event>>) -> usize {
    let told = StdMutex::new(0);
    let stream = futures::stream::iter(events.into_iter().map(Ok));
    reports.follow(stream, |_| *told.lock().unwrap() += 1).await;
    told.into_inner().unwrap()
}

/// A7.5: the original took note of an Event's first occurrence alone.
#[tokio::test]
async fn a_repeated_event_is_a_new_report() {
    let reports = Reports::default();
    let first = Event::Apply(parsed(event("a", 1, 100)));
    assert_eq!(told(&reports, vec![first]).await, 1);
    let report = reports.waiting(&key()).unwrap();
    reports.settle(&key(), &report);
    assert_eq!(reports.waiting(&key()), None);

    assert_eq!(
        told(&reports, vec![Event::Apply(parsed(event("a", 1, 100)))]).await,
        0,
        "nothing new"
    );
    assert_eq!(told(&reports, vec![Event::Apply(parsed(event("a", 2, 160)))]).await, 1);
    let again = reports.waiting(&key()).unwrap();
    assert_eq!((again.mark.count, again.is_live), (2, true));
    reports.settle(&key(), &report);
    assert!(reports.waiting(&key()).is_some(), "what was settled is another one");
}

/// A7.5: the original's watch ended after minutes, and with it all reports.
#[tokio::test]
async fn a_watch_that_is_taken_up_again_tells_only_what_is_new() {
    let reports = Reports::default();
    told(&reports, vec![Event::Apply(parsed(event("a", 1, 100)))]).await;
    reports.settle(&key(), &reports.waiting(&key()).unwrap());

    let list = |more: &[Value]| {
        let mut events = vec![Event::Init, Event::InitApply(parsed(event("a", 1, 100)))];
        events.extend(more.iter().cloned().map(|e| Event::InitApply(parsed(e))));
        events.push(Event::InitDone);
        events
    };
    assert_eq!(told(&reports, list(&[])).await, 0);
    let missed = event("b", 1, 130);
    assert_eq!(told(&reports, list(&[missed])).await, 1);
    let report = reports.waiting(&key()).unwrap();
    assert_eq!((report.event.as_str(), report.is_live), ("b", false));
}

#[tokio::test]
async fn of_a_list_the_latest_counts() {
    let reports = Reports::default();
    let list = ["c", "a", "b"].into_iter().zip([300, 200, 100]);
    let events = list
        .map(|(uid, second)| Event::InitApply(parsed(event(uid, 1, second))))
        .collect();
    told(&reports, events).await;
    assert_eq!(reports.waiting(&key()).unwrap().event, "c");
}

#[tokio::test]
async fn what_the_api_server_forgets_is_forgotten() {
    let reports = Reports::default();
    let events = vec![
        Event::Apply(parsed(event("a", 1, 100))),
        Event::Apply(parsed(event("b", 1, 100))),
        Event::Delete(parsed(event("a", 1, 100))),
        Event::Init,
        Event::InitDone,
    ];
    told(&reports, events).await;
    assert!(reports.0.lock().known.is_empty());
}
