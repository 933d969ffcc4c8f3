//! GPUs in the words of NVIDIA's dcgm-exporter, so that dashboards and rules written for it work.
//!
//! ```text
//! inventory ─► subjects, with their labels ─┐
//! samples, checks ─► readings ──────────────┴─► rows, in the order of its default counters; then XIDs
//! ```
//!
//! What is too old to count as live is left out, and so is what this part or driver does not tell: absent, never 0.

mod rows;
mod subject;

use std::time::Duration;

use berth_core::facts::{Gpu, GpuChecks, GpuSample};
use berth_core::freshness;
use berth_core::health::{Part, judge};

use self::rows::{ROWS, Row, Value};
use self::subject::{Reading, Subject, by_instance, of_gpu, of_instance, users};
use super::text::{Kind, Labels, Metric, Text};
use crate::picture::State;
use crate::xids::WINDOW;

/// The picture at one moment.
pub struct View<'s> {
    state: &'s State,
    now: Duration,
    node: &'s str,
}

impl<'s> View<'s> {
    /// The picture at `now`, of the node that is called `node`.
    pub fn new(state: &'s State, now: Duration, node: &'s str) -> Self {
        Self { state, now, node }
    }

    fn sample(&self, uuid: &str) -> Option<&'s GpuSample> {
        let (sample, at) = self.state.samples.get(uuid)?;
        (sample.age + self.now.saturating_sub(*at) <= freshness::SAMPLE_STALE).then_some(sample)
    }

    fn checks(&self, uuid: &str) -> Option<&'s GpuChecks> {
        let (checks, at) = self.state.checks.get(uuid)?;
        (self.now.saturating_sub(*at) <= freshness::CHECKS_STALE).then_some(checks)
    }

    /// With the labels that all series of this node share.
    fn on_node(&self, labels: Labels) -> Labels {
        let labels = match self.node {
            "" => labels,
            node => labels.with("Hostname", node),
        };
        match self.state.facts.driver() {
            Some(driver) => labels.with("DCGM_FI_DRIVER_VERSION", &driver.version),
            None => labels,
        }
    }

    fn whole(&self, gpu: &Gpu) -> Subject<'s> {
        let sample = self.sample(&gpu.uuid);
        Subject {
            labels: self.on_node(of_gpu(gpu)),
            reading: Reading {
                sample,
                checks: self.checks(&gpu.uuid),
            },
            // What is split is used in parts.
            users: users(sample.filter(|_| by_instance(gpu).is_empty())),
        }
    }

    fn instances(&self, gpu: &'s Gpu) -> impl Iterator<Item = Subject<'s>> {
        by_instance(gpu).into_iter().map(|(id, devices)| {
            let samples: Vec<_> = devices.iter().filter_map(|d| self.sample(&d.uuid)).collect();
            let profile = devices.first().map_or("", |d| &d.profile);
            Subject {
                labels: self.on_node(of_instance(gpu, id, profile)),
                reading: Reading {
                    sample: samples.first().copied(),
                    checks: None,
                },
                users: users(samples),
            }
        })
    }

    /// All rows of all GPUs. A row is that of a GPU's instances where they have it, and else the GPU's: a sum counts nothing twice.
    pub fn write(&self, text: &mut Text) {
        let gpus = self.state.facts.gpus();
        let whole: Vec<_> = gpus.iter().map(|gpu| (gpu, self.whole(gpu))).collect();
        let instances: Vec<Vec<_>> = gpus.iter().map(|gpu| self.instances(gpu).collect()).collect();
        for row in &ROWS {
            let mut metric = text.metric(row.name, row.kind, row.help);
            for ((_, whole), instances) in whole.iter().zip(&instances) {
                if !write_row(&mut metric, row, instances) {
                    write_row(&mut metric, row, [whole]);
                }
            }
        }
        self.write_xids(text, &whole);
    }

    /// XIDs are events: what was seen stays seen, however old the readings are. That there was none is said only where one would be heard.
    fn write_xids(&self, text: &mut Text, gpus: &[(&Gpu, Subject<'_>)]) {
        let xids = &self.state.xids;
        let help = "Value of the last XID error encountered.";
        let mut last = text.metric("DCGM_FI_DEV_XID_ERRORS", Kind::Gauge, help);
        for (gpu, subject) in gpus {
            let (xid, meaning) = match xids.last(gpu) {
                Some(xid) => (xid, judge(xid, "", Part::default()).advice),
                None if subject.reading.sample.is_some() => (0, "No Error".into()),
                None => continue,
            };
            for labels in subject.series(|labels| labels.with("err_code", xid).with("err_msg", &meaning)) {
                last.value(&labels, xid);
            }
        }
        let window = |labels: Labels| labels.with("window_size_in_ms", WINDOW.as_millis());
        let help = "XID errors observed during the configured time window.";
        let mut recent = text.metric("DCGM_EXP_XID_ERRORS_COUNT", Kind::Gauge, help);
        for (gpu, subject) in gpus {
            let seen = xids.recent(gpu, self.now);
            if seen.is_empty() && subject.reading.sample.is_some() {
                for labels in subject.series(window) {
                    recent.value(&labels, 0);
                }
            }
            for (xid, count) in seen {
                for labels in subject.series(|labels| window(labels).with("xid", xid)) {
                    recent.value(&labels, count);
                }
            }
        }
        let help = "Total XID errors observed since exporter start.";
        let mut total = text.metric("DCGM_EXP_XID_ERRORS_TOTAL", Kind::Counter, help);
        for (gpu, subject) in gpus {
            for (xid, count) in xids.total(gpu) {
                for labels in subject.series(|labels| labels.with("xid", xid)) {
                    total.value(&labels, count);
                }
            }
        }
    }
}

/// One row of these. Whether any has it.
fn write_row<'s>(metric: &mut Metric<'_>, row: &Row, subjects: impl IntoIterator<Item = &'s Subject<'s>>) -> bool {
    let mut written = false;
    for subject in subjects {
        let Some(value) = subject.reading.value(&row.source) else {
            continue;
        };
        written = true;
        for labels in subject.series(|labels| labels) {
            match value {
                Value::Whole(n) => metric.value(&labels, n),
                Value::Fraction(n) => metric.value(&labels, n),
            };
        }
    }
    written
}
