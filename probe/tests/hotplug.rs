//! The real process while the driver takes GPUs and lets go of them, on a driver that lists its GPUs once, as real ones do.
#![allow(clippy::unwrap_used)]

mod process;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::events_reply::Body;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::{NvmlState, gpu_event};
use nvidia_ml::state::{Binding, Effect, Fault, STATE_ENV, State, code};
use process::{built_library, client};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
use tonic::transport::Channel;

/// Far beyond anything expected; only a broken probe waits this long.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST: &str = "0000:10:00.0";
const SECOND: &str = "0000:11:00.0";

struct Node {
    dir: tempfile::TempDir,
    child: Child,
    client: ProbeClient<Channel>,
}

impl Drop for Node {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

impl Node {
    /// With one GPU, and a second in the drawer.
    async fn start(faults: Vec<Fault>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut state = two();
        state.gpus.pop();
        state.faults = faults;
        state.write(&dir.path().join("nvml.json")).unwrap();
        let folder = bound(dir.path());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(FIRST), "").unwrap();
        let socket = dir.path().join("probe.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_berth-probe"))
            .arg("serve")
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--nvml-lib={}", built_library().display()))
            .arg(format!("--sysfs-root={}", dir.path().join("sys").display()))
            .env(STATE_ENV, dir.path().join("nvml.json"))
            .spawn()
            .unwrap();
        let mut node = Self {
            dir,
            child,
            client: client(socket),
        };
        node.until(1).await;
        node
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.dir.path().join("nvml.json"), change).unwrap();
    }

    /// So many GPUs are listed.
    async fn until(&mut self, gpus: usize) {
        let start = Instant::now();
        loop {
            let reply = self.client.inventory(wire::InventoryRequest {}).await;
            if let Ok(reply) = &reply
                && reply.get_ref().state() == NvmlState::Ready
                && reply.get_ref().gpus.len() == gpus
            {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{reply:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn events(&mut self) -> tonic::Streaming<wire::EventsReply> {
        self.client.events(wire::EventsRequest {}).await.unwrap().into_inner()
    }
}

fn two() -> State {
    let mut state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    state.driver.lists_once = true;
    state
}

fn bound(dir: &Path) -> PathBuf {
    dir.join("sys/bus/pci/drivers/nvidia")
}

/// What the stream tells next: a named event with its address, or a state.
async fn next(events: &mut tonic::Streaming<wire::EventsReply>) -> (String, String) {
    let told = tokio::time::timeout(PATIENCE, events.message())
        .await
        .expect("told in time");
    match told.unwrap().unwrap().body.unwrap() {
        Body::State(change) => (format!("{:?}", change.state()), change.message),
        Body::Event(event) => match event.kind {
            Some(gpu_event::Kind::Other(name)) => (name, event.pci_address.unwrap_or_default()),
            other => panic!("{other:?}"),
        },
    }
}

#[tokio::test]
async fn a_gpu_that_the_driver_takes_or_gives_up_is_told_and_the_inventory_follows() {
    let mut node = Node::start(Vec::new()).await;
    let mut events = node.events().await;
    node.edit(|s| {
        s.gpus = two().gpus;
        s.push_binding(Binding::Bind, SECOND);
    });
    assert_eq!(next(&mut events).await, ("DriverBound".into(), SECOND.into()));
    assert_eq!(
        next(&mut events).await,
        ("Ready".into(), String::new()),
        "no other state in between"
    );
    node.until(2).await;

    // NVML is let go of, or the GPU could not be unbound; it comes back without the GPU.
    node.edit(|s| {
        s.gpus.pop();
        s.push_binding(Binding::Unbind, SECOND);
    });
    assert_eq!(next(&mut events).await, ("DriverUnbound".into(), SECOND.into()));
    assert_eq!(next(&mut events).await, ("Ready".into(), String::new()));
    node.until(1).await;
    assert_eq!(
        node.client
            .sample(wire::SampleRequest {})
            .await
            .unwrap()
            .into_inner()
            .gpus
            .len(),
        1
    );
}

#[tokio::test]
async fn on_a_driver_without_system_events_what_it_serves_tells() {
    let none = Fault::of("nvmlSystemEventSetCreate", Effect::Error(code::NOT_SUPPORTED));
    let mut node = Node::start(vec![none]).await;
    node.edit(|s| s.gpus = two().gpus);
    node.until(1).await;
    std::fs::write(bound(node.dir.path()).join(SECOND), "").unwrap();
    node.until(2).await;
}

#[tokio::test]
async fn the_kernels_word_is_enough() {
    // As the kernel says it; anybody hears it, root alone may say it.
    let socket = socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(KOBJECT_UEVENT)).unwrap();
    let bind = b"bind@/devices/pci0000:00/0000:11:00.0\0ACTION=bind\0SUBSYSTEM=pci\0PCI_CLASS=30200\0PCI_ID=10DE:2330\0DRIVER=nvidia\0";
    let say = || sendto(&socket, bind, SendFlags::empty(), &SocketAddrNetlink::new(0, 1));
    if let Err(error) = say() {
        eprintln!("skipped: no uevent can be sent here ({error}); root can");
        return;
    }
    let none = Fault::of("nvmlSystemEventSetCreate", Effect::Error(code::NOT_SUPPORTED));
    let mut node = Node::start(vec![none]).await;
    let mut events = node.events().await;
    node.edit(|s| s.gpus = two().gpus);
    std::fs::write(bound(node.dir.path()).join(SECOND), "").unwrap();
    say().unwrap();
    // Nobody has asked for an inventory.
    assert_eq!(next(&mut events).await, ("Ready".into(), String::new()));
    node.until(2).await;
}
