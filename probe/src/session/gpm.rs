//! How active a GPU was between two samples, by NVML's GPM: Hopper and newer, and no privilege needed.
//!
//! ```text
//! supported? (asked once) ─► two buffers a GPU, or a GPU instance ─► sample ─► what was between it and the one before
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::GpuSample;
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, NVML_GPM_SUPPORT_VERSION, nvmlDevice_t,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_ANY_TENSOR_UTIL as TENSOR,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL as DRAM,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL as GRAPHICS,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_RX_PER_SEC as PCIE_RX,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_TX_PER_SEC as PCIE_TX,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_OCCUPANCY as OCCUPANCY, nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL as SM,
    nvmlGpmMetricsGet_t, nvmlGpmSample_t, nvmlGpmSupport_t, nvmlReturn_enum_NVML_SUCCESS,
};

use super::told::{Stop, Told, raw, reading, told};
use crate::worker::CallClock;

/// Samples closer together say nothing, by NVML's documentation.
const APART: Duration = Duration::from_millis(100);

/// What is asked for, in the order of [`Activity::new`]. A GPU instance has no PCIe of its own.
const METRICS: [u32; 7] = [GRAPHICS, SM, OCCUPANCY, TENSOR, DRAM, PCIE_TX, PCIE_RX];
const OF_INSTANCE: usize = 5;

/// How active something was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Activity {
    graphics_ppm: Option<u32>,
    sm_ppm: Option<u32>,
    occupancy_ppm: Option<u32>,
    tensor_ppm: Option<u32>,
    dram_ppm: Option<u32>,
    pcie_tx: Option<u64>,
    pcie_rx: Option<u64>,
}

impl Activity {
    /// Of GPM's own units: percent and MiB/s.
    fn new(values: [Option<f64>; METRICS.len()]) -> Self {
        // Neither is a reading: the driver divides by what may have been no time at all.
        let values = values.map(|value| value.filter(|v| v.is_finite() && *v >= 0.0));
        let ppm = |n: usize| values[n].map(|percent| (percent.min(100.0) * 10_000.0).round() as u32);
        let bytes = |n: usize| values[n].map(|mib| (mib * 1_048_576.0).round() as u64);
        Self {
            graphics_ppm: ppm(0),
            sm_ppm: ppm(1),
            occupancy_ppm: ppm(2),
            tensor_ppm: ppm(3),
            dram_ppm: ppm(4),
            pcie_tx: bytes(5),
            pcie_rx: bytes(6),
        }
    }

    /// Puts it where readings are.
    pub(super) fn put_into(self, sample: &mut GpuSample) {
        sample.graphics_active_ppm = self.graphics_ppm;
        sample.sm_active_ppm = self.sm_ppm;
        sample.sm_occupancy_ppm = self.occupancy_ppm;
        sample.tensor_active_ppm = self.tensor_ppm;
        sample.dram_active_ppm = self.dram_ppm;
        sample.pcie_tx_bytes_per_second = self.pcie_tx;
        sample.pcie_rx_bytes_per_second = self.pcie_rx;
    }
}

/// A GPU instance by its id, or the whole GPU.
type Subject = Option<u32>;

/// GPM of one GPU for as long as the library is open.
#[derive(Default)]
pub(super) struct Gpm {
    /// `None`: not asked yet, or no clear answer.
    supported: Option<bool>,
    pairs: BTreeMap<Subject, Pair>,
}

