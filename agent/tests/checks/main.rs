//! Every check, through the real agent and the real probe: a fault in the fake driver or in a folder that stands for /sys goes in, the
//! verdict comes out, and goes when the fault does. What a verdict makes of the node's condition, and of placement, is one function of
//! this report for all checks: `tests/behaviour/health.rs` and `readiness.rs` have it. XIDs are in `../xids`.
//!
//! | file | rows of docs/health.md |
//! |---|---|
//! | `lost` | GPU lost, PCI, GPU missing |
//! | `driver` | NVML hang, driver, driver and library, NVML, probe, recovery action, persistence mode |
//! | `memory` | ECC, SRAM, row remapping, spare rows, retired pages, repair, ECC corrected |
//! | `inforom` | infoROM |
//! | `clocks` | throttling, temperature |
//! | `pcie` | PCIe width, generation, replays, errors |
//! | `links` | fabric, NVLink, NVLink errors |
//! | `whole_node` | fabric manager, clique, confidential compute |
//! | `silence` | what a reading says that does not come |
//! | `rows` | how a row is tested, and a rate |
//!
//! What takes minutes or hours is seen at once: the agent lives by a clock that the test turns (`tests/turned-clock`).
//!
//! Elsewhere: `DriverReleaseBlocked` needs a controller that lets go of drivers (`tests/behaviour/upgrade.rs`), and the cards of AMD are told
//! of by the controller (`tests/behaviour/readiness.rs`). In tables alone (`core/src/health/checks`): "unknown", which no report of a running
//! agent shows (`berth-agent check` does: `../check`); each bit of the fabric's health mask, of which one is here; and the parts whose PCIe link
//! is made up, which the fake driver has no model of.
#![allow(clippy::unwrap_used)]

#[path = "../machine/mod.rs"]
mod machine;
#[path = "../node/mod.rs"]
mod node;

mod clocks;
mod driver;
mod inforom;
mod links;
mod lost;
mod memory;
mod pcie;
mod rows;
mod silence;
mod whole_node;
