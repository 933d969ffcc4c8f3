//! Whether the GPUs take work in confidential-computing mode.

use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{nvmlConfComputeSystemState_t, nvmlDevice_t};

use super::{Asked, Stop, raw};
use crate::worker::CallClock;

/// NVML_CC_SYSTEM_FEATURE_ENABLED
const ENABLED: u32 = 1;
/// NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE
const ACCEPTING: u32 = 1;

/// What is known of the mode; it changes with the driver alone.
#[derive(Clone, Copy, Default)]
pub(in crate::session) struct ConfidentialCompute {
    is_on: Option<bool>,
}

impl ConfidentialCompute {
    /// Whether they are ready, and the calls that gave no answer. Outside that mode what the driver says of it means nothing.
    pub fn is_ready(&mut self, nvml: &Nvml, clock: &CallClock) -> Result<(Option<bool>, Vec<&'static str>), Stop> {
        let no_device: nvmlDevice_t = std::ptr::null_mut();
        let mut asked = Asked::new(nvml, no_device, clock);
        if self.is_on.is_none() {
            let mut state = nvmlConfComputeSystemState_t {
                environment: 0,
                ccFeature: 0,
                devToolsMode: 0,
            };
            let result = raw!(nvml, clock, nvmlSystemGetConfComputeState(&raw mut state));
            let told = asked.value("nvmlSystemGetConfComputeState", result)?;
            if asked.unclear.is_empty() {
                self.is_on = Some(told.is_some() && state.ccFeature == ENABLED);
            }
        }
        let mut ready = None;
        if self.is_on == Some(true) {
            let mut accepting = 0;
            let result = raw!(nvml, clock, nvmlSystemGetConfComputeGpusReadyState(&raw mut accepting));
            ready = asked
                .value("nvmlSystemGetConfComputeGpusReadyState", result)?
                .map(|()| accepting == ACCEPTING);
        }
        Ok((ready, asked.unclear))
    }
}
