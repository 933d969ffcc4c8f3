//! The state as it is now, and the gate that every call passes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::handle::Device;
use crate::state::{CALLS_ENV, Effect, Fault, Gpu, MigDevice, STATE_ENV, State};

/// Successful `nvmlInit` calls less `nvmlShutdown` calls.
pub(crate) static INITIALISED: AtomicU32 = AtomicU32::new(0);

/// One descriptor on the state file for each initialisation, as the real library holds `/dev/nvidiactl`: whoever counts a process's
/// descriptors sees whether it holds the driver.
pub(crate) static HELD: Mutex<Vec<std::fs::File>> = Mutex::new(Vec::new());
/// GPUs that there were when the library was initialised, by UUID.
static LISTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Initialising finds the GPUs.
pub(crate) fn enumerate(state: &State) {
    *LISTED.lock().unwrap_or_else(PoisonError::into_inner) = state.gpus.iter().map(|g| g.uuid.clone()).collect();
}

/// The state without GPUs that came later, where the driver lists but once.
fn listed(state: Arc<State>) -> Arc<State> {
    let is_open = INITIALISED.load(Ordering::SeqCst) > 0;
    if !state.driver.lists_once || !is_open {
        return state;
    }
    let listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    if state.gpus.iter().all(|g| listed.contains(&g.uuid)) {
        return state;
    }
    let mut state = State::clone(&state);
    state.gpus.retain(|g| listed.contains(&g.uuid));
    Arc::new(state)
}

/// What tells one version of the file from the next: (device, inode, size, mtime).
type Stamp = (u64, u64, u64, i64, i64);

#[derive(Default)]
struct Cache {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    state: Option<Arc<State>>,
    /// Calls that a fault with `after` has let through, by the fault.
    passed: HashMap<String, u64>,
}

static CACHE: Mutex<Option<Cache>> = Mutex::new(None);

/// Far below the time it takes to write a state and ask for it; saves a system call on most calls of a batch.
const LOOK_AGAIN: Duration = Duration::from_micros(100);

/// The state file. The environment is read once.
pub(crate) fn path() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os(STATE_ENV).map(PathBuf::from))
        .as_deref()
}

fn with_cache<R>(f: impl FnOnce(&mut Cache) -> R) -> R {
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    f(cache.get_or_insert_default())
}

/// Makes the next call look at the file however short ago the last one did: for those who know that it changed.
pub(crate) fn look_again() {
    with_cache(|cache| cache.looked = None);
}

/// The state as the file has it now. A file that is gone or cannot be read leaves the last good one; without any, there is no driver.
pub(crate) fn now() -> Result<Arc<State>, nvmlReturn_t> {
    let path = path().ok_or(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED)?;
    with_cache(|cache| {
        let fresh = cache.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        if let (true, Some(state)) = (fresh, &cache.state) {
            return Ok(Arc::clone(state));
        }
        cache.looked = Some(Instant::now());
        let stamp = std::fs::metadata(path)
            .ok()
            .map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        if stamp.is_some() && stamp != cache.stamp {
            match State::read(path) {
                Ok(state) => {
                    cache
                        .passed
                        .retain(|key, _| state.faults.iter().any(|f| count_key(f) == *key));
                    cache.state = Some(Arc::new(state));
                }
                Err(error) => eprintln!("fake NVML: {} is not a state file: {error}", path.display()),
            }
            cache.stamp = stamp;
        }
        cache.state.clone().ok_or(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED)
    })
}

fn applies(fault: &Fault, function: &str, gpu: Option<usize>) -> bool {
    (fault.function == "*" || fault.function == function)
        && fault.gpu.is_none_or(|wanted| gpu.is_some_and(|g| g == wanted as usize))
}

/// What the calls of a fault are counted under: forgotten when the fault leaves the file.
fn count_key(fault: &Fault) -> String {
    format!("{}/{:?}/{:?}", fault.function, fault.gpu, fault.after)
}

/// Whether the fault's `after` has been used up by earlier calls.
fn is_due(fault: &Fault) -> bool {
    let Some(after) = fault.after else { return true };
    with_cache(|cache| {
        let passed = cache.passed.entry(count_key(fault)).or_default();
        *passed += 1;
        *passed > after
    })
}

/// Appends the call's name where somebody counts.
fn count(function: &str) {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os(CALLS_ENV)?;
        File::options().append(true).create(true).open(path).ok()
    });
    if let Some(mut file) = file.as_ref() {
        // One write a line: lines of several threads do not mix.
        let _ = file.write_all(format!("{function}\n").as_bytes());
    }
}

/// The one gate: every exported function goes through here, first thing, and gets the state to answer from.
pub(crate) fn gate(function: &str, gpu: Option<usize>) -> Result<Arc<State>, nvmlReturn_t> {
    count(function);
    let state = now()?;
    for fault in state.faults.iter().filter(|f| applies(f, function, gpu)) {
        if !is_due(fault) {
            continue;
        }
        match fault.effect {
            Effect::Error(code) => return Err(code),
            Effect::DelayMs(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Effect::Hang(true) => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Effect::Stall(true) => {
                while now()?.faults.contains(fault) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Effect::Hang(false) | Effect::Stall(false) => {}
        }
    }
    Ok(state)
}

/// The gate of all calls that need an initialised library and a driver.
pub(crate) fn gate_open(function: &str, gpu: Option<usize>) -> Result<Arc<State>, nvmlReturn_t> {
    if INITIALISED.load(Ordering::SeqCst) == 0 {
        return Err(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
    }
    let state = gate(function, gpu)?;
    if !state.driver.loaded {
        return Err(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    }
    Ok(listed(state))
}

/// What a device handle stands for.
pub(crate) struct View<'a> {
    pub(crate) device: Device,
    pub(crate) gpu: &'a Gpu,
    pub(crate) mig: Option<&'a MigDevice>,
}

pub(crate) fn returned(result: Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    result.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

/// Runs `f` on the device behind a handle, past the gate.
pub(crate) fn on_device(
    function: &str,
    handle: nvmlDevice_t,
    f: impl FnOnce(View<'_>) -> Result<(), nvmlReturn_t>,
) -> nvmlReturn_t {
    let device = Device::from_ptr(handle);
    let run = || {
        let state = gate_open(function, device.map(|d| d.gpu))?;
        let device = device.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        let gpu = state
            .gpus
            .get(device.gpu)
            .ok_or(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST)?;
        let mig = match device.mig {
            None => None,
            Some(m) => Some(
                gpu.mig_devices()
                    .get(m)
                    .ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?,
            ),
        };
        f(View { device, gpu, mig })
    };
    returned(run())
}

/// Runs `f` on the state, past the gate.
pub(crate) fn on_system(function: &str, f: impl FnOnce(&State) -> Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    returned(gate_open(function, None).and_then(|state| f(&state)))
}
