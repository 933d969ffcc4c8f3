//! Each place where bytes from outside are read, as a function of bytes that panics where something does not hold.
//!
//! ```text
//! fuzz/fuzz_targets (libFuzzer, nightly) ─┐
//! tests/replay (cargo test, stable) ──────┴─► <target>::run(bytes) ─► core, proto
//!        └─ corpus, and mutations of it
//! ```

pub mod agent_message;
pub mod corpus;
pub mod device_plugin;
pub mod kernel_log;
pub mod label_grammar;
mod labels;
pub mod probe_replies;
pub mod sysfs;
pub mod vgpu;

/// A target: bytes from outside in, a panic where something does not hold.
pub type Run = fn(&[u8]);

/// All of them, by the names of their programs and of their folders in `fuzz/corpus`.
pub const TARGETS: [(&str, Run); 7] = [
    ("agent_message", agent_message::run),
    ("device_plugin", device_plugin::run),
    ("kernel_log", kernel_log::run),
    ("label_grammar", label_grammar::run),
    ("probe_replies", probe_replies::run),
    ("sysfs", sysfs::run),
    ("vgpu", vgpu::run),
];
