//! How far a run of `up` has come: written by the process that owns the cluster, read by others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use berth_local::process::{Identity, Signal};
use serde::{Deserialize, Serialize};

/// What a run says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process that runs the cluster.
    pub owner: Identity,
    /// How far it is.
    pub phase: Phase,
    /// What can be reached, once it is there.
    pub reach: Option<Reach>,
}

/// What a person can reach of a running cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The kubeconfig; the logs lie beside it.
    pub kubeconfig: PathBuf,
    /// Folder of kubectl and helm.
    pub tools: Option<PathBuf>,
    /// HTTP of the controller that leads.
    pub controller: SocketAddr,
    /// A node with GPUs and a driver, and HTTP of its agent.
    pub node: Option<(String, Option<SocketAddr>)>,
    /// A node whose driver is missing.
    pub bare: Option<String>,
}

/// Where a cluster is unless told otherwise: the same wherever in the checkout one is.
pub fn default_folder() -> PathBuf {
    berth_local::checkout().join(".local")
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It builds, starts or installs.
    Starting,
    /// Everything is there.
    Ready,
}

impl Status {
    /// Writes the status of this process.
    pub fn write(state: &Path, phase: Phase, reach: Option<Reach>) -> anyhow::Result<()> {
        let path = state.join("status.json");
        let new = state.join("status.json.new");
        std::fs::write(
            &new,
            serde_json::to_vec(&Self {
                owner: Identity::own(),
                phase,
                reach,
            })?,
        )
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the last run has said.
    pub fn read(state: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state.join("status.json")).ok()?).ok()
    }
}

/// Ends the process of a run, which ends its cluster; forcibly after `patience`.
pub fn end(owner: &Identity, patience: Duration) {
    for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, Duration::from_secs(2))] {
        owner.signal(signal);
        let until = Instant::now() + patience;
        while owner.is_alive() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
