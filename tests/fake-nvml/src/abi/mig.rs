//! MIG mode, MIG devices, and the instances behind them.

use std::os::raw::{c_char, c_uint};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, NOT_FOUND, NOT_SUPPORTED, chars, put, struct_version, take};
use crate::handle::{Device, instance_from_ptr, instance_to_ptr};
use crate::live::{gate_open, on_device, returned};
use crate::state::{Gpu, MigDevice};

/// MIG devices that one GPU can have.
const MAX_DEVICES: u32 = 7;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMigMode", device, |v| {
        let mig = v.gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        put(current, c_uint::from(mig.enabled))?;
        put(pending, c_uint::from(mig.pending.unwrap_or(mig.enabled)))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMaxMigDeviceCount", device, |v| {
        put(count, if v.gpu.mig.is_some() { MAX_DEVICES } else { 0 })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    mig_device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMigDeviceHandleByIndex", device, |v| {
        v.gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        let mig = index as usize;
        v.gpu.mig_devices().get(mig).ok_or(NOT_FOUND)?;
        put(
            mig_device,
            Device {
                mig: Some(mig),
                ..v.device
            }
            .to_ptr(),
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_mig: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceIsMigDeviceHandle", device, |v| {
        put(is_mig, c_uint::from(v.mig.is_some()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    mig_device: nvmlDevice_t,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig_device, |v| {
        v.mig.ok_or(INVALID)?;
        put(device, Device::gpu(v.device.gpu).to_ptr())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceId", device, |v| {
        put(id, v.mig.ok_or(INVALID)?.gpu_instance)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetComputeInstanceId", device, |v| {
        put(id, v.mig.ok_or(INVALID)?.compute_instance)
    })
}

fn attributes(function: &str, device: nvmlDevice_t, to: *mut nvmlDeviceAttributes_t) -> nvmlReturn_t {
    on_device(function, device, |v| {
        let m = v.mig.ok_or(NOT_SUPPORTED)?;
        put(
            to,
            nvmlDeviceAttributes_t {
                multiprocessorCount: m.multiprocessors,
                sharedCopyEngineCount: m.copy_engines,
                sharedDecoderCount: m.decoders,
                sharedEncoderCount: m.encoders,
                sharedJpegCount: m.jpeg_engines,
                sharedOfaCount: m.ofa_engines,
                gpuInstanceSliceCount: m.gpu_slices,
                computeInstanceSliceCount: m.compute_slices,
                memorySizeMB: m.memory_mib,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetAttributes(device: nvmlDevice_t, to: *mut nvmlDeviceAttributes_t) -> nvmlReturn_t {
    attributes("nvmlDeviceGetAttributes", device, to)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetAttributes_v2(device: nvmlDevice_t, to: *mut nvmlDeviceAttributes_t) -> nvmlReturn_t {
    attributes("nvmlDeviceGetAttributes_v2", device, to)
}

/// Number of the profile constant (`NVML_GPU_INSTANCE_PROFILE_*`, the same for compute instances) of a slice count.
fn slice_profile(slices: u32) -> u32 {
    match slices {
        1 => NVML_GPU_INSTANCE_PROFILE_1_SLICE,
        2 => NVML_GPU_INSTANCE_PROFILE_2_SLICE,
        3 => NVML_GPU_INSTANCE_PROFILE_3_SLICE,
        4 => NVML_GPU_INSTANCE_PROFILE_4_SLICE,
        6 => NVML_GPU_INSTANCE_PROFILE_6_SLICE,
        8 => NVML_GPU_INSTANCE_PROFILE_8_SLICE,
        _ => NVML_GPU_INSTANCE_PROFILE_7_SLICE,
    }
}

/// The GPU-instance profile constant of a MIG device. Larger one-slice instances and those with media engines have constants of their own.
fn gpu_profile(gpu: &Gpu, mig: &MigDevice) -> u32 {
    if mig.gpu_slices != 1 {
        slice_profile(mig.gpu_slices)
    } else if mig.profile.ends_with("+me") {
        NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1
    } else if mig.memory_mib << 20 > gpu.memory_total_bytes / 8 {
        NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2
    } else {
        NVML_GPU_INSTANCE_PROFILE_1_SLICE
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceById(
    device: nvmlDevice_t,
    id: c_uint,
    instance: *mut nvmlGpuInstance_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceById", device, |v| {
        let mig = v
            .gpu
            .mig_devices()
            .iter()
            .position(|m| m.gpu_instance == id)
            .ok_or(NOT_FOUND)?;
        put(
            instance,
            instance_to_ptr(Device {
                mig: Some(mig),
                ..v.device
            }),
        )
    })
}

/// Runs `f` on the GPU and the MIG device behind an instance handle.
fn on_instance<T>(
    function: &str,
    instance: *mut T,
    f: impl FnOnce(Device, &Gpu, &MigDevice) -> Answer,
) -> nvmlReturn_t {
    let device = instance_from_ptr(instance);
    let run = || {
        let state = gate_open(function, device.map(|d| d.gpu))?;
        let device = device.ok_or(INVALID)?;
        let gpu = state.gpus.get(device.gpu).ok_or(INVALID)?;
        let mig = device.mig.and_then(|m| gpu.mig_devices().get(m)).ok_or(INVALID)?;
        f(device, gpu, mig)
    };
    returned(run())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceGetInfo(
    instance: nvmlGpuInstance_t,
    info: *mut nvmlGpuInstanceInfo_t,
) -> nvmlReturn_t {
    on_instance("nvmlGpuInstanceGetInfo", instance, |device, gpu, mig| {
        put(
            info,
            nvmlGpuInstanceInfo_t {
                device: Device::gpu(device.gpu).to_ptr(),
                id: mig.gpu_instance,
                profileId: gpu_profile(gpu, mig),
                placement: nvmlGpuInstancePlacement_t {
                    start: 0,
                    size: mig.gpu_slices,
                },
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    instance: nvmlGpuInstance_t,
    id: c_uint,
    compute: *mut nvmlComputeInstance_t,
) -> nvmlReturn_t {
    on_instance("nvmlGpuInstanceGetComputeInstanceById", instance, |device, gpu, mig| {
        let found = gpu
            .mig_devices()
            .iter()
            .position(|m| m.gpu_instance == mig.gpu_instance && m.compute_instance == id)
            .ok_or(NOT_FOUND)?;
        put(
            compute,
            instance_to_ptr(Device {
                mig: Some(found),
                ..device
            }),
        )
    })
}

fn compute_info(function: &str, compute: nvmlComputeInstance_t, info: *mut nvmlComputeInstanceInfo_t) -> nvmlReturn_t {
    on_instance(function, compute, |device, _, mig| {
        put(
            info,
            nvmlComputeInstanceInfo_t {
                device: Device::gpu(device.gpu).to_ptr(),
                gpuInstance: instance_to_ptr(device),
                id: mig.compute_instance,
                profileId: slice_profile(mig.compute_slices),
                placement: nvmlComputeInstancePlacement_t {
                    start: 0,
                    size: mig.compute_slices,
                },
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceGetInfo(
    compute: nvmlComputeInstance_t,
    info: *mut nvmlComputeInstanceInfo_t,
) -> nvmlReturn_t {
    compute_info("nvmlComputeInstanceGetInfo", compute, info)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceGetInfo_v2(
    compute: nvmlComputeInstance_t,
    info: *mut nvmlComputeInstanceInfo_t,
) -> nvmlReturn_t {
    compute_info("nvmlComputeInstanceGetInfo_v2", compute, info)
}

fn gpu_profile_info(profile: c_uint, gpu: &Gpu) -> Answer<nvmlGpuInstanceProfileInfo_t> {
    let mig = gpu
        .mig_devices()
        .iter()
        .find(|m| gpu_profile(gpu, m) == profile)
        .ok_or(NOT_SUPPORTED)?;
    Ok(nvmlGpuInstanceProfileInfo_t {
        id: profile,
        isP2pSupported: 0,
        sliceCount: mig.gpu_slices,
        instanceCount: MAX_DEVICES / mig.gpu_slices.max(1),
        multiprocessorCount: mig.multiprocessors,
        copyEngineCount: mig.copy_engines,
        decoderCount: mig.decoders,
        encoderCount: mig.encoders,
        jpegCount: mig.jpeg_engines,
        ofaCount: mig.ofa_engines,
        memorySizeMB: mig.memory_mib,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut nvmlGpuInstanceProfileInfo_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceProfileInfo", device, |v| {
        put(info, gpu_profile_info(profile, v.gpu)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceProfileInfoV(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut nvmlGpuInstanceProfileInfo_v2_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuInstanceProfileInfoV", device, |v| {
        let version = take(info.cast::<c_uint>())?;
        if version != struct_version::<nvmlGpuInstanceProfileInfo_v2_t>(2) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let p = gpu_profile_info(profile, v.gpu)?;
        let name: [c_char; 96] = chars("MIG");
        put(
            info,
            nvmlGpuInstanceProfileInfo_v2_t {
                version,
                id: p.id,
                isP2pSupported: p.isP2pSupported,
                sliceCount: p.sliceCount,
                instanceCount: p.instanceCount,
                multiprocessorCount: p.multiprocessorCount,
                copyEngineCount: p.copyEngineCount,
                decoderCount: p.decoderCount,
                encoderCount: p.encoderCount,
                jpegCount: p.jpegCount,
                ofaCount: p.ofaCount,
                memorySizeMB: p.memorySizeMB,
                name,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    instance: nvmlGpuInstance_t,
    profile: c_uint,
    engine_profile: c_uint,
    info: *mut nvmlComputeInstanceProfileInfo_t,
) -> nvmlReturn_t {
    on_instance("nvmlGpuInstanceGetComputeInstanceProfileInfo", instance, |_, _, mig| {
        // The only engine profile that NVML defines is "shared" = 0.
        if engine_profile != 0 || profile != slice_profile(mig.compute_slices) {
            return Err(NOT_SUPPORTED);
        }
        put(
            info,
            nvmlComputeInstanceProfileInfo_t {
                id: profile,
                sliceCount: mig.compute_slices,
                instanceCount: 1,
                multiprocessorCount: mig.multiprocessors,
                sharedCopyEngineCount: mig.copy_engines,
                sharedDecoderCount: mig.decoders,
                sharedEncoderCount: mig.encoders,
                sharedJpegCount: mig.jpeg_engines,
                sharedOfaCount: mig.ofa_engines,
            },
        )
    })
}
