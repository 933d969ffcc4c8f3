//! The real process on a fake driver: everything a node can do to NVML, seen through the socket.
#![allow(clippy::unwrap_used)]

mod process;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::events_reply::Body;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::{self, NvmlState};
use nvidia_ml::library;
use nvidia_ml::state::{EVENT_DOUBLE_BIT_ECC, EVENT_MIG_CONFIG, Effect, EventKind, Fault, STATE_ENV, State, code};
use process::{built_library, connect};
use tonic::transport::Channel;

const CALL_TIMEOUT: Duration = Duration::from_millis(300);
/// Far beyond anything expected; only a broken probe waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: its file system root, its driver's state, and the probe.
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

fn library_path(dir: &Path) -> PathBuf {
    dir.join("root/usr/lib/x86_64-linux-gnu").join(library::FILE_NAME)
}

/// Puts the library in place as an installer does: whole, by rename.
fn install(dir: &Path) {
    let path = library_path(dir);
    let partial = path.with_extension("partial");
    std::fs::copy(built_library(), &partial).unwrap();
    std::fs::rename(partial, path).unwrap();
}

impl Node {
    async fn start(state: Option<State>, with_library: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(library_path(dir.path()).parent().unwrap()).unwrap();
        if let Some(state) = state {
            state.write(&dir.path().join("nvml.json")).unwrap();
        }
        if with_library {
            install(dir.path());
        }
        let socket = dir.path().join("probe.sock");
        // A socket that an earlier process left must not be in the way.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let child = Self::spawn(dir.path());
        let client = connect(socket, PATIENCE).await;
        Self { dir, child, client }
    }

    fn spawn(dir: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_berth-probe"))
            .arg("serve")
            .arg(format!("--socket={}", dir.join("probe.sock").display()))
            .arg(format!("--driver-root={}", dir.join("root").display()))
            .arg(format!("--call-timeout={}ms", CALL_TIMEOUT.as_millis()))
            .env(STATE_ENV, dir.join("nvml.json"))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    async fn ready(model: &str, count: u32) -> (Self, State) {
        let state = State::of(model, count, "node-a").unwrap();
        let mut node = Self::start(Some(state.clone()), true).await;
        node.until(NvmlState::Ready).await;
        (node, state)
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.dir.path().join("nvml.json"), change).unwrap();
    }

    async fn inventory(&mut self) -> wire::InventoryReply {
        self.client
            .inventory(wire::InventoryRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    async fn sample(&mut self) -> wire::SampleReply {
        self.client.sample(wire::SampleRequest {}).await.unwrap().into_inner()
    }

    async fn until(&mut self, state: NvmlState) -> wire::InventoryReply {
        let start = Instant::now();
        loop {
            let reply = self.inventory().await;
            if reply.state() == state {
                return reply;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "still {:?}: {}",
                reply.state(),
                reply.message
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn release(&mut self) -> wire::ReleaseReply {
        self.client.release(wire::ReleaseRequest {}).await.unwrap().into_inner()
    }

    async fn resume(&mut self) -> NvmlState {
        let reply = self.client.resume(wire::ResumeRequest {}).await.unwrap();
        reply.into_inner().state()
    }

    fn maps_the_library(&self) -> bool {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        maps.contains(library::FILE_NAME)
    }

    /// How often the process has the driver open: the fake's descriptors on its state file stand for those on `/dev/nvidiactl`.
    fn descriptors(&self) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let targets = all.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|target| {
                let target = target.to_string_lossy();
                target.contains("nvml.json") || target.contains("inotify")
            })
            .count()
    }

    /// Kills the probe and starts another in its place.
    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.dir.path());
        self.client = connect(self.dir.path().join("probe.sock"), PATIENCE).await;
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id()))
            .unwrap()
            .count()
    }

    async fn events(&mut self) -> tonic::Streaming<wire::EventsReply> {
        self.client.events(wire::EventsRequest {}).await.unwrap().into_inner()
    }
}