impl Gpm {
    /// Whether there is any GPM to read. A part that has none is asked once.
    fn is_supported(&mut self, nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<bool, Stop> {
        if let Some(known) = self.supported {
            return Ok(known);
        }
        let mut support = nvmlGpmSupport_t {
            version: NVML_GPM_SUPPORT_VERSION,
            isSupportedDevice: 0,
        };
        let result = raw!(nvml, clock, nvmlGpmQueryDeviceSupport(device, &raw mut support));
        self.supported = match told("nvmlGpmQueryDeviceSupport", result)? {
            Told::Value(()) => Some(support.isSupportedDevice != 0),
            Told::Absent => Some(false),
            Told::Unclear(_) => None,
        };
        Ok(self.supported == Some(true))
    }

    /// Since the last time this was asked of the subject, a part of the GPU behind `device`; nothing the first time.
    pub(super) fn of(
        &mut self,
        nvml: &Arc<Nvml>,
        device: nvmlDevice_t,
        subject: Subject,
        clock: &CallClock,
    ) -> Result<Activity, Stop> {
        if !self.is_supported(nvml, device, clock)? {
            return Ok(Activity::default());
        }
        let pair = match self.pairs.entry(subject) {
            Entry::Occupied(pair) => pair.into_mut(),
            Entry::Vacant(none) => match Pair::new(nvml, clock)? {
                Some(pair) => none.insert(pair),
                None => {
                    self.supported = Some(false);
                    return Ok(Activity::default());
                }
            },
        };
        pair.advance(device, subject, clock)
    }

    /// Gives back the buffers of all subjects but these.
    pub(super) fn keep(&mut self, subjects: &[Subject], clock: &CallClock) {
        if self.pairs.keys().any(|subject| !subjects.contains(subject)) {
            clock.run("nvmlGpmSampleFree", || {
                self.pairs.retain(|subject, _| subjects.contains(subject));
            });
        }
    }
}

/// Two buffers of the library: the sample that was taken last, and room for the next. They are given back when this is dropped, which
/// whoever does it has to watch as a call.
struct Pair {
    nvml: Arc<Nvml>,
    last: nvmlGpmSample_t,
    room: nvmlGpmSample_t,
    /// When `last` was taken; `None`: it was not.
    at: Option<Instant>,
    /// Between `last` and the sample before it.
    activity: Activity,
}

impl Pair {
    /// `None`: the library has no room.
    fn new(nvml: &Arc<Nvml>, clock: &CallClock) -> Result<Option<Self>, Stop> {
        let mut pair = Self {
            nvml: Arc::clone(nvml),
            last: std::ptr::null_mut(),
            room: std::ptr::null_mut(),
            at: None,
            activity: Activity::default(),
        };
        for sample in [&raw mut pair.last, &raw mut pair.room] {
            let result = raw!(nvml, clock, nvmlGpmSampleAlloc(sample));
            if reading("nvmlGpmSampleAlloc", result)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(pair))
    }

    /// Takes a sample, unless the last one is too young, and says what was between it and the one before.
    fn advance(&mut self, device: nvmlDevice_t, subject: Subject, clock: &CallClock) -> Result<Activity, Stop> {
        if self.at.is_some_and(|at| at.elapsed() < APART) {
            return Ok(self.activity);
        }
        let before = self.at.take();
        self.activity = Activity::default();
        let taken = match subject {
            None => raw!(self.nvml, clock, nvmlGpmSampleGet(device, self.room)),
            Some(id) => raw!(self.nvml, clock, nvmlGpmMigSampleGet(device, id, self.room)),
        };
        if reading("nvmlGpmSampleGet", taken)?.is_none() {
            return Ok(self.activity);
        }
        // From when the call came back: however long it took, the next sample is far enough.
        let at = Instant::now();
        if before.is_some() {
            let metrics = if subject.is_some() { OF_INSTANCE } else { METRICS.len() };
            self.activity = self.between(clock, metrics)?;
        }
        std::mem::swap(&mut self.last, &mut self.room);
        self.at = Some(at);
        Ok(self.activity)
    }

    /// From `last` to `room`.
    fn between(&self, clock: &CallClock, metrics: usize) -> Result<Activity, Stop> {
        // SAFETY: numbers and pointers that may be null: all zero is a value of each.
        let mut request = unsafe { std::mem::zeroed::<nvmlGpmMetricsGet_t>() };
        request.version = NVML_GPM_METRICS_GET_VERSION;
        request.numMetrics = u32::try_from(metrics).unwrap_or(0);
        (request.sample1, request.sample2) = (self.last, self.room);
        for (slot, id) in request.metrics.iter_mut().zip(METRICS).take(metrics) {
            slot.metricId = id;
            slot.nvmlReturn = !nvmlReturn_enum_NVML_SUCCESS;
        }
        let result = raw!(self.nvml, clock, nvmlGpmMetricsGet(&raw mut request));
        let mut values = [None; METRICS.len()];
        if reading("nvmlGpmMetricsGet", result)?.is_some() {
            for (value, slot) in values.iter_mut().zip(&request.metrics).take(metrics) {
                *value = (slot.nvmlReturn == nvmlReturn_enum_NVML_SUCCESS).then_some(slot.value);
            }
        }
        Ok(Activity::new(values))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Watched by whoever drops this: a session that is closed, or the calls above.
        let clock = CallClock::default();
        for sample in [self.last, self.room] {
            if !sample.is_null()
                && let Err(error) = raw!(self.nvml, clock, nvmlGpmSampleFree(sample))
            {
                tracing::debug!(%error, "freeing a GPM sample");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_a_reading_and_what_is_no_number_is_none() {
        let activity = Activity::new([
            Some(87.654_321),
            Some(0.0),
            Some(f64::NAN),
            None,
            Some(100.5),
            Some(1.5),
            Some(-1.0),
        ]);
        let expected = Activity {
            graphics_ppm: Some(876_543),
            sm_ppm: Some(0),
            occupancy_ppm: None,
            tensor_ppm: None,
            dram_ppm: Some(1_000_000),
            pcie_tx: Some(1_572_864),
            pcie_rx: None,
        };
        assert_eq!(activity, expected);
    }
}
