//! How near the GPU is to having its clocks lowered, and for how long they were.

use berth_core::facts::GpuChecks;
use nvml_wrapper_sys::bindings::{
    nvmlMarginTemperature_v1_t, nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL as THERMAL,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU as GPU_SENSOR, nvmlViolationTime_t,
};

use super::{Asked, Limits, Stop, VERSION_1, number};

pub(super) fn read(asked: &mut Asked<'_>, limits: &Limits, checks: &mut GpuChecks) -> Result<(), Stop> {
    checks.temperature_margin_c = margin(asked, limits)?;
    let zero = nvmlViolationTime_t {
        referenceTime: 0,
        violationTime: 0,
    };
    checks.thermal_violation_ns =
        number!(asked, nvmlDeviceGetViolationStatus(THERMAL), zero).map(|violation| violation.violationTime);
    Ok(())
}

/// Degrees below slowdown: as the driver has it (Hopper and up), or by the threshold, which the parts before have.
fn margin(asked: &mut Asked<'_>, limits: &Limits) -> Result<Option<i32>, Stop> {
    let margin = nvmlMarginTemperature_v1_t {
        version: VERSION_1 | u32::try_from(size_of::<nvmlMarginTemperature_v1_t>()).unwrap_or(0),
        marginTemperature: 0,
    };
    if let Some(margin) = number!(asked, nvmlDeviceGetMarginTemperature(), margin) {
        return Ok(Some(margin.marginTemperature));
    }
    let Some(slowdown) = limits.slowdown_c else {
        return Ok(None);
    };
    let temperature = number!(asked, nvmlDeviceGetTemperature(GPU_SENSOR), 0);
    Ok(temperature.and_then(|now| i32::try_from(i64::from(slowdown) - i64::from(now)).ok()))
}