async fn next(events: &mut tonic::Streaming<wire::EventsReply>) -> Body {
    tokio::time::timeout(PATIENCE, events.message())
        .await
        .expect("an event in time")
        .unwrap()
        .expect("the stream goes on")
        .body
        .unwrap()
}

async fn next_event(events: &mut tonic::Streaming<wire::EventsReply>) -> v1::GpuEvent {
    loop {
        if let Body::Event(event) = next(events).await {
            return event;
        }
    }
}

#[tokio::test]
async fn without_a_library_there_is_nothing_and_that_is_a_state() {
    let mut node = Node::start(None, false).await;
    let reply = node.inventory().await;
    assert_eq!(reply.state(), NvmlState::NoLibrary);
    assert!(reply.message.contains("libnvidia-ml.so.1"), "{}", reply.message);
    assert_eq!((reply.driver, reply.gpus.len(), reply.stuck_calls), (None, 0, 0));
    assert_eq!(node.sample().await.state(), NvmlState::NoLibrary);
}

#[tokio::test]
async fn library_then_driver_appear_and_are_told() {
    let mut node = Node::start(None, false).await;
    node.until(NvmlState::NoLibrary).await;
    let mut events = node.events().await;

    let mut state = State::of("H100-80GB-HBM3", 8, "node-a").unwrap();
    state.driver.loaded = false;
    state.write(&node.dir.path().join("nvml.json")).unwrap();
    install(node.dir.path());
    match next(&mut events).await {
        Body::State(change) => assert_eq!(change.state(), NvmlState::NoDriver, "{}", change.message),
        other => panic!("{other:?}"),
    }
    node.edit(|s| {
        s.driver.loaded = true;
        s.driver.version_mismatch = true;
    });
    match next(&mut events).await {
        Body::State(change) => assert_eq!(change.state(), NvmlState::VersionMismatch, "{}", change.message),
        other => panic!("{other:?}"),
    }
    node.edit(|s| s.driver.version_mismatch = false);
    match next(&mut events).await {
        Body::State(change) => assert_eq!(change.state(), NvmlState::Ready, "{}", change.message),
        other => panic!("{other:?}"),
    }
    assert_eq!(node.inventory().await.gpus.len(), 8);

    node.edit(|s| s.driver.loaded = false);
    assert_eq!(node.sample().await.state(), NvmlState::NoDriver);
    node.edit(|s| s.driver.loaded = true);
    node.until(NvmlState::Ready).await;
}

#[tokio::test]
async fn every_fact_of_a_gpu_is_read() {
    let (mut node, state) = Node::ready("H100-80GB-HBM3", 2).await;
    let reply = node.inventory().await;
    let driver = reply.driver.unwrap();
    assert_eq!(driver.version, "550.163.01");
    assert_eq!(driver.cuda_version, Some(12040));
    assert_eq!(driver.nvml_version.as_deref(), Some("12.550.163.01"));
    assert!(reply.library.unwrap().ends_with(library::FILE_NAME));
    let expected = v1::Gpu {
        index: 1,
        uuid: state.gpus[1].uuid.clone(),
        pci_address: Some("0000:11:00.0".into()),
        product: Some("NVIDIA H100 80GB HBM3".into()),
        memory_bytes: Some(81920 << 20),
        compute_major: Some(9),
        compute_minor: Some(0),
        mig: Some(v1::Mig::default()),
        fabric: Some(v1::Fabric {
            state: 3,
            status: 0,
            cluster_uuid: "00000000-0000-0000-0000-000000000001".into(),
            clique_id: 0,
        }),
        serial: state.gpus[1].serial.clone(),
        vbios: state.gpus[1].vbios.clone(),
        minor_number: Some(1),
    };
    assert_eq!(reply.gpus[1], expected);
}

