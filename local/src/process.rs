//! The processes of one cluster: each is recorded with its start time, so that none outlives the cluster unseen.
//!
//! ```text
//! spawn ─► <state>/processes.json (pid, start time) ─► exit: record removed
//!                       │
//!        a later run, after a crash of this one
//!                       ▼
//!                    sweep: SIGTERM, SIGKILL, proof that nothing is left
//! ```
//!
//! A process is also recognised by a variable in its environment ([`MARKER`]), which its own children inherit; so a
//! process started just before a crash, and grandchildren, are found as well.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::files;

/// Environment variable that every process of a cluster carries; its value is the state folder.
pub const MARKER: &str = "BERTH_LOCAL_STATE";

/// A process that no other can be mistaken for, even after its number is used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process number.
    pub pid: u32,
    /// Clock ticks between boot and its start. Source: field 22 of `/proc/<pid>/stat`.
    pub start: u64,
    /// The boot that both are of.
    pub boot: String,
}

impl Identity {
    /// The process of this number, if there is one and it has not ended.
    pub fn of(pid: u32) -> Option<Self> {
        let start = start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self {
            pid,
            start,
            boot: boot_id(),
        })
    }

    /// This process.
    pub fn own() -> Self {
        Self::of(std::process::id()).unwrap_or(Self {
            pid: std::process::id(),
            start: 0,
            boot: boot_id(),
        })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal to exactly this process; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid as i32) else {
            return;
        };
        // The descriptor pins the process: if the identity still holds after it was opened, no other can be hit.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Field 22 of a stat line; `None` for a process that has ended and waits to be collected.
fn start_time(stat: &str) -> Option<u64> {
    // The command name, field 2, is in parentheses and may hold blanks and parentheses.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _state => fields.nth(18)?.parse().ok(),
    }
}

/// A recorded process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is, for people.
    pub name: String,
    /// Which one it is.
    #[serde(flatten)]
    pub identity: Identity,
}

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// For people and for messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables that are added.
    pub env: BTreeMap<String, String>,
    /// Whether it gets only `env`.
    pub clear_env: bool,
    /// File that its output is appended to.
    pub log: PathBuf,
    /// Working directory; its starter's when absent.
    pub folder: Option<PathBuf>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl Exit {
    /// The code as a container runtime reports it: 128 + n for a signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// All processes of one cluster.
#[derive(Debug, Clone)]
pub struct Processes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: PathBuf,
    records: Mutex<BTreeMap<u32, Record>>,
}

impl Processes {
    /// For a state folder that this process has locked, and swept.
    pub fn new(state: &Path) -> Self {
        Self(Arc::new(Inner {
            state: state.to_path_buf(),
            records: Mutex::new(BTreeMap::new()),
        }))
    }

    /// Starts a process in a group of its own, so that a Ctrl-C in the terminal does not reach it.
    pub fn spawn(&self, launch: &Launch) -> Result<Process> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&launch.log);
        let log = log.map_err(Error::file("write", &launch.log))?;
        let errors = log.try_clone().map_err(Error::file("write", &launch.log))?;
        let mut command = tokio::process::Command::new(&launch.program);
        command
            .args(&launch.args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        if launch.clear_env {
            command.env_clear();
        }
        command
            .envs(&launch.env)
            .env(MARKER, &self.0.state)
            .process_group(0)
            .kill_on_drop(true);
        if let Some(folder) = &launch.folder {
            command.current_dir(folder);
        }
        let mut child = command.spawn().map_err(Error::file("start", &launch.program))?;
        let pid = child.id().expect("a child that was not waited for has a number");
        // Not collected yet, so the number is still its own, whether it runs or has ended.
        let raw = Pid::from_raw(pid as i32).expect("process numbers are not zero");
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|e| Error::File {
            action: "watch",
            path: launch.program.clone(),
            cause: e.into(),
        })?;
        let identity = Identity::of(pid);
        if let Some(identity) = identity.clone() {
            self.record(
                pid,
                Some(Record {
                    name: launch.name.clone(),
                    identity,
                }),
            )?;
        }
        let (ended, exit) = watch::channel(None);
        let processes = self.clone();
        tokio::spawn(async move {
            let exit = match child.wait().await {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Code(-1),
                },
                Err(_) => Exit::Code(-1),
            };
            // With a container's first process, all that it has started ends.
            let _ = kill_process_group(raw, Signal::KILL);
            if let Err(error) = processes.record(pid, None) {
                tracing::warn!(%error, "cannot update the list of processes");
            }
            let _ = ended.send(Some(exit));
        });
        Ok(Process(Arc::new(Running {
            name: launch.name.clone(),
            pid,
            pidfd,
            exit,
            log: launch.log.clone(),
        })))
    }

    fn record(&self, pid: u32, record: Option<Record>) -> Result<()> {
        let mut records = self.0.records.lock();
        match record {
            Some(record) => records.insert(pid, record),
            None => records.remove(&pid),
        };
        let list: Vec<&Record> = records.values().collect();
        let json = serde_json::to_vec_pretty(&list).map_err(Error::malformed("list of processes"))?;
        files::write(&list_path(&self.0.state), &json, 0o600)
    }
}

