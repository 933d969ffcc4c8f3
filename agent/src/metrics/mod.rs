//! `/metrics`: the agent's own health, and the GPUs in the words of dcgm-exporter.
//!
//! ```text
//! picture ─► own (berth_agent_*, berth_gpu_*) ─┐
//!        └─► dcgm (DCGM_FI_*)  ────────────────┴─► text
//! ```
//!
//! A scrape reads memory and `/proc/self`, nothing of the hardware: it never waits for a driver, and never makes it work.

mod dcgm;
#[cfg(test)]
mod documented;
mod own;
pub mod text;

use std::sync::atomic::{AtomicU64, Ordering};

use self::text::Text;
use crate::picture::Picture;
use crate::sysfs::Cause;

/// A number that any part of the agent writes, and a scrape reads.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// One more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// So many more.
    pub fn inc_by(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// This, whatever it was.
    pub fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted, as opposed to what the picture shows.
#[derive(Debug, Default)]
pub struct Metrics {
    /// 1 while the controller has welcomed this agent.
    pub connected: Number,
    /// Sessions that were opened.
    pub sessions: Number,
    /// Readings of one GPU that were sent.
    pub samples_sent: Number,
    /// Rounds of readings that the probe answered.
    pub rounds: Number,
    /// GPU events that were taken up.
    pub events: Number,
    /// Milliseconds between two rounds of readings, as the controller said.
    pub sample_interval_ms: Number,
    scans: [Number; Cause::ALL.len()],
    node: String,
}

impl Metrics {
    /// Sysfs was scanned.
    pub fn scanned(&self, cause: Cause) {
        self.scans[cause as usize].inc();
    }

    /// All at zero, of the node that is called `node`.
    pub fn new(node: String) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    /// All metrics, as [`text::CONTENT_TYPE`].
    pub fn text(&self, picture: &Picture) -> String {
        let now = picture.now();
        picture.read(|state| {
            let mut text = Text::default();
            own::write(&mut text, self, state, now);
            own::write_health(&mut text, state, now);
            dcgm::View::new(state, now, &self.node).write(&mut text);
            text.into_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Inventory;
    use berth_core::facts::{Gpu, GpuChecks, GpuSample, NvidiaDriver};
    use berth_core::freshness;
    use std::time::Duration;

    #[test]
    fn exactly_one_state_is_one() {
        let text = Metrics::default().text(&Picture::new());
        let ones: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("berth_agent_nvml_state{") && l.ends_with(" 1"))
            .collect();
        assert_eq!(ones, ["berth_agent_nvml_state{state=\"Unknown\"} 1"]);
        assert!(text.contains("berth_agent_samples_sent_total 0\n"), "{text}");
        assert!(!text.contains("resident_memory_bytes 0\n"));
        assert!(
            !text.contains("_age_seconds"),
            "nothing was read, so nothing has an age: {text}"
        );
    }

    /// A picture of one GPU whose readings came in at `at`.
    fn picture(at: Duration, sample_age: Duration) -> Picture {
        let picture = Picture::new();
        picture.update(|state, _, _| {
            let inventory = Inventory {
                driver: Some(NvidiaDriver {
                    version: "550.163.01".into(),
                    cuda_version: None,
                    nvml_version: None,
                    excluded_gpus: None,
                }),
                gpus: vec![Gpu {
                    uuid: "GPU-1".into(),
                    product: Some("a \"quoted\" name".into()),
                    ..Gpu::default()
                }],
            };
            state.facts.on_inventory(inventory, Duration::ZERO);
            let sample = GpuSample {
                age: sample_age,
                gpu_utilization: Some(0),
                power_mw: Some(70_042),
                ..GpuSample::default()
            };
            let checks = GpuChecks {
                pcie_replays: Some(0),
                ..GpuChecks::default()
            };
            state.samples.insert("GPU-1".into(), (sample, at));
            state.checks.insert("GPU-1".into(), (checks, at));
        });
        picture
    }

    fn rows(picture: &Picture, now: Duration) -> Vec<String> {
        let mut text = Text::default();
        picture.read(|state| dcgm::View::new(state, now, "node-a").write(&mut text));
        let text = text.into_string();
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.map(|row| row.split(['{', ' ']).next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn what_is_too_old_is_not_there() {
        let s = Duration::from_secs;
        let live = [
            "DCGM_FI_DEV_POWER_USAGE",
            "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_XID_ERRORS",
            "DCGM_EXP_XID_ERRORS_COUNT",
        ];
        let at = s(100);
        let seen = picture(at, Duration::ZERO);
        assert_eq!(rows(&seen, at + freshness::SAMPLE_STALE), live);
        assert_eq!(rows(&seen, at + freshness::SAMPLE_STALE + s(1)), [live[1]]);
        assert_eq!(rows(&seen, at + freshness::CHECKS_STALE + s(1)), [""; 0]);
        // Their age in the probe counts.
        let old = picture(at, freshness::SAMPLE_STALE);
        assert_eq!(rows(&old, at), live);
        assert_eq!(rows(&old, at + s(1)), [live[1]]);
    }

    #[test]
    fn a_row_is_written_as_dcgm_exporter_writes_it() {
        let mut text = Text::default();
        let picture = picture(Duration::ZERO, Duration::ZERO);
        picture.read(|state| dcgm::View::new(state, Duration::ZERO, "node-a").write(&mut text));
        let expected = "# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).\n\
            # TYPE DCGM_FI_DEV_POWER_USAGE gauge\n\
            DCGM_FI_DEV_POWER_USAGE{gpu=\"0\",UUID=\"GPU-1\",pci_bus_id=\"\",device=\"nvidia0\",modelName=\"a \\\"quoted\\\" name\",\
            Hostname=\"node-a\",DCGM_FI_DRIVER_VERSION=\"550.163.01\"} 70.042000\n";
        let text = text.into_string();
        assert!(text.starts_with(expected), "{text}");
    }
}
