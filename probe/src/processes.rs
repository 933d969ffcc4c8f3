//! Whose pods the processes on the GPUs are: NVML's process ids, looked up in the host's `/proc`.
//!
//! ```text
//! NVML: GPU, pid, memory ─► <proc>/<pid>/cgroup ─► UID of the pod ─► <pod logs>/<namespace>_<name>_<uid>
//! ```
//!
//! A process id means something in its own namespace alone. So nothing is claimed unless the `/proc` that is given shows the host's.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::facts::PodName;
use berth_core::pods::{Process, cgroup};
use rustix::io::Errno;
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
    /// Something that is there cannot be read. To leave it out would be to say that the process is no pod's.
    #[error("reading {}: {why}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// The system's word.
        why: String,
    },
}

/// Looks processes up, one look at a time.
#[derive(Debug, Clone)]
pub struct Lookup {
    places: Arc<Places>,
    turn: Arc<Mutex<()>>,
}

impl Lookup {
    /// Looks there.
    pub fn new(places: Places) -> Self {
        Self {
            places: Arc::new(places),
            turn: Arc::default(),
        }
    }

    /// The pods of processes. Those that belong to no pod, or have ended, are left out.
    pub async fn pods(&self, processes: Vec<OnGpu>) -> Result<Vec<Process>, Blind> {
        let late = || Blind::Late(self.places.proc.clone());
        // On a thread of its own, and where that hangs, no other goes after it.
        let turn = Arc::clone(&self.turn).try_lock_owned().map_err(|_| late())?;
        let places = Arc::clone(&self.places);
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            places.pods(processes)
        });
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }
}

impl Places {
    fn pods(&self, processes: Vec<OnGpu>) -> Result<Vec<Process>, Blind> {
        self.is_of_the_host()?;
        let mut found = Vec::new();
        for process in processes {
            let Some(pod_uid) = self.pod_uid(process.pid)? else {
                continue;
            };
            found.push(Process {
                pod_uid,
                pod: None,
                gpu: process.gpu,
                instance: process.instance,
                memory_bytes: process.memory_bytes,
            });
        }
        // In a `/proc` that went away meanwhile, every process seems to have ended.
        self.is_of_the_host()?;
        if let Some(logs) = self.pod_logs.as_deref().filter(|_| !found.is_empty()) {
            // Names are for people: whose a process is, its pod's UID says.
            let names = names(logs).unwrap_or_else(|error| {
                tracing::debug!(%error, path = %logs.display(), "pods have no names");
                HashMap::new()
            });
            for process in &mut found {
                process.pod = names.get(&process.pod_uid).cloned();
            }
        }
        Ok(found)
    }

    /// `None`: it is in no pod, or has ended.
    fn pod_uid(&self, pid: u32) -> Result<Option<String>, Blind> {
        let path = self.proc.join(pid.to_string()).join("cgroup");
        match std::fs::read(&path) {
            // Whoever may make a cgroup may name it as they like.
            Ok(text) => Ok(cgroup::pod_uid(&String::from_utf8_lossy(&text))),
            Err(error) if has_ended(&error) => Ok(None),
            Err(error) => Err(unreadable(&path)(error)),
        }
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

/// Before its file was opened, or after.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Blind {
    |error| Blind::Unreadable {
        path: path.to_path_buf(),
        why: error.to_string(),
    }
}

/// Names by UID; none where there is no such folder.
fn names(logs: &Path) -> io::Result<HashMap<String, PodName>> {
    let folders = match std::fs::read_dir(logs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        folders => folders?,
    };
    let mut names = HashMap::new();
    for folder in folders {
        let name = folder?.file_name();
        if let Some((pod, uid)) = name.to_str().and_then(cgroup::log_folder) {
            names.insert(uid.to_owned(), pod);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    const UID: &str = "3f6b1c1e-7a4d-4c55-9f0e-2b8a4d1c9e77";

    fn host(namespace: &str) -> (tempfile::TempDir, Lookup) {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc");
        fs::create_dir_all(proc.join("1/ns")).unwrap();
        symlink(namespace, proc.join("1/ns/pid")).unwrap();
        let of_pod = |uid: &str| format!("0::/kubepods/pod{uid}/c\n").into_bytes();
        for (pid, cgroup) in [
            (7, of_pod(UID)),
            (8, b"0::/system.slice/\xff.service\n".to_vec()),
            (9, of_pod("00000000-0000-0000-0000-000000000000")),
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

    #[tokio::test]
    async fn what_cannot_be_read_is_not_called_nobodys() {
        // A folder where a file should be: read errors that are not the end of a process.
        let (dir, lookup) = host(HOST_NAMESPACE);
        let cgroup = dir.path().join("proc/8/cgroup");
        fs::remove_file(&cgroup).unwrap();
        fs::create_dir(&cgroup).unwrap();
        let blind = lookup.pods([7, 8].map(on_gpu).to_vec()).await.unwrap_err();
        assert!(
            matches!(&blind, Blind::Unreadable { path, .. } if *path == cgroup),
            "{blind}"
        );
        assert_eq!(lookup.pods(vec![on_gpu(7)]).await.unwrap().len(), 1);

        // Names are for people alone.
        let logs = dir.path().join("logs");
        fs::remove_dir_all(&logs).unwrap();
        let found = lookup.pods(vec![on_gpu(7)]).await.unwrap();
        assert_eq!(found[0].pod, None, "there is none");
        fs::write(&logs, "").unwrap();
        let found = lookup.pods(vec![on_gpu(7)]).await.unwrap();
        assert_eq!(
            (found[0].pod_uid.as_str(), &found[0].pod),
            (UID, &None),
            "it cannot be read"
        );
    }

    #[tokio::test]
    async fn in_a_proc_that_goes_away_half_way_nobody_has_ended() {
        let (dir, lookup) = host(HOST_NAMESPACE);
        let proc = dir.path().join("proc");
        // Whoever reads the first process waits for its writer, and finds nothing of the second.
        let cgroup = proc.join("7/cgroup");
        let text = fs::read(&cgroup).unwrap();
        fs::remove_file(&cgroup).unwrap();
        mknodat(CWD, &cgroup, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let gone = dir.path().join("gone");
        let writer = std::thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(&cgroup).unwrap();
            fs::rename(&proc, gone).unwrap();
            pipe.write_all(&text).unwrap();
        });
        let blind = lookup.pods([7, 9].map(on_gpu).to_vec()).await.unwrap_err();
        assert!(matches!(&blind, Blind::NotTheHost { .. }), "{blind}");
        writer.join().unwrap();
    }
}
