//! How NVIDIA's device plugin hands GPUs out, from the ConfigMap that it reads itself: one watch on one object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::labels::Settings;
use berth_core::labels::device_plugin::{self, CONFIG_LABEL};
use berth_crds::conditions::Reason;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use tokio::sync::watch;

use super::installation;
use crate::args::ObjectName;
use crate::cluster::Node;
use crate::context::Context;

/// How long labels wait for the first answer. They would be wrong without it, and are better than none after it.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// The ConfigMap as last seen.
#[derive(Debug, Default, PartialEq)]
struct Map {
    keys: BTreeMap<String, String>,
    /// Why it is no use to a node that chooses nothing in it.
    problem: Option<String>,
}

/// Follows the ConfigMap.
pub(super) struct DevicePlugin {
    name: Option<ObjectName>,
    /// `None`: not answered yet.
    map: watch::Sender<Option<Arc<Map>>>,
}

/// What holds for a node.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// As if there were no configuration where it cannot be used.
    pub settings: Settings,
    /// Why it cannot.
    pub problem: Option<Problem>,
}

/// A configuration that cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// The labels of nodes choose it, of how many ever: the installation is told, once for each key.
    Key(String),
    /// It holds for every node without a choice: the installation is told, once.
    Fleet(String),
}

impl Problem {
    pub fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Fleet(text) => text,
        }
    }
}

impl DevicePlugin {
    /// `name`: `None` where the administrator named no ConfigMap.
    pub fn new(name: Option<ObjectName>) -> Self {
        Self {
            map: watch::Sender::new(name.is_none().then(Arc::default)),
            name,
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
            let map = match change {
                Ok(map) => seen(namespace, name, map),
                Err(error) => {
                    tracing::warn!(%error, "the watch on the device plugin's configuration broke; it is taken up again");
                    // What was read stays known.
                    let is_known = self.map.borrow().is_some();
                    match refused(namespace, name, &error).filter(|_| !is_known) {
                        Some(map) => map,
                        None => continue,
                    }
                }
            };
            let before = self.map.borrow().clone();
            if before.as_deref() == Some(&map) {
                continue;
            }
            tracing::info!(config_map = %format_args!("{namespace}/{name}"), keys = map.keys.len(), problem = map.problem, "device plugin's configuration");
            let problem = map.problem.clone();
            self.map.send_replace(Some(Arc::new(map)));
            let nodes: Vec<String> = context.cluster.read().nodes.keys().cloned().collect();
            nodes.into_iter().for_each(|node| context.cluster.hardware.push(node));
            tell(context, before.and_then(|b| b.problem.clone()), problem).await;
        }
    }

    /// Comes back when the first answer is there, or is long in coming.
    pub async fn ready(&self) {
        let mut map = self.map.subscribe();
        let answered = map.wait_for(Option::is_some);
        if tokio::time::timeout(FIRST_ANSWER, answered).await.is_err() {
            tracing::error!(
                "the ConfigMap of the device plugin cannot be read: labels say nothing of MIG strategy and sharing"
            );
        }
    }

    /// What holds for a node.
    pub fn choice(&self, node: &Node) -> Choice {
        let map = self.map.borrow().clone().unwrap_or_default();
        chosen(&map, node.labels.get(CONFIG_LABEL).map(String::as_str))
    }
}

/// What the API server's refusal comes to. `None`: it is no answer, and the next try may bring one; labels that were written without it would
/// be written back then.
fn refused(namespace: &str, name: &str, error: &watcher::Error) -> Option<Map> {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => return None,
    };
    matches!(code, 403 | 404).then(|| Map {
        keys: BTreeMap::new(),
        problem: Some(format!("ConfigMap {namespace}/{name} cannot be read: {error}")),
    })
}

/// One Event when it turns, on the controller's Deployment: a ConfigMap that is not there can carry none.
async fn tell(context: &Context, before: Option<String>, now: Option<String>) {
    match (before, now) {
        (before, Some(problem)) if before.as_ref() != Some(&problem) => {
            let note = format!("{problem}; labels say nothing of MIG strategy and sharing");
            let object = installation(context).await;
            let reason = Reason::DevicePluginConfigUnusable;
            context.events.warning(object, reason, "Read", &note);
        }
        (Some(_), None) => {
            let object = installation(context).await;
            let note = "the device plugin's configuration can be used again";
            let reason = Reason::DevicePluginConfigUsable;
            context.events.normal(object, reason, "Read", note);
        }
        (_, Some(_)) | (None, None) => {}
    }
}

fn seen(namespace: &str, name: &str, map: Option<ConfigMap>) -> Map {
    let there = map.is_some();
    let keys = map.and_then(|m| m.data).unwrap_or_default();
    let problem = match (there, keys.is_empty()) {
        (false, _) => Some(format!("there is no ConfigMap {namespace}/{name}")),
        (true, true) => Some(format!("ConfigMap {namespace}/{name} has no keys")),
        (true, false) => {
            let text = device_plugin::select(&keys, None).ok().flatten();
            let error = text.and_then(|t| device_plugin::parse(t).err());
            error.map(|e| format!("ConfigMap {namespace}/{name}: {e}"))
        }
    };
    Map { keys, problem }
}

