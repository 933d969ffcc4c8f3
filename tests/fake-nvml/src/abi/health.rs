//! What health checks read.

use std::os::raw::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use super::{INVALID, NOT_SUPPORTED, put, put_some, struct_version, take};
use crate::live::on_device;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTotalEccErrors", device, |v| {
        let errors = v.gpu.checks.ecc_uncorrected_volatile;
        let asked = kind == nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED
            && counter == nvmlEccCounterType_enum_NVML_VOLATILE_ECC;
        put_some(count, errors.map(|n| if asked { n } else { 0 }))
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
