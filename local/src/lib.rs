//! A whole cluster on one machine: a real control plane, simulated GPU nodes, real processes of ours.
//!
//! ```text
//! toolchain     builds (once) and finds the programs
//! controlplane  etcd, API server, controller manager, scheduler, KWOK      pki, port, process
//! fleet         local/fleets/*.yaml ─► Node objects, sysfs trees, fake NVML
//! keda          KEDA, where it is wanted: built (once), its CRDs, its two servers
//! chart         helm install of deploy/charts, as a user does
//! kubelet       pods of Berth ─► processes from the pods' own words        service
//! cluster       all of it behind one handle, for `cargo xtask up` and for the behaviour tests
//! ```
//!
//! Everything of one cluster is below one state folder, on loopback ports of its own; clusters do not meet. Linux only.

pub mod chart;
pub mod cluster;
pub mod controlplane;
pub mod error;
mod files;
pub mod fleet;
pub mod keda;
pub mod kubelet;
mod pki;
mod port;
pub mod process;
pub mod progress;
pub mod service;
pub mod signals;
pub mod state;
pub mod toolchain;

pub use cluster::{Cluster, Install, Options, wait_for};
pub use error::{Error, Result};
pub use fleet::{Fleet, KWOK_ANNOTATION, KWOK_ANNOTATION_VALUE, NodeSpec};
pub use process::{Process, Signal};
pub use progress::Progress;
pub use signals::Signals;
pub use state::StateFolder;

/// The checkout that this was built from.
pub fn checkout() -> &'static std::path::Path {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().unwrap_or(folder)
}
