//! The PCIe link as NVML sees it.

use berth_core::facts::GpuChecks;
use nvml_wrapper_sys::bindings::nvmlClockType_enum_NVML_CLOCK_SM as SM;

use super::{Asked, Limits, Stop, number};

pub(super) fn read(asked: &mut Asked<'_>, limits: &Limits, checks: &mut GpuChecks) -> Result<(), Stop> {
    checks.pcie_width = number!(asked, nvmlDeviceGetCurrPcieLinkWidth(), 0);
    checks.pcie_max_width = limits.pcie_width;
    checks.pcie_generation = number!(asked, nvmlDeviceGetCurrPcieLinkGeneration(), 0);
    checks.pcie_max_generation = limits.pcie_generation;
    // Right after the generation: only together do they say anything.
    checks.sm_clock_mhz = number!(asked, nvmlDeviceGetClockInfo(SM), 0);
    checks.sm_clock_max_mhz = limits.sm_clock_mhz;
    checks.pcie_replays = number!(asked, nvmlDeviceGetPcieReplayCounter(), 0).map(u64::from);
    Ok(())
}
