//! What health checks read.

use std::os::raw::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use super::{INVALID, NOT_SUPPORTED, put, put_some, struct_version, take};
use crate::live::{on_device, on_system};

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTotalEccErrors", device, |v| {
        let errors = match kind {
            nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => v.gpu.checks.ecc_uncorrected_volatile,
            nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => v.gpu.checks.ecc_corrected_volatile,
            _ => return Err(INVALID),
        };
        let volatile = counter == nvmlEccCounterType_enum_NVML_VOLATILE_ECC;
        put_some(count, errors.map(|n| if volatile { n } else { 0 }))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetSramEccErrorStatus(
    device: nvmlDevice_t,
    status: *mut nvmlEccSramErrorStatus_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetSramEccErrorStatus", device, |v| {
        let mut answer = take(status)?;
        if answer.version != struct_version::<nvmlEccSramErrorStatus_v1_t>(1) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer.bThresholdExceeded = v.gpu.checks.sram_threshold_exceeded.ok_or(NOT_SUPPORTED)?.into();
        put(status, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRemappedRows(
    device: nvmlDevice_t,
    correctable: *mut c_uint,
    uncorrectable: *mut c_uint,
    pending: *mut c_uint,
    failure: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetRemappedRows", device, |v| {
        if !v.gpu.mig_devices().is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let rows = v.gpu.checks.remapped_rows.ok_or(NOT_SUPPORTED)?;
        put(correctable, rows.correctable)?;
        put(uncorrectable, rows.uncorrectable)?;
        put(pending, rows.pending.into())?;
        put(failure, rows.failure.into())
    })
}

/// All pages are of the first cause.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRetiredPages(
    device: nvmlDevice_t,
    cause: nvmlPageRetirementCause_t,
    count: *mut c_uint,
    addresses: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetRetiredPages", device, |v| {
        let pages = v.gpu.checks.retired_pages.ok_or(NOT_SUPPORTED)?;
        let first = nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS;
        let pages = if cause == first { pages } else { 0 };
        let room = take(count)?;
        put(count, pages)?;
        if room < pages {
            return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
        }
        (0..pages).try_for_each(|n| put(addresses.wrapping_add(n as usize), n.into()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRetiredPagesPendingStatus(
    device: nvmlDevice_t,
    pending: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetRetiredPagesPendingStatus", device, |v| {
        put_some(pending, v.gpu.checks.retired_pages_pending.map(Into::into))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetNvLinkState", device, |v| {
        let links = v.gpu.checks.nvlinks.as_ref().ok_or(NOT_SUPPORTED)?;
        put(active, (*links.get(link as usize).ok_or(INVALID)?).into())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCurrPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCurrPcieLinkWidth", device, |v| {
        put_some(width, v.gpu.checks.pcie_width)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxPcieLinkWidth", device, |v| {
        put_some(width, v.gpu.checks.pcie_max_width)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPcieReplayCounter(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPcieReplayCounter", device, |v| {
        put_some(count, v.gpu.checks.pcie_replays)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceValidateInforom(device: nvmlDevice_t) -> nvmlReturn_t {
    on_device("nvmlDeviceValidateInforom", device, |v| {
        match v.gpu.checks.inforom_valid {
            None => Err(NOT_SUPPORTED),
            Some(true) => Ok(()),
            Some(false) => Err(nvmlReturn_enum_NVML_ERROR_CORRUPTED_INFOROM),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRowRemapperHistogram(
    device: nvmlDevice_t,
    values: *mut nvmlRowRemapperHistogramValues_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetRowRemapperHistogram", device, |v| {
        if !v.gpu.mig_devices().is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let banks = v.gpu.checks.row_remap_histogram.ok_or(NOT_SUPPORTED)?;
        put(
            values,
            nvmlRowRemapperHistogramValues_t {
                max: banks.max,
                high: banks.high,
                partial: banks.partial,
                low: banks.low,
                none: banks.none,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRepairStatus(device: nvmlDevice_t, status: *mut nvmlRepairStatus_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetRepairStatus", device, |v| {
        let mut answer = take(status)?;
        if answer.version != struct_version::<nvmlRepairStatus_v1_t>(1) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer.bChannelRepairPending = v.gpu.checks.repair_pending.ok_or(NOT_SUPPORTED)?.into();
        answer.bTpcRepairPending = 0;
        put(status, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCurrPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCurrPcieLinkGeneration", device, |v| {
        put_some(generation, v.gpu.checks.pcie_generation)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxPcieLinkGeneration", device, |v| {
        put_some(generation, v.gpu.checks.pcie_max_generation)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    clock: nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxClockInfo", device, |v| match clock {
        nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvmlClockType_enum_NVML_CLOCK_SM => {
            put_some(mhz, v.gpu.checks.sm_clock_max_mhz)
        }
        _ => Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMarginTemperature(
    device: nvmlDevice_t,
    margin: *mut nvmlMarginTemperature_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMarginTemperature", device, |v| {
        let mut answer = take(margin)?;
        if answer.version != struct_version::<nvmlMarginTemperature_v1_t>(1) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer.marginTemperature = v.gpu.checks.temperature_margin_c.ok_or(NOT_SUPPORTED)?;
        put(margin, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: nvmlDevice_t,
    threshold: nvmlTemperatureThresholds_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTemperatureThreshold", device, |v| match threshold {
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN => {
            put_some(celsius, v.gpu.checks.slowdown_c)
        }
        _ => Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetViolationStatus(
    device: nvmlDevice_t,
    policy: nvmlPerfPolicyType_t,
    time: *mut nvmlViolationTime_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetViolationStatus", device, |v| match policy {
        nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL => put(
            time,
            nvmlViolationTime_t {
                referenceTime: 0,
                violationTime: v.gpu.checks.thermal_violation_ns.ok_or(NOT_SUPPORTED)?,
            },
        ),
        _ => Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPersistenceMode(device: nvmlDevice_t, mode: *mut nvmlEnableState_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPersistenceMode", device, |v| {
        put_some(mode, v.gpu.checks.persistence_mode.map(Into::into))
    })
}

/// NVML_CC_SYSTEM_FEATURE_ENABLED, where the state says anything of it.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetConfComputeState(state: *mut nvmlConfComputeSystemState_t) -> nvmlReturn_t {
    on_system("nvmlSystemGetConfComputeState", |s| {
        put(
            state,
            nvmlConfComputeSystemState_t {
                environment: 0,
                ccFeature: s.driver.confidential_compute_ready.is_some().into(),
                devToolsMode: 0,
            },
        )
    })
}

/// As a driver outside that mode: it answers, and nobody is to believe it.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetConfComputeGpusReadyState(accepting: *mut c_uint) -> nvmlReturn_t {
    on_system("nvmlSystemGetConfComputeGpusReadyState", |s| {
        put(accepting, s.driver.confidential_compute_ready.unwrap_or(false).into())
    })
}
