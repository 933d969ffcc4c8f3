//! The MIG devices of one GPU.

use berth_core::facts::{Mig, MigDevice};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use super::gpu::Known;
use super::profile;
use super::told::{Stop, Told, ask, raw, told, value};
use crate::worker::CallClock;

type MigHandles = Vec<(nvmlDevice_t, String)>;

/// `None`: the part has no MIG. Where one MIG device is unclear, all are as they were `before`.
pub(super) fn read_mig(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
    before: Option<&Known>,
) -> Result<Option<(Mig, MigHandles)>, Stop> {
    let before = before.and_then(|known| Some((known.facts.mig.clone()?, known.mig_devices.clone())));
    let mode = match ask!(clock, nvmlDeviceGetMigMode, device.mig_mode()) {
        Told::Value(mode) => mode,
        Told::Absent => return Ok(None),
        Told::Unclear(_) => return Ok(before),
    };
    let mut mig = Mig {
        enabled: mode.current == 1,
        pending: mode.pending == 1,
        devices: Vec::new(),
    };
    let mut handles = Vec::new();
    if mig.enabled {
        let mut unclear = false;
        let most = match ask!(clock, nvmlDeviceGetMaxMigDeviceCount, device.mig_device_count()) {
            Told::Value(most) => most,
            Told::Absent => 0,
            Told::Unclear(_) => {
                unclear = true;
                0
            }
        };
        for index in 0..most {
            let mig_device = match ask!(
                clock,
                nvmlDeviceGetMigDeviceHandleByIndex,
                device.mig_device_by_index(index)
            ) {
                Told::Value(mig_device) => mig_device,
                // Indices may have gaps: NOT_FOUND is no end.
                Told::Absent => continue,
                Told::Unclear(_) => {
                    unclear = true;
                    continue;
                }
            };
            match read_mig_device(&mig_device, total_bytes, nvml, clock)? {
                Told::Value((handle, facts)) => {
                    handles.push((handle, facts.uuid.clone()));
                    mig.devices.push(facts);
                }
                Told::Absent => {}
                Told::Unclear(_) => unclear = true,
            }
        }
        if unclear && let Some((before, before_handles)) = before.filter(|(before, _)| before.enabled) {
            mig.devices = before.devices;
            handles = before_handles;
        }
    }
    Ok(Some((mig, handles)))
}

fn read_mig_device(
    device: &Device<'_>,
    total_bytes: u64,
    nvml: &Nvml,
    clock: &CallClock,
) -> Result<Told<(nvmlDevice_t, MigDevice)>, Stop> {
    // SAFETY: the handle is kept beside the library that gave it, and used with that library alone.
    let handle = unsafe { device.handle() };
    let (mut gpu_instance_id, mut compute_instance_id) = (0, 0);
    let uuid = value!(ask!(clock, nvmlDeviceGetUUID, device.uuid()));
    let a = value!(ask!(clock, nvmlDeviceGetAttributes_v2, device.attributes()));
    let gpu_instance = raw!(
        nvml,
        clock,
        nvmlDeviceGetGpuInstanceId(handle, &raw mut gpu_instance_id)
    );
    let compute_instance = raw!(
        nvml,
        clock,
        nvmlDeviceGetComputeInstanceId(handle, &raw mut compute_instance_id)
    );
    value!(told("nvmlDeviceGetGpuInstanceId", gpu_instance)?);
    value!(told("nvmlDeviceGetComputeInstanceId", compute_instance)?);
    // The name tells some profiles from others: a guess without it would be another profile.
    let name = match ask!(clock, nvmlDeviceGetName, device.name()) {
        Told::Value(name) => name,
        Told::Absent => String::new(),
        Told::Unclear(why) => return Ok(Told::Unclear(why)),
    };
    let shape = profile::Shape {
        gpu_slices: a.gpu_instance_slice_count,
        compute_slices: a.compute_instance_slice_count,
        memory_mib: a.memory_size_mb,
        total_bytes,
    };
    let facts = MigDevice {
        uuid,
        gpu_instance_id,
        compute_instance_id,
        profile: profile::profile(&name, shape),
        memory_bytes: a.memory_size_mb << 20,
        multiprocessors: a.multiprocessor_count,
        gpu_instance_slices: a.gpu_instance_slice_count,
        compute_instance_slices: a.compute_instance_slice_count,
        copy_engines: a.shared_copy_engine_count,
        decoders: a.shared_decoder_count,
        encoders: a.shared_encoder_count,
        jpeg_engines: a.shared_jpeg_count,
        ofa_engines: a.shared_ofa_count,
    };
    Ok(Told::Value((handle, facts)))
}