#[tokio::test]
async fn a_part_without_mig_and_fabric_has_none_and_absent_readings_stay_absent() {
    let (mut node, _) = Node::ready("T4", 1).await;
    let reply = node.inventory().await;
    assert_eq!((&reply.gpus[0].mig, &reply.gpus[0].fabric), (&None, &None));

    node.edit(|s| {
        let gpu = &mut s.gpus[0];
        gpu.memory_used_bytes = 5 << 30;
        gpu.power_mw = None;
        gpu.clocks_event_reasons = Some(0x8);
        gpu.utilization = Some(nvidia_ml::state::Utilization { gpu: 0, memory: 0 });
    });
    let sample = node.sample().await;
    let gpu = &sample.gpus[0];
    assert_eq!(gpu.power_mw, None);
    assert_eq!(gpu.gpu_utilization, Some(0));
    assert_eq!(gpu.memory_used_bytes, Some(5 << 30));
    assert_eq!(gpu.memory_free_bytes, Some((16384 << 20) - (5 << 30)));
    assert_eq!(
        (gpu.temperature_c, gpu.sm_clock_mhz, gpu.memory_clock_mhz),
        (Some(31), Some(345), Some(1593))
    );
    assert_eq!((gpu.clocks_event_reasons, gpu.compute_processes), (Some(0x8), Some(0)));

    // A driver that knows neither version 2 of memory info nor the newer name of the clocks' reasons.
    node.edit(|s| {
        s.faults = vec![
            Fault::of("nvmlDeviceGetMemoryInfo_v2", Effect::Error(code::NOT_SUPPORTED)),
            Fault::of(
                "nvmlDeviceGetCurrentClocksEventReasons",
                Effect::Error(code::NOT_SUPPORTED),
            ),
        ];
    });
    let sample = node.sample().await;
    assert_eq!(sample.gpus[0].memory_used_bytes, Some(5 << 30));
    assert_eq!(sample.gpus[0].clocks_event_reasons, Some(0x8));
}

#[tokio::test]
async fn a_reading_ages_while_the_other_gpus_are_read() {
    let (mut node, _) = Node::ready("T4", 2).await;
    let delay = Duration::from_millis(100);
    let slow = Fault {
        gpu: Some(1),
        ..Fault::of("nvmlDeviceGetPowerUsage", Effect::DelayMs(100))
    };
    node.edit(|s| s.faults = vec![slow]);
    let start = Instant::now();
    let sample = node.sample().await;
    let ages: Vec<_> = sample.gpus.iter().map(|g| Duration::from_millis(g.age_ms)).collect();
    assert!(ages[0] >= delay && ages[0] >= ages[1], "{ages:?}");
    assert!(ages[0] <= start.elapsed(), "{ages:?}");
}

#[tokio::test]
async fn mig_devices_are_read_and_a_change_is_told() {
    let (mut node, _) = Node::ready("A100-SXM4-40GB", 1).await;
    let mut events = node.events().await;
    node.edit(|s| {
        s.gpus[0].enable_mig(&["3g.20gb", "1g.5gb+me"]).unwrap();
        s.gpus[0].mig.as_mut().unwrap().devices[0].memory_used_bytes = 1 << 30;
        s.gpus[0].push_event(EventKind::Type(EVENT_MIG_CONFIG));
    });
    assert!(matches!(next(&mut events).await, Body::State(change) if change.state() == NvmlState::Ready));
    let mig = node.inventory().await.gpus[0].mig.clone().unwrap();
    assert!(mig.enabled && mig.pending);
    let profiles: Vec<_> = mig
        .devices
        .iter()
        .map(|d| (d.profile.as_str(), d.multiprocessors, d.gpu_instance_id))
        .collect();
    assert_eq!(profiles, [("3g.20gb", 42, 7), ("1g.5gb+me", 14, 8)]);
    let sample = node.sample().await;
    assert_eq!(sample.gpus.len(), 3);
    assert_eq!(sample.gpus[0].gpu_utilization, None);
    assert_eq!(sample.gpus[1].uuid, mig.devices[0].uuid);
    assert_eq!(sample.gpus[1].memory_used_bytes, Some(1 << 30));
}

