//! What workers report: Warning Events on AIModels, heard as long as the process lives.
//!
//! ```text
//! watch Events ──► hear (which occurrences are new) ──► Reports ──► a look at the AIModel ──► errors::judge ──► settle
//! ```
//!
//! An Event that repeats is the same object with a higher count, and a watch that is taken up again lists what was heard before: so an
//! occurrence is known by the Event's UID, count and time. One that is found in a list, after a restart or a break, is as old as it says;
//! one that the watch tells of is happening now.

use std::collections::{HashMap, HashSet};

use berth_crds::youxam::{AIModel, keys};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use parking_lot::Mutex;

use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::events::REPORTER;
use crate::watches::watch;

/// An error that a worker reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// UID of the Event.
    pub event: String,
    /// Which occurrence of the Event it is.
    pub mark: Mark,
    /// UID of the AIModel, if the worker knows it.
    pub object: Option<String>,
    /// `<reason>: <message>`.
    pub text: String,
    /// The watch told of it when it happened; else it was found in a list.
    pub is_live: bool,
}

/// Tells occurrences of one Event apart; a later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// How often it occurred.
    pub count: i32,
    /// When it occurred last, as far as anybody says.
    pub time: Timestamp,
}

/// Reports that no look has come to yet, and what was heard already.
#[derive(Debug, Default)]
pub struct Reports(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// Every such Event that exists, by UID, with its last occurrence: as many as the API server keeps.
    known: HashMap<String, Mark>,
    /// The latest report on each AIModel.
    waiting: HashMap<ObjectKey, Report>,
}

impl Reports {
    /// What has to be judged on an AIModel.
    pub fn waiting(&self, key: &ObjectKey) -> Option<Report> {
        self.0.lock().waiting.get(key).cloned()
    }

    /// A report was judged, and its outcome is written.
    pub fn settle(&self, key: &ObjectKey, report: &Report) {
        let mut heard = self.0.lock();
        if heard.waiting.get(key) == Some(report) {
            heard.waiting.remove(key);
        }
    }

    /// Hears Events, for ever; `tell` is told whose AIModel has to be looked at.
    pub async fn run(&self, context: &Context, tell: impl Fn(ObjectKey)) {
        let fields = format!("type=Warning,involvedObject.kind={}", AIModel::kind(&()));
        let config = watcher::Config::default().fields(&fields);
        let api = Api::<core::Event>::all(context.client.clone());
        let events = watch(api, config, "Event", &context.metrics);
        self.follow(events, tell).await;
    }

    async fn follow(
        &self,
        events: impl Stream<Item = Result<Event<core::Event>, watcher::Error>>,
        tell: impl Fn(ObjectKey),
    ) {
        let mut events = std::pin::pin!(events);
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(event)) => {
                    listed.extend(event.metadata.uid.clone());
                    self.hear(&event, false, &tell);
                }
                Ok(Event::InitDone) => {
                    let mut heard = self.0.lock();
                    heard.known.retain(|uid, _| listed.contains(uid));
                    heard.waiting.retain(|_, report| listed.contains(&report.event));
                    drop(heard);
                    listed.clear();
                }
                Ok(Event::Apply(event)) => self.hear(&event, true, &tell),
                Ok(Event::Delete(event)) => {
                    // Forgotten by the API server after an hour; what it led to stays. One that still waits is on no AIModel that exists.
                    let uid = event.metadata.uid.as_deref().unwrap_or_default();
                    let mut heard = self.0.lock();
                    heard.known.remove(uid);
                    heard.waiting.retain(|_, report| report.event != uid);
                }
                // Told where the watch is made.
                Err(_) => {}
            }
        }
    }

    fn hear(&self, event: &core::Event, is_live: bool, tell: &impl Fn(ObjectKey)) {
        let Some((key, report)) = read(event, is_live) else {
            return;
        };
        {
            let mut heard = self.0.lock();
            if heard
                .known
                .get(&report.event)
                .is_some_and(|known| report.mark <= *known)
            {
                return;
            }
            heard.known.insert(report.event.clone(), report.mark);
            // In a list the order is that of names, not of time.
            let newer = heard.waiting.get(&key);
            if !is_live && newer.is_some_and(|w| w.is_live || w.mark.time > report.mark.time) {
                return;
            }
            heard.waiting.insert(key.clone(), report);
        }
        tell(key);
    }
}

/// The report that an Event is, if it is one: a warning on an AIModel of our group, and not of our own.
fn read(event: &core::Event, is_live: bool) -> Option<(ObjectKey, Report)> {
    let on = &event.involved_object;
    let is_ours = match on.api_version.as_deref().unwrap_or_default() {
        // Workers of the original say no version.
        "" => true,
        version => version.split_once('/').is_some_and(|(group, _)| group == keys::GROUP),
    };
    let by_us = [
        event.reporting_component.as_deref(),
        event.source.as_ref().and_then(|s| s.component.as_deref()),
    ]
    .contains(&Some(REPORTER));
    let is_warning = event.type_.as_deref() == Some("Warning");
    if !is_warning || on.kind.as_deref() != Some(&*AIModel::kind(&())) || !is_ours || by_us {
        return None;
    }
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let namespace = given(&on.namespace).or_else(|| event.metadata.namespace.clone())?;
    let key = (namespace, given(&on.name)?);
    let report = Report {
        event: event.metadata.uid.clone()?,
        mark: mark(event)?,
        object: given(&on.uid),
        text: format!(
            "{}: {}",
            event.reason.as_deref().unwrap_or_default(),
            event.message.as_deref().unwrap_or_default()
        ),
        is_live,
    };
    Some((key, report))
}

/// Both ways in which Events repeat: `count` with `lastTimestamp`, and `series`. A clock that runs behind does not make an Event older than
/// the API server knows it to be.
fn mark(event: &core::Event) -> Option<Mark> {
    let series = event.series.as_ref();
    let count = [event.count, series.and_then(|s| s.count)];
    let times = [
        event.metadata.creation_timestamp.as_ref().map(|t| t.0),
        event.first_timestamp.as_ref().map(|t| t.0),
        event.last_timestamp.as_ref().map(|t| t.0),
        event.event_time.as_ref().map(|t| t.0),
        series.and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0),
    ];
    let time = times.into_iter().flatten().max()?;
    Some(Mark {
        count: count.into_iter().flatten().max().unwrap_or(1),
        // The API keeps whole seconds of most of them.
        time: Timestamp::from_second(time.as_second()).unwrap_or(time),
    })
}

#[cfg(test)]
mod tests;
