//! What each agent is told to do: how often to read its GPUs, and whether NVML may be open. Decided anew when the node or its pods change
//! and for each new session, so that neither a change of leaders nor a restart of an agent leaves a driver let go of, or held.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::time::Duration;

use berth_core::driver_upgrade::DriverUse;
use berth_core::sampling::Sampling;

use super::link::Link;
use crate::cluster::Picture;

/// Pods come in bursts; a driver that is about to be unloaded does not wait long.
const GATHER: Duration = Duration::from_millis(50);

/// Orders for one node's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    /// UID of the node.
    pub node_uid: String,
    /// Whether NVML may be open.
    pub driver: DriverUse,
    /// Milliseconds between two samples.
    pub sample_interval_ms: u64,
}

/// Orders for those of `names` whose nodes are known. Of others nothing is known to decide on, and their agents go on as they are.
pub fn orders(names: &BTreeSet<String>, picture: &Picture, sampling: Sampling) -> BTreeMap<String, Orders> {
    let busy = busy(names, picture);
    let of = |name: &String| {
        let node = picture.nodes.get(name)?;
        let interval = sampling.interval(busy.contains(name.as_str()));
        let orders = Orders {
            node_uid: node.uid.clone(),
            driver: DriverUse::of(&node.labels),
            sample_interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        };
        Some((name.clone(), orders))
    };
    names.iter().filter_map(of).collect()
}

/// Those of `names` on which a pod with GPUs runs, or that it is promised to.
fn busy<'a>(names: &'a BTreeSet<String>, picture: &'a Picture) -> HashSet<&'a str> {
    let held = picture.pods.values().filter_map(|pod| pod.holds_gpus_on());
    held.filter(|node| names.contains(*node)).collect()
}

/// Tells agents for as long as the link lives.
pub async fn run(link: &Link) -> Infallible {
    loop {
        let names = link.cluster.orders.next_batch(GATHER).await;
        let orders = orders(&names, &link.cluster.read(), link.sampling);
        for (node, orders) in orders {
            let Some(session) = link.sessions.of(&node, &orders.node_uid) else {
                continue;
            };
            session.outbox.sample_interval(orders.sample_interval_ms);
            if session.outbox.let_go(orders.driver.is_let_go()) {
                match orders.driver {
                    DriverUse::LetGo { because } => {
                        tracing::info!(node, because, "the agent is told to let go of the driver")
                    }
                    DriverUse::Hold => tracing::debug!(node, "the agent is told that it may hold the driver"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_core::driver_upgrade::UPGRADE_STATE;
    use berth_core::placement::Resources;

    use super::*;
    use crate::cluster::{Cluster, Node, Pod};

    const SAMPLING: Sampling = Sampling {
        busy: Duration::from_secs(1),
        idle: Duration::from_secs(3),
    };

    fn pod(uid: &str, node: Option<&str>, pinned_to: Option<&str>, resource: &str) -> Pod {
        Pod {
            uid: uid.into(),
            node: node.map(str::to_owned),
            pinned_to: pinned_to.map(str::to_owned),
            requests: Resources([(resource.to_owned(), 1000)].into()),
            ..Pod::default()
        }
    }

    #[test]
    fn a_node_is_busy_with_any_pod_that_has_its_gpus_or_is_promised_them() {
        let cluster = Cluster::new();
        for name in ["bound", "pinned", "mig", "cpu", "idle", "upgrading"] {
            let state = (name == "upgrading").then(|| (UPGRADE_STATE.to_owned(), "drain-required".to_owned()));
            cluster.apply_node(Node {
                name: name.into(),
                uid: format!("{name}-uid"),
                labels: state.into_iter().collect(),
                ..Node::default()
            });
        }
        cluster.apply_pod(pod("1", Some("bound"), None, "nvidia.com/gpu"));
        cluster.apply_pod(pod("2", None, Some("pinned"), "nvidia.com/gpu"));
        cluster.apply_pod(pod("3", Some("mig"), None, "nvidia.com/mig-1g.10gb"));
        cluster.apply_pod(pod("4", Some("cpu"), None, "cpu"));
        let mut names: BTreeSet<String> = cluster.read().nodes.keys().cloned().collect();
        names.insert("gone".into());
        let orders = orders(&names, &cluster.read(), SAMPLING);
        let rates: BTreeMap<_, _> = orders.iter().map(|(n, o)| (n.as_str(), o.sample_interval_ms)).collect();
        let want = [
            ("bound", 1000),
            ("pinned", 1000),
            ("mig", 1000),
            ("cpu", 3000),
            ("idle", 3000),
            ("upgrading", 3000),
        ];
        assert_eq!(rates, want.into());
        let let_go: Vec<_> = orders
            .iter()
            .filter(|(_, o)| o.driver.is_let_go())
            .map(|(n, _)| n.as_str())
            .collect();
        assert_eq!(let_go, ["upgrading"]);
    }

    /// Nodes that were looked at because of `change`.
    async fn looked_at(cluster: &Cluster, change: impl FnOnce(&Cluster)) -> Vec<String> {
        change(cluster);
        // Always there, so that nothing at all is seen as such.
        cluster.orders.push(String::new());
        let batch = cluster.orders.next_batch(Duration::ZERO).await;
        batch.into_iter().filter(|name| !name.is_empty()).collect()
    }

    #[tokio::test]
    async fn a_node_is_looked_at_when_its_labels_or_the_pods_on_its_gpus_change() {
        let cluster = Cluster::new();
        let node = |version: &str, label: &str| Node {
            name: "n".into(),
            uid: "u".into(),
            resource_version: version.into(),
            labels: [("l".to_owned(), label.to_owned())].into(),
            ..Node::default()
        };
        assert_eq!(looked_at(&cluster, |c| c.apply_node(node("1", "a"))).await, ["n"]);
        assert!(looked_at(&cluster, |c| c.apply_node(node("2", "a"))).await.is_empty());
        assert_eq!(looked_at(&cluster, |c| c.apply_node(node("3", "b"))).await, ["n"]);
        let gpu = "nvidia.com/gpu";
        assert!(
            looked_at(&cluster, |c| c.apply_pod(pod("p", None, None, gpu)))
                .await
                .is_empty()
        );
        assert_eq!(
            looked_at(&cluster, |c| c.apply_pod(pod("p", None, Some("n"), gpu))).await,
            ["n"]
        );
        assert!(
            looked_at(&cluster, |c| c.apply_pod(pod("p", Some("n"), Some("n"), gpu)))
                .await
                .is_empty()
        );
        assert!(
            looked_at(&cluster, |c| c.apply_pod(pod("q", Some("n"), None, "cpu")))
                .await
                .is_empty()
        );
        assert_eq!(looked_at(&cluster, |c| c.delete_pod(&"p".to_owned())).await, ["n"]);
        assert!(looked_at(&cluster, |c| c.delete_pod(&"q".to_owned())).await.is_empty());
    }
}
