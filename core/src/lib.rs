//! Decisions of Berth, and nothing else: no Kubernetes client, no async runtime, no clock, no files.
//!
//! ```text
//! sysfs ──► facts   what files of the kernel say of the hardware
//! facts ──► labels     what a node's hardware says about itself, as node labels
//!   └─────► placement  which node a waiting pod goes to, and why
//! events ─► health     which GPU may be handed out
//! kubelet, processes ─► pods   who uses which GPU
//! labels ─► driver_upgrade  whether NVML may be open on a node; sampling: how often it is read
//! ```
//!
//! Whatever time, files or network a decision depends on comes in as an argument.

pub mod driver_upgrade;
pub mod facts;
pub mod freshness;
pub mod health;
pub mod labels;
pub mod placement;
pub mod pods;
pub mod sampling;
pub mod sysfs;
pub mod uevent;
pub mod vgpu;
