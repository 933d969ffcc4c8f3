//! A `libnvidia-ml.so.1` whose GPUs come from a file.
//!
//! ```text
//! file named by FAKE_NVML_STATE ─► live (re-read when it changes) ─► one fault gate ─► abi: NVML's C functions
//! ```
//!
//! [`state`] is the format of the file, for whoever writes it; [`models`] knows the parts that exist; [`library`] builds the shared
//! object for whoever installs it.
//!
//! This crate stands on the far side of a C interface, which cannot be written without `unsafe`: exported symbols are `no_mangle`,
//! results go to pointers that the caller passed, and sleeping until the file changes is a system call.
#![allow(unsafe_code)]

mod abi;
mod handle;
pub mod library;
mod live;
pub mod models;
pub mod state;
