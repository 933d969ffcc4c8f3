//! ECC, remapped rows, retired pages, repairs.

use berth_core::facts::{GpuChecks, RemappedRows, RowRemapHistogram};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlEccCounterType_enum_NVML_VOLATILE_ECC as VOLATILE, nvmlEccSramErrorStatus_v1_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED as CORRECTED,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED as UNCORRECTED,
    nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR as DOUBLE_BIT,
    nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS as SINGLE_BITS,
    nvmlRepairStatus_v1_t, nvmlRowRemapperHistogramValues_t,
};

use super::{Asked, Stop, VERSION_1, number, raw};

pub(super) fn read(asked: &mut Asked<'_>, checks: &mut GpuChecks) -> Result<(), Stop> {
    checks.ecc_uncorrected_volatile = number!(asked, nvmlDeviceGetTotalEccErrors(UNCORRECTED, VOLATILE), 0);
    checks.ecc_corrected_volatile = number!(asked, nvmlDeviceGetTotalEccErrors(CORRECTED, VOLATILE), 0);
    checks.sram_threshold_exceeded = sram(asked)?;
    checks.remapped_rows = remapped_rows(asked)?;
    checks.row_remap_histogram = histogram(asked)?;
    checks.retired_pages = retired_pages(asked)?;
    checks.retired_pages_pending =
        number!(asked, nvmlDeviceGetRetiredPagesPendingStatus(), 0).map(|pending| pending != 0);
    checks.repair_pending = repair_pending(asked)?;
    Ok(())
}

fn sram(asked: &mut Asked<'_>) -> Result<Option<bool>, Stop> {
    // SAFETY: plain numbers: all zero is a value.
    let mut status = unsafe { std::mem::zeroed::<nvmlEccSramErrorStatus_v1_t>() };
    status.version = VERSION_1 | u32::try_from(size_of::<nvmlEccSramErrorStatus_v1_t>()).unwrap_or(0);
    let status = number!(asked, nvmlDeviceGetSramEccErrorStatus(), status);
    Ok(status.map(|status| status.bThresholdExceeded != 0))
}

fn remapped_rows(asked: &mut Asked<'_>) -> Result<Option<RemappedRows>, Stop> {
    let (mut correctable, mut uncorrectable, mut pending, mut failure) = (0, 0, 0, 0);
    let result = raw!(
        asked.nvml,
        asked.clock,
        nvmlDeviceGetRemappedRows(
            asked.device,
            &raw mut correctable,
            &raw mut uncorrectable,
            &raw mut pending,
            &raw mut failure
        )
    );
    let told = asked.value("nvmlDeviceGetRemappedRows", result)?;
    Ok(told.map(|()| RemappedRows {
        correctable,
        uncorrectable,
        pending: pending != 0,
        failure: failure != 0,
    }))
}

fn histogram(asked: &mut Asked<'_>) -> Result<Option<RowRemapHistogram>, Stop> {
    let zero = nvmlRowRemapperHistogramValues_t {
        max: 0,
        high: 0,
        partial: 0,
        low: 0,
        none: 0,
    };
    let banks = number!(asked, nvmlDeviceGetRowRemapperHistogram(), zero);
    Ok(banks.map(|banks| RowRemapHistogram {
        max: banks.max,
        high: banks.high,
        partial: banks.partial,
        low: banks.low,
        none: banks.none,
    }))
}

/// How many, for either cause; where they are is of no interest.
fn retired_pages(asked: &mut Asked<'_>) -> Result<Option<u32>, Stop> {
    let mut total = None;
    for cause in [SINGLE_BITS, DOUBLE_BIT] {
        let mut count = 0;
        let result = raw!(
            asked.nvml,
            asked.clock,
            nvmlDeviceGetRetiredPages(asked.device, cause, &raw mut count, std::ptr::null_mut())
        );
        let told = match result {
            Err(NvmlError::InsufficientSize(_)) => Some(()),
            result => asked.value("nvmlDeviceGetRetiredPages", result)?,
        };
        match told {
            Some(()) => total = Some(total.unwrap_or(0) + count),
            // A part without: the other cause has the same answer. One of two is not all.
            None => return Ok(None),
        }
    }
    Ok(total)
}

fn repair_pending(asked: &mut Asked<'_>) -> Result<Option<bool>, Stop> {
    // SAFETY: plain numbers: all zero is a value.
    let mut status = unsafe { std::mem::zeroed::<nvmlRepairStatus_v1_t>() };
    status.version = VERSION_1 | u32::try_from(size_of::<nvmlRepairStatus_v1_t>()).unwrap_or(0);
    let status = number!(asked, nvmlDeviceGetRepairStatus(), status);
    Ok(status.map(|status| status.bChannelRepairPending != 0 || status.bTpcRepairPending != 0))
}
