//! A thread that validates the infoROMs: a call that may take the driver long, so it has a deadline of its own, and readings go on meanwhile.
//!
//! A thread past its deadline is left behind and counted. The answers are kept until the next validation begins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::session::{Session, raw};
use crate::worker::{CallClock, STACK};

/// C name of the call.
pub const CALL: &str = "nvmlDeviceValidateInforom";

/// One round over all GPUs. Dropping it asks the thread to end after its current call.
#[derive(Debug)]
pub struct Validation(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ended: AtomicBool,
    clock: CallClock,
    /// By UUID.
    found: Mutex<HashMap<String, Found>>,
}

/// What is known of one infoROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its checksum holds, or does not.
    Valid(bool),
    /// The part has no such call.
    Absent,
    /// No answer this time.
    Unclear,
}

struct Job {
    nvml: Arc<Nvml>,
    gpus: Vec<(nvmlDevice_t, String)>,
}

// SAFETY: NVML is thread-safe, and a handle is good for as long as its library is open, which `nvml` sees to.
unsafe impl Send for Job {}

impl Validation {
    /// Starts it. `None`: the system has no thread for it.
    pub fn start(session: &Session) -> Option<Self> {
        let job = Job {
            nvml: Arc::clone(&session.nvml),
            gpus: session
                .handles()
                .map(|(handle, gpu)| (handle, gpu.uuid.clone()))
                .collect(),
        };
        let validation = Self(Arc::default());
        let theirs = Arc::clone(&validation.0);
        let started = std::thread::Builder::new()
            .name("nvml-inforom".into())
            .stack_size(STACK)
            .spawn(move || {
                job.run(&theirs);
                // This thread's hold on the library is gone before anybody reads this.
                theirs.ended.store(true, Ordering::SeqCst);
            });
        match started {
            Ok(_) => Some(validation),
            Err(error) => {
                tracing::error!(%error, "no thread to validate the infoROMs");
                None
            }
        }
    }

    /// What it has found of a GPU so far.
    pub fn of(&self, uuid: &str) -> Option<Found> {
        let found = self.0.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(uuid).copied()
    }

    /// Asks the thread to end after its current call.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }

    /// Whether the thread has let go of the library.
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    /// Whether its current call has passed `deadline`.
    pub fn is_stuck(&self, deadline: Duration) -> bool {
        self.taking().is_some_and(|taking| taking > deadline)
    }

    /// How long its current call has taken so far.
    pub fn taking(&self) -> Option<Duration> {
        self.0.clock.current().map(|(_, since)| since.elapsed())
    }
}

impl Drop for Validation {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Job {
    fn run(self, me: &Shared) {
        for (device, uuid) in &self.gpus {
            if me.stop.load(Ordering::SeqCst) {
                break;
            }
            let found = match raw!(self.nvml, me.clock, nvmlDeviceValidateInforom(*device)) {
                Ok(()) => Found::Valid(true),
                Err(NvmlError::CorruptedInfoROM) => Found::Valid(false),
                Err(NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)) => {
                    Found::Absent
                }
                Err(error) => {
                    tracing::debug!(uuid, %error, "no answer about the infoROM");
                    Found::Unclear
                }
            };
            let mut all = me.found.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(uuid.clone(), found);
        }
        // Where this is the library's last user, the library is closed here, and that is a call like any other.
        me.clock.run("nvmlShutdown", || drop(self));
    }
}
