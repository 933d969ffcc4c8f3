//! berth-controller: writes node labels, places models, serves the kinds.
//!
//! ```text
//! agents/ sessions ─┐                 ┌─► nodes/      labels
//! cluster/ watches ─┴─► the picture ──┼─► placement/  gated pod ─► node
//!                                     └─► kinds/      object ─► children, status
//! ```

mod agents;
mod args;
mod client;
mod cluster;
mod context;
mod events;
mod http;
mod kinds;
mod leader;
mod metrics;
mod nodes;
mod placement;
mod run;
mod trust;
mod watches;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Args, Command, Settings};

/// Threads for the work: more than four find nothing to do, one would let a long computation hold up the Lease.
const MOST_WORKERS: usize = 4;

fn main() -> anyhow::Result<()> {
    // Before anything speaks TLS: two providers in one process are a panic at the first handshake.
    let installed = rustls::crypto::ring::default_provider().install_default();
    anyhow::ensure!(installed.is_ok(), "a TLS provider was installed before ours");
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, MOST_WORKERS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        match args.command.unwrap_or(Command::Run) {
            Command::Run => run::run(args.settings).await,
            Command::Release => release(&args.settings).await,
        }
    });
    // Blocking calls that hang (name resolution) must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn release(settings: &Settings) -> anyhow::Result<()> {
    let client = client::connect().await?;
    // A controller that still runs would put every taint back at once.
    placement::release::stop_controller(&client, settings).await?;
    // Side by side: gates that are slow to go, or stay, keep no taint. The next try may not come.
    let (gates, taints) = tokio::join!(
        placement::release::release(client.clone()),
        nodes::take_all_taints(&client)
    );
    if let Err(left) = &taints {
        tracing::error!("{left}");
    }
    gates?;
    taints.map_err(anyhow::Error::msg)
}
