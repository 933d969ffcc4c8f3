//! A thread that validates the infoROMs: a call that may take the driver long, so it has a deadline of its own, and readings go on meanwhile.
//!
//! A thread past its deadline is left behind and counted. Each answer is told once: what was found an hour ago says nothing of now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::facts::Round;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::holders::{Holder, Holders, Work};
use crate::session::{Session, raw};

/// C name of the call.
const CALL: &str = "nvmlDeviceValidateInforom";

/// One round over all GPUs. Dropping it asks the thread to end after its current call.
#[derive(Debug)]
pub struct Validation {
    thread: Arc<Holder>,
    /// By UUID.
    found: Answers,
}

type Answers = Arc<Mutex<HashMap<String, Found>>>;

/// What is known of one infoROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Its checksum holds, or does not.
    Valid(bool),
    /// That was told.
    Told,
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
    pub fn start(session: &Session, holders: &Holders) -> Option<Self> {
        let job = Job {
            nvml: Arc::clone(&session.nvml),
            gpus: session
                .handles()
                .map(|(handle, gpu)| (handle, gpu.uuid.clone()))
                .collect(),
        };
        let found = Answers::default();
        let theirs = Arc::clone(&found);
        let thread = holders.spawn("nvml-inforom", Work::Inforom, move |me| job.run(me, &theirs))?;
        Some(Self { thread, found })
    }

    /// Whether there is, or will be, something found that was not told.
    pub fn is_awaited(&self) -> bool {
        let all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_pending() || all.values().any(|found| matches!(found, Found::Valid(_)))
    }

    /// Whether its last answer is still to be waited for.
    fn is_pending(&self) -> bool {
        !self.thread.has_ended() && !self.thread.is_stuck()
    }

    /// Puts what was found into a round that is about to be told: all of it once the last answer is there, or is not to be waited for.
    pub fn tell(&self, round: &mut Round) {
        let is_pending = self.is_pending();
        round.node.slow_pending = is_pending;
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for gpu in &mut round.gpus {
            match all.get_mut(&gpu.uuid) {
                Some(found @ Found::Valid(_)) if !is_pending => {
                    if let Found::Valid(valid) = std::mem::replace(found, Found::Told) {
                        gpu.inforom_valid = Some(valid);
                    }
                }
                Some(Found::Absent | Found::Told) => {}
                Some(Found::Valid(_) | Found::Unclear) | None => gpu.unclear.push(CALL.into()),
            }
        }
    }
}

/// The same where the validation could not begin yet.
pub fn is_to_come(round: &mut Round) {
    round.node.slow_pending = true;
    for gpu in &mut round.gpus {
        gpu.unclear.push(CALL.into());
    }
}

impl Drop for Validation {
    fn drop(&mut self) {
        self.thread.stop();
    }
}

impl Job {
    fn run(self, me: &Holder, answers: &Mutex<HashMap<String, Found>>) {
        for (device, uuid) in &self.gpus {
            if me.is_stopped() {
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
            let mut all = answers.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(uuid.clone(), found);
        }
        // Where this is the library's last user, the library is closed here, and that is a call like any other.
        me.clock.run("nvmlShutdown", || drop(self));
    }
}
