//! Kubernetes Events: one a transition, through one bounded queue, never in the way of the work they tell of.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use berth_crds::conditions::Reason;

/// Events that wait to be written; more are dropped and counted, since an Event is worth less than memory.
const WAITING: usize = 1024;
/// Notes that are remembered, so that the same Event again counts up the one before instead of being another.
const NOTES: usize = 256;
/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Who reports, in every Event of ours.
pub const REPORTER: &str = "berth-controller";

/// Hands Events to the writer.
#[derive(Clone)]
pub struct Events(mpsc::Sender<(Event, ObjectReference)>);

impl Events {
    /// Starts the writer.
    pub fn start(client: Client, pod_name: &str) -> Self {
        let (sender, mut waiting) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        let reporter = Reporter {
            controller: REPORTER.into(),
            instance: Some(pod_name.to_owned()).filter(|n| !n.is_empty()),
        };
        let mut recorders: HashMap<Option<String>, Recorder> = HashMap::new();
        tokio::spawn(async move {
            while let Some((event, reference)) = waiting.recv().await {
                if recorders.len() >= NOTES {
                    recorders.clear();
                }
                // A recorder takes what differs by its note alone for a repeat, and repeats the first note.
                let recorder = recorders
                    .entry(event.note.clone())
                    .or_insert_with(|| Recorder::new(client.clone(), reporter.clone()));
                if let Err(error) = recorder.publish(&event, &reference).await {
                    tracing::debug!(%error, object = ?reference.name, "event was not written");
                }
            }
        });
        Self(sender)
    }

    /// Something went as it should.
    pub fn normal(&self, object: ObjectReference, reason: Reason, action: &str, note: &str) {
        self.send(EventType::Normal, object, reason, action, note);
    }

    /// Something needs a person's eye.
    pub fn warning(&self, object: ObjectReference, reason: Reason, action: &str, note: &str) {
        self.send(EventType::Warning, object, reason, action, note);
    }

    fn send(&self, type_: EventType, mut object: ObjectReference, reason: Reason, action: &str, note: &str) {
        // kube's de-duplication compares the version too; without it a repeated Event becomes a series.
        object.resource_version = None;
        let event = Event {
            type_,
            reason: reason.as_str().into(),
            note: Some(shortened(note)),
            action: action.into(),
            secondary: None,
        };
        if self.0.try_send((event, object)).is_err() {
            tracing::debug!("too many events wait; one was dropped");
        }
    }
}

/// The longest prefix that fits, on a character border.
fn shortened(note: &str) -> String {
    let mut end = note.len().min(MAX_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
}
