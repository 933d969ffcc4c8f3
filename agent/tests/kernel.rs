//! The real agent and the real probe as processes: what the kernel tells is heard, and what hangs costs a bounded number of threads.
#![allow(clippy::unwrap_used)]

mod machine;
mod node;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use machine::Machine;
use node::process::{self, NOBODY};
use node::{Node, Process};
use nvidia_ml::state::{Effect, Fault, State};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};

/// Far beyond anything expected; only something broken waits this long.
const PATIENCE: Duration = Duration::from_secs(25);

/// An agent without a controller.
struct Agent {
    node: Node,
    process: Process,
}

impl Agent {
    /// On a machine without GPUs, or on this one's own /sys.
    fn start(sysfs: Option<&str>) -> Self {
        let node = Node::of(Machine::new());
        std::fs::create_dir_all(node.path("sys/bus/pci/devices")).unwrap();
        let sysfs = sysfs.map_or(node.machine.sysfs(), |root| format!("--sysfs-root={root}"));
        let mut agent = process::agent(&node.machine, NOBODY);
        let process = Process::start(agent.args([sysfs, node.http_address()]));
        Self { node, process }
    }

    fn probe(&self) -> Process {
        Process::start(process::probe(&self.node.machine).arg("--call-timeout=300ms"))
    }

    fn metrics(&self) -> String {
        let read = || {
            let mut stream = TcpStream::connect(self.node.http())?;
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        read().unwrap_or_default()
    }

    fn scans(&self, cause: &str) -> u64 {
        let start = format!("berth_agent_sysfs_scans_total{{cause=\"{cause}\"}} ");
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or(0, |count| count.parse().unwrap())
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.metrics());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_change_in_a_folder_is_seen_without_waiting() {
    let agent = Agent::start(None);
    agent.until("a first scan", || agent.scans("start") == 1);
    std::fs::create_dir(agent.node.path("sys/bus/pci/devices/0000:10:00.0")).unwrap();
    agent.until("a scan for the folder", || agent.scans("folder") >= 1);
}

#[test]
fn the_kernels_word_is_heard() {
    // As the kernel says it; anybody hears it, root alone may say it.
    let socket = socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(KOBJECT_UEVENT)).unwrap();
    let say = |message: &[u8]| sendto(&socket, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 1));
    let disk = b"change@/devices/virtual/block/loop0\0ACTION=change\0SUBSYSTEM=block\0";
    let gpu = b"add@/devices/pci0000:00/0000:10:00.0\0ACTION=add\0SUBSYSTEM=pci\0PCI_CLASS=30200\0PCI_ID=10DE:2330\0";
    if let Err(error) = say(disk) {
        eprintln!("skipped: no uevent can be sent here ({error}); root can");
        return;
    }
    let agent = Agent::start(Some("/sys"));
    agent.until("a first scan", || agent.scans("start") == 1);
    let before = agent.scans("uevent");
    say(disk).unwrap();
    say(gpu).unwrap();
    agent.until("a scan on the kernel's word", || agent.scans("uevent") > before);
    agent.until("one more, for what comes a moment later", || agent.scans("timer") >= 1);
    assert_eq!(agent.scans("folder"), 0, "a real /sys is no folder");
}

#[test]
fn a_driver_that_hangs_costs_a_bounded_number_of_threads() {
    let agent = Agent::start(None);
    let nvml = agent.node.path("nvml.json");
    State::of("H100-80GB-HBM3", 8, "node-a").unwrap().write(&nvml).unwrap();
    let probe = agent.probe();
    let is = |state: &str| {
        agent
            .metrics()
            .contains(&format!("berth_agent_nvml_state{{state=\"{state}\"}} 1\n"))
    };
    agent.until("NVML is ready", || is("Ready"));
    State::edit(&nvml, |s| s.faults = vec![Fault::of("*", Effect::Stall(true))]).unwrap();
    agent.until("NVML hangs", || is("Hung"));

    let (start, mut most) = (Instant::now(), (0, 0, 0));
    // Many times the deadline of a call.
    while start.elapsed() < Duration::from_secs(5) {
        let threads = probe.threads();
        let is_worker = |name: &&String| name.strip_prefix("nvml-").is_some_and(|id| id.parse::<u64>().is_ok());
        let seen = (
            threads.iter().filter(is_worker).count(),
            threads.len(),
            agent.process.threads().len(),
        );
        assert!(seen.0 <= 2, "threads that call NVML: {threads:?}");
        // One for the runtime, two that wait for events, two at most that look at configuration space.
        assert!(seen.1 <= 2 + 5, "{threads:?}");
        // One for the runtime, one that scans, one that looks names up.
        assert!(seen.2 <= 3, "{:?}", agent.process.threads());
        most = (most.0.max(seen.0), most.1.max(seen.1), most.2.max(seen.2));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(most.0, 2, "the second thread was tried as well");
    assert!(is("Hung"));
    State::edit(&nvml, |s| s.faults.clear()).unwrap();
    agent.until("NVML is ready again", || is("Ready"));
    agent.until("threads that came back have ended", || probe.threads().len() <= 5);
}
