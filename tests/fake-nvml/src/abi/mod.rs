//! NVML's exported C functions, by group. Names, signatures and layouts are those of `nvml-wrapper-sys`, which has them from NVML's header.
//!
//! Every pointer that comes in is, by NVML's contract, null or valid for the type of its parameter; [`put`] and its siblings are the
//! only places that write through one.
#![allow(non_snake_case, non_upper_case_globals, missing_docs)]

mod device;
mod events;
mod gpm;
mod health;
mod mig;
mod readings;
mod system;
mod system_events;
mod unsupported;

use std::ffi::CStr;
use std::os::raw::c_char;

use nvml_wrapper_sys::bindings::*;

/// Result of everything behind the exported functions.
type Answer<T = ()> = Result<T, nvmlReturn_t>;

const INVALID: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;

/// Writes a result where the caller wants it.
fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and valid for T by NVML's contract with its caller.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a reading; an absent one is not supported.
fn put_some<T>(to: *mut T, value: Option<T>) -> Answer {
    put(to, value.ok_or(NOT_SUPPORTED)?)
}

/// Reads an in-out parameter.
fn take<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and valid for T by NVML's contract with its caller.
    Ok(unsafe { from.read() })
}

/// Writes a C string into a buffer of `length` bytes.
fn put_str(to: *mut c_char, length: u32, text: &str) -> Answer {
    if to.is_null() {
        return Err(INVALID);
    }
    if text.len() >= length as usize {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    // SAFETY: not null, and valid for `length` bytes by NVML's contract with its caller; text and its nul fit, as just checked.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Reads a C string that the caller passed.
fn read_str<'a>(from: *const c_char) -> Answer<&'a str> {
    if from.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and nul-terminated by NVML's contract with its caller, who keeps it for the length of the call.
    unsafe { CStr::from_ptr(from) }.to_str().map_err(|_| INVALID)
}

/// Text as a nul-padded array; cut where it does not fit.
fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out[..N - 1].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    out
}

/// `NVML_STRUCT_VERSION`: size in the low bytes, version in the high one.
fn struct_version<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | (version << 24)
}
