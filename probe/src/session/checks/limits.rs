//! What a GPU can have at most: read once a session.

use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{
    nvmlClockType_enum_NVML_CLOCK_SM as SM, nvmlDevice_t,
    nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN as SLOWDOWN,
};

use super::{Asked, Stop, number};
use crate::worker::CallClock;

/// Such values of one GPU.
#[derive(Clone, Default)]
pub(in crate::session) struct Limits {
    pub pcie_width: Option<u32>,
    pub pcie_generation: Option<u32>,
    pub sm_clock_mhz: Option<u32>,
    pub slowdown_c: Option<u32>,
    /// Every call gave an answer: there is no need to ask again.
    pub complete: bool,
}

impl Limits {
    pub fn read(nvml: &Nvml, device: nvmlDevice_t, clock: &CallClock) -> Result<Self, Stop> {
        let mut asked = Asked::new(nvml, device, clock);
        let mut limits = Self {
            pcie_width: number!(asked, nvmlDeviceGetMaxPcieLinkWidth(), 0),
            pcie_generation: number!(asked, nvmlDeviceGetMaxPcieLinkGeneration(), 0),
            sm_clock_mhz: number!(asked, nvmlDeviceGetMaxClockInfo(SM), 0),
            slowdown_c: number!(asked, nvmlDeviceGetTemperatureThreshold(SLOWDOWN), 0),
            complete: false,
        };
        limits.complete = asked.unclear.is_empty();
        Ok(limits)
    }
}
