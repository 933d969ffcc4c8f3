//! The agent's own health in numbers.

use std::sync::atomic::AtomicU64;

use berth_core::facts::NvmlState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::picture::Picture;
use crate::sysfs::Cause;

/// Label of the state metric: bounded by the states there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: String,
}

/// Label of the scans' metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCause {
    cause: &'static str,
}

/// All metrics. A scrape reads memory and `/proc/self`, nothing of the hardware.
pub struct Metrics {
    /// 1 while the controller has welcomed this agent.
    pub connected: Gauge,
    /// Sessions that were opened.
    pub sessions: Counter,
    /// Readings of one GPU that were sent.
    pub samples_sent: Counter,
    /// Rounds of readings that the probe answered.
    pub rounds: Counter,
    scans: Family<OfCause, Counter>,
    nvml_state: Family<OfState, Gauge>,
    stuck_calls: Gauge,
    resident: Gauge<u64, AtomicU64>,
    registry: Registry,
}

const STATES: [NvmlState; 9] = [
    NvmlState::Unknown,
    NvmlState::Ready,
    NvmlState::NoLibrary,
    NvmlState::NoDriver,
    NvmlState::VersionMismatch,
    NvmlState::Hung,
    NvmlState::Released,
    NvmlState::ProbeUnavailable,
    NvmlState::Error,
];

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("berth_agent");
        let connected = Gauge::default();
        registry.register(
            "connected",
            "Whether the controller has welcomed this agent",
            connected.clone(),
        );
        let sessions = Counter::default();
        registry.register("sessions", "Sessions opened with the controller", sessions.clone());
        let samples_sent = Counter::default();
        registry.register(
            "samples_sent",
            "GPU readings sent to the controller",
            samples_sent.clone(),
        );
        let rounds = Counter::default();
        registry.register(
            "sample_rounds",
            "Rounds of readings answered by the probe",
            rounds.clone(),
        );
        let scans = Family::default();
        registry.register("sysfs_scans", "Scans of sysfs by what caused them", scans.clone());
        let nvml_state = Family::default();
        registry.register("nvml_state", "1 for the state that NVML is in", nvml_state.clone());
        let stuck_calls = Gauge::default();
        registry.register(
            "stuck_nvml_calls",
            "NVML calls that have not come back",
            stuck_calls.clone(),
        );
        let resident = Gauge::default();
        registry.register(
            "resident_memory_bytes",
            "Resident memory of the agent",
            resident.clone(),
        );
        Self {
            connected,
            sessions,
            samples_sent,
            rounds,
            scans,
            nvml_state,
            stuck_calls,
            resident,
            registry,
        }
    }

    /// Sysfs was scanned.
    pub fn scanned(&self, cause: Cause) {
        let cause = match cause {
            Cause::Start => "start",
            Cause::Uevent => "uevent",
            Cause::Folder => "folder",
            Cause::Timer => "timer",
        };
        self.scans.get_or_create(&OfCause { cause }).inc();
    }

    /// OpenMetrics text.
    pub fn text(&self, picture: &Picture) -> String {
        let (now, stuck) = picture.read(|state| (state.facts.nvml().state, state.stuck_calls));
        for state in STATES {
            let of = OfState {
                state: state.to_string(),
            };
            self.nvml_state.get_or_create(&of).set((state == now).into());
        }
        self.stuck_calls.set(stuck.into());
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_state_is_one() {
        let text = Metrics::new().text(&Picture::new());
        let ones: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("berth_agent_nvml_state{") && l.ends_with(" 1"))
            .collect();
        assert_eq!(ones, ["berth_agent_nvml_state{state=\"Unknown\"} 1"]);
        assert!(text.contains("berth_agent_samples_sent_total 0\n"), "{text}");
        assert!(!text.contains("resident_memory_bytes 0\n"));
    }
}
