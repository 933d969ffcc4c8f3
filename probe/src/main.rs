//! berth-probe: the only process that touches NVML. It serves facts, samples and events on a unix socket to the agent beside it.
//!
//! ```text
//! socket ─► service ─► keeper (one task, owns the state) ─► worker (OS thread) ─► session ─► NVML
//!           │  ▲                                               │ registers
//!           │  └──────────── feed ◄──────────── watcher, system_events (OS threads) ◄── NVML events
//!           │                  ▲
//!           │                  └──────── kernel_log (OS thread) ◄── /dev/kmsg
//!           └─► pods ─► podresources ─► kubelet's socket
//!                 └───► processes ─► /proc
//! ```
//!
//! NVML may block in the kernel for ever. So it is called on threads that nobody joins: the keeper waits for each call no longer than its
//! deadline, leaves a thread behind that does not come back (at most two), and goes on answering.
//!
//! `unsafe` is what it takes to call those parts of NVML that `nvml-wrapper` does not wrap, to hand an event set from one thread to
//! another, to have the runtime wait for descriptors, and to leave the process without running a stuck library's destructors.
#![allow(unsafe_code)]

mod args;
mod bound;
mod fabric_manager;
mod feed;
mod holders;
mod inforom;
mod keeper;
mod kernel_log;
mod library;
mod pace;
mod podresources;
mod pods;
mod processes;
mod service;
mod session;
mod signs;
mod system_events;
mod vgpu;
mod watcher;
mod worker;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{Args, Command, Serve};

fn main() -> anyhow::Result<()> {
    let Args {
        command: Command::Serve(serve),
    } = Args::parse();
    let rust_log = std::env::var("RUST_LOG").ok();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(args::log_filter(rust_log.as_deref(), serve.log_level))
        .init();
    limit_heap();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        // As a task: waking what the runtime itself is blocked on costs a system call each time.
        .block_on(async { tokio::spawn(run(serve)).await })?
}

async fn run(serve: Serve) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let feed = feed::Feed::new();
    let keeper = keeper::start(&serve, feed.clone());
    if let Some(path) = serve.kernel_log.clone() {
        kernel_log::start(path, feed.clone());
    }
    let pods = pods::Pods {
        kubelet: serve.pod_resources.clone(),
        processes: serve.proc_root.clone().map(|proc| {
            processes::Lookup::new(processes::Places {
                proc,
                pod_logs: serve.pod_logs.clone(),
            })
        }),
    };
    let vgpus = vgpu::Vgpus::new(serve.sysfs_root.clone());
    let fabric_manager = fabric_manager::FabricManager::new(&serve.driver_root, &serve.sysfs_root);
    if serve.until_stdin_ends {
        std::thread::spawn(|| {
            // What is written there is of no interest.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            leave()
        });
    }
    let serving = service::serve(
        &serve.socket,
        service::Service {
            keeper,
            feed,
            vgpus: Arc::new(vgpus),
            fabric_manager,
            pods,
        },
    );
    tokio::select! {
        result = serving => result.with_context(|| format!("serving on {}", serve.socket.display())),
        _ = terminate.recv() => leave(),
        _ = interrupt.recv() => leave(),
    }
}

/// Ends the process at once. Not `exit`: that would run the destructors of a driver library in which a thread may be stuck with its locks held.
fn leave() -> ! {
    tracing::info!("asked to end");
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(0) }
}

/// The threads here are few and idle. One heap for all of them keeps glibc from giving each its own, and freed memory goes back early.
fn limit_heap() {
    // SAFETY: sets two numbers of the allocator, before any other thread runs.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
    }
}
