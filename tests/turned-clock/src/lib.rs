//! Lets hours go by for a program that knows nothing of it.
//!
//! ```text
//! a test writes nanoseconds ─► file named by TURNED_CLOCK ─► clock_gettime of this library, by LD_PRELOAD ─► Instant::now of the program
//! ```
//!
//! The program is the one that ships; it is started in another environment. Its monotonic clock is the machine's, and as much further as
//! the file says. Its timers are due when it looks at the clock the next time. The kernel, which wakes it, knows the machine's time alone:
//! a program that sleeps for an hour, and is not woken by anything else, sleeps on.
//!
//! A `clock_gettime` before the C library's is the only seam at which time comes into a program from outside. It is C's, so it cannot be
//! written without `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

/// Names the file: eight bytes, in the machine's order.
const FILE_ENV: &str = "TURNED_CLOCK";
const NANOS: u64 = 1_000_000_000;

/// Nanoseconds by which the clock was turned; none where there is no such file.
fn turned() -> u64 {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| File::open(std::env::var_os(FILE_ENV)?).ok());
    let mut nanos = [0; 8];
    match file.as_ref().map(|file| file.read_exact_at(&mut nanos, 0)) {
        Some(Ok(())) => u64::from_ne_bytes(nanos),
        Some(Err(_)) | None => 0,
    }
}

/// As the C library's, but for the monotonic clock.
///
/// # Safety
///
/// `time` is null, or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    // SAFETY: what the caller promises is what the kernel wants, which says so where the pointer is a bad one.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if result == 0 && clock == libc::CLOCK_MONOTONIC {
        // SAFETY: the kernel has just written there.
        let time = unsafe { &mut *time };
        let nanos = turned() + u64::try_from(time.tv_nsec).unwrap_or(0);
        time.tv_sec += libc::time_t::try_from(nanos / NANOS).unwrap_or(0);
        time.tv_nsec = libc::c_long::try_from(nanos % NANOS).unwrap_or(0);
    }
    libc::c_int::try_from(result).unwrap_or(-1)
}
