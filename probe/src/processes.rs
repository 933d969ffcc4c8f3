//! Whose pods the processes on the GPUs are: NVML's process ids, looked up in the host's `/proc`.
//!
//! ```text
//! NVML: GPU, pid, memory ─► <proc>/<pid>/cgroup ─► UID of the pod ─► <pod logs>/<namespace>_<name>_<uid>
//! ```
//!
//! A process id means something in its own namespace alone. So nothing is claimed unless the `/proc` that is given shows the host's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::facts::PodName;
use berth_core::pods::{Process, cgroup};
use tokio::sync::Mutex;

/// Reading `/proc` does not wait for anything, unless the kernel is in trouble.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel calls its first process-id namespace, `PROC_PID_INIT_INO`, as `/proc/1/ns/pid` shows it.
const HOST_NAMESPACE: &str = "pid:[4026531836]";

/// A process with a compute context, as NVML knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnGpu {
    /// UUID of the GPU.
    pub gpu: String,
    /// GPU instance and compute instance, in MIG mode.
    pub instance: Option<(u32, u32)>,
    /// Process id on the host.
    pub pid: u32,
    /// Bytes; `None`: the driver does not say.
    pub memory_bytes: Option<u64>,
}

/// Where to look.
#[derive(Debug)]
pub struct Places {
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// The kubelet's folder of logs: a folder a pod, named by namespace, name and UID.
    pub pod_logs: Option<PathBuf>,
}

/// Why processes cannot be told to pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blind {
    /// The `/proc` given is of a container.
    #[error("{} does not show the host's processes: {why}", proc.display())]
    NotTheHost {
        /// That folder.
        proc: PathBuf,
        /// What it shows instead.
        why: String,
    },
    /// Reading it takes too long.
    #[error("reading {} takes too long", .0.display())]
    Late(PathBuf),
}

/// Looks processes up, one look at a time.
#[derive(Debug, Clone)]
pub struct Lookup(Arc<Mutex<Places>>);

impl Lookup {
    /// Looks there.
    pub fn new(places: Places) -> Self {
        Self(Arc::new(Mutex::new(places)))
    }

    /// The pods of processes. Those that belong to no pod, or have ended, are left out.
    pub async fn pods(&self, processes: Vec<OnGpu>) -> Result<Vec<Process>, Blind> {
        // On a thread of its own, and where that hangs, no other goes after it.
        let Ok(places) = Arc::clone(&self.0).try_lock_owned() else {
            return Err(Blind::Late(PathBuf::from("/proc")));
        };
        let proc = places.proc.clone();
        let reading = tokio::task::spawn_blocking(move || places.pods(processes));
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(Blind::Late(proc)),
        }
    }
}

impl Places {
    fn pods(&self, processes: Vec<OnGpu>) -> Result<Vec<Process>, Blind> {
        self.is_of_the_host()?;
        let mut found: Vec<Process> = processes
            .into_iter()
            .filter_map(|process| {
                let cgroup = self.proc.join(process.pid.to_string()).join("cgroup");
                let text = std::fs::read_to_string(cgroup).ok()?;
                Some(Process {
                    pod_uid: cgroup::pod_uid(&text)?,
                    pod: None,
                    gpu: process.gpu,
                    instance: process.instance,
                    memory_bytes: process.memory_bytes,
                })
            })
            .collect();
        if let Some(logs) = self.pod_logs.as_deref().filter(|_| !found.is_empty()) {
            let names = names(logs);
            for process in &mut found {
                process.pod = names.get(&process.pod_uid).cloned();
            }
        }
        Ok(found)
    }

    fn is_of_the_host(&self) -> Result<(), Blind> {
        let why = match std::fs::read_link(self.proc.join("1/ns/pid")) {
            Ok(namespace) if namespace == Path::new(HOST_NAMESPACE) => return Ok(()),
            Ok(namespace) => format!("process 1 is in {}", namespace.display()),
            Err(error) => error.to_string(),
        };
        Err(Blind::NotTheHost {
            proc: self.proc.clone(),
            why,
        })
    }
}

/// Names by UID.
fn names(logs: &Path) -> HashMap<String, PodName> {
    let folders = std::fs::read_dir(logs).into_iter().flatten().flatten();
    folders
        .filter_map(|folder| {
            let name = folder.file_name();
            let (pod, uid) = cgroup::log_folder(name.to_str()?)?;
            Some((uid.to_owned(), pod))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const UID: &str = "3f6b1c1e-7a4d-4c55-9f0e-2b8a4d1c9e77";

    fn host(namespace: &str) -> (tempfile::TempDir, Lookup) {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc");
        fs::create_dir_all(proc.join("1/ns")).unwrap();
        symlink(namespace, proc.join("1/ns/pid")).unwrap();
        for (pid, cgroup) in [
            (7, format!("0::/kubepods/pod{UID}/c\n")),
            (8, "0::/system.slice/x.service\n".into()),
            (9, "0::/kubepods/pod00000000-0000-0000-0000-000000000000/c\n".into()),
        ] {
            fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            fs::write(proc.join(pid.to_string()).join("cgroup"), cgroup).unwrap();
        }
        let pod_logs = dir.path().join("logs");
        fs::create_dir_all(pod_logs.join(format!("ml_llama-0_{UID}"))).unwrap();
        let lookup = Lookup::new(Places {
            proc,
            pod_logs: Some(pod_logs),
        });
        (dir, lookup)
    }

    fn on_gpu(pid: u32) -> OnGpu {
        OnGpu {
            gpu: "GPU-1".into(),
            instance: None,
            pid,
            memory_bytes: Some(1 << 30),
        }
    }

    #[tokio::test]
    async fn processes_of_pods_are_found_and_no_others() {
        let (_dir, lookup) = host(HOST_NAMESPACE);
        let found = lookup.pods([7, 8, 9, 10].map(on_gpu).to_vec()).await.unwrap();
        let shown: Vec<_> = found
            .iter()
            .map(|p| (p.pod_uid.as_str(), p.pod.as_ref().map(|p| p.name.as_str())))
            .collect();
        assert_eq!(
            shown,
            [(UID, Some("llama-0")), ("00000000-0000-0000-0000-000000000000", None)]
        );
    }

    #[tokio::test]
    async fn of_the_processes_of_a_container_nothing_is_said() {
        let (_dir, lookup) = host("pid:[4026532199]");
        let blind = lookup.pods(vec![on_gpu(7)]).await.unwrap_err();
        assert!(matches!(&blind, Blind::NotTheHost { .. }), "{blind}");
        let (dir, lookup) = host(HOST_NAMESPACE);
        fs::remove_dir_all(dir.path().join("proc/1")).unwrap();
        assert!(lookup.pods(vec![on_gpu(7)]).await.is_err());
    }
}
