//! Names of the cluster's RuntimeClasses.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio::sync::watch::Sender;

use crate::context::Context;
use crate::watches::watch;

/// The names, once they are known.
#[derive(Debug)]
pub struct RuntimeClasses(Sender<Option<BTreeSet<String>>>);

impl Default for RuntimeClasses {
    fn default() -> Self {
        Self(Sender::new(None))
    }
}

impl RuntimeClasses {
    /// The names as last seen; `None`: not known (yet).
    pub fn names(&self) -> Option<BTreeSet<String>> {
        self.0.borrow().clone()
    }

    /// Waits until they were listed once.
    pub async fn wait_synced(&self) {
        let mut names = self.0.subscribe();
        // The sender lives in self: waiting cannot fail.
        let _ = names.wait_for(Option::is_some).await;
    }

    /// Watches them, and tells when one came or went. Ends never.
    pub async fn run(self: &Arc<Self>, context: &Context, changed: impl Fn()) {
        let api: Api<PartialObjectMeta<RuntimeClass>> = Api::all(context.client.clone());
        let events = watch(api, watcher::Config::default(), "RuntimeClass", &context.metrics);
        let mut stream = std::pin::pin!(events);
        let mut listed = BTreeSet::new();
        while let Some(event) = stream.next().await {
            let mut names = self.names().unwrap_or_default();
            match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(class)) => {
                    listed.insert(class.name_any());
                    continue;
                }
                Ok(Event::InitDone) => names = std::mem::take(&mut listed),
                Ok(Event::Apply(class)) => {
                    names.insert(class.name_any());
                }
                Ok(Event::Delete(class)) => {
                    names.remove(&class.name_any());
                }
                // Told where the watch is made.
                Err(_) => continue,
            }
            let names = Some(names);
            let news = self.0.send_if_modified(|now| {
                let news = *now != names;
                *now = names;
                news
            });
            if news {
                changed();
            }
        }
    }
}
