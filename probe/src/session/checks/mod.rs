//! What the health checks read of a GPU, and of the node.
//!
//! ```text
//! limits (once a session) ─► memory, links, pcie, clocks, driver (every 15 s) ─► GpuChecks, and which calls gave no answer
//! ```
//!
//! What takes long is not here: see [`crate::inforom`].

mod clocks;
mod confidential;
mod limits;
mod links;
mod memory;
mod pcie;
mod usage;

use berth_core::facts::GpuChecks;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEnableState_enum_NVML_FEATURE_DISABLED as DISABLED,
    nvmlEnableState_enum_NVML_FEATURE_ENABLED as ENABLED,
};

use super::told::{Stop, Told, raw, told};
use crate::worker::CallClock;
pub(super) use confidential::ConfidentialCompute;
pub(super) use limits::Limits;

/// Version 1 of a struct, as NVML counts.
const VERSION_1: u32 = 1 << 24;

/// One GPU, and what it did not answer.
struct Asked<'a> {
    nvml: &'a Nvml,
    device: nvmlDevice_t,
    clock: &'a CallClock,
    unclear: Vec<&'static str>,
}

impl<'a> Asked<'a> {
    fn new(nvml: &'a Nvml, device: nvmlDevice_t, clock: &'a CallClock) -> Self {
        Self {
            nvml,
            device,
            clock,
            unclear: Vec::new(),
        }
    }

    /// The value, or `None` where there is none; a call that may answer the next time is noted.
    fn value<T>(&mut self, call: &'static str, result: Result<T, NvmlError>) -> Result<Option<T>, Stop> {
        Ok(match told(call, result)? {
            Told::Value(value) => Some(value),
            Told::Absent => None,
            Told::Unclear(why) => {
                tracing::debug!(%why, "no reading");
                if !self.unclear.contains(&call) {
                    self.unclear.push(call);
                }
                None
            }
        })
    }
}

/// Asks a device function whose last parameter is where one number goes.
macro_rules! number {
    ($asked:expr, $name:ident ( $($before:expr),* ), $zero:expr) => {{
        let mut value = $zero;
        let result = $crate::session::told::raw!($asked.nvml, $asked.clock, $name($asked.device $(, $before)*, &raw mut value));
        $asked.value(stringify!($name), result)?.map(|()| value)
    }};
}
use number;

/// All readings but the UUID. `on_fabric`: whether the inventory has found a fabric.
pub(super) fn read(
    nvml: &Nvml,
    device: nvmlDevice_t,
    limits: &Limits,
    on_fabric: bool,
    clock: &CallClock,
) -> Result<GpuChecks, Stop> {
    let mut asked = Asked::new(nvml, device, clock);
    let mut checks = GpuChecks::default();
    memory::read(&mut asked, &mut checks)?;
    links::read(&mut asked, on_fabric, &mut checks)?;
    pcie::read(&mut asked, limits, &mut checks)?;
    clocks::read(&mut asked, limits, &mut checks)?;
    usage::read(&mut asked, &mut checks)?;
    checks.persistence_mode = number!(asked, nvmlDeviceGetPersistenceMode(), DISABLED).map(|mode| mode == ENABLED);
    checks.unclear = asked.unclear.into_iter().map(Into::into).collect();
    Ok(checks)
}
