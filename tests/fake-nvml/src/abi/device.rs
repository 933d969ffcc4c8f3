//! What a GPU is.

use std::os::raw::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, NOT_SUPPORTED, chars, put, put_str, struct_version, take};
use crate::live::{View, on_device};
use crate::state::Fabric;

/// (domain, bus, device) of `dddd:bb:dd.f`, with any number of digits in the domain.
pub(super) fn parse_pci(address: &str) -> Option<(u32, u32, u32)> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let device = rest.split('.').next()?;
    let hex = |s| u32::from_str_radix(s, 16).ok();
    Some((hex(domain)?, hex(bus)?, hex(device)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetName", device, |v| match v.mig {
        Some(mig) => put_str(name, length, &format!("{} MIG {}", v.gpu.name, mig.profile)),
        None => put_str(name, length, &v.gpu.name),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetUUID", device, |v| {
        put_str(uuid, length, v.mig.map_or(&v.gpu.uuid, |m| &m.uuid))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetSerial(device: nvmlDevice_t, serial: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetSerial", device, |v| {
        put_str(serial, length, v.gpu.serial.as_ref().ok_or(NOT_SUPPORTED)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetVbiosVersion(
    device: nvmlDevice_t,
    version: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetVbiosVersion", device, |v| {
        put_str(version, length, v.gpu.vbios.as_ref().ok_or(NOT_SUPPORTED)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    on_device("nvmlDeviceGetMinorNumber", device, |v| {
        put(minor, v.device.gpu as c_uint)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetCudaComputeCapability", device, |v| {
        put(major, v.gpu.compute_major as c_int)?;
        put(minor, v.gpu.compute_minor as c_int)
    })
}

fn pci_info(v: &View<'_>) -> Answer<nvmlPciInfo_t> {
    let (domain, bus, device) = parse_pci(&v.gpu.pci_address).ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    Ok(nvmlPciInfo_t {
        busIdLegacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pciDeviceId: u32::from(v.gpu.pci_device) << 16 | 0x10de,
        pciSubSystemId: 0,
        busId: chars(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut nvmlPciInfo_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetPciInfo_v3", device, |v| put(pci, pci_info(&v)?))
}

/// The part of `nvmlPciInfo_t` that its first two versions share with the third.
#[repr(C)]
pub struct PciInfoStart {
    bus_id: [c_char; 16],
    numbers: [c_uint; 5],
}

fn old_pci_info(function: &str, device: nvmlDevice_t, pci: *mut PciInfoStart) -> nvmlReturn_t {
    on_device(function, device, |v| {
        let info = pci_info(&v)?;
        put(
            pci,
            PciInfoStart {
                bus_id: info.busIdLegacy,
                numbers: [
                    info.domain,
                    info.bus,
                    info.device,
                    info.pciDeviceId,
                    info.pciSubSystemId,
                ],
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo(device: nvmlDevice_t, pci: *mut PciInfoStart) -> nvmlReturn_t {
    old_pci_info("nvmlDeviceGetPciInfo", device, pci)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v2(device: nvmlDevice_t, pci: *mut PciInfoStart) -> nvmlReturn_t {
    old_pci_info("nvmlDeviceGetPciInfo_v2", device, pci)
}

/// 16 bytes of a hyphenated UUID.
fn uuid_bytes(uuid: &str) -> Answer<[u8; 16]> {
    let hex: String = uuid.chars().filter(|c| *c != '-').collect();
    let n = u128::from_str_radix(&hex, 16).map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    Ok(n.to_be_bytes())
}

fn fabric<'a>(v: &View<'a>) -> Answer<&'a Fabric> {
    v.gpu.fabric.as_ref().ok_or(NOT_SUPPORTED)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuFabricInfo(device: nvmlDevice_t, info: *mut nvmlGpuFabricInfo_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuFabricInfo", device, |v| {
        let f = fabric(&v)?;
        put(
            info,
            nvmlGpuFabricInfo_t {
                clusterUuid: uuid_bytes(&f.cluster_uuid)?,
                status: f.status,
                cliqueId: f.clique_id,
                state: f.state as nvmlGpuFabricState_t,
            },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuFabricInfoV(device: nvmlDevice_t, info: *mut nvmlGpuFabricInfo_v2_t) -> nvmlReturn_t {
    on_device("nvmlDeviceGetGpuFabricInfoV", device, |v| {
        let f = fabric(&v)?;
        // The version is the first member of every layout of this call, so that much may be read before the layout is known.
        let version = take(info.cast::<c_uint>())?;
        let v2 = nvmlGpuFabricInfo_v2_t {
            version,
            clusterUuid: uuid_bytes(&f.cluster_uuid)?,
            status: f.status,
            cliqueId: f.clique_id,
            state: f.state as nvmlGpuFabricState_t,
            healthMask: v.gpu.checks.fabric_health_mask,
        };
        if version == struct_version::<nvmlGpuFabricInfo_v2_t>(2) {
            put(info, v2)
        } else if version == struct_version::<nvmlGpuFabricInfo_v3_t>(3) {
            put(
                info.cast::<nvmlGpuFabricInfo_v3_t>(),
                nvmlGpuFabricInfo_v3_t {
                    version,
                    clusterUuid: v2.clusterUuid,
                    status: v2.status,
                    cliqueId: v2.cliqueId,
                    state: v2.state,
                    healthMask: v2.healthMask,
                    healthSummary: v.gpu.checks.fabric_health_summary,
                },
            )
        } else {
            Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        }
    })
}

/// NVML's field ids that are answered here.
mod field {
    pub(super) use nvml_wrapper_sys::bindings::field_id::{
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION as RECOVERY_ACTION, NVML_FI_DEV_MEMORY_TEMP as MEMORY_TEMPERATURE,
        NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS as NVLINK_FAILED_RECOVERIES,
        NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL as NVLINK_CRC_ERRORS,
        NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL as NVLINK_RECOVERIES,
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX as NVLINK_RECEIVED, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX as NVLINK_SENT,
        NVML_FI_DEV_POWER_INSTANT as POWER_INSTANT, NVML_FI_DEV_REMAPPED_COR as REMAPPED_CORRECTABLE,
        NVML_FI_DEV_REMAPPED_FAILURE as REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING as REMAPPED_PENDING,
        NVML_FI_DEV_REMAPPED_UNC as REMAPPED_UNCORRECTABLE, NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION as ENERGY,
    };
}

/// Fields of 64 bits; the others have 32.
const WIDE: [c_uint; 3] = [field::ENERGY, field::NVLINK_SENT, field::NVLINK_RECEIVED];
/// The scope of an NVLink field that means all links together.
const ALL_LINKS: c_uint = c_uint::MAX;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceGetFieldValues", device, |v| {
        for n in 0..usize::try_from(count).map_err(|_| INVALID)? {
            let slot = values.wrapping_add(n);
            let mut answer = take(slot)?;
            let value: Option<u64> = match answer.fieldId {
                field::RECOVERY_ACTION => v.gpu.recovery_action.map(Into::into),
                field::NVLINK_CRC_ERRORS => v.gpu.checks.nvlink_crc_errors.map(Into::into),
                field::NVLINK_RECOVERIES => v.gpu.checks.nvlink_recoveries.map(Into::into),
                // All of them are of the first link.
                field::NVLINK_FAILED_RECOVERIES => v
                    .gpu
                    .checks
                    .nvlink_failed_recoveries
                    .map(|n| if answer.scopeId == 0 { n.into() } else { 0 }),
                field::POWER_INSTANT => v.gpu.power_mw.map(Into::into),
                field::MEMORY_TEMPERATURE => v.gpu.memory_temperature_c.map(Into::into),
                field::ENERGY => v.gpu.energy_mj,
                field::NVLINK_SENT if answer.scopeId == ALL_LINKS => v.gpu.nvlink_kib.map(|n| n.0),
                field::NVLINK_RECEIVED if answer.scopeId == ALL_LINKS => v.gpu.nvlink_kib.map(|n| n.1),
                field::REMAPPED_CORRECTABLE
                | field::REMAPPED_UNCORRECTABLE
                | field::REMAPPED_PENDING
                | field::REMAPPED_FAILURE => Some(0),
                _ => None,
            };
            answer.latencyUsec = 0;
            answer.nvmlReturn = value.map_or(NOT_SUPPORTED, |_| nvmlReturn_enum_NVML_SUCCESS);
            let value = value.unwrap_or(0);
            if WIDE.contains(&answer.fieldId) {
                answer.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
                answer.value.ullVal = value;
            } else {
                answer.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
                answer.value.uiVal = value as c_uint;
            }
            put(slot, answer)?;
        }
        Ok(())
    })
}
