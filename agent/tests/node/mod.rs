//! A node: a machine that is a folder, the real agent and the real probe on it, and a controller that hears them.
//!
//! ```text
//! process    berth-agent and berth-probe as they are started
//! controller a gRPC server whose sessions a test leads
//! heard      what a controller heard last, whatever becomes of its sessions
//! clock      minutes and days that go by at once
//! watched    all of it together
//! ```
#![allow(dead_code)]

pub mod clock;
pub mod controller;
pub mod heard;
pub mod process;
pub mod watched;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvidia_ml::state::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub use controller::Controller;
pub use process::Process;

use crate::machine::Machine;

/// Far beyond anything expected; only something broken waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A machine, and where its agent serves. Nothing runs on it yet.
pub struct Node {
    pub machine: Machine,
    http: SocketAddr,
}

impl Node {
    /// One display function, and no driver yet.
    pub fn new() -> Self {
        let machine = Machine::new();
        for (file, content) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2330")] {
            machine.put(&format!("sys/bus/pci/devices/0000:10:00.0/{file}"), content);
        }
        Self::of(machine)
    }

    pub fn of(machine: Machine) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            machine,
            http: free.local_addr().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.machine.path(name)
    }

    pub fn identity(&self, controller: &Controller, token: &str) {
        self.machine.put("ca.crt", &controller.ca);
        self.machine.put("token", token);
    }

    pub fn agent(&self, controller: &Controller) -> Process {
        let mut agent = process::agent(&self.machine, &controller.address.to_string());
        agent.arg(self.machine.sysfs()).arg(self.http_address());
        Process::start(&mut agent)
    }

    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn http_address(&self) -> String {
        format!("--http-address={}", self.http)
    }

    pub fn probe(&self) -> Process {
        let mut probe = process::probe(&self.machine);
        probe
            .arg("--call-timeout=500ms")
            .arg(format!("--kernel-log={}", self.path("kmsg").display()));
        Process::start(&mut probe)
    }

    pub fn gpus(&self, count: u32) -> State {
        let state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
        state.write(&self.path("nvml.json")).unwrap();
        state
    }

    pub fn state(&self) -> State {
        State::read(&self.path("nvml.json")).unwrap()
    }

    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.path("nvml.json"), change).unwrap();
    }

    /// The kernel says something.
    pub fn log(&self, lines: &str) {
        let log = std::fs::OpenOptions::new().append(true).open(self.path("kmsg"));
        log.unwrap().write_all(lines.as_bytes()).unwrap();
    }

    /// Head and body of the agent's answer.
    pub async fn get(&self, path: &str) -> String {
        let start = Instant::now();
        loop {
            if let Ok(mut stream) = TcpStream::connect(self.http).await {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "nothing listens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
