//! A thread that waits for NVML's events.
//!
//! Events are registered for on the worker's thread while the session is opened, so that none is missed between "ready" and the first wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::{Gpu, GpuEvent, GpuEventKind, MigInstance, NvmlState, NvmlStatus, SOURCE_NVML};
use berth_core::health::nvml_event::{self, MIG_CONFIG, XID};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};

use crate::feed::{Feed, Item};
use crate::holders::{Holder, Holders, WAIT, Work};
use crate::session::{Session, raw};
use crate::worker::CallClock;

/// Pause after a wait that failed at once.
const RETRY: Duration = Duration::from_secs(1);

/// What an event that is not about one MIG instance has for the instance's id.
const NO_INSTANCE: u32 = u32::MAX;

/// The near end of a watching thread. Dropping it asks the thread to end, which it does after its current wait.
#[derive(Debug)]
pub struct Watcher(Arc<Holder>);

/// An event set with all that its thread needs.
struct Watch {
    nvml: Arc<Nvml>,
    set: nvmlEventSet_t,
    /// By the handle's address; those without events, too.
    gpus: HashMap<usize, Source>,
}

/// A GPU that may tell something.
struct Source {
    handle: nvmlDevice_t,
    uuid: String,
    pci_address: Option<String>,
}

impl Source {
    fn new(handle: nvmlDevice_t, gpu: &Gpu) -> Self {
        Self {
            handle,
            uuid: gpu.uuid.clone(),
            pci_address: gpu.pci_address.clone(),
        }
    }
}

/// Waits in a row that may fail before the event set is made anew.
const FAILED_WAITS: u32 = 3;

/// A new event set, and how many GPUs are in it. `first`: of several tries, the one that people are told of.
fn register(
    nvml: &Nvml,
    gpus: &HashMap<usize, Source>,
    clock: &CallClock,
    first: bool,
) -> Result<(nvmlEventSet_t, usize), NvmlError> {
    let mut set: nvmlEventSet_t = std::ptr::null_mut();
    raw!(nvml, clock, nvmlEventSetCreate(&raw mut set))?;
    let mut registered = 0;
    for gpu in gpus.values() {
        let mut types = 0;
        // A GPU without events (or one that is gone) must not cost the others theirs.
        match raw!(
            nvml,
            clock,
            nvmlDeviceGetSupportedEventTypes(gpu.handle, &raw mut types)
        )
        .and_then(|()| {
            raw!(
                nvml,
                clock,
                nvmlDeviceRegisterEvents(gpu.handle, types & nvml_event::wanted(), set)
            )
        }) {
            Ok(()) => registered += 1,
            Err(error) if first => tracing::warn!(uuid = gpu.uuid, %error, "no events from this GPU"),
            Err(error) => tracing::debug!(uuid = gpu.uuid, %error, "still no events from this GPU"),
        }
    }
    Ok((set, registered))
}

// SAFETY: NVML is thread-safe; an event set may be used by one thread at a time, and it goes to the thread that alone uses it from then on.
unsafe impl Send for Watch {}

impl Watcher {
    /// Registers for the events of every GPU that has any, and starts a thread that tells them to `feed`. `None`: there is nothing to wait for.
    pub fn start(
        session: &Session,
        clock: &CallClock,
        feed: Feed,
        holders: &Holders,
    ) -> Result<Option<Self>, NvmlError> {
        let gpus = session
            .handles()
            .map(|(handle, gpu)| (handle.addr(), Source::new(handle, gpu)))
            .collect();
        let nvml = Arc::clone(&session.nvml);
        let (set, registered) = register(&nvml, &gpus, clock, true)?;
        let watch = Watch { nvml, set, gpus };
        if registered == 0 {
            watch.free(clock);
            return Ok(None);
        }
        Ok(Self::spawn("nvml-events", WAIT, holders, move |me| {
            watch.run(me, &feed)
        }))
    }

    /// Starts a thread that waits for events in `run`, `wait` at most at a time, until it is asked to end.
    pub fn spawn(
        name: &str,
        wait: Duration,
        holders: &Holders,
        run: impl FnOnce(&Holder) + Send + 'static,
    ) -> Option<Self> {
        holders.spawn(name, Work::Events(wait), run).map(Self)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Watch {
    fn run(mut self, me: &Holder, feed: &Feed) {
        let mut failed = 0;
        while !me.is_stopped() {
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
                Ok(()) => {
                    failed = 0;
                    feed.tell(self.item(data));
                }
                Err(NvmlError::Timeout) => failed = 0,
                // The keeper notices by itself that NVML is gone, and stops this thread; until then, no busy loop.
                Err(error) => {
                    failed += 1;
                    if failed == FAILED_WAITS {
                        tracing::warn!(%error, "waiting for events fails: registering anew");
                    }
                    if failed % FAILED_WAITS == 0 {
                        self.renew(&me.clock, failed == FAILED_WAITS);
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
        self.free(&me.clock);
    }

    /// One GPU that is gone may fail the wait for all: a new event set of those that still register.
    fn renew(&mut self, clock: &CallClock, first: bool) {
        match register(&self.nvml, &self.gpus, clock, first) {
            Ok((set, registered)) => {
                tracing::debug!(registered, of = self.gpus.len(), "a new event set");
                self.free_set(clock);
                self.set = set;
            }
            Err(error) => tracing::debug!(%error, "no new event set"),
        }
    }

    fn free_set(&self, clock: &CallClock) {
        let freed = raw!(self.nvml, clock, nvmlEventSetFree(self.set));
        if let Err(error) = freed {
            tracing::debug!(%error, "freeing the event set");
        }
    }

    fn free(self, clock: &CallClock) {
        self.free_set(clock);
        // Where this is the library's last user, the library is closed here, and that is a call like any other.
        clock.run("nvmlShutdown", || drop(self));
    }

    fn item(&self, data: nvmlEventData_t) -> Item {
        let device: nvmlDevice_t = data.device;
        let source = self.gpus.get(&device.addr());
        let uuid = source.map(|gpu| gpu.uuid.clone());
        let pci_address = source.and_then(|gpu| gpu.pci_address.clone());
        let kind = match data.eventType {
            XID => GpuEventKind::Xid(data.eventData),
            // The GPUs' facts have changed, NVML's state has not: whoever listens reads them again.
            MIG_CONFIG => {
                return Item::State(NvmlStatus {
                    state: NvmlState::Ready,
                    message: String::new(),
                });
            }
            other => GpuEventKind::Other(match nvml_event::name(other) {
                Some(name) => name.into(),
                None => format!("NvmlEvent{other:#x}"),
            }),
        };
        tracing::warn!(?kind, uuid, pci_address, "GPU event");
        let event = GpuEvent {
            kind,
            uuid,
            pci_address,
            age: Duration::ZERO,
            source: SOURCE_NVML.into(),
            detail: String::new(),
            instance: (data.gpuInstanceId != NO_INSTANCE).then(|| MigInstance {
                gpu: data.gpuInstanceId,
                compute: Some(data.computeInstanceId).filter(|id| *id != NO_INSTANCE),
            }),
        };
        Item::Event(event, Instant::now())
    }
}
