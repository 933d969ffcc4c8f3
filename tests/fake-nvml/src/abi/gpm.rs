//! GPM: what was active between two samples.

use std::collections::BTreeMap;
use std::os::raw::c_uint;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, NOT_SUPPORTED, put, take};
use crate::handle::Device;
use crate::live::{View, gate_open, on_device, on_system, returned};
use crate::state::Activity;

/// What a sample was taken of: GPU and GPU instance.
type Subject = (usize, Option<c_uint>);

/// Samples by handle; `None`: allocated and never taken.
type Samples = BTreeMap<usize, Option<(Subject, Activity, Instant)>>;

static SAMPLES: Mutex<Samples> = Mutex::new(BTreeMap::new());

fn samples() -> MutexGuard<'static, Samples> {
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Far from the device handles.
const FIRST: usize = 0x0300_0000;
/// Samples closer together say nothing, by NVML's documentation.
const APART: Duration = Duration::from_millis(100);

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmQueryDeviceSupport(device: nvmlDevice_t, support: *mut nvmlGpmSupport_t) -> nvmlReturn_t {
    on_device("nvmlGpmQueryDeviceSupport", device, |v| {
        let mut answer = take(support)?;
        if answer.version != NVML_GPM_SUPPORT_VERSION {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer.isSupportedDevice = v.gpu.activity.is_some().into();
        put(support, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    on_system("nvmlGpmSampleAlloc", |_| {
        let mut all = samples();
        let handle = all.last_key_value().map_or(FIRST, |(last, _)| last + 1);
        put(sample, std::ptr::without_provenance_mut(handle))?;
        all.insert(handle, None);
        Ok(())
    })
}

/// Needs no driver: a buffer is given back.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    returned(crate::live::gate("nvmlGpmSampleFree", None).and_then(|_| {
        samples().remove(&sample.addr()).ok_or(INVALID)?;
        Ok(())
    }))
}

fn fill(sample: nvmlGpmSample_t, subject: Subject, activity: Activity) -> Answer {
    *samples().get_mut(&sample.addr()).ok_or(INVALID)? = Some((subject, activity, Instant::now()));
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmSampleGet(device: nvmlDevice_t, sample: nvmlGpmSample_t) -> nvmlReturn_t {
    on_device("nvmlGpmSampleGet", device, |v| {
        let activity = v.gpu.activity.ok_or(NOT_SUPPORTED)?;
        fill(sample, (v.device.gpu, None), activity)
    })
}

/// Of the GPU's own handle, and the id of one of its instances.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmMigSampleGet(device: nvmlDevice_t, instance: c_uint, sample: nvmlGpmSample_t) -> nvmlReturn_t {
    on_device("nvmlGpmMigSampleGet", device, |v: View<'_>| {
        v.gpu.activity.ok_or(NOT_SUPPORTED)?;
        let Device { gpu, mig: None } = v.device else {
            return Err(INVALID);
        };
        let found = v.gpu.mig_devices().iter().find(|m| m.gpu_instance == instance);
        fill(sample, (gpu, Some(instance)), found.ok_or(INVALID)?.activity)
    })
}

fn value(metric: c_uint, of_gpu: bool, a: &Activity) -> Answer<f64> {
    Ok(match metric {
        nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL => a.graphics,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL => a.sm,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_OCCUPANCY => a.occupancy,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_ANY_TENSOR_UTIL => a.tensor,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL => a.dram,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_TX_PER_SEC if of_gpu => a.pcie_tx_mib,
        nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_RX_PER_SEC if of_gpu => a.pcie_rx_mib,
        _ => return Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmMetricsGet(metrics: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    let run = || {
        gate_open("nvmlGpmMetricsGet", None)?;
        let mut request = take(metrics)?;
        if request.version != NVML_GPM_METRICS_GET_VERSION {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let all = samples();
        let taken = |sample: nvmlGpmSample_t| all.get(&sample.addr()).copied().flatten().ok_or(INVALID);
        let (of, _, from) = taken(request.sample1)?;
        let (same, activity, to) = taken(request.sample2)?;
        if of != same || to < from + APART {
            return Err(INVALID);
        }
        let wanted = request.metrics.get_mut(..request.numMetrics as usize).ok_or(INVALID)?;
        for metric in wanted {
            let answer = value(metric.metricId, of.1.is_none(), &activity);
            metric.nvmlReturn = answer.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS);
            metric.value = answer.unwrap_or(0.0);
        }
        put(metrics, request)
    };
    returned(run())
}
