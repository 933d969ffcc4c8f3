//! What a GPU is doing now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::GpuSample;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_MEMORY_TEMP, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
    NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
};
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlMemory_t};

use super::fields::{self, ALL_LINKS, Field, NO_SCOPE};
use super::gpm::Activity;
use super::gpu::Known;
use super::history::History;
use super::told::{Stop, Told, raw, read, reading, told};
use crate::worker::CallClock;

/// Read in one call, in this order.
const FIELDS: [Field; 4] = [
    (NVML_FI_DEV_MEMORY_TEMP, NO_SCOPE),
    (NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, NO_SCOPE),
    (NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS),
    (NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS),
];

impl Known {
    pub(super) fn sample(
        &self,
        nvml: &Arc<Nvml>,
        history: &mut History,
        clock: &CallClock,
    ) -> Result<Vec<GpuSample>, Stop> {
        // SAFETY: the handle is from this library, and a handle never goes stale before the library is closed.
        let device = unsafe { Device::new(self.handle, nvml) };
        let utilization = read!(clock, nvmlDeviceGetUtilizationRates, device.utilization_rates());
        let memory = Memory::read(&device, nvml, self.handle, clock)?;
        let [memory_temperature, energy_mj, sent, received] = fields::read(nvml, self.handle, FIELDS, clock)?;
        let traffic = sent.zip(received).map(|(sent, received)| sent.saturating_add(received));
        let mut samples = Vec::with_capacity(1 + self.mig_devices.len());
        let mut whole = GpuSample {
            uuid: self.facts.uuid.clone(),
            age: Duration::ZERO,
            gpu_utilization: utilization.as_ref().map(|u| u.gpu),
            memory_utilization: utilization.as_ref().map(|u| u.memory),
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
            memory_temperature_c: memory_temperature.and_then(|n| u32::try_from(n).ok()),
            energy_mj,
            nvlink_bytes_per_second: history.nvlink.rate(traffic, Instant::now()),
            // Who uses it is not NVML's to say.
            ..GpuSample::default()
        };
        memory.iter().for_each(|memory| memory.put_into(&mut whole));
        if self.mig_devices.is_empty() {
            history.gpm.of(nvml, self.handle, None, clock)?.put_into(&mut whole);
            history.gpm.keep(&[None], clock);
            samples.push(whole);
        } else {
            samples.push(whole);
            self.sample_mig(nvml, history, clock, &mut samples)?;
        }
        Ok(samples)
    }

    fn sample_mig(
        &self,
        nvml: &Arc<Nvml>,
        history: &mut History,
        clock: &CallClock,
        samples: &mut Vec<GpuSample>,
    ) -> Result<(), Stop> {
        let devices = self.facts.mig.iter().flat_map(|mig| &mig.devices);
        // Compute instances of one GPU instance share its memory, and what is known of its activity.
        let mut instances: Vec<(Option<u32>, Activity)> = Vec::with_capacity(self.mig_devices.len());
        for ((handle, uuid), facts) in self.mig_devices.iter().zip(devices) {
            // SAFETY: the handle is from this library, and one of a MIG device that has been destroyed since answers with an error.
            let device = unsafe { Device::new(*handle, nvml) };
            let id = Some(facts.gpu_instance_id);
            let activity = match instances.iter().find(|(known, _)| *known == id) {
                Some((_, activity)) => *activity,
                None => {
                    let activity = history.gpm.of(nvml, self.handle, id, clock)?;
                    instances.push((id, activity));
                    activity
                }
            };
            let mut sample = GpuSample {
                uuid: uuid.clone(),
                ..GpuSample::default()
            };
            let memory = Memory::read(&device, nvml, *handle, clock)?;
            memory.iter().for_each(|memory| memory.put_into(&mut sample));
            activity.put_into(&mut sample);
            samples.push(sample);
        }
        let ids: Vec<Option<u32>> = instances.into_iter().map(|(id, _)| id).collect();
        history.gpm.keep(&ids, clock);
        Ok(())
    }
}

/// Memory of a GPU or MIG device, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) total: u64,
    free: u64,
    used: u64,
    /// The driver's own, where it is told apart.
    reserved: Option<u64>,
}

impl Memory {
    /// By version 2 of the call, which keeps the driver's own share apart; by version 1 where the driver has no other.
    fn read(device: &Device<'_>, nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Option<Self>, Stop> {
        match read!(clock, nvmlDeviceGetMemoryInfo_v2, device.memory_info()) {
            Some(m) => Ok(Some(Self {
                total: m.total,
                free: m.free,
                used: m.used,
                reserved: Some(m.reserved),
            })),
            None => Ok(memory_v1(nvml, handle, clock)?.or_before(None)),
        }
    }

    fn put_into(&self, sample: &mut GpuSample) {
        sample.memory_total_bytes = Some(self.total);
        sample.memory_used_bytes = Some(self.used);
        sample.memory_free_bytes = Some(self.free);
        sample.memory_reserved_bytes = self.reserved;
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
        reserved: None,
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
