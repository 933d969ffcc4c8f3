//! A thread that waits for NVML's events.
//!
//! Events are registered for on the worker's thread while the session is opened, so that none is missed between "ready" and the first wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_core::facts::{GpuEvent, GpuEventKind, NvmlState, NvmlStatus};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventMigConfigChange, nvmlEventSet_t, nvmlEventTypeDoubleBitEccError,
    nvmlEventTypeXidCriticalError,
};

use crate::feed::{Feed, Item};
use crate::session::{Session, raw};
use crate::worker::{CallClock, STACK};

/// One wait. An event ends it at once; without any it bounds how long giving up the driver takes.
pub const WAIT: Duration = Duration::from_secs(1);

const XID: u64 = nvmlEventTypeXidCriticalError as u64;
const DOUBLE_BIT: u64 = nvmlEventTypeDoubleBitEccError as u64;
const MIG_CONFIG: u64 = nvmlEventMigConfigChange as u64;

/// The near end of a watching thread. Dropping it asks the thread to end, which it does after its current wait.
#[derive(Debug)]
pub struct Watcher(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ended: AtomicBool,
    clock: CallClock,
}

/// An event set with all that its thread needs.
struct Watch {
    nvml: Arc<Nvml>,
    set: nvmlEventSet_t,
    /// UUID and PCI address by the handle's address.
    gpus: HashMap<usize, (String, Option<String>)>,
}

// SAFETY: NVML is thread-safe; an event set may be used by one thread at a time, and it goes to the thread that alone uses it from then on.
unsafe impl Send for Watch {}

impl Watcher {
    /// Registers for the events of every GPU that has any, and starts a thread that tells them to `feed`. `None`: there is nothing to wait for.
    pub fn start(session: &Session, clock: &CallClock, feed: Feed) -> Result<Option<Self>, NvmlError> {
        let mut set: nvmlEventSet_t = std::ptr::null_mut();
        raw!(session.nvml, clock, nvmlEventSetCreate(&raw mut set))?;
        let mut watch = Watch {
            nvml: Arc::clone(&session.nvml),
            set,
            gpus: HashMap::new(),
        };
        for (handle, gpu) in session.handles() {
            let mut types = 0;
            // A GPU without events (or one that is gone) must not cost the others theirs.
            if let Err(error) = raw!(
                session.nvml,
                clock,
                nvmlDeviceGetSupportedEventTypes(handle, &raw mut types)
            )
            .and_then(|()| {
                raw!(
                    session.nvml,
                    clock,
                    nvmlDeviceRegisterEvents(handle, types & (XID | DOUBLE_BIT | MIG_CONFIG), set)
                )
            }) {
                tracing::warn!(uuid = gpu.uuid, %error, "no events from this GPU");
                continue;
            }
            watch
                .gpus
                .insert(handle.addr(), (gpu.uuid.clone(), gpu.pci_address.clone()));
        }
        if watch.gpus.is_empty() {
            watch.free(clock);
            return Ok(None);
        }
        let watcher = Self(Arc::default());
        let theirs = Arc::clone(&watcher.0);
        let started = std::thread::Builder::new()
            .name("nvml-events".into())
            .stack_size(STACK)
            .spawn(move || {
                watch.run(&theirs, &feed);
                // The set is freed and this thread's hold on the library gone before anybody reads this.
                theirs.ended.store(true, Ordering::SeqCst);
            });
        match started {
            Ok(_) => Ok(Some(watcher)),
            Err(error) => {
                tracing::error!(%error, "no thread to wait for events");
                Ok(None)
            }
        }
    }

    /// Whether its current call has passed its deadline.
    pub fn is_stuck(&self, call_timeout: Duration) -> bool {
        self.0.is_stuck(call_timeout)
    }

    /// Asks the thread to end, and keeps the means to see whether it has.
    pub fn stop(self) -> Leaving {
        Leaving(Arc::clone(&self.0))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// A watching thread that was asked to end.
#[derive(Debug)]
pub struct Leaving(Arc<Shared>);

impl Leaving {
    /// Whether the thread has let go of the library.
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    /// Whether its current call has passed its deadline.
    pub fn is_stuck(&self, call_timeout: Duration) -> bool {
        self.0.is_stuck(call_timeout)
    }
}

impl Shared {
    fn is_stuck(&self, call_timeout: Duration) -> bool {
        self.clock
            .current()
            .is_some_and(|(_, since)| since.elapsed() > call_timeout + WAIT)
    }
}

impl Watch {
    fn run(self, me: &Shared, feed: &Feed) {
        while !me.stop.load(Ordering::SeqCst) {
            let mut data = nvmlEventData_t {
                device: std::ptr::null_mut(),
                eventType: 0,
                eventData: 0,
                gpuInstanceId: 0,
                computeInstanceId: 0,
            };
            let timeout = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
            match raw!(
                self.nvml,
                me.clock,
                nvmlEventSetWait_v2(self.set, &raw mut data, timeout)
            ) {
                Ok(()) => feed.tell(self.item(data)),
                Err(NvmlError::Timeout) => {}
                // The keeper notices by itself that NVML is gone, and stops this thread; until then, no busy loop.
                Err(error) => {
                    tracing::debug!(%error, "waiting for events");
                    std::thread::sleep(WAIT);
                }
            }
        }
        self.free(&me.clock);
    }

    fn free(self, clock: &CallClock) {
        let freed = raw!(self.nvml, clock, nvmlEventSetFree(self.set));
        if let Err(error) = freed {
            tracing::debug!(%error, "freeing the event set");
        }
        // Where this is the library's last user, the library is closed here, and that is a call like any other.
        clock.run("nvmlShutdown", || drop(self));
    }

    fn item(&self, data: nvmlEventData_t) -> Item {
        let device: nvmlDevice_t = data.device;
        let (uuid, pci_address) = self.gpus.get(&device.addr()).cloned().unzip();
        let kind = match data.eventType {
            XID => GpuEventKind::Xid(data.eventData),
            DOUBLE_BIT => GpuEventKind::Other("EccDoubleBit".into()),
            // The GPUs' facts have changed, NVML's state has not: whoever listens reads them again.
            MIG_CONFIG => {
                return Item::State(NvmlStatus {
                    state: NvmlState::Ready,
                    message: String::new(),
                });
            }
            other => GpuEventKind::Other(format!("NvmlEvent{other:#x}")),
        };
        tracing::warn!(?kind, uuid, pci_address, "GPU event");
        let event = GpuEvent {
            kind,
            uuid,
            pci_address: pci_address.flatten(),
            age: Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
        };
        Item::Event(event, Instant::now())
    }
}
