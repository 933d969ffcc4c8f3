//! Readings that are differences between two samples, and what all readings cost: the real process on a fake driver that counts its calls.
#![allow(clippy::unwrap_used)]

mod process;

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::probe_client::ProbeClient;
use berth_proto::v1::{GpuSample, NvmlState};
use nvidia_ml::state::{Activity, CALLS_ENV, EVENT_MIG_CONFIG, Effect, EventKind, Fault, STATE_ENV, State, code};
use process::{built_library, connect};
use tonic::transport::Channel;

/// Far beyond anything expected; only a broken probe waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Beyond what two samples of GPM have to be apart.
const APART: Duration = Duration::from_millis(150);

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
    async fn start(state: &State) -> Self {
        let dir = tempfile::tempdir().unwrap();
        state.write(&dir.path().join("nvml.json")).unwrap();
        let socket = dir.path().join("probe.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_berth-probe"))
            .arg("serve")
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--nvml-lib={}", built_library().display()))
            .arg("--call-timeout=1s")
            .env(STATE_ENV, dir.path().join("nvml.json"))
            .env(CALLS_ENV, dir.path().join("calls"))
            .spawn()
            .unwrap();
        let client = connect(socket, PATIENCE).await;
        let mut node = Self { dir, child, client };
        let start = Instant::now();
        while node.sample().await.state() != NvmlState::Ready {
            assert!(start.elapsed() < PATIENCE, "never ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.dir.path().join("nvml.json"), change).unwrap();
    }

    async fn sample(&mut self) -> wire::SampleReply {
        self.client.sample(wire::SampleRequest {}).await.unwrap().into_inner()
    }

    async fn inventory(&mut self) -> wire::InventoryReply {
        self.client
            .inventory(wire::InventoryRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    async fn checks(&mut self) -> wire::ChecksReply {
        let request = wire::ChecksRequest { slow: false };
        self.client.checks(request).await.unwrap().into_inner()
    }

    /// Rounds of readings until one is as wanted.
    async fn sample_until(&mut self, wanted: impl Fn(&[GpuSample]) -> bool) -> Vec<GpuSample> {
        let start = Instant::now();
        loop {
            tokio::time::sleep(APART).await;
            let reply = self.sample().await;
            if wanted(&reply.gpus) {
                return reply.gpus;
            }
            assert!(start.elapsed() < PATIENCE, "{reply:#?}");
        }
    }

    /// How often each function has been called so far.
    fn calls(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.dir.path().join("calls")).unwrap();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            *calls.entry(line.to_owned()).or_default() += 1;
        }
        calls
    }

    fn called(&self, function: &str) -> usize {
        self.calls().get(function).copied().unwrap_or(0)
    }
}

const BUSY: Activity = Activity {
    graphics: 91.5,
    sm: 80.25,
    occupancy: 40.0,
    tensor: 33.125,
    dram: 62.0,
    pcie_tx_mib: 2.0,
    pcie_rx_mib: 0.5,
};

#[tokio::test]
async fn a_hopper_part_tells_how_active_it_is() {
    let mut state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    state.gpus[0].activity = Some(BUSY);
    state.gpus[0].memory_reserved_bytes = 500 << 20;
    let mut node = Node::start(&state).await;
    let gpus = node.sample_until(|gpus| gpus[0].graphics_active_ppm.is_some()).await;
    let expected = GpuSample {
        graphics_active_ppm: Some(915_000),
        sm_active_ppm: Some(802_500),
        sm_occupancy_ppm: Some(400_000),
        tensor_active_ppm: Some(331_250),
        dram_active_ppm: Some(620_000),
        pcie_tx_bytes_per_second: Some(2 << 20),
        pcie_rx_bytes_per_second: Some(1 << 19),
        memory_reserved_bytes: Some(500 << 20),
        memory_temperature_c: Some(38),
        energy_mj: Some(1_000_000),
        nvlink_bytes_per_second: Some(0),
        ..gpus[0].clone()
    };
    assert_eq!(gpus[0], expected);
    assert_eq!(gpus[1].graphics_active_ppm, Some(0), "idle is a reading");

    // Traffic is what the counters grew by: the second round after they did finds none again.
    node.edit(|s| s.gpus[1].nvlink_kib = Some((3_000_000, 1_000_000)));
    node.sample_until(|gpus| gpus[1].nvlink_bytes_per_second > Some(0))
        .await;
    node.sample_until(|gpus| gpus[1].nvlink_bytes_per_second == Some(0))
        .await;

    // One metric that the driver does not give costs none of the others; a sample that fails costs them all, for two rounds.
    node.edit(|s| s.faults = vec![Fault::of("nvmlGpmSampleGet", Effect::Error(code::UNKNOWN))]);
    node.sample_until(|gpus| gpus[0].graphics_active_ppm.is_none()).await;
    assert_eq!(node.sample().await.gpus[0].power_mw, Some(70_000));
    node.edit(|s| s.faults.clear());
    node.sample_until(|gpus| gpus[0].graphics_active_ppm == Some(915_000))
        .await;
}

