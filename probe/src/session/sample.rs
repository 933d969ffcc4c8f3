//! What a GPU is doing now.

use std::time::Duration;

use berth_core::facts::GpuSample;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlMemory_t};

use super::gpu::Known;
use super::told::{Stop, Told, raw, read, reading, told};
use crate::worker::CallClock;

impl Known {
    pub(super) fn sample(&self, nvml: &Nvml, clock: &CallClock) -> Result<Vec<GpuSample>, Stop> {
        // SAFETY: the handle is from this library, and a handle never goes stale before the library is closed.
        let device = unsafe { Device::new(self.handle, nvml) };
        let utilization = read!(clock, nvmlDeviceGetUtilizationRates, device.utilization_rates());
        let memory = Memory::read(&device, nvml, self.handle, clock)?;
        let mut samples = Vec::with_capacity(1 + self.mig_devices.len());
        samples.push(GpuSample {
            uuid: self.facts.uuid.clone(),
            age: Duration::ZERO,
            gpu_utilization: utilization.as_ref().map(|u| u.gpu),
            memory_utilization: utilization.as_ref().map(|u| u.memory),
            memory_used_bytes: memory.map(|m| m.used),
            memory_free_bytes: memory.map(|m| m.free),
            memory_total_bytes: memory.map(|m| m.total),
            power_mw: read!(clock, nvmlDeviceGetPowerUsage, device.power_usage()),
            temperature_c: read!(
                clock,
                nvmlDeviceGetTemperature,
                device.temperature(TemperatureSensor::Gpu)
            ),
            sm_clock_mhz: read!(clock, nvmlDeviceGetClockInfo, device.clock_info(Clock::SM)),
            memory_clock_mhz: read!(clock, nvmlDeviceGetClockInfo, device.clock_info(Clock::Memory)),
            clocks_event_reasons: clocks_event_reasons(nvml, self.handle, clock)?,
            compute_processes: read!(
                clock,
                nvmlDeviceGetComputeRunningProcesses_v3,
                device.running_compute_processes_count()
            ),
            // Who uses it is not NVML's to say.
            ..GpuSample::default()
        });
        for (handle, uuid) in &self.mig_devices {
            // SAFETY: as above; a MIG device that has been destroyed since answers with an error.
            let device = unsafe { Device::new(*handle, nvml) };
            let memory = Memory::read(&device, nvml, *handle, clock)?;
            samples.push(GpuSample {
                uuid: uuid.clone(),
                memory_used_bytes: memory.map(|m| m.used),
                memory_free_bytes: memory.map(|m| m.free),
                memory_total_bytes: memory.map(|m| m.total),
                ..GpuSample::default()
            });
        }
        Ok(samples)
    }
}

/// Memory of a GPU or MIG device, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) total: u64,
    free: u64,
    used: u64,
}

impl Memory {
    /// By version 2 of the call, which keeps the driver's own share apart; by version 1 where the driver has no other.
    fn read(device: &Device<'_>, nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<Self>, Stop> {
        match read!(clock, nvmlDeviceGetMemoryInfo_v2, device.memory_info()) {
            Some(m) => Ok(Some(Self {
                total: m.total,
                free: m.free,
                used: m.used,
            })),
            None => Ok(memory_v1(nvml, handle, clock)?.or_before(None)),
        }
    }
}

pub(super) fn memory_v1(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Told<Memory>, Stop> {
    let mut memory = nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetMemoryInfo(handle, &raw mut memory));
    Ok(told("nvmlDeviceGetMemoryInfo", result)?.map(|()| Memory {
        total: memory.total,
        free: memory.free,
        used: memory.used,
    }))
}

/// `nvmlDeviceGetCurrentClocksEventReasons`, by its older name where the driver has no other.
fn clocks_event_reasons(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<u64>, Stop> {
    let mut reasons = 0;
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetCurrentClocksEventReasons(handle, &raw mut reasons)
    );
    if let Some(()) = reading("nvmlDeviceGetCurrentClocksEventReasons", result)? {
        return Ok(Some(reasons));
    }
    let result = raw!(
        nvml,
        clock,
        nvmlDeviceGetCurrentClocksThrottleReasons(handle, &raw mut reasons)
    );
    Ok(reading("nvmlDeviceGetCurrentClocksThrottleReasons", result)?.map(|()| reasons))
}