fn list_path(state: &Path) -> PathBuf {
    state.join("processes.json")
}

/// One process that was started here. Clones are the same process.
#[derive(Debug, Clone)]
pub struct Process(Arc<Running>);

#[derive(Debug)]
struct Running {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<Exit>>,
    log: PathBuf,
}

impl Process {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.0.log
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.0.exit.borrow()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        let mut exit = self.0.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Code(-1)),
            // The task that collects it is gone: the runtime is being shut down, which kills the process.
            Err(_) => Exit::Signal(9),
        }
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.0.pidfd, signal);
    }

    /// Asks it to end, and makes it end after `grace`.
    pub async fn stop(&self, grace: Duration) -> Exit {
        if !grace.is_zero() {
            self.signal(Signal::TERM);
            // A stopped process would not see the request.
            self.signal(Signal::CONT);
            if let Ok(exit) = tokio::time::timeout(grace, self.ended()).await {
                return exit;
            }
        }
        self.signal(Signal::KILL);
        self.ended().await
    }

    /// The error that says how it ended, with the end of its log.
    pub fn ended_error(&self, exit: Exit) -> Error {
        Error::ProcessEnded {
            process: self.0.name.clone(),
            exit: exit.to_string(),
            log: self.0.log.clone(),
            tail: files::tail(&self.0.log, 15),
        }
    }
}

/// What still runs of the cluster in this state folder, apart from this process.
pub fn leftovers(state: &Path) -> Vec<Record> {
    let mut found: BTreeMap<u32, Record> = BTreeMap::new();
    let recorded: Vec<Record> = fs::read(list_path(state))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    for record in recorded {
        if record.identity.is_alive() {
            found.insert(record.identity.pid, record);
        }
    }
    let mark = format!("{MARKER}={}", state.display());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || found.contains_key(&pid) {
            continue;
        }
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            continue;
        };
        if environment
            .split(|b| *b == 0)
            .any(|variable| variable == mark.as_bytes())
            && let Some(identity) = Identity::of(pid)
        {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"))
                .unwrap_or_default()
                .trim()
                .to_owned();
            found.insert(pid, Record { name, identity });
        }
    }
    found.into_values().collect()
}

/// Ends what an earlier run in this state folder left behind; returns what that was. Lasts 10 s at most.
pub async fn sweep(state: &Path) -> Result<Vec<Record>> {
    let first = leftovers(state);
    let mut rest = first.clone();
    for (signal, patience) in [
        (Signal::TERM, Duration::from_secs(4)),
        (Signal::KILL, Duration::from_secs(5)),
    ] {
        for record in &rest {
            record.identity.signal(signal);
            record.identity.signal(Signal::CONT);
        }
        let until = Instant::now() + patience;
        while !rest.is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
            rest.retain(|record| record.identity.is_alive());
        }
        // What a dying process has started in the meantime.
        rest = leftovers(state);
        if rest.is_empty() {
            let _ = fs::remove_file(list_path(state));
            return Ok(first);
        }
    }
    Err(Error::Leftover(
        rest.iter()
            .map(|r| format!("{} ({})", r.name, r.identity.pid))
            .collect::<Vec<_>>()
            .join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_read_past_odd_command_names() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20";
        let cases = [
            (format!("7 (etcd) S {rest}"), Some(424_242)),
            (format!("7 (a b) c) R {rest}"), Some(424_242)),
            (format!("7 (etcd) Z {rest}"), None),
            ("7 etcd".to_owned(), None),
        ];
        for (stat, want) in cases {
            assert_eq!(start_time(&stat), want, "{stat}");
        }
    }

    fn launch(state: &Path, script: &str) -> Launch {
        Launch {
            name: "test".to_owned(),
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            log: state.join("log"),
            ..Launch::default()
        }
    }

    fn state(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("berth-process-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[tokio::test]
    async fn a_crashed_run_is_swept_with_its_grandchildren() {
        let state = state("sweep");
        let processes = Processes::new(&state);
        // The middle process ends at once; what it started has left its group and carries only the marker.
        let middle = processes
            .spawn(&launch(&state, "setsid sleep 300 & sleep 0.2; exit 0"))
            .unwrap();
        let stubborn = processes
            .spawn(&launch(&state, "trap '' TERM; while :; do sleep 1; done"))
            .unwrap();
        middle.ended().await;
        assert!(leftovers(&state).len() >= 2, "{:?}", leftovers(&state));
        sweep(&state).await.unwrap();
        assert_eq!(leftovers(&state), vec![]);
        assert_eq!(stubborn.ended().await, Exit::Signal(9));
        fs::remove_dir_all(&state).unwrap();
    }

    #[tokio::test]
    async fn another_process_of_the_same_number_is_left_alone() {
        let state = state("reuse");
        let processes = Processes::new(&state);
        let process = processes.spawn(&launch(&state, "exec sleep 300")).unwrap();
        let mut other = Identity::of(process.pid()).unwrap();
        other.start -= 1;
        assert!(!other.is_alive());
        other.signal(Signal::KILL);
        assert_eq!(process.exit(), None);
        assert_eq!(process.stop(Duration::from_secs(5)).await, Exit::Signal(15));
        fs::remove_dir_all(&state).unwrap();
    }
}
