//! berth-agent: tells the controller what this node's hardware is, how healthy and how busy. It has no privilege and no Kubernetes rights.
//!
//! ```text
//! sysfs ─► scan on the kernel's word ──┐
//! probe's socket ─► probe (4 tasks) ──┴─► observer ─► picture ─► link (one stream) ─► controller
//!                                                        └─────► http: /livez /readyz /metrics
//! ```
//!
//! Nothing here waits for the hardware: the picture always holds the last that was read, with its age.

mod args;
mod backoff;
mod check;
mod dead_band;
mod facts;
mod handover;
mod http;
mod labels;
mod link;
mod metrics;
mod observer;
mod own_probe;
mod picture;
mod pods;
mod probe;
mod ring;
mod session;
mod sysfs;
mod uevent;
mod xids;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{Args, Command, Run};
use crate::metrics::Metrics;
use crate::picture::Picture;

/// `EX_USAGE`: the codes from 0 on are verdicts of `check`.
const WRONG_USAGE: u8 = 64;
/// `check` could not tell.
const CANNOT_TELL: u8 = 3;

fn main() -> anyhow::Result<ExitCode> {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            error.print().context("writing the usage")?;
            return Ok(ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 }));
        }
    };
    match args.command {
        Command::Run(args) => {
            let rust_log = std::env::var("RUST_LOG").ok();
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false);
            tracing_subscriber::registry()
                .with(lines)
                .with(args::log_filter(rust_log.as_deref(), args.log_level))
                .init();
            // As a task: waking what the runtime itself is blocked on costs a system call each time.
            on_one_thread(async { tokio::spawn(run(args)).await? }).map(|()| ExitCode::SUCCESS)
        }
        Command::Labels(args) => on_one_thread(labels::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => Ok(on_one_thread(check::run(args)).unwrap_or_else(|error| {
            eprintln!("berth-agent: {error:#}");
            ExitCode::from(CANNOT_TELL)
        })),
    }
}

fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        // Name look-ups alone run there, one at a time.
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

async fn run(args: Run) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let metrics = Arc::new(Metrics::new(args.node_name()));
    let picture = Picture::new();
    let listener = match TcpListener::bind(args.http_address).await {
        // A host without IPv6 at all: the wildcard of the other family is meant as well.
        Err(_) if args.http_address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.http_address.port())).await
        }
        bound => bound,
    }
    .with_context(|| format!("listening on {}", args.http_address))?;
    tracing::info!(http = %listener.local_addr().context("reading the address listened on")?, "berth-agent runs");
    let probe = probe::Probe::new(args.probe_socket.clone());
    let observer = observer::start(args.sysfs_root.clone(), probe, picture.clone(), metrics.clone());
    tokio::select! {
        never = link::run(args.link(), picture.clone(), observer, metrics.clone()) => match never {},
        served = http::serve(listener, metrics, picture.clone()) => served.context("serving HTTP"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
