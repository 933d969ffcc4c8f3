//! Event sets of the system: an event in the file reaches every set that was registered before it was written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use super::events::{Changes, TIMEOUT, lock};
use super::{Answer, INVALID, put, struct_version, take};
use crate::live::{gate_open, look_again, on_system, returned};
use crate::state::Binding;

/// The types wanted, and the last event id delivered.
#[derive(Default)]
struct Set {
    wanted: Mutex<(u64, u64)>,
    changes: Changes,
}

static SETS: Mutex<BTreeMap<usize, Arc<Set>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicUsize = AtomicUsize::new(0x0400_0000);

fn find(set: nvmlSystemEventSet_t) -> Answer<Arc<Set>> {
    lock(&SETS).get(&set.addr()).cloned().ok_or(INVALID)
}

/// What a request says in its first field.
fn check_version<T>(version: u32) -> Answer {
    if version == struct_version::<T>(1) {
        Ok(())
    } else {
        Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemEventSetCreate(request: *mut nvmlSystemEventSetCreateRequest_t) -> nvmlReturn_t {
    on_system("nvmlSystemEventSetCreate", |_| {
        let mut asked = take(request)?;
        check_version::<nvmlSystemEventSetCreateRequest_t>(asked.version)?;
        let key = NEXT.fetch_add(1, Ordering::SeqCst);
        asked.set = std::ptr::without_provenance_mut(key);
        put(request, asked)?;
        let set = Set {
            changes: Changes::of_state(),
            ..Set::default()
        };
        lock(&SETS).insert(key, Arc::new(set));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemEventSetFree(request: *mut nvmlSystemEventSetFreeRequest_t) -> nvmlReturn_t {
    returned(gate_open("nvmlSystemEventSetFree", None).and_then(|_| {
        let asked = take(request)?;
        check_version::<nvmlSystemEventSetFreeRequest_t>(asked.version)?;
        lock(&SETS).remove(&asked.set.addr()).map(drop).ok_or(INVALID)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemRegisterEvents(request: *mut nvmlSystemRegisterEventRequest_t) -> nvmlReturn_t {
    on_system("nvmlSystemRegisterEvents", |state| {
        let asked = take(request)?;
        check_version::<nvmlSystemRegisterEventRequest_t>(asked.version)?;
        let known = u64::from(nvmlSystemEventTypeGpuDriverUnbind | nvmlSystemEventTypeGpuDriverBind);
        if asked.eventTypes & !known != 0 {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        let seen = state.system_events.iter().map(|e| e.id).max().unwrap_or(0);
        *lock(&find(asked.set)?.wanted) = (asked.eventTypes, seen);
        Ok(())
    })
}

fn wait(request: *mut nvmlSystemEventSetWaitRequest_t) -> Answer {
    let mut asked = take(request)?;
    check_version::<nvmlSystemEventSetWaitRequest_t>(asked.version)?;
    if asked.data.is_null() || asked.dataSize == 0 {
        return Err(INVALID);
    }
    let end = Instant::now() + Duration::from_millis(asked.timeoutms.into());
    let set = find(asked.set)?;
    loop {
        let state = gate_open("nvmlSystemEventSetWait", None)?;
        let mut told = 0;
        {
            let mut wanted = lock(&set.wanted);
            for event in &state.system_events {
                let bit = u64::from(match event.kind {
                    Binding::Unbind => nvmlSystemEventTypeGpuDriverUnbind,
                    Binding::Bind => nvmlSystemEventTypeGpuDriverBind,
                });
                if event.id <= wanted.1 || told == asked.dataSize {
                    continue;
                }
                wanted.1 = event.id;
                if bit & wanted.0 != 0 {
                    let data = nvmlSystemEventData_v1_t {
                        eventType: bit,
                        gpuId: event.gpu_id,
                    };
                    // SAFETY: `data` holds `dataSize` elements by NVML's contract, and `told` is below that, as just checked.
                    unsafe { asked.data.add(told as usize).write(data) };
                    told += 1;
                }
            }
        }
        if told > 0 {
            asked.numEvent = told;
            return put(request, asked);
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
pub extern "C" fn nvmlSystemEventSetWait(request: *mut nvmlSystemEventSetWaitRequest_t) -> nvmlReturn_t {
    returned(wait(request))
}
