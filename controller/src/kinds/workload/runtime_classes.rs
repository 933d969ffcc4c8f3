//! Names of the cluster's RuntimeClasses.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

/// The names, once they are known.
#[derive(Debug)]
pub struct RuntimeClasses(watch::Sender<Option<BTreeSet<String>>>);

impl Default for RuntimeClasses {
    fn default() -> Self {
        Self(watch::Sender::new(None))
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
    pub async fn run(self: &Arc<Self>, client: Client, changed: impl Fn()) {
        let api: Api<PartialObjectMeta<RuntimeClass>> = Api::all(client);
        let mut stream = std::pin::pin!(watch_stream(api, watcher::Config::default()).default_backoff());
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
                Err(error) => {
                    tracing::warn!(%error, watch = "RuntimeClass", "watch broke; it is taken up again");
                    continue;
                }
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
