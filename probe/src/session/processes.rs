//! Which processes compute on a GPU.

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml};

use super::gpu::Known;
use super::told::{Stop, read};
use crate::processes::OnGpu;
use crate::worker::CallClock;

impl Known {
    /// `None`: NVML does not say. In MIG mode the GPU lists the processes of all its instances, with their ids.
    pub(super) fn processes(&self, nvml: &Nvml, clock: &CallClock) -> Result<Option<Vec<OnGpu>>, Stop> {
        // SAFETY: the handle is from this library, and a handle never goes stale before the library is closed.
        let device = unsafe { Device::new(self.handle, nvml) };
        let running = read!(
            clock,
            nvmlDeviceGetComputeRunningProcesses_v3,
            device.running_compute_processes()
        );
        let on_gpu = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| OnGpu {
            gpu: self.facts.uuid.clone(),
            instance: process.gpu_instance_id.zip(process.compute_instance_id),
            pid: process.pid,
            memory_bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        };
        Ok(running.map(|list| list.into_iter().map(on_gpu).collect()))
    }
}
