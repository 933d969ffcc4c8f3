//! The agent and the probe as processes.

use std::path::Path;
use std::process::{Child, Command};

use nvidia_ml::state::STATE_ENV;

use super::controller;
use crate::machine::{Machine, fake_nvml};

/// A process that does not outlive its test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Sends it a signal by its name, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        // One may end meanwhile.
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|name| name.trim().to_owned()).collect()
    }
}

/// A controller that is not there: nobody listens on this port.
pub const NOBODY: &str = "127.0.0.1:1";

/// The agent of a machine, but for where its /sys is and where it serves.
pub fn agent(machine: &Machine, controller: &str) -> Command {
    let path = |name: &str| machine.path(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-agent"));
    command
        .arg("run")
        .arg(format!("--controller={controller}"))
        .arg(format!("--controller-name={}", controller::NAME))
        .arg(format!("--ca={}", path("ca.crt")))
        .arg(format!("--token={}", path("token")))
        .arg(format!("--probe-socket={}", path("probe.sock")));
    command
}

/// Its probe, on the fake driver.
pub fn probe(machine: &Machine) -> Command {
    let library = fake_nvml();
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_berth-agent")).with_file_name("berth-probe"));
    command
        .arg("serve")
        .arg(format!("--socket={}", machine.path("probe.sock").display()))
        .arg(format!("--nvml-lib={}", library.display()))
        .env(STATE_ENV, machine.path("nvml.json"));
    command
}
