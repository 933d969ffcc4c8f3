//! berth-controller: writes node labels, places models, serves the kinds.
//!
//! ```text
//! agents/ sessions ─┐                 ┌─► nodes/      labels
//! cluster/ watches ─┴─► the picture ──┼─► placement/  gated pod ─► node
//!                                     └─► kinds/      object ─► children, status
//! ```
#![allow(dead_code)]

mod args;
mod cluster;
mod context;
mod events;
mod kinds;
mod nodes;
mod placement;

fn main() {}
