//! NVML's word that the driver took a GPU or is about to let go of one: the reason to close every handle and read anew.
//!
//! No inventory can tell: NVML finds the GPUs when it is initialised, and a GPU that somebody holds open cannot be unbound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::{GpuEvent, GpuEventKind, SOURCE_NVML};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlSystemEventData_v1_t, nvmlSystemEventSet_t, nvmlSystemEventSetCreateRequest_t, nvmlSystemEventSetFreeRequest_t,
    nvmlSystemEventSetWaitRequest_t, nvmlSystemEventTypeGpuDriverBind, nvmlSystemEventTypeGpuDriverUnbind,
    nvmlSystemRegisterEventRequest_t,
};
use tokio::sync::mpsc;

use crate::feed::{Feed, Item};
use crate::holders::{Holder, Holders, LONGEST_WAIT, WAIT};
use crate::session::{Session, raw};
use crate::watcher::Watcher;
use crate::worker::CallClock;

const UNBIND: u64 = nvmlSystemEventTypeGpuDriverUnbind as u64;
const BIND: u64 = nvmlSystemEventTypeGpuDriverBind as u64;
/// Events that one wait may bring.
const AT_ONCE: usize = 16;
/// Waits in a row that may fail before there are held to be no such events.
const FAILED_WAITS: u32 = 10;
/// Waits after an event that are short: within them the keeper asks this thread to end.
const SHORT_WAITS: u32 = 8;

/// `NVML_STRUCT_VERSION(…, 1)`: size in the low bytes, version in the high one.
const fn version_1<T>() -> u32 {
    // The largest of these has some dozens of bytes.
    size_of::<T>() as u32 | 1 << 24
}

struct Watch {
    nvml: Arc<Nvml>,
    set: nvmlSystemEventSet_t,
}

// SAFETY: NVML is thread-safe; an event set may be used by one thread at a time, and it goes to the thread that alone uses it from then on.
unsafe impl Send for Watch {}

/// Registers, and starts a thread that tells `feed` which GPU it was and `news` that there is something to read. `None`: this driver has no
/// such events, as older ones.
pub fn watch(
    session: &Session,
    clock: &CallClock,
    feed: Feed,
    news: mpsc::Sender<()>,
    holders: &Holders,
) -> Option<Watcher> {
    let watch = match Watch::register(Arc::clone(&session.nvml), clock) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::debug!(%error, "no system events from this driver");
            return None;
        }
    };
    Watcher::spawn("nvml-system", LONGEST_WAIT, holders, move |me| {
        watch.run(me, &feed, &news)
    })
}

impl Watch {
    fn register(nvml: Arc<Nvml>, clock: &CallClock) -> Result<Self, NvmlError> {
        let mut create = nvmlSystemEventSetCreateRequest_t {
            version: version_1::<nvmlSystemEventSetCreateRequest_t>(),
            set: std::ptr::null_mut(),
        };
        raw!(nvml, clock, nvmlSystemEventSetCreate(&raw mut create))?;
        let watch = Self { nvml, set: create.set };
        let mut register = nvmlSystemRegisterEventRequest_t {
            version: version_1::<nvmlSystemRegisterEventRequest_t>(),
            eventTypes: UNBIND | BIND,
            set: watch.set,
        };
        match raw!(watch.nvml, clock, nvmlSystemRegisterEvents(&raw mut register)) {
            Ok(()) => Ok(watch),
            Err(error) => {
                watch.free(clock);
                Err(error)
            }
        }
    }

    fn run(self, me: &Holder, feed: &Feed, news: &mpsc::Sender<()>) {
        let mut failed = 0;
        // News makes everybody let go of the library, this thread, too, and soon.
        let mut soon: u32 = 0;
        while !me.is_stopped() && failed < FAILED_WAITS {
            let wait = if soon > 0 { WAIT } else { LONGEST_WAIT };
            soon = soon.saturating_sub(1);
            match self.wait(wait, &me.clock) {
                Ok(events) => {
                    failed = 0;
                    events.iter().filter_map(item).for_each(|item| feed.tell(item));
                    if !events.is_empty() {
                        soon = SHORT_WAITS;
                        // One that waits to be read says as much as two.
                        let _ = news.try_send(());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "waiting for system events");
                    failed += 1;
                    std::thread::sleep(WAIT);
                }
            }
        }
        self.free(&me.clock);
    }

    fn wait(&self, at_most: Duration, clock: &CallClock) -> Result<Vec<nvmlSystemEventData_v1_t>, NvmlError> {
        let mut events = [nvmlSystemEventData_v1_t { eventType: 0, gpuId: 0 }; AT_ONCE];
        let mut wait = nvmlSystemEventSetWaitRequest_t {
            version: version_1::<nvmlSystemEventSetWaitRequest_t>(),
            timeoutms: u32::try_from(at_most.as_millis()).unwrap_or(u32::MAX),
            set: self.set,
            data: events.as_mut_ptr(),
            dataSize: AT_ONCE as u32,
            numEvent: 0,
        };
        match raw!(self.nvml, clock, nvmlSystemEventSetWait(&raw mut wait)) {
            Ok(()) => Ok(events[..AT_ONCE.min(wait.numEvent as usize)].to_vec()),
            Err(NvmlError::Timeout) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn free(self, clock: &CallClock) {
        let mut free = nvmlSystemEventSetFreeRequest_t {
            version: version_1::<nvmlSystemEventSetFreeRequest_t>(),
            set: self.set,
        };
        if let Err(error) = raw!(self.nvml, clock, nvmlSystemEventSetFree(&raw mut free)) {
            tracing::debug!(%error, "freeing the system event set");
        }
        // Where this is the library's last user, the library is closed here, and that is a call like any other.
        clock.run("nvmlShutdown", || drop(self));
    }
}

fn item(event: &nvmlSystemEventData_v1_t) -> Option<Item> {
    let name = match event.eventType {
        UNBIND => "DriverUnbound",
        BIND => "DriverBound",
        // Not registered for.
        _ => return None,
    };
    let pci_address = Some(address(event.gpuId));
    tracing::info!(name, pci_address, "the driver and a GPU");
    let event = GpuEvent {
        kind: GpuEventKind::Other(name.into()),
        uuid: None,
        pci_address,
        age: Duration::ZERO,
        source: SOURCE_NVML.into(),
        detail: String::new(),
        instance: None,
    };
    Some(Item::Event(event, Instant::now()))
}

/// PCI address of the driver's own id of a GPU: domain, bus and device in 16, 8 and 8 bits. A GPU is function 0.
fn address(id: u32) -> String {
    format!("{:04x}:{:02x}:{:02x}.0", id >> 16, id >> 8 & 0xff, id & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_id_is_an_address() {
        assert_eq!(address(0x0000_1b00), "0000:1b:00.0");
        assert_eq!(address(0x0009_0102), "0009:01:02.0");
    }
}
