//! Times from a cause in the hardware to its effect in Kubernetes, on the clock of this process.
//!
//! A label or condition has its effect when a watch on the API server brings it; a GPU is out of placement when the controller's own page says
//! so, which shows the picture that placement reads and is asked for without a pause.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use berth_local::Cluster;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::distribution::Distribution;

/// Nodes with a driver, one GPU each.
pub const NODES: [&str; 10] = [
    "bench-a", "bench-b", "bench-c", "bench-d", "bench-e", "bench-f", "bench-g", "bench-h", "bench-i", "bench-j",
];
/// The node without a driver.
pub const BARE: &str = "bench-bare";
/// Rounds over all nodes: so many measurements of each kind, times their number.
const ROUNDS: u32 = 5;
/// Whatever is measured has long happened by then, or never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// The one function of [`BARE`].
const FUNCTION: &str = "0000:10:00.0";
const PCI_LABELS: &str = "feature.node.kubernetes.io/pci-";
const DRIVER_LABEL: &str = "nvidia.com/cuda.driver-version.full";

/// All of them.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// A PCI function appears, without a driver → its label.
    pub pci_to_label: Distribution,
    /// The driver is installed (its files, last the library) → labels that NVML alone knows.
    pub driver_to_labels: Distribution,
    /// An XID that calls for a restart → the GPU does not count for placement.
    pub xid_to_exclusion: Distribution,
    /// The same → the node's condition is False.
    pub xid_to_condition: Distribution,
}

/// Measures on a cluster that has [`NODES`] and [`BARE`].
pub async fn measure(cluster: &Cluster, namespace: &str) -> anyhow::Result<Latencies> {
    let mut watch = Watch::start(Api::all(cluster.client()));
    let (mut pci, mut driver, mut exclusion, mut condition) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        for name in NODES {
            watch.now(name, |node| is_ready(node, "True")).await?;
            let (out, told) = xid(cluster, namespace, &mut watch, name).await?;
            exclusion.push(out);
            condition.push(told);
        }
        for (index, name) in (0..).zip(NODES) {
            let version = format!("550.{}.{index}", 200 + round);
            driver.push(new_driver(cluster, namespace, &mut watch, name, &version).await?);
            pci.push(plugged(cluster, &mut watch).await?);
        }
    }
    let of = |times| Distribution::of(times).context("nothing was measured");
    Ok(Latencies {
        pci_to_label: of(pci)?,
        driver_to_labels: of(driver)?,
        xid_to_exclusion: of(exclusion)?,
        xid_to_condition: of(condition)?,
    })
}

async fn xid(
    cluster: &Cluster,
    namespace: &str,
    watch: &mut Watch,
    name: &str,
) -> anyhow::Result<(Duration, Duration)> {
    let node = cluster.node(name)?;
    let at = Instant::now();
    node.nvml().change(|state| {
        state.gpus.iter_mut().for_each(|gpu| gpu.push_xid(79));
        Ok(())
    })?;
    let (out, told) = tokio::join!(
        page_until(cluster, namespace, name, |node| node["gpus"][0]["health"]
            == "Unhealthy"),
        watch.until(name, |node| is_ready(node, "False")),
    );
    Ok((out? - at, told? - at))
}

async fn new_driver(
    cluster: &Cluster,
    namespace: &str,
    watch: &mut Watch,
    name: &str,
    version: &str,
) -> anyhow::Result<Duration> {
    let node = cluster.node(name)?;
    node.set_driver(false).await?;
    page_until(cluster, namespace, name, |node| node["agent"]["nvml"] == "NoLibrary").await?;
    node.nvml().change(|state| {
        version.clone_into(&mut state.driver.version);
        Ok(())
    })?;
    let at = Instant::now();
    node.set_driver(true).await?;
    let labelled = watch.until(name, |node| {
        node.labels().get(DRIVER_LABEL).is_some_and(|is| is == version)
    });
    Ok(labelled.await? - at)
}

