//! The facts of one GPU, each read once a look.

use berth_core::facts::Gpu;
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use super::fabric::fabric;
use super::mig::read_mig;
use super::sample::memory_v1;
use super::told::{Stop, Told, ask, value};
use crate::worker::CallClock;

/// A GPU that was seen in this session. One that falls off the bus, or that NVML cannot tell about just now, stays with the facts last read.
pub(super) struct Known {
    pub(super) handle: nvmlDevice_t,
    pub(super) facts: Gpu,
    pub(super) mig_devices: Vec<(nvmlDevice_t, String)>,
}

impl Known {
    /// Absent or unclear: handle or UUID. A fact that is unclear is as it was `before`.
    pub(super) fn read(nvml: &Nvml, index: u32, before: Option<&Self>, clock: &CallClock) -> Result<Told<Self>, Stop> {
        let device = value!(ask!(clock, nvmlDeviceGetHandleByIndex_v2, nvml.device_by_index(index)));
        let uuid = value!(ask!(clock, nvmlDeviceGetUUID, device.uuid()));
        // What was known of another GPU in this place says nothing of this one.
        let before = before.filter(|known| known.facts.uuid == uuid);
        let was = before.map(|known| known.facts.clone()).unwrap_or_default();
        // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
        let handle = unsafe { device.handle() };
        let pci = ask!(clock, nvmlDeviceGetPciInfo_v3, device.pci_info());
        let capability = ask!(
            clock,
            nvmlDeviceGetCudaComputeCapability,
            device.cuda_compute_capability()
        );
        let memory_bytes = memory_v1(nvml, handle, clock)?
            .map(|m| m.total)
            .or_before(was.memory_bytes);
        let (mig, mig_devices) = read_mig(&device, memory_bytes.unwrap_or(0), nvml, clock, before)?.unzip();
        let facts = Gpu {
            index,
            uuid,
            pci_address: pci
                .map(|p| format!("{:04x}:{:02x}:{:02x}.0", p.domain, p.bus, p.device))
                .or_before(was.pci_address),
            product: ask!(clock, nvmlDeviceGetName, device.name()).or_before(was.product),
            memory_bytes,
            compute_capability: capability
                .map(|c| Some((u32::try_from(c.major).ok()?, u32::try_from(c.minor).ok()?)))
                .or_before(Some(was.compute_capability))
                .flatten(),
            mig,
            fabric: fabric(nvml, handle, clock)?.or_before(Some(was.fabric)).flatten(),
            serial: ask!(clock, nvmlDeviceGetSerial, device.serial()).or_before(was.serial),
            vbios: ask!(clock, nvmlDeviceGetVbiosVersion, device.vbios_version()).or_before(was.vbios),
            minor_number: ask!(clock, nvmlDeviceGetMinorNumber, device.minor_number()).or_before(was.minor_number),
        };
        Ok(Told::Value(Self {
            handle,
            facts,
            mig_devices: mig_devices.unwrap_or_default(),
        }))
    }
}
