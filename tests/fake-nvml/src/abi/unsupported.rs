//! Functions that exist on every driver and that no fake GPU has an answer for. They pass the gate, so that faults reach them too.
//!
//! Arguments are never looked at, so one signature without any serves all of them: the C calling conventions of both architectures leave
//! arguments to the caller.

use nvml_wrapper_sys::bindings::*;

use super::NOT_SUPPORTED;
use crate::live::{gate_open, returned};

macro_rules! unsupported {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> nvmlReturn_t {
            returned(gate_open(stringify!($name), None).and(Err(NOT_SUPPORTED)))
        }
    )*};
}

unsupported! {
    nvmlSystemGetProcessName nvmlSystemGetDriverBranch
    nvmlGetExcludedDeviceInfoByIndex
    nvmlDeviceGetBrand nvmlDeviceGetArchitecture nvmlDeviceGetBoardId nvmlDeviceGetBoardPartNumber nvmlDeviceGetModuleId
    nvmlDeviceGetNumaNodeId nvmlDeviceGetNumGpuCores nvmlDeviceGetAddressingMode nvmlDeviceGetPlatformInfo
    nvmlDeviceGetBAR1MemoryInfo nvmlDeviceGetMemoryBusWidth
    nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPowerManagementLimitConstraints nvmlDeviceGetEnforcedPowerLimit
    nvmlDeviceGetPerformanceState nvmlDeviceGetFanSpeed_v2
    nvmlDeviceGetNumFans nvmlDeviceGetSamples nvmlDeviceGetSupportedClocksThrottleReasons
    nvmlDeviceGetEccMode nvmlDeviceGetMemoryErrorCounter nvmlDeviceGetDetailedEccErrors
    nvmlDeviceGetRetiredPages_v2
    nvmlDeviceGetPcieThroughput
    nvmlDeviceGetNvLinkVersion nvmlDeviceGetNvLinkErrorCounter nvmlDeviceGetNvLinkCapability nvmlDeviceGetNvLinkRemotePciInfo_v2
    nvmlDeviceGetNvLinkRemoteDeviceType nvmlDeviceGetTopologyCommonAncestor nvmlDeviceGetP2PStatus
    nvmlDeviceGetGraphicsRunningProcesses nvmlDeviceGetGraphicsRunningProcesses_v2 nvmlDeviceGetGraphicsRunningProcesses_v3
    nvmlDeviceGetMPSComputeRunningProcesses nvmlDeviceGetMPSComputeRunningProcesses_v2 nvmlDeviceGetMPSComputeRunningProcesses_v3
    nvmlDeviceGetProcessUtilization nvmlDeviceGetComputeMode
    nvmlDeviceGetInforomVersion nvmlDeviceGetInforomImageVersion
    nvmlDeviceGetInforomConfigurationChecksum nvmlDeviceGetGspFirmwareVersion nvmlDeviceGetGspFirmwareMode
    nvmlDeviceGetVirtualizationMode
}
