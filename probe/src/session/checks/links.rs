//! NVLink and its fabric; with their counters comes what the driver recommends, in the same call.

use berth_core::facts::{FabricHealth, GpuChecks};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION as RECOVERY_ACTION,
    NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS as FAILED_RECOVERIES,
    NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL as CRC_ERRORS,
    NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL as RECOVERIES,
};
use nvml_wrapper_sys::bindings::{nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t};

use super::{Asked, Stop, raw};
use crate::session::fields::{self, NO_SCOPE};

/// NVML_NVLINK_MAX_LINKS
const MOST_LINKS: u32 = 18;

pub(super) fn read(asked: &mut Asked<'_>, on_fabric: bool, checks: &mut GpuChecks) -> Result<(), Stop> {
    let links = links(asked)?;
    checks.nvlinks_up = links.map(|links| links.up);
    let mut wanted = vec![(RECOVERY_ACTION, NO_SCOPE)];
    if let Some(links) = links {
        wanted.extend([(CRC_ERRORS, NO_SCOPE), (RECOVERIES, NO_SCOPE)]);
        wanted.extend((0..links.all).map(|link| (FAILED_RECOVERIES, link)));
    }
    let told = fields::ask(asked.nvml, asked.device, &wanted, asked.clock);
    let mut values = asked.value("nvmlDeviceGetFieldValues", told)?.into_iter().flatten();
    let mut next = || values.next().flatten();
    checks.recovery_action = next().and_then(|n| u32::try_from(n).ok());
    checks.nvlink_crc_errors = next();
    checks.nvlink_recoveries = next();
    checks.nvlink_failed_recoveries = sum(values);
    if on_fabric {
        checks.fabric = fabric(asked)?;
    }
    Ok(())
}

/// `None`: no link, or one without a count, as a link that is down may be: when it comes back, its old count would look like growth.
fn sum(mut counts: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let first = counts.next()??;
    counts.try_fold(first, |sum, count| Some(sum.saturating_add(count?)))
}

#[derive(Clone, Copy)]
struct Links {
    all: u32,
    up: u32,
}

/// `None`: the part has no NVLink, or at least one link gave no answer: a count without it would look like a link that is down.
fn links(asked: &mut Asked<'_>) -> Result<Option<Links>, Stop> {
    let mut found = None;
    for link in 0..MOST_LINKS {
        let mut active = 0;
        let result = raw!(
            asked.nvml,
            asked.clock,
            nvmlDeviceGetNvLinkState(asked.device, link, &raw mut active)
        );
        match result {
            // No such link, and so none after it.
            Err(NvmlError::InvalidArg) => break,
            result => match asked.value("nvmlDeviceGetNvLinkState", result)? {
                Some(()) => {
                    let links = found.get_or_insert(Links { all: 0, up: 0 });
                    links.all = link + 1;
                    links.up += u32::from(active != 0);
                }
                None if asked.unclear.contains(&"nvmlDeviceGetNvLinkState") => return Ok(None),
                // A part without NVLink has none further on either.
                None if link == 0 => break,
                None => {}
            },
        }
    }
    Ok(found)
}

/// By version 3 of the struct, or version 2 where the driver does not know that.
fn fabric(asked: &mut Asked<'_>) -> Result<Option<FabricHealth>, Stop> {
    const CALL: &str = "nvmlDeviceGetGpuFabricInfoV";
    // SAFETY: plain numbers: all zero is a value.
    let mut info = unsafe { std::mem::zeroed::<nvmlGpuFabricInfo_v3_t>() };
    info.version = (3 << 24) | u32::try_from(size_of::<nvmlGpuFabricInfo_v3_t>()).unwrap_or(0);
    let result = raw!(
        asked.nvml,
        asked.clock,
        nvmlDeviceGetGpuFabricInfoV(asked.device, &raw mut info)
    );
    if let Some(()) = asked.value(CALL, result)? {
        return Ok(Some(FabricHealth {
            state: info.state.into(),
            status: info.status,
            health_mask: Some(info.healthMask),
            health_summary: Some(info.healthSummary.into()),
        }));
    }
    // SAFETY: as above.
    let mut info = unsafe { std::mem::zeroed::<nvmlGpuFabricInfo_v2_t>() };
    info.version = (2 << 24) | u32::try_from(size_of::<nvmlGpuFabricInfo_v2_t>()).unwrap_or(0);
    let result = raw!(
        asked.nvml,
        asked.clock,
        nvmlDeviceGetGpuFabricInfoV(asked.device, (&raw mut info).cast())
    );
    Ok(asked.value(CALL, result)?.map(|()| FabricHealth {
        state: info.state.into(),
        status: info.status,
        health_mask: Some(info.healthMask),
        health_summary: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_one_of_all_links() {
        for (counts, expected) in [
            (&[Some(2), Some(3)][..], Some(5)),
            (&[Some(0)], Some(0)),
            (&[Some(2), None], None),
            (&[None, Some(3)], None),
            (&[None, None], None),
            (&[Some(u64::MAX), Some(1)], Some(u64::MAX)),
            (&[], None),
        ] {
            assert_eq!(sum(counts.iter().copied()), expected, "{counts:?}");
        }
    }
}