#[tokio::test]
async fn a_lost_gpu_is_named_and_the_others_go_on() {
    let (mut node, state) = Node::ready("H100-80GB-HBM3", 4).await;
    node.edit(|s| s.faults = vec![Fault::of_gpu(2, Effect::Error(code::GPU_IS_LOST))]);
    let sample = node.sample().await;
    assert_eq!(sample.state(), NvmlState::Ready);
    assert_eq!(sample.gpus.len(), 3);
    let lost: Vec<_> = sample.lost.iter().map(|l| l.uuid.as_str()).collect();
    assert_eq!(lost, [state.gpus[2].uuid.as_str()]);
    // It is still a GPU of this node, with what was known of it.
    let gpus = node.inventory().await.gpus;
    assert_eq!(
        gpus.iter().map(|g| g.uuid.as_str()).collect::<Vec<_>>(),
        state.gpus.iter().map(|g| g.uuid.as_str()).collect::<Vec<_>>()
    );
    node.edit(|s| s.faults.clear());
    assert_eq!(node.sample().await.gpus.len(), 4);
}

#[tokio::test]
async fn a_call_without_an_answer_takes_no_gpu_and_no_fact_away() {
    let (mut node, _) = Node::ready("A100-SXM4-40GB", 3).await;
    node.edit(|s| s.gpus[1].enable_mig(&["3g.20gb", "1g.5gb"]).unwrap());
    let before = node.inventory().await;
    let unknown = |function: &str| Fault {
        gpu: Some(1),
        ..Fault::of(function, Effect::Error(code::UNKNOWN))
    };
    for function in [
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetSerial",
        "nvmlDeviceGetVbiosVersion",
        "nvmlDeviceGetMinorNumber",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetAttributes_v2",
        "nvmlDeviceGetGpuInstanceId",
    ] {
        node.edit(|s| s.faults = vec![unknown(function)]);
        assert_eq!(node.inventory().await, before, "{function}");
    }
    for function in ["nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetNVMLVersion"] {
        node.edit(|s| s.faults = vec![Fault::of(function, Effect::Error(code::UNKNOWN))]);
        assert_eq!(node.inventory().await, before, "{function}");
    }

    // An answer is one: the fact is not there.
    node.edit(|s| {
        s.faults = vec![Fault {
            effect: Effect::Error(code::NOT_SUPPORTED),
            ..unknown("nvmlDeviceGetSerial")
        }];
    });
    let after = node.inventory().await;
    assert_eq!(after.gpus[1].serial, None);
    assert_eq!((&after.gpus[0], &after.gpus[2]), (&before.gpus[0], &before.gpus[2]));

    // No GPU at all is not "no GPUs", and it ends when NVML answers again.
    for function in ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"] {
        node.edit(|s| s.faults = vec![Fault::of(function, Effect::Error(code::UNKNOWN))]);
        let reply = node.inventory().await;
        assert_eq!(reply.state(), NvmlState::Error);
        assert!(reply.message.contains(function), "{}", reply.message);
        node.edit(|s| s.faults.clear());
        assert_eq!(node.until(NvmlState::Ready).await.gpus, before.gpus);
    }
}

#[tokio::test]
async fn events_arrive_and_those_that_nobody_heard_wait() {
    let (mut node, state) = Node::ready("H100-80GB-HBM3", 2).await;
    node.edit(|s| s.gpus[1].push_xid(79));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut events = node.events().await;
    let event = next_event(&mut events).await;
    assert_eq!(event.kind, Some(v1::gpu_event::Kind::Xid(79)));
    assert_eq!(event.uuid.as_ref(), Some(&state.gpus[1].uuid));
    assert_eq!(event.pci_address.as_deref(), Some("0000:11:00.0"));
    assert_eq!(event.source, "nvml");
    assert!(event.age_ms > 0);
    node.edit(|s| s.gpus[0].push_event(EventKind::Type(EVENT_DOUBLE_BIT_ECC)));
    let event = next_event(&mut events).await;
    assert_eq!(event.kind, Some(v1::gpu_event::Kind::Other("EccDoubleBit".into())));
    assert_eq!(event.uuid.as_ref(), Some(&state.gpus[0].uuid));
}

