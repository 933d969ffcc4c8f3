//! The NVLink fabric that a GPU is registered with.

use berth_core::facts::Fabric;
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlGpuFabricInfo_t, nvmlReturn_t};

use super::told::{Stop, Told, raw, told};
use crate::worker::CallClock;

/// NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
const NO_FABRIC: u8 = 0;

pub(super) fn fabric(nvml: &Nvml, handle: nvmlDevice_t, clock: &CallClock) -> Result<Told<Option<Fabric>>, Stop> {
    let mut info = nvmlGpuFabricInfo_t {
        clusterUuid: [0; 16],
        status: 0 as nvmlReturn_t,
        cliqueId: 0,
        state: NO_FABRIC,
    };
    let result = raw!(nvml, clock, nvmlDeviceGetGpuFabricInfo(handle, &raw mut info));
    Ok(told("nvmlDeviceGetGpuFabricInfo", result)?.map(|()| {
        (info.state != NO_FABRIC).then(|| Fabric {
            state: info.state.into(),
            status: info.status,
            cluster_uuid: hyphenated(info.clusterUuid),
            clique_id: info.cliqueId,
        })
    }))
}

fn hyphenated(bytes: [u8; 16]) -> String {
    let n = u128::from_be_bytes(bytes);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        n >> 96,
        (n >> 80) & 0xffff,
        (n >> 64) & 0xffff,
        (n >> 48) & 0xffff,
        n & 0xffff_ffff_ffff
    )
}
