//! The real process with threads that hold the driver's library longer than anybody waits for them.
#![allow(clippy::unwrap_used)]

mod process;

use std::io::Write as _;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::events_reply::Body;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::NvmlState;
use nvidia_ml::library;
use nvidia_ml::state::{Binding, CALLS_ENV, Effect, Fault, STATE_ENV, State};
use process::{built_library, client};
use tonic::transport::Channel;

/// Far beyond anything expected; only a broken probe waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
const INFOROM: &str = "nvmlDeviceValidateInforom";

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

fn gpus(count: u32) -> State {
    let mut state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
    state.driver.lists_once = true;
    state
}

impl Node {
    /// Without `state` there is no library either.
    fn start(state: Option<State>, call_timeout: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let library = match &state {
            Some(state) => {
                state.write(&at("nvml.json")).unwrap();
                built_library().to_path_buf()
            }
            None => at("libnvidia-ml.so.1"),
        };
        let socket = at("probe.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_berth-probe"))
            .arg("serve")
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--nvml-lib={}", library.display()))
            .arg(format!("--sysfs-root={}", at("sys").display()))
            .arg(format!("--call-timeout={call_timeout}"))
            .arg("--slow-call-timeout=600s")
            .env(STATE_ENV, at("nvml.json"))
            .env(CALLS_ENV, at("calls"))
            .spawn()
            .unwrap();
        Self {
            dir,
            child,
            client: client(socket),
        }
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.dir.path().join("nvml.json"), change).unwrap();
    }

    fn faults(&self, faults: impl Into<Vec<Fault>>) {
        self.edit(|s| s.faults = faults.into());
    }

    async fn until(&mut self, wanted: impl Fn(&wire::InventoryReply) -> bool) -> wire::InventoryReply {
        let start = Instant::now();
        loop {
            match self.client.inventory(wire::InventoryRequest {}).await {
                Ok(reply) if wanted(reply.get_ref()) => return reply.into_inner(),
                reply => assert!(start.elapsed() < PATIENCE, "{reply:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_state(&mut self, state: NvmlState) -> wire::InventoryReply {
        self.until(|reply| reply.state() == state).await
    }

    async fn checks(&mut self, slow: bool) -> wire::ChecksReply {
        let request = wire::ChecksRequest { slow };
        self.client.checks(request).await.unwrap().into_inner()
    }

    async fn released(&mut self) -> bool {
        let reply = self.client.release(wire::ReleaseRequest {}).await.unwrap();
        reply.into_inner().released
    }

    async fn until_called(&self, function: &str) {
        let start = Instant::now();
        let calls = self.dir.path().join("calls");
        while !std::fs::read_to_string(&calls)
            .unwrap_or_default()
            .lines()
            .any(|call| call == function)
        {
            assert!(start.elapsed() < PATIENCE, "{function} was not called");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the word that the driver was let go of, and looks whether it was.
    async fn is_let_go_of_when_that_is_told(&mut self, faults: impl Into<Vec<Fault>>) {
        let mut events = self.client.events(wire::EventsRequest {}).await.unwrap().into_inner();
        self.faults(faults);
        loop {
            let told = tokio::time::timeout(PATIENCE, events.message()).await;
            match told.expect("told in time").unwrap().unwrap().body {
                Some(Body::State(change)) if change.state() == NvmlState::Released => break,
                _ => {}
            }
        }
        // Also when the file was replaced since.
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let mut open = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        assert!(
            !open.any(|file| file.to_string_lossy().contains("nvml.json")),
            "the driver is still open"
        );
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        assert!(
            !maps.contains(&*built_library().to_string_lossy()),
            "the library is still mapped"
        );
    }
}

#[tokio::test]
async fn threads_that_were_started_for_somebody_who_gave_up_hold_the_driver_until_they_end() {
    // Opening hangs after the library is initialised, and goes on when nobody waits for it.
    let mut state = gpus(1);
    state.faults = vec![Fault::of("nvmlDeviceGetTemperature", Effect::Stall(true))];
    let mut node = Node::start(Some(state), "300ms");
    node.until_state(NvmlState::Hung).await;
    assert!(!node.released().await);
    node.is_let_go_of_when_that_is_told([
        // The first thread is in its first wait when the second one is started and both are given up.
        Fault::of("nvmlSystemEventSetWait", Effect::DelayMs(3000)),
        Fault::of("nvmlEventSetCreate", Effect::DelayMs(300)),
    ])
    .await;

    // The same of a round of checks, which begins a validation at its end.
    node.faults([]);
    node.client.resume(wire::ResumeRequest {}).await.unwrap();
    node.until_state(NvmlState::Ready).await;
    node.faults([Fault::of("nvmlDeviceGetPersistenceMode", Effect::Stall(true))]);
    assert_eq!(node.checks(true).await.state(), NvmlState::Hung);
    assert!(!node.released().await);
    node.is_let_go_of_when_that_is_told([Fault::of(INFOROM, Effect::DelayMs(2000))])
        .await;
}

#[tokio::test]
async fn a_worker_that_comes_back_beside_another_is_closed_within_the_deadline() {
    let mut node = Node::start(Some(gpus(1)), "300ms");
    node.until_state(NvmlState::Ready).await;
    node.faults([Fault::of("nvmlDeviceGetTemperature", Effect::DelayMs(5000))]);
    let sample = node.client.sample(wire::SampleRequest {}).await.unwrap();
    assert_eq!(sample.into_inner().state(), NvmlState::Hung);
    // Another opens NVML meanwhile. When the first comes back, closing what it has open hangs.
    node.faults([Fault::of("nvmlShutdown", Effect::Stall(true))]);
    node.until_state(NvmlState::Ready).await;
    node.until_called("nvmlShutdown").await;
    assert_eq!(node.until_state(NvmlState::Ready).await.stuck_calls, 1);
    node.faults([]);
    node.until(|reply| reply.state() == NvmlState::Ready && reply.stuck_calls == 0)
        .await;
}

#[tokio::test]
async fn a_gpu_that_is_bound_during_a_validation_is_listed_after_it_and_validated_with_the_others() {
    let mut node = Node::start(Some(gpus(1)), "1s");
    node.until(|reply| reply.gpus.len() == 1).await;
    node.faults([Fault::of(INFOROM, Effect::DelayMs(6000))]);
    node.checks(true).await;
    node.until_called(INFOROM).await;
    node.edit(|s| {
        s.gpus = gpus(2).gpus;
        s.push_binding(Binding::Bind, "0000:11:00.0");
    });
    let bound = node.dir.path().join("sys/bus/pci/drivers/nvidia");
    std::fs::create_dir_all(&bound).unwrap();
    std::fs::write(bound.join("0000:11:00.0"), "").unwrap();
    // Opened anew at once, with what holds the library in the way, it lists what it listed before.
    node.until(|reply| reply.gpus.len() == 2).await;
    // Nobody asks for it again: whoever asked does so once an hour.
    node.faults([]);
    let start = Instant::now();
    loop {
        let reply = node.checks(false).await;
        let found: Vec<_> = reply.gpus.iter().map(|gpu| gpu.inforom_valid).collect();
        if found == [Some(true); 2] {
            break;
        }
        let is_pending = reply.node.as_ref().unwrap().slow_pending;
        assert!(is_pending && start.elapsed() < PATIENCE, "{reply:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_validation_found_is_told_once() {
    let mut state = gpus(2);
    state.gpus[1].checks.inforom_valid = Some(false);
    state.faults = vec![Fault::of(INFOROM, Effect::DelayMs(100))];
    let mut node = Node::start(Some(state), "5s");
    node.until_state(NvmlState::Ready).await;
    let found = |reply: &wire::ChecksReply| -> Vec<_> { reply.gpus.iter().map(|g| g.inforom_valid).collect() };
    let unclear = |reply: &wire::ChecksReply| -> Vec<_> {
        let all = reply.gpus.iter();
        all.map(|g| g.unclear.iter().any(|call| call == INFOROM)).collect()
    };
    for _ in 0..2 {
        let mut reply = node.checks(true).await;
        let start = Instant::now();
        while reply.node.as_ref().unwrap().slow_pending {
            assert_eq!((found(&reply), unclear(&reply)), (vec![None; 2], vec![true; 2]));
            assert!(start.elapsed() < PATIENCE, "{reply:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            reply = node.checks(false).await;
        }
        assert_eq!(found(&reply), [Some(true), Some(false)]);
        let reply = node.checks(false).await;
        assert_eq!((found(&reply), unclear(&reply)), (vec![None; 2], vec![false; 2]));
    }
}

#[tokio::test]
async fn a_call_that_hangs_beside_a_validation_is_not_waited_for_as_long_as_that() {
    let mut node = Node::start(Some(gpus(1)), "1s");
    node.until_state(NvmlState::Ready).await;
    node.faults([Fault::of(INFOROM, Effect::Hang(true))]);
    node.checks(true).await;
    node.until_called(INFOROM).await;
    // The validation may take ten minutes.
    node.faults([Fault::of("nvmlDeviceGetTemperature", Effect::Hang(true))]);
    let sample = tokio::time::timeout(PATIENCE, node.client.sample(wire::SampleRequest {})).await;
    assert_eq!(
        sample.expect("an answer").unwrap().into_inner().state(),
        NvmlState::Hung
    );
}

#[tokio::test]
async fn a_folder_that_never_rests_keeps_no_command_waiting() {
    let mut node = Node::start(None, "5s");
    node.until_state(NvmlState::NoLibrary).await;
    // Whenever it is tried, which takes a while and ends without a driver, the library is another one already.
    let mut state = gpus(1);
    state.driver.loaded = false;
    state.faults = vec![Fault::of("nvmlInit_v2", Effect::DelayMs(300))];
    state.write(&node.dir.path().join("nvml.json")).unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let library = node.dir.path().join(library::FILE_NAME);
    std::fs::copy(built_library(), &library).unwrap();
    let busy = std::thread::spawn({
        let ends = Arc::clone(&ends);
        move || {
            while !ends.load(Ordering::SeqCst) {
                // What follows the library's own end is of no interest to the loader.
                let mut file = std::fs::OpenOptions::new().append(true).open(&library).unwrap();
                file.write_all(b"x").unwrap();
                drop(file);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    node.until_called("nvmlInit_v2").await;
    for _ in 0..5 {
        let asked = tokio::time::timeout(PATIENCE, node.client.inventory(wire::InventoryRequest {})).await;
        let reply = asked.expect("an answer").unwrap();
        assert_ne!(reply.into_inner().state(), NvmlState::Ready);
    }
    ends.store(true, Ordering::SeqCst);
    busy.join().unwrap();
}
