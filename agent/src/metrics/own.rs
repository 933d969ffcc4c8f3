//! The agent's own health, and what it makes of the GPUs'.

use std::time::Duration;

use berth_core::facts::NvmlState;
use berth_core::health::{GpuHealth, GpuState};

use super::Metrics;
use super::text::{Kind, Labels, Micro, Text};
use crate::picture::State;
use crate::sysfs::Cause;

const STATES: [NvmlState; 10] = [
    NvmlState::Unknown,
    NvmlState::Ready,
    NvmlState::NoLibrary,
    NvmlState::NoDriver,
    NvmlState::VersionMismatch,
    NvmlState::Hung,
    NvmlState::Released,
    NvmlState::ProbeUnavailable,
    NvmlState::Error,
    NvmlState::ReleaseBlocked,
];

const GPU_STATES: [(GpuState, &str); 4] = [
    (GpuState::Healthy, "Healthy"),
    (GpuState::Suspect, "Suspect"),
    (GpuState::Verifying, "Verifying"),
    (GpuState::Unhealthy, "Unhealthy"),
];

fn seconds(duration: Duration) -> Micro {
    Micro(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// How the agent is.
pub fn write(text: &mut Text, metrics: &Metrics, state: &State, now: Duration) {
    let mut gauge = |name: &str, help: &str, value: Option<Micro>| {
        if let Some(value) = value {
            text.metric(name, Kind::Gauge, help).only(value);
        }
    };
    // An age goes on while nothing new comes: of a node that never had a GPU there is none.
    let age = |at: Option<Duration>| at.map(|at| seconds(now.saturating_sub(at)));
    gauge(
        "berth_agent_sample_age_seconds",
        "Time since the probe answered a round of readings",
        age(state.sampled),
    );
    gauge(
        "berth_agent_checks_age_seconds",
        "Time since the probe answered a round of health checks",
        age(state.checked),
    );
    gauge(
        "berth_agent_inventory_age_seconds",
        "Time since NVML told its GPUs",
        age(state.facts.read_at()),
    );
    let interval = Duration::from_millis(metrics.sample_interval_ms.get());
    gauge(
        "berth_agent_sample_interval_seconds",
        "Time between two rounds of readings, as the controller said",
        (!interval.is_zero()).then(|| seconds(interval)),
    );
    let mut number = |kind, name: &str, help: &str, value: u64| text.metric(name, kind, help).only(value);
    number(
        Kind::Gauge,
        "berth_agent_connected",
        "Whether the controller has welcomed this agent",
        metrics.connected.get(),
    );
    number(
        Kind::Counter,
        "berth_agent_sessions_total",
        "Sessions opened with the controller",
        metrics.sessions.get(),
    );
    number(
        Kind::Counter,
        "berth_agent_samples_sent_total",
        "GPU readings sent to the controller",
        metrics.samples_sent.get(),
    );
    number(
        Kind::Counter,
        "berth_agent_sample_rounds_total",
        "Rounds of readings answered by the probe",
        metrics.rounds.get(),
    );
    number(
        Kind::Counter,
        "berth_agent_gpu_events_total",
        "GPU events taken up for the controller",
        metrics.events.get(),
    );
    number(
        Kind::Gauge,
        "berth_agent_events_waiting",
        "GPU events that the controller does not have yet",
        state.ring.waiting() as u64,
    );
    number(
        Kind::Counter,
        "berth_agent_events_lost_total",
        "GPU events that were dropped before the controller had them",
        state.ring.dropped(),
    );
    let nvml = state.facts.nvml().state;
    let probe_answers = !matches!(nvml, NvmlState::Unknown | NvmlState::ProbeUnavailable);
    number(
        Kind::Gauge,
        "berth_agent_probe_up",
        "Whether the probe beside this agent answers",
        probe_answers.into(),
    );
    number(
        Kind::Gauge,
        "berth_agent_stuck_nvml_calls",
        "NVML calls that have not come back",
        state.stuck_calls.into(),
    );
    if let Some(answers) = state.pods.kubelet_answers(now) {
        number(
            Kind::Gauge,
            "berth_agent_pod_resources_up",
            "Whether the kubelet tells who holds the GPUs; absent where it is not asked",
            answers.into(),
        );
    }
    if let Some(unresolved) = state.pods.unresolved() {
        number(
            Kind::Gauge,
            "berth_agent_unresolved_devices",
            "Devices in use, by the kubelet, that are no GPU known here",
            unresolved.len() as u64,
        );
    }
    if let Some(bytes) = resident_bytes() {
        number(
            Kind::Gauge,
            "berth_agent_resident_memory_bytes",
            "Resident memory of the agent",
            bytes,
        );
    }
    let mut scans = text.metric(
        "berth_agent_sysfs_scans_total",
        Kind::Counter,
        "Scans of sysfs by what caused them",
    );
    for cause in Cause::ALL {
        scans.value(
            &Labels::default().with("cause", cause),
            metrics.scans[cause as usize].get(),
        );
    }
    let mut of_state = text.metric("berth_agent_nvml_state", Kind::Gauge, "1 for the state that NVML is in");
    for one in STATES {
        of_state.value(&Labels::default().with("state", one), u8::from(one == nvml));
    }
    let mut info = text.metric("berth_agent_info", Kind::Gauge, "1, with the agent's version");
    info.value(&Labels::default().with("version", env!("CARGO_PKG_VERSION")), 1);
}

/// How the GPUs are, as the controller is told it.
pub fn write_health(text: &mut Text, state: &State, now: Duration) {
    let health = state.tracker.health(now);
    // A MIG slice is found by its GPU's number and its own UUID.
    let labels = |health: &GpuHealth| {
        let wanted = health.gpu.as_ref().unwrap_or(&health.uuid);
        let gpu = state.facts.gpus().iter().find(|gpu| gpu.uuid == *wanted);
        let index = gpu.map(|gpu| gpu.index.to_string()).unwrap_or_default();
        Labels::default().with("gpu", index).with("UUID", &health.uuid)
    };
    let mut states = text.metric("berth_gpu_health", Kind::Gauge, "1 for the state that the GPU is in");
    for gpu in &health.gpus {
        for (one, name) in GPU_STATES {
            states.value(&labels(gpu).with("state", name), u8::from(gpu.state == one));
        }
    }
    let mut reasons = text.metric(
        "berth_gpu_health_reason",
        Kind::Gauge,
        "1, with why the GPU is not healthy",
    );
    for gpu in health.gpus.iter().filter(|gpu| !gpu.reason.is_empty()) {
        reasons.value(&labels(gpu).with("reason", &gpu.reason), 1);
    }
    text.metric(
        "berth_gpus_missing",
        Kind::Gauge,
        "GPUs that the vendor's driver holds and NVML does not list",
    )
    .only(health.missing_gpus);
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}