#[tokio::test]
async fn two_samples_that_are_too_close_are_not_compared() {
    let state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
    let mut node = Node::start(&state).await;
    node.sample_until(|gpus| gpus[0].graphics_active_ppm.is_some()).await;
    // The fake refuses samples that are less than 100 ms apart: whatever the pace, what was read stays until there is a new one.
    for _ in 0..100 {
        assert_eq!(node.sample().await.gpus[0].graphics_active_ppm, Some(0));
    }
}

#[tokio::test]
async fn instances_of_a_gpu_are_as_active_as_they_are_and_share_what_they_share() {
    let mut state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
    state.gpus[0].enable_mig(&["3g.40gb", "1g.10gb", "1g.10gb"]).unwrap();
    let devices = &mut state.gpus[0].mig.as_mut().unwrap().devices;
    devices[0].activity = BUSY;
    // Two compute instances of one GPU instance.
    devices[2].gpu_instance = devices[1].gpu_instance;
    devices[2].compute_instance = 1;
    let mut node = Node::start(&state).await;
    let gpus = node.sample_until(|gpus| gpus[1].graphics_active_ppm.is_some()).await;
    let active: Vec<_> = gpus.iter().map(|g| g.graphics_active_ppm).collect();
    assert_eq!(active, [None, Some(915_000), Some(0), Some(0)]);
    assert_eq!(
        (gpus[1].tensor_active_ppm, gpus[1].pcie_tx_bytes_per_second),
        (Some(331_250), None)
    );
    assert_eq!(gpus[0].power_mw, Some(70_000), "what is the whole GPU's is told of it");
    assert_eq!(node.called("nvmlGpmSampleAlloc"), 4, "two for each GPU instance");
    assert_eq!(node.called("nvmlGpmSampleGet"), 0);

    // Made anew as a whole: the instances' buffers go back.
    node.edit(|s| {
        s.gpus[0].mig.as_mut().unwrap().enabled = false;
        s.gpus[0].push_event(EventKind::Type(EVENT_MIG_CONFIG));
    });
    node.inventory().await;
    node.sample_until(|gpus| gpus.len() == 1 && gpus[0].graphics_active_ppm == Some(0))
        .await;
    assert_eq!(node.called("nvmlGpmSampleFree"), 4);
    assert_eq!(node.called("nvmlGpmSampleAlloc"), 6);
}

#[tokio::test]
async fn buffers_do_not_grow_in_number_and_are_given_back_with_the_driver() {
    let state = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    let mut node = Node::start(&state).await;
    for _ in 0..5 {
        node.inventory().await;
        tokio::time::sleep(APART).await;
        node.sample().await;
    }
    assert_eq!(node.called("nvmlGpmSampleAlloc"), 4);
    let release = node.client.release(wire::ReleaseRequest {}).await.unwrap().into_inner();
    assert!(release.released, "{}", release.message);
    assert_eq!(node.called("nvmlGpmSampleFree"), 4);

    node.client.resume(wire::ResumeRequest {}).await.unwrap();
    node.sample_until(|gpus| gpus.first().is_some_and(|g| g.graphics_active_ppm.is_some()))
        .await;
}

