//! How NVIDIA's device plugin hands GPUs out, from the ConfigMap that it reads itself: one watch on one object.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_core::labels::Settings;
use berth_core::labels::device_plugin::{self, CONFIG_LABEL};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::args::ObjectName;
use crate::cluster::Node;
use crate::context::Context;

/// How long labels wait for the first answer. They would be wrong without it, and are better than none after it.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// The ConfigMap as last seen.
pub(super) struct DevicePlugin {
    name: Option<ObjectName>,
    /// `None`: not answered yet. An object that is not there is one without keys.
    data: watch::Sender<Option<Arc<BTreeMap<String, String>>>>,
    said: Mutex<HashSet<String>>,
}

impl DevicePlugin {
    /// `name`: `None` where the administrator named no ConfigMap.
    pub fn new(name: Option<ObjectName>) -> Self {
        Self {
            data: watch::Sender::new(name.is_none().then(Arc::default)),
            name,
            said: Mutex::default(),
        }
    }

    /// Follows the ConfigMap for ever; without one there is nothing to follow.
    pub async fn follow(&self, context: &Context) {
        let Some(ObjectName { namespace, name }) = &self.name else {
            return;
        };
        let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
        let mut changes = std::pin::pin!(watch_object(maps, name).default_backoff());
        while let Some(change) = changes.next().await {
            match change {
                Ok(map) => {
                    let there = map.is_some();
                    let data = Arc::new(map.and_then(|m| m.data).unwrap_or_default());
                    if self.data.borrow().as_ref() == Some(&data) {
                        continue;
                    }
                    tracing::info!(config_map = %format_args!("{namespace}/{name}"), there, keys = data.len(), "device plugin's configuration");
                    self.said.lock().clear();
                    self.data.send_replace(Some(data));
                    let nodes: Vec<String> = context.cluster.read().nodes.keys().cloned().collect();
                    nodes.into_iter().for_each(|node| context.cluster.hardware.push(node));
                }
                Err(error) => {
                    tracing::warn!(%error, "the watch on the device plugin's configuration broke; it is taken up again")
                }
            }
        }
    }

    /// Comes back when the first answer is there, or is long in coming.
    pub async fn ready(&self) {
        let mut data = self.data.subscribe();
        let answered = data.wait_for(Option::is_some);
        if tokio::time::timeout(FIRST_ANSWER, answered).await.is_err() {
            tracing::error!(
                "the ConfigMap of the device plugin cannot be read: labels say nothing of MIG strategy and sharing"
            );
        }
    }

    /// What holds for a node. A configuration that cannot be used is said once, and is as if there were none.
    pub fn settings(&self, node: &Node) -> Settings {
        let data = self.data.borrow().clone().unwrap_or_default();
        match chosen(&data, node.labels.get(CONFIG_LABEL).map(String::as_str)) {
            Ok(settings) => settings,
            Err(problem) => {
                if self.said.lock().insert(problem.clone()) {
                    tracing::warn!(
                        node = node.name,
                        problem,
                        "the device plugin's configuration is not used"
                    );
                }
                Settings::default()
            }
        }
    }
}

fn chosen(data: &BTreeMap<String, String>, label: Option<&str>) -> Result<Settings, String> {
    // Without a ConfigMap the label is somebody else's matter.
    if data.is_empty() {
        return Ok(Settings::default());
    }
    match device_plugin::select(data, label) {
        Ok(None) => Ok(Settings::default()),
        Ok(Some(text)) => device_plugin::parse(text).map_err(|error| error.to_string()),
        Err(key) => Err(format!(
            "label {CONFIG_LABEL} names {key:?}, which is no key of the ConfigMap"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::labels::MigStrategy;

    fn node(label: Option<&str>) -> Node {
        Node {
            name: "n".into(),
            labels: label
                .map(|l| (CONFIG_LABEL.to_owned(), l.to_owned()))
                .into_iter()
                .collect(),
            ..Node::default()
        }
    }

    #[test]
    fn the_nodes_label_chooses_and_what_cannot_be_used_is_said_once() {
        let plugin = DevicePlugin::new(Some(ObjectName {
            namespace: "ns".into(),
            name: "map".into(),
        }));
        assert_eq!(plugin.settings(&node(Some("a"))), Settings::default(), "not answered");
        let data = [
            ("default", "version: v1\nflags: {migStrategy: mixed}\n"),
            ("one", "version: v1\nflags: {migStrategy: single}\n"),
            ("broken", "version: v9\n"),
        ];
        let data = data.map(|(k, v)| (k.to_owned(), v.to_owned()));
        plugin.data.send_replace(Some(Arc::new(data.into())));
        for (label, strategy, said) in [
            (None, MigStrategy::Mixed, 0),
            (Some("one"), MigStrategy::Single, 0),
            (Some("broken"), MigStrategy::None, 1),
            (Some("broken"), MigStrategy::None, 1),
            (Some("absent"), MigStrategy::None, 2),
        ] {
            assert_eq!(plugin.settings(&node(label)).mig_strategy, strategy, "{label:?}");
            assert_eq!(plugin.said.lock().len(), said, "{label:?}");
        }
    }

    #[tokio::test]
    async fn without_a_name_there_is_nothing_to_wait_for() {
        let plugin = DevicePlugin::new(None);
        plugin.ready().await;
        assert_eq!(plugin.settings(&node(Some("a"))), Settings::default());
        assert!(plugin.said.lock().is_empty());
    }
}