#[tokio::test]
async fn a_gpu_that_fails_the_wait_for_events_does_not_silence_the_others() {
    let (mut node, state) = Node::ready("H100-80GB-HBM3", 2).await;
    let mut events = node.events().await;
    node.edit(|s| s.faults = vec![Fault::of_gpu(0, Effect::Error(code::GPU_IS_LOST))]);
    // An event of the time without a set is lost with it: tell until one gets through.
    let uuid = state.gpus[1].uuid.clone();
    let start = Instant::now();
    loop {
        node.edit(|s| s.gpus[1].push_xid(48));
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(500), next_event(&mut events)).await {
            assert_eq!(event.uuid, Some(uuid));
            break;
        }
        assert!(start.elapsed() < PATIENCE, "no event");
    }
}

#[tokio::test]
async fn a_hang_is_noticed_bounded_and_survived() {
    let (mut node, _) = Node::ready("H100-80GB-HBM3", 8).await;
    let mut events = node.events().await;
    let before = node.threads();

    let stall = Fault {
        gpu: Some(3),
        ..Fault::of("nvmlDeviceGetUtilizationRates", Effect::Stall(true))
    };
    node.edit(|s| s.faults = vec![stall]);
    let start = Instant::now();
    let sample = node.sample().await;
    assert!(start.elapsed() >= CALL_TIMEOUT);
    assert_eq!(sample.state(), NvmlState::Hung);
    assert!(
        sample.message.contains("nvmlDeviceGetUtilizationRates"),
        "{}",
        sample.message
    );
    assert_eq!(sample.stuck_calls, 1);
    assert!(matches!(next(&mut events).await, Body::State(change) if change.state() == NvmlState::Hung));

    // One more thread tries, finds the same, and after that none does; the probe answers all the while.
    let mut most = 0;
    for _ in 0..60 {
        let reply = node.inventory().await;
        assert_eq!(reply.state(), NvmlState::Hung);
        most = most.max(reply.stuck_calls);
        tokio::time::sleep(CALL_TIMEOUT / 6).await;
    }
    assert_eq!(most, 2);
    assert!(
        node.threads() <= before + 2,
        "{} threads, {before} before",
        node.threads()
    );

    // The driver lets go: the threads come back, and so does NVML.
    node.edit(|s| s.faults.clear());
    // NVML is there with the first of them; the other may be a moment later.
    let start = Instant::now();
    while node.until(NvmlState::Ready).await.stuck_calls > 0 {
        assert!(start.elapsed() < PATIENCE, "a call is still stuck");
    }
    assert_eq!(node.sample().await.gpus.len(), 8);
    // A thread that has come back ends by itself, a moment after it said so.
    let start = Instant::now();
    while node.threads() > before {
        assert!(
            start.elapsed() < PATIENCE,
            "{} threads, {before} before",
            node.threads()
        );
        tokio::time::sleep(CALL_TIMEOUT / 6).await;
    }
}

/// Every hang costs a thread, and every end of one gives all back; a second that comes before the first is over finds them in use.
#[tokio::test]
async fn hangs_that_come_and_go_leave_nothing_behind() {
    let (mut node, _) = Node::ready("H100-80GB-HBM3", 2).await;
    let (before, open) = (node.threads(), node.descriptors());
    for call in ["nvmlDeviceGetTemperature", "nvmlInit_v2", "nvmlDeviceGetMemoryInfo_v2"] {
        for gives_up in [false, true, false] {
            node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetTemperature", Effect::Stall(true))]);
            assert_eq!(node.sample().await.state(), NvmlState::Hung);
            node.edit(|s| s.faults.push(Fault::of(call, Effect::Stall(true))));
            let start = Instant::now();
            while gives_up && node.inventory().await.stuck_calls < 2 {
                assert!(start.elapsed() < PATIENCE, "one more thread tries {call}");
                tokio::time::sleep(CALL_TIMEOUT / 6).await;
            }
            let threads = node.threads();
            assert!(threads <= before + 2, "{threads} threads, {before} before");
            node.edit(|s| s.faults.clear());
            node.until(NvmlState::Ready).await;
        }
    }
    let start = Instant::now();
    while node.threads() > before || node.descriptors() > open {
        let (threads, open) = (node.threads(), node.descriptors());
        assert!(
            start.elapsed() < PATIENCE,
            "{threads} threads ({before} before), {open} times open"
        );
        tokio::time::sleep(CALL_TIMEOUT / 6).await;
    }
    assert_eq!(node.inventory().await.stuck_calls, 0);
}

