//! What the health checks read of a GPU.

use berth_core::facts::{GpuChecks, RemappedRows};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccCounterType_enum_NVML_VOLATILE_ECC, nvmlEccSramErrorStatus_v1_t, nvmlGridLicensableFeatures_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
};

use super::fields::{self, NO_SCOPE};
use super::told::{Stop, raw, reading};
use crate::worker::CallClock;

/// NVML_NVLINK_MAX_LINKS
const MOST_LINKS: u32 = 18;
/// Version 1 of a struct, as NVML counts.
const VERSION_1: u32 = 1 << 24;

/// All readings but the UUID.
pub(super) fn read(nvml: &Nvml, device: nvmlDevice_t, slow: bool, clock: &CallClock) -> Result<GpuChecks, Stop> {
    macro_rules! number {
        ($name:ident ( $($before:expr),* ), $zero:expr) => {{
            let mut value = $zero;
            let result = raw!(nvml, clock, $name(device $(, $before)*, &raw mut value));
            reading(stringify!($name), result)?.map(|()| value)
        }};
    }
    macro_rules! utilization {
        ($name:ident) => {{
            let (mut percent, mut period_us) = (0, 0);
            let result = raw!(nvml, clock, $name(device, &raw mut percent, &raw mut period_us));
            reading(stringify!($name), result)?.map(|()| percent)
        }};
    }
    let counters = [
        (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NO_SCOPE),
        (NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, NO_SCOPE),
    ];
    let [recovery_action, nvlink_crc_errors] = fields::read(nvml, device, counters, clock)?;
    Ok(GpuChecks {
        uuid: String::new(),
        recovery_action: recovery_action.and_then(|n| u32::try_from(n).ok()),
        ecc_uncorrected_volatile: number!(
            nvmlDeviceGetTotalEccErrors(
                nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvmlEccCounterType_enum_NVML_VOLATILE_ECC
            ),
            0
        ),
        sram_threshold_exceeded: sram(nvml, device, clock)?,
        remapped_rows: remapped_rows(nvml, device, clock)?,
        retired_pages: retired_pages(nvml, device, clock)?,
        retired_pages_pending: number!(nvmlDeviceGetRetiredPagesPendingStatus(), 0).map(|pending| pending != 0),
        nvlinks_up: nvlinks_up(nvml, device, clock)?,
        nvlink_crc_errors,
        pcie_width: number!(nvmlDeviceGetCurrPcieLinkWidth(), 0),
        pcie_max_width: number!(nvmlDeviceGetMaxPcieLinkWidth(), 0),
        pcie_replays: number!(nvmlDeviceGetPcieReplayCounter(), 0).map(u64::from),
        inforom_valid: if slow { inforom(nvml, device, clock)? } else { None },
        encoder_utilization: utilization!(nvmlDeviceGetEncoderUtilization),
        decoder_utilization: utilization!(nvmlDeviceGetDecoderUtilization),
        vgpu_licensed: vgpu_licensed(nvml, device, clock)?,
    })
}

fn sram(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<bool>, Stop> {
    // SAFETY: plain numbers: all zero is a value.
    let mut status = unsafe { std::mem::zeroed::<nvmlEccSramErrorStatus_v1_t>() };
    status.version = VERSION_1 | u32::try_from(size_of::<nvmlEccSramErrorStatus_v1_t>()).unwrap_or(0);
    let result = raw!(nvml, clock, nvmlDeviceGetSramEccErrorStatus(device, &raw mut status));
    Ok(reading("nvmlDeviceGetSramEccErrorStatus", result)?.map(|()| status.bThresholdExceeded != 0))
}

fn remapped_rows(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<RemappedRows>, Stop> {
    let (mut correctable, mut uncorrectable, mut pending, mut failure) = (0, 0, 0, 0);
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetRemappedRows(
            device,
            &raw mut correctable,
            &raw mut uncorrectable,
            &raw mut pending,
            &raw mut failure
        )
    );
    Ok(reading("nvmlDeviceGetRemappedRows", result)?.map(|()| RemappedRows {
        correctable,
        uncorrectable,
        pending: pending != 0,
        failure: failure != 0,
    }))
}

/// How many, for either cause; where they are is of no interest.
fn retired_pages(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<u32>, Stop> {
    let mut total = None;
    for cause in [
        nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
        nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    ] {
        let mut count = 0;
        let result = raw!(
            nvml,
            clock,
            nvmlDeviceGetRetiredPages(device, cause, &raw mut count, std::ptr::null_mut())
        );
        let told = match result {
            Err(NvmlError::InsufficientSize(_)) => Some(()),
            result => reading("nvmlDeviceGetRetiredPages", result)?,
        };
        if told.is_some() {
            total = Some(total.unwrap_or(0) + count);
        }
    }
    Ok(total)
}

fn nvlinks_up(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<u32>, Stop> {
    let mut up = None;
    for link in 0..MOST_LINKS {
        let mut active = 0;
        match raw!(nvml, clock, nvmlDeviceGetNvLinkState(device, link, &raw mut active)) {
            // No such link, and so none after it.
            Err(NvmlError::InvalidArg) => break,
            result => match reading("nvmlDeviceGetNvLinkState", result)? {
                Some(()) => up = Some(up.unwrap_or(0) + u32::from(active != 0)),
                // A part without NVLink has none further on either.
                None if link == 0 => break,
                None => {}
            },
        }
    }
    Ok(up)
}

fn inforom(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<bool>, Stop> {
    match raw!(nvml, clock, nvmlDeviceValidateInforom(device)) {
        Err(NvmlError::CorruptedInfoROM) => Ok(Some(false)),
        result => Ok(reading("nvmlDeviceValidateInforom", result)?.map(|()| true)),
    }
}

/// Nothing where no licence is needed, which is wherever the GPU is not a virtual one.
fn vgpu_licensed(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Option<bool>, Stop> {
    // SAFETY: plain numbers and characters: all zero is a value.
    let mut features = unsafe { std::mem::zeroed::<nvmlGridLicensableFeatures_t>() };
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetGridLicensableFeatures_v4(device, &raw mut features)
    );
    let told = reading("nvmlDeviceGetGridLicensableFeatures_v4", result)?;
    if told.is_none() || features.isGridLicenseSupported == 0 {
        return Ok(None);
    }
    let listed = features
        .gridLicensableFeatures
        .iter()
        .take(usize::try_from(features.licensableFeaturesCount).unwrap_or(0));
    Ok(Some(listed.into_iter().any(|feature| feature.featureState != 0)))
}