#[tokio::test]
async fn a_sample_that_hangs_is_a_hang() {
    let state = State::of("H100-80GB-HBM3", 1, "node-a").unwrap();
    let mut node = Node::start(&state).await;
    node.edit(|s| s.faults = vec![Fault::of("nvmlGpmSampleGet", Effect::Stall(true))]);
    tokio::time::sleep(APART).await;
    let reply = node.sample().await;
    assert_eq!(reply.state(), NvmlState::Hung);
    assert!(reply.message.contains("nvmlGpmSampleGet"), "{}", reply.message);
    node.edit(|s| s.faults.clear());
    node.sample_until(|gpus| gpus.first().is_some_and(|g| g.graphics_active_ppm.is_some()))
        .await;
}

/// Calls of one round of readings, by function, on a node with eight GPUs of a part.
async fn calls_of_a_round(model: &str) -> BTreeMap<String, usize> {
    let mut node = Node::start(&State::of(model, 8, "node-a").unwrap()).await;
    for _ in 0..2 {
        tokio::time::sleep(APART).await;
        node.sample().await;
    }
    // The watcher waits for events on a thread of its own.
    let of_readings = |mut calls: BTreeMap<String, usize>| {
        calls.retain(|function, _| !function.starts_with("nvmlEventSet"));
        calls
    };
    let before = of_readings(node.calls());
    tokio::time::sleep(APART).await;
    node.sample().await;
    let mut calls = of_readings(node.calls());
    for (function, count) in before {
        *calls.get_mut(&function).unwrap() -= count;
    }
    calls.retain(|_, count| *count > 0);
    calls
}

#[tokio::test]
async fn what_a_round_costs() {
    let common = [
        ("nvmlDeviceGetClockInfo", 16),
        ("nvmlDeviceGetComputeRunningProcesses_v3", 8),
        ("nvmlDeviceGetCurrentClocksEventReasons", 8),
        ("nvmlDeviceGetFieldValues", 8),
        ("nvmlDeviceGetMemoryInfo_v2", 8),
        ("nvmlDeviceGetPowerUsage", 8),
        ("nvmlDeviceGetTemperature", 8),
        ("nvmlDeviceGetUtilizationRates", 8),
    ];
    let gpm = [("nvmlGpmMetricsGet", 8), ("nvmlGpmSampleGet", 8)];
    for (model, extra) in [("T4", &gpm[..0]), ("H100-80GB-HBM3", &gpm[..])] {
        let calls = calls_of_a_round(model).await;
        let expected = common.iter().chain(extra).map(|(f, n)| ((*f).to_owned(), *n));
        assert_eq!(calls, expected.collect(), "{model}");
    }
}

#[tokio::test]
async fn a_part_without_gpm_is_asked_once() {
    // Whether the driver says that the part has none, or that it does not know what is meant.
    let mut older = State::of("H100-80GB-HBM3", 2, "node-a").unwrap();
    older.faults = vec![Fault::of(
        "nvmlGpmQueryDeviceSupport",
        Effect::Error(code::NOT_SUPPORTED),
    )];
    for state in [State::of("T4", 2, "node-a").unwrap(), older] {
        let mut node = Node::start(&state).await;
        for _ in 0..3 {
            tokio::time::sleep(APART).await;
            node.sample().await;
            node.inventory().await;
        }
        assert_eq!(node.called("nvmlGpmQueryDeviceSupport"), 2);
        assert_eq!(node.called("nvmlGpmSampleAlloc"), 0);
    }
}

#[tokio::test]
async fn what_moves_slowly_is_read_with_the_checks() {
    let mut state = State::of("L40S", 2, "node-a").unwrap();
    state.gpus[0].decoder_utilization = Some(7);
    state.gpus[1].encoder_utilization = None;
    state.gpus[1].vgpu_licensed = Some(false);
    let mut node = Node::start(&state).await;
    let told: Vec<_> = node
        .checks()
        .await
        .gpus
        .iter()
        .map(|g| (g.encoder_utilization, g.decoder_utilization, g.vgpu_licensed))
        .collect();
    assert_eq!(told, [(Some(0), Some(7), None), (None, Some(0), Some(false))]);
}