#[tokio::test]
async fn a_hang_that_never_ends_does_not_keep_the_process() {
    let (mut node, _) = Node::ready("T4", 1).await;
    node.edit(|s| s.faults = vec![Fault::of("*", Effect::Hang(true))]);
    assert_eq!(node.sample().await.state(), NvmlState::Hung);
    let pid = node.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let start = Instant::now();
    loop {
        if let Some(status) = node.child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            break;
        }
        assert!(start.elapsed() < PATIENCE, "still running");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn release_lets_go_of_the_library_and_resume_takes_it_again() {
    let (mut node, _) = Node::ready("L40S", 2).await;
    assert!(node.maps_the_library() && node.descriptors() > 0);
    let release = node.release().await;
    assert!(release.released, "{}", release.message);
    assert!(!node.maps_the_library(), "the library is still mapped");
    assert_eq!(node.descriptors(), 0, "the driver is still open");
    assert_eq!(node.sample().await.state(), NvmlState::Released);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(node.inventory().await.state(), NvmlState::Released);
    assert!(node.release().await.released, "asked again");

    // A probe that starts anew does not know better, and touches nothing.
    node.restart().await;
    assert_eq!(node.inventory().await.state(), NvmlState::Released);
    assert!(!node.maps_the_library());

    assert_eq!(node.resume().await, NvmlState::Ready);
    assert_eq!(node.sample().await.gpus.len(), 2);
    assert!(node.maps_the_library() && node.descriptors() > 0);
    assert_eq!(node.resume().await, NvmlState::Ready, "asked again");
    node.restart().await;
    node.until(NvmlState::Ready).await;
}

#[tokio::test]
async fn a_stuck_call_blocks_the_release_until_it_comes_back() {
    let (mut node, _) = Node::ready("L40S", 2).await;
    let mut events = node.events().await;
    node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetTemperature", Effect::Stall(true))]);
    assert_eq!(node.sample().await.state(), NvmlState::Hung);
    let release = node.release().await;
    assert!(
        !release.released && release.message.contains("nvmlDeviceGetTemperature"),
        "{}",
        release.message
    );
    assert!(node.maps_the_library() && node.descriptors() > 0);
    for _ in 0..3 {
        let reply = node.inventory().await;
        assert_eq!((reply.state(), reply.stuck_calls), (NvmlState::ReleaseBlocked, 1));
        assert!(!node.release().await.released);
    }

    // The call comes back, and nobody has to ask again.
    node.edit(|s| s.faults.clear());
    loop {
        match next(&mut events).await {
            Body::State(change) if change.state() == NvmlState::Released => break,
            _ => {}
        }
    }
    assert_eq!((node.maps_the_library(), node.descriptors()), (false, 0));
    assert_eq!(node.inventory().await.stuck_calls, 0);
    assert_eq!(node.resume().await, NvmlState::Ready);

    // One that never comes back: taken back while blocked, NVML is hung as it was, with no thread more.
    node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetTemperature", Effect::Hang(true))]);
    assert_eq!(node.sample().await.state(), NvmlState::Hung);
    assert!(!node.release().await.released);
    for _ in 0..4 {
        assert_eq!(node.resume().await, NvmlState::Hung);
        assert!(!node.release().await.released);
    }
    assert_eq!(node.inventory().await.stuck_calls, 2);
}
