//! Plays a machine's process table, as far as pods with `hostPID` look at it: whose process an id is.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use crate::error::Result;
use crate::files;

/// The kernel's first process-id namespace (`PROC_PID_INIT_INO`), that of the machine itself.
const NAMESPACE: &str = "pid:[4026531836]";
/// Where a kubelet has a folder of logs for each of its pods.
const POD_LOGS: &str = "var/log/pods";

/// The processes of one machine. Clones are the same machine's.
#[derive(Debug, Clone)]
pub struct Processes {
    proc: PathBuf,
    pod_logs: PathBuf,
}

impl Processes {
    /// Those of a machine in `folder` with this `/`.
    pub(super) fn new(folder: &Path, root: &Path) -> Self {
        Self {
            proc: folder.join("proc"),
            pod_logs: root.join(POD_LOGS),
        }
    }

    /// The machine starts: its first process runs, and no other.
    pub(super) fn boot(&self) -> Result<()> {
        files::link(NAMESPACE, &self.proc.join("1/ns/pid"))?;
        files::place(&self.proc.join("1/cgroup"), "0::/init.scope\n")
    }

    /// What pods with `hostPID` see as `/proc`.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// A process of a pod's first container runs under this id, in the cgroup and with the folder of logs that a kubelet and containerd make.
    pub fn run(&self, pid: u32, pod: &core::Pod) -> Result<()> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let slice = format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
        let scope = format!("cri-containerd-{pid:064x}.scope");
        let cgroup = format!("0::/kubepods.slice/kubepods-besteffort.slice/{slice}/{scope}\n");
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let logs = format!("{}_{}_{uid}", namespace.unwrap_or_default(), name.unwrap_or_default());
        files::folder(&self.pod_logs.join(logs))?;
        files::place(&self.proc.join(pid.to_string()).join("cgroup"), &cgroup)
    }

    /// It has ended.
    pub fn end(&self, pid: u32) -> Result<()> {
        files::remove(&self.proc.join(pid.to_string()))
    }
}
