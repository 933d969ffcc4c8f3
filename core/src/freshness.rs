//! How old a reading may be, for what: the one table of such times.

use std::time::Duration;

/// A sample older than this does not count as live.
pub const SAMPLE_STALE: Duration = Duration::from_secs(5);
/// What the kubelet said of who holds which device longer ago than this is not known any more.
pub const PODS_STALE: Duration = Duration::from_secs(15);
/// A reading of the health checks, which are made every 15 s, older than this does not count as live.
pub const CHECKS_STALE: Duration = Duration::from_secs(45);
/// Longest time between two readings of a GPU: with one that is late they are still younger than [`SAMPLE_STALE`].
pub const SLOWEST_SAMPLE: Duration = Duration::from_secs(3);
/// A node whose agent was silent for longer takes no managed pod that asks for live facts.
pub const NODE_SILENT: Duration = Duration::from_secs(15);
/// After this silence of its agent a node's `GPUReady` becomes Unknown.
pub const READY_UNKNOWN: Duration = Duration::from_secs(60);
/// A new leader waits at most this long for a node's agent before that node takes pods that ask for GPUs.
pub const LEADER_WARM_UP: Duration = Duration::from_secs(15);
/// A pinned pod that the scheduler refuses for this long is recovered.
pub const PIN_REFUSED: Duration = Duration::from_secs(10);
/// Deadline of one NVML call; a hang is reported after two of them.
pub const NVML_CALL: Duration = Duration::from_secs(5);
/// Deadline of an NVML call that may take the driver long; other calls may wait for it as long.
pub const NVML_SLOW_CALL: Duration = Duration::from_secs(30);

// Labels never expire: stale is not wiped.
