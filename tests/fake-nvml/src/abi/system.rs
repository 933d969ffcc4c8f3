//! Initialising, the driver, and finding devices.

use std::os::raw::{c_char, c_int, c_uint};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, NOT_FOUND, put, put_str, read_str};
use crate::handle::Device;
use crate::live::{HELD, INITIALISED, enumerate, gate, gate_open, on_device, on_system, path, returned};

fn init(function: &str) -> Answer {
    let state = gate(function, None)?;
    if !state.driver.loaded {
        return Err(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    }
    if state.driver.version_mismatch {
        return Err(nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH);
    }
    if INITIALISED.fetch_add(1, Ordering::SeqCst) == 0 {
        enumerate(&state);
    }
    let device = path().and_then(|path| std::fs::File::open(path).ok());
    HELD.lock().unwrap_or_else(PoisonError::into_inner).extend(device);
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit() -> nvmlReturn_t {
    returned(init("nvmlInit"))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    returned(init("nvmlInit_v2"))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    returned(init("nvmlInitWithFlags"))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    returned(gate("nvmlShutdown", None).map(drop).and_then(|()| {
        INITIALISED
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .map(|_| drop(HELD.lock().unwrap_or_else(PoisonError::into_inner).pop()))
            .map_err(|_| nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text = match result {
        nvmlReturn_enum_NVML_SUCCESS => c"The operation was successful",
        nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"NVML was not first initialized with nvmlInit()",
        nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"A supplied argument is invalid",
        nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"The requested operation is not available on target device",
        nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => c"The current user does not have permission for operation",
        nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"A query to find an object was unsuccessful",
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => c"An input argument is not large enough",
        nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"NVIDIA driver is not loaded",
        nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"User provided timeout passed",
        nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => {
            c"The GPU has fallen off the bus or has otherwise become inaccessible"
        }
        nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => c"RM detects a driver/library version mismatch.",
        nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH => c"The provided version is invalid/unsupported",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_system("nvmlSystemGetDriverVersion", |s| {
        put_str(version, length, &s.driver.version)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_system("nvmlSystemGetNVMLVersion", |s| {
        put_str(version, length, &s.driver.nvml_version)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    on_system("nvmlSystemGetCudaDriverVersion", |s| {
        put(version, s.driver.cuda_version as c_int)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    on_system("nvmlSystemGetCudaDriverVersion_v2", |s| {
        put(version, s.driver.cuda_version as c_int)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount(count: *mut c_uint) -> nvmlReturn_t {
    on_system("nvmlDeviceGetCount", |s| put(count, s.gpus.len() as c_uint))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    on_system("nvmlDeviceGetCount_v2", |s| put(count, s.gpus.len() as c_uint))
}

/// Answers before `nvmlInit`, too.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGetExcludedDeviceCount(count: *mut c_uint) -> nvmlReturn_t {
    returned(gate("nvmlGetExcludedDeviceCount", None).and_then(|s| put(count, s.driver.excluded_gpus)))
}

fn by_index(function: &str, index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    let index = index as usize;
    returned(gate_open(function, Some(index)).and_then(|s| {
        s.gpus.get(index).ok_or(INVALID)?;
        put(device, Device::gpu(index).to_ptr())
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    by_index("nvmlDeviceGetHandleByIndex", index, device)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    by_index("nvmlDeviceGetHandleByIndex_v2", index, device)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    on_system("nvmlDeviceGetHandleByUUID", |s| {
        let uuid = read_str(uuid)?;
        let found = s.gpus.iter().enumerate().find_map(|(gpu, g)| {
            if g.uuid == uuid {
                return Some(Device::gpu(gpu));
            }
            let mig = g.mig_devices().iter().position(|m| m.uuid == uuid)?;
            Some(Device { gpu, mig: Some(mig) })
        });
        put(device, found.ok_or(NOT_FOUND)?.to_ptr())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleBySerial(serial: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    on_system("nvmlDeviceGetHandleBySerial", |s| {
        let serial = read_str(serial)?;
        let found = s.gpus.iter().position(|g| g.serial.as_deref() == Some(serial));
        put(device, Device::gpu(found.ok_or(NOT_FOUND)?).to_ptr())
    })
}

fn by_pci(function: &str, address: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    on_system(function, |s| {
        let wanted = super::device::parse_pci(read_str(address)?).ok_or(INVALID)?;
        let found = s
            .gpus
            .iter()
            .position(|g| super::device::parse_pci(&g.pci_address) == Some(wanted));
        put(device, Device::gpu(found.ok_or(NOT_FOUND)?).to_ptr())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByPciBusId(address: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    by_pci("nvmlDeviceGetHandleByPciBusId", address, device)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(address: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    by_pci("nvmlDeviceGetHandleByPciBusId_v2", address, device)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetIndex", device, |v| {
        put(index, v.device.mig.unwrap_or(v.device.gpu) as c_uint)
    })
}
