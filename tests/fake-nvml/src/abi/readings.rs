//! What a GPU is doing.

use std::os::raw::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, NOT_SUPPORTED, put, put_some, struct_version, take};
use crate::live::{View, on_device};
use crate::state::{Gpu, Process};

/// (total, reserved, used, free)
fn memory(v: &View<'_>) -> (u64, u64, u64, u64) {
    match v.mig {
        Some(mig) => {
            let total = mig.memory_mib << 20;
            (
                total,
                0,
                mig.memory_used_bytes,
                total.saturating_sub(mig.memory_used_bytes),
            )
        }
        None => (
            v.gpu.memory_total_bytes,
            v.gpu.memory_reserved_bytes,
            v.gpu.memory_used_bytes,
            v.gpu.memory_free_bytes(),
        ),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, info: *mut nvmlMemory_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMemoryInfo", device, |v| {
        let (total, reserved, used, free) = memory(&v);
        put(
            info,
            nvmlMemory_t {
                total,
                free,
                used: used + reserved,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, info: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMemoryInfo_v2", device, |v| {
        let version = take(info.cast::<c_uint>())?;
        if version != struct_version::<nvmlMemory_v2_t>(2) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let (total, reserved, used, free) = memory(&v);
        put(
            info,
            nvmlMemory_v2_t {
                version,
                total,
                reserved,
                free,
                used,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, rates: *mut nvmlUtilization_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetUtilizationRates", device, |v| {
        if v.mig.is_some() {
            return Err(NOT_SUPPORTED);
        }
        put_some(
            rates,
            v.gpu.utilization.map(|u| nvmlUtilization_t {
                gpu: u.gpu,
                memory: u.memory,
            }),
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, milliwatts: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPowerUsage", device, |v| {
        put_some(milliwatts, v.gpu.power_mw)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: nvmlDevice_t,
    millijoules: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTotalEnergyConsumption", device, |v| {
        put_some(millijoules, v.gpu.energy_mj)
    })
}

/// A utilisation that a GPU in MIG mode, or a part of it, does not tell.
fn coder(
    function: &str,
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
    of: impl FnOnce(&Gpu) -> Option<u32>,
) -> nvmlReturn_t {
    on_device(function, device, |v| {
        if v.mig.is_some() || v.gpu.mig.as_ref().is_some_and(|m| m.enabled) {
            return Err(NOT_SUPPORTED);
        }
        put_some(percent, of(v.gpu))?;
        put(period_us, 167_000)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> nvmlReturn_t {
    coder("nvmlDeviceGetEncoderUtilization", device, percent, period_us, |g| {
        g.encoder_utilization
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: nvmlDevice_t,
    percent: *mut c_uint,
    period_us: *mut c_uint,
) -> nvmlReturn_t {
    coder("nvmlDeviceGetDecoderUtilization", device, percent, period_us, |g| {
        g.decoder_utilization
    })
}

/// One feature, that of a virtual GPU, where there is any.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGridLicensableFeatures_v4(
    device: nvmlDevice_t,
    features: *mut nvmlGridLicensableFeatures_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGridLicensableFeatures_v4", device, |v| {
        let mut answer = take(features)?;
        answer.isGridLicenseSupported = 0;
        answer.licensableFeaturesCount = 0;
        if let Some(licensed) = v.gpu.vgpu_licensed {
            answer.isGridLicenseSupported = 1;
            answer.licensableFeaturesCount = 1;
            answer.gridLicensableFeatures[0].featureCode =
                nvmlGridLicenseFeatureCode_t_NVML_GRID_LICENSE_FEATURE_CODE_VGPU;
            answer.gridLicensableFeatures[0].featureState = licensed.into();
        }
        put(features, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTemperature", device, |v| {
        put_some(celsius, v.gpu.temperature_c)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTemperatureV(
    device: nvmlDevice_t,
    temperature: *mut nvmlTemperature_v1_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetTemperatureV", device, |v| {
        let mut answer = take(temperature)?;
        if answer.version != struct_version::<nvmlTemperature_v1_t>(1) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer.temperature = v.gpu.temperature_c.ok_or(NOT_SUPPORTED)? as i32;
        put(temperature, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    clock: nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetClockInfo", device, |v| {
        let clocks = v.gpu.clocks;
        match clock {
            nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvmlClockType_enum_NVML_CLOCK_SM => {
                put_some(mhz, clocks.map(|c| c.sm))
            }
            nvmlClockType_enum_NVML_CLOCK_MEM => put_some(mhz, clocks.map(|c| c.memory)),
            nvmlClockType_enum_NVML_CLOCK_VIDEO => Err(NOT_SUPPORTED),
            _ => Err(INVALID),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCurrentClocksEventReasons", device, |v| {
        put_some(reasons, v.gpu.clocks_event_reasons)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCurrentClocksThrottleReasons", device, |v| {
        put_some(reasons, v.gpu.clocks_event_reasons)
    })
}

/// NVML's way to return a list: the caller says how much room there is, and is told how much it takes.
fn put_list<T>(processes: &[Process], count: *mut c_uint, infos: *mut T, convert: impl Fn(&Process) -> T) -> Answer {
    let room = take(count)?;
    put(count, processes.len() as c_uint)?;
    if (room as usize) < processes.len() {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    for (n, process) in processes.iter().enumerate() {
        put(infos.wrapping_add(n), convert(process))?;
    }
    Ok(())
}

/// NVML's value of an instance id that does not apply.
const NO_INSTANCE: c_uint = 0xffff_ffff;

fn process_v2(p: &Process) -> nvmlProcessInfo_v2_t {
    nvmlProcessInfo_v2_t {
        pid: p.pid,
        usedGpuMemory: p.memory_bytes,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_v1_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetComputeRunningProcesses", device, |v| {
        put_list(&v.gpu.processes, count, infos, |p| nvmlProcessInfo_v1_t {
            pid: p.pid,
            usedGpuMemory: p.memory_bytes,
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_v2_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetComputeRunningProcesses_v2", device, |v| {
        put_list(&v.gpu.processes, count, infos, process_v2)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_v2_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetComputeRunningProcesses_v3", device, |v| {
        put_list(&v.gpu.processes, count, infos, process_v2)
    })
}