fn chosen(map: &Map, label: Option<&str>) -> Choice {
    let label = label.filter(|l| !l.is_empty());
    let unusable = |text: String| Choice {
        settings: Settings::default(),
        problem: Some(Problem::Key(text)),
    };
    match (label, &map.problem) {
        // Where no ConfigMap is named the label is somebody else's matter.
        _ if map.keys.is_empty() && map.problem.is_none() => Choice::default(),
        // Whatever it chooses is not there either.
        (Some(_), Some(problem)) if map.keys.is_empty() => Choice {
            settings: Settings::default(),
            problem: Some(Problem::Fleet(problem.clone())),
        },
        (None, Some(problem)) => Choice {
            settings: Settings::default(),
            problem: Some(Problem::Fleet(problem.clone())),
        },
        _ => match device_plugin::select(&map.keys, label) {
            Ok(text) => match text.map(device_plugin::parse).transpose() {
                Ok(settings) => Choice {
                    settings: settings.unwrap_or_default(),
                    problem: None,
                },
                Err(error) => unusable(match label {
                    Some(key) => format!("key {key:?} of the ConfigMap, which label {CONFIG_LABEL} names: {error}"),
                    None => error.to_string(),
                }),
            },
            Err(key) => unusable(format!(
                "label {CONFIG_LABEL} names {key:?}, which is no key of the ConfigMap"
            )),
        },
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

    fn map(keys: &[(&str, &str)]) -> ConfigMap {
        let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        ConfigMap {
            data: Some(keys.collect()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn the_nodes_label_chooses_and_what_cannot_be_used_is_told_to_whom_it_concerns() {
        let good = ("default", "version: v1\nflags: {migStrategy: mixed}\n");
        let broken = ("default", "version: v9\n");
        let one = ("one", "version: v1\nflags: {migStrategy: single}\n");
        let bad = ("bad", "version: v9\n");
        let (mixed, single, none) = (MigStrategy::Mixed, MigStrategy::Single, MigStrategy::None);
        for (what, seen_map, label, strategy, problem) in [
            ("the default", Some(map(&[good, one, bad])), None, mixed, None),
            ("no label's value", Some(map(&[good, one, bad])), Some(""), mixed, None),
            ("a choice", Some(map(&[good, one, bad])), Some("one"), single, None),
            (
                "a choice of nothing",
                Some(map(&[good, one, bad])),
                Some("absent"),
                none,
                Some("key: label nvidia.com/device-plugin.config names \"absent\""),
            ),
            (
                "a broken choice",
                Some(map(&[good, one, bad])),
                Some("bad"),
                none,
                Some("key: key \"bad\" of the ConfigMap, which label nvidia.com/device-plugin.config names: "),
            ),
            (
                "a broken default",
                Some(map(&[broken, one])),
                None,
                none,
                Some("fleet: ConfigMap ns/map: the device plugin's configuration is of version"),
            ),
            (
                "a choice beside it",
                Some(map(&[broken, one])),
                Some("one"),
                single,
                None,
            ),
            ("no map", None, None, none, Some("fleet: there is no ConfigMap ns/map")),
            (
                "no map, a choice",
                None,
                Some("one"),
                none,
                Some("fleet: there is no ConfigMap ns/map"),
            ),
            (
                "an empty map",
                Some(map(&[])),
                None,
                none,
                Some("fleet: ConfigMap ns/map has no keys"),
            ),
        ] {
            let plugin = DevicePlugin::new(Some(ObjectName {
                namespace: "ns".into(),
                name: "map".into(),
            }));
            assert_eq!(plugin.choice(&node(label)), Choice::default(), "{what}: not answered");
            plugin.map.send_replace(Some(Arc::new(seen("ns", "map", seen_map))));
            let choice = plugin.choice(&node(label));
            assert_eq!(choice.settings.mig_strategy, strategy, "{what}");
            let told = choice.problem.map(|p| match &p {
                Problem::Key(text) => format!("key: {text}"),
                Problem::Fleet(text) => format!("fleet: {text}"),
            });
            match problem {
                None => assert_eq!(told, None, "{what}"),
                Some(begins) => assert!(told.as_ref().is_some_and(|t| t.starts_with(begins)), "{what}: {told:?}"),
            }
        }
    }

    #[test]
    fn only_a_refusal_is_an_answer() {
        let status = |code| {
            Box::new(kube::core::Status {
                code,
                message: "no".into(),
                ..Default::default()
            })
        };
        for (code, is_answer) in [
            (403, true),
            (404, true),
            (401, false),
            (410, false),
            (429, false),
            (500, false),
        ] {
            for error in [
                watcher::Error::InitialListFailed(kube::Error::Api(status(code))),
                watcher::Error::WatchStartFailed(kube::Error::Api(status(code))),
                watcher::Error::WatchError(status(code)),
            ] {
                let map = refused("ns", "map", &error);
                assert_eq!(map.is_some(), is_answer, "{code}: {error}");
                assert!(map.is_none_or(|m| {
                    m.problem
                        .is_some_and(|p| p.starts_with("ConfigMap ns/map cannot be read"))
                }));
            }
        }
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let reset = watcher::Error::InitialListFailed(kube::Error::Service(reset.into()));
        assert_eq!(refused("ns", "map", &reset), None);
    }

    #[tokio::test]
    async fn without_a_name_there_is_nothing_to_wait_for() {
        let plugin = DevicePlugin::new(None);
        plugin.ready().await;
        assert_eq!(plugin.choice(&node(Some("a"))), Choice::default());
    }
}
