//! Event sets: an event in the file reaches every set that its GPU was registered with before it was written.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::raw::{c_uint, c_ulonglong};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use super::{Answer, INVALID, put};
use crate::handle::Device;
use crate::live::{gate_open, look_again, on_device, on_system, path, returned};
use crate::state::{EventKind, State};

pub(super) const TIMEOUT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_TIMEOUT;
/// What a device can be registered for where its state does not say.
const SUPPORTED: u64 = (nvmlEventTypeXidCriticalError
    | nvmlEventTypeDoubleBitEccError
    | nvmlEventTypeSingleBitEccError
    | nvmlEventMigConfigChange
    | nvmlEventTypeSingleBitEccErrorStorm
    | nvmlEventTypeDramRetirementEvent
    | nvmlEventTypeDramRetirementFailure
    | nvmlEventTypeNonFatalPoisonError
    | nvmlEventTypeFatalPoisonError
    | nvmlEventTypeGpuUnavailableError
    | nvmlEventTypeGpuRecoveryAction) as u64;

/// One event set: by GPU index, the types wanted and the last event id delivered.
#[derive(Default)]
struct Set {
    devices: Mutex<BTreeMap<usize, (u64, u64)>>,
    changes: Changes,
}

static SETS: Mutex<BTreeMap<usize, Arc<Set>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicUsize = AtomicUsize::new(0x0300_0000);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(set: nvmlEventSet_t) -> Answer<Arc<Set>> {
    lock(&SETS).get(&set.addr()).cloned().ok_or(INVALID)
}

/// A descriptor that becomes readable when something in the folder of `file` changes. The folder, because the file is replaced by rename.
fn watch_folder(file: &Path) -> Option<OwnedFd> {
    let folder = file
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let folder = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: plain system calls; the descriptor is owned from the moment it exists, and the path is a C string that outlives the call.
    unsafe {
        let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let mask = libc::IN_MOVED_TO | libc::IN_CLOSE_WRITE;
        (libc::inotify_add_watch(fd.as_raw_fd(), folder.as_ptr(), mask) >= 0).then_some(fd)
    }
}

/// Word that the state file may have changed.
#[derive(Default)]
pub(super) struct Changes(Option<OwnedFd>);

impl Changes {
    /// From now on.
    pub(super) fn of_state() -> Self {
        Self(path().and_then(watch_folder))
    }

    /// Sleeps until there is word or the time is over; whether there may have been a change.
    pub(super) fn sleep(&self, at_most: Duration) -> bool {
        sleep_until_change(self.0.as_ref(), at_most)
    }
}

fn sleep_until_change(changes: Option<&OwnedFd>, at_most: Duration) -> bool {
    let Some(changes) = changes else {
        std::thread::sleep(at_most.min(Duration::from_millis(20)));
        return true;
    };
    let mut poll = libc::pollfd {
        fd: changes.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // Whole milliseconds, upwards: rounded down, each wait would wake once more for what is left.
    let ms = i32::try_from(at_most.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    let mut sink = [0u8; 4096];
    // SAFETY: `poll` is one pollfd and the count says one; `sink` is as long as said; the descriptor is open for as long as it is borrowed.
    unsafe {
        let is_told = libc::poll(&raw mut poll, 1, ms) != 0;
        if is_told {
            libc::read(changes.as_raw_fd(), sink.as_mut_ptr().cast(), sink.len());
        }
        is_told
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    on_system("nvmlEventSetCreate", |_| {
        let key = NEXT.fetch_add(1, Ordering::SeqCst);
        put(set, std::ptr::without_provenance_mut(key))?;
        lock(&SETS).insert(
            key,
            Arc::new(Set {
                changes: Changes::of_state(),
                ..Set::default()
            }),
        );
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    returned(gate_open("nvmlEventSetFree", None).and_then(|_| lock(&SETS).remove(&set.addr()).map(drop).ok_or(INVALID)))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, types: *mut c_ulonglong) -> nvmlReturn_t {
    on_device("nvmlDeviceGetSupportedEventTypes", device, |v| {
        put(types, v.gpu.event_types.unwrap_or(SUPPORTED))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    on_device("nvmlDeviceRegisterEvents", device, |v| {
        if types & !v.gpu.event_types.unwrap_or(SUPPORTED) != 0 {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        let seen = v.gpu.events.iter().map(|e| e.id).max().unwrap_or(0);
        lock(&find(set)?.devices).insert(v.device.gpu, (types, seen));
        Ok(())
    })
}

/// The oldest event that the set has not delivered yet.
fn next(set: &Set, state: &State) -> Option<nvmlEventData_t> {
    for (&gpu, (types, seen)) in lock(&set.devices).iter_mut() {
        let Some(found) = state.gpus.get(gpu) else { continue };
        let mut events: Vec<_> = found.events.iter().filter(|e| e.id > *seen).collect();
        events.sort_by_key(|e| e.id);
        for event in events {
            *seen = event.id;
            let (bit, data) = match event.kind {
                EventKind::Xid(xid) => (u64::from(nvmlEventTypeXidCriticalError), xid),
                EventKind::Type(bit) => (bit, 0),
            };
            if bit & *types != 0 {
                return Some(nvmlEventData_t {
                    device: Device::gpu(gpu).to_ptr(),
                    eventType: bit,
                    eventData: data,
                    gpuInstanceId: event.gpu_instance.unwrap_or(u32::MAX),
                    computeInstanceId: event.compute_instance.unwrap_or(u32::MAX),
                });
            }
        }
    }
    None
}

fn wait(function: &str, set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) -> Answer {
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    let set = find(set)?;
    loop {
        let state = gate_open(function, None)?;
        // As the driver does: one GPU that is gone fails the wait for all that are in the set.
        for &gpu in lock(&set.devices).keys() {
            gate_open(function, Some(gpu))?;
        }
        if let Some(event) = next(&set, &state) {
            return put(data, event);
        }
        let left = end.saturating_duration_since(Instant::now());
        // A wait that ends without word of a change costs no look at the file: it is the stand-in's, not the driver's.
        if left.is_zero() || !set.changes.sleep(left) {
            return Err(TIMEOUT);
        }
        look_again();
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetWait(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    returned(wait("nvmlEventSetWait", set, data, timeout_ms))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    returned(wait("nvmlEventSetWait_v2", set, data, timeout_ms))
}
