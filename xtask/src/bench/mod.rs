//! `cargo xtask bench`: measurements on running programs. Nothing here passes or fails.
//!
//! ```text
//! agent ─► cost (of two processes) · inventory (of one probe) · latency (cause to effect on a cluster) ─► page (docs/benchmarks.md)
//! ```

mod agent;
mod cost;
mod distribution;
mod inventory;
mod latency;
mod page;

use clap::Subcommand;

/// What there is to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Memory, processor time and API calls of an agent and its probe; times from a cause in the hardware to its effect in Kubernetes.
    Agent(agent::Args),
}

impl Bench {
    /// Measures it.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Agent(args) => agent::run(args),
        }
    }
}