async fn plugged(cluster: &Cluster, watch: &mut Watch) -> anyhow::Result<Duration> {
    let link = cluster.node(BARE)?.sys().join("bus/pci/devices").join(FUNCTION);
    let has_label = |node: &Node| node.labels().keys().any(|key| key.starts_with(PCI_LABELS));
    watch.now(BARE, has_label).await?;
    std::fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
    watch.until(BARE, |node| !has_label(node)).await?;
    let at = Instant::now();
    std::os::unix::fs::symlink(format!("../../../devices/pci0000:00/{FUNCTION}"), &link)
        .with_context(|| format!("cannot link {}", link.display()))?;
    Ok(watch.until(BARE, has_label).await? - at)
}

fn is_ready(node: &Node, status: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let is = |c: &NodeCondition| c.type_ == "nvidia.com/GPUReady" && c.status == status;
    conditions.is_some_and(|all| all.iter().any(is))
}

/// The nodes as a watch brings them.
struct Watch {
    news: mpsc::UnboundedReceiver<(Instant, Node)>,
    latest: std::collections::HashMap<String, (Instant, Node)>,
}

impl Watch {
    fn start(api: Api<Node>) -> Self {
        let (send, news) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut version = "0".to_owned();
            loop {
                if let Err(error) = follow(&api, &mut version, &send).await {
                    tracing::warn!(%error, "watching nodes");
                    version = "0".to_owned();
                }
                if send.is_closed() {
                    return;
                }
            }
        });
        Self {
            news,
            latest: Default::default(),
        }
    }

    /// Waits until a node is so, and has nothing in hand that is older: the state before a cause.
    async fn now(&mut self, name: &str, is_so: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        while let Ok((at, node)) = self.news.try_recv() {
            self.latest.insert(node.name_any(), (at, node));
        }
        if self.latest.get(name).is_some_and(|(_, node)| is_so(node)) {
            return Ok(());
        }
        self.until(name, is_so).await.map(drop)
    }

    /// When a node was first seen to be so since [`Self::now`].
    async fn until(&mut self, name: &str, is_so: impl Fn(&Node) -> bool) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let Ok(Some((at, node))) = tokio::time::timeout(left, self.news.recv()).await else {
                let labels = self.latest.get(name).map(|(_, node)| node.labels());
                bail!("{name} is not as expected: {labels:?}");
            };
            let found = (node.name_any() == name && is_so(&node)).then_some(at);
            self.latest.insert(node.name_any(), (at, node));
            if let Some(at) = found {
                return Ok(at);
            }
        }
    }
}

async fn follow(
    api: &Api<Node>,
    version: &mut String,
    send: &mpsc::UnboundedSender<(Instant, Node)>,
) -> anyhow::Result<()> {
    let mut events = api.watch(&WatchParams::default(), version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                *version = node.resource_version().unwrap_or_default();
                // Nobody reads any more: the measuring is over.
                let _ = send.send((Instant::now(), node));
            }
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(error) => bail!("{error:?}"),
        }
    }
    Ok(())
}

/// When the controller's page first shows a node so.
async fn page_until(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    is_so: impl Fn(&Value) -> bool,
) -> anyhow::Result<Instant> {
    let begun = Instant::now();
    loop {
        let page = page(cluster, namespace).await?;
        let node = page
            .as_array()
            .and_then(|nodes| nodes.iter().find(|n| n["node"] == name));
        if node.is_some_and(&is_so) {
            return Ok(Instant::now());
        }
        ensure!(begun.elapsed() < PATIENCE, "{name} is not as expected: {node:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn page(cluster: &Cluster, namespace: &str) -> anyhow::Result<Value> {
    let address = cluster.services().forwarder(namespace, "berth-controller", 8080)?;
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET /nodes HTTP/1.1\r\nHost: berth-controller\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    Ok(serde_json::from_str(body)?)
}
