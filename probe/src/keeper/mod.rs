//! The owner of NVML's state: opens it when that becomes possible, asks it with a deadline, leaves stuck threads behind.
//!
//! ```text
//!                     file or driver appears                 call past its deadline
//!  NoLibrary, NoDriver, ───────────────────► Ready ──────────────────────────────► Hung
//!  VersionMismatch, Error ◄───────────────     │ ▲   a new thread, or the stuck one, ──┘
//!                          NVML says so        │ │   opens and reads all GPUs
//!                                     Release ▼ │ Resume
//!        Released, or ReleaseBlocked for as long as a stuck call holds the driver
//! ```
//!
//! That the driver was let go of outlives the process, as a file beside the socket: a probe that starts anew in the middle of an upgrade
//! does not take it again.
//!
//! Where it is not open, signs (the kernel's word, a file, a mount) say when to try, and time in case there was none. Where it is open, it is
//! opened anew when the driver takes or gives up a GPU.

mod commands;
mod opening;
mod reading;
mod releasing;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth_core::facts::{NvmlState, NvmlStatus};
use tokio::sync::mpsc;

use self::commands::Command;
pub use self::commands::{Ending, Handle};
use crate::args::Serve;
use crate::feed::{Feed, Item};
use crate::holders::Holders;
use crate::inforom::Validation;
use crate::library::{Found, Search};
use crate::pace;
use crate::signs::{Sign, Signs};
use crate::watcher::Watcher;
use crate::worker::Worker;

/// Starts the keeper's task.
pub fn start(args: &Serve, feed: Feed) -> Handle {
    let (handle, commands) = commands::channel();
    let letting_go = args.socket.with_extension(releasing::LETTING_GO);
    let (back, came_back) = mpsc::unbounded_channel();
    // One that waits says as much as many.
    let (news, bindings) = mpsc::channel(1);
    let keeper = Keeper {
        signs: Signs::new(),
        sysfs: args.sysfs_root.clone(),
        news,
        search: Search::new(args.nvml_lib.clone(), args.driver_root.clone()),
        call_timeout: args.call_timeout,
        until: Instant::now(),
        holders: Holders::new(args.call_timeout, args.slow_call_timeout),
        validation: None,
        owes_validation: false,
        feed,
        back,
        next_id: 1,
        worker: None,
        stuck: Vec::new(),
        watchers: Vec::new(),
        bound: BTreeSet::new(),
        outdated: false,
        status: NvmlStatus::default(),
        seen: None,
        try_at: Instant::now(),
        eager_until: Instant::now(),
        told: false,
        hangs: 0,
        let_go: letting_go.exists(),
        letting_go,
    };
    tokio::spawn(keeper.run(commands, came_back, bindings));
    handle
}

/// What the keeper is woken by.
enum Next {
    CameBack(u64),
    Binding,
    Command(Command),
    Sign(Sign),
}

struct Keeper {
    signs: Signs,
    /// Whether all that is waited for can be: signs tell of every file.
    told: bool,
    sysfs: PathBuf,
    /// How a watcher says that the driver took or gives up a GPU.
    news: mpsc::Sender<()>,
    search: Search,
    call_timeout: Duration,
    /// When the step under way is to be over, whatever its calls might take: others wait for it.
    until: Instant,
    /// Threads that hold the library beside the worker, those that were asked to let go of it, too.
    holders: Holders,
    /// The infoROMs' last validation, under way or done.
    validation: Option<Validation>,
    /// One was asked for and not begun, or its answers were lost when NVML was closed: whoever asked does not ask again for long.
    owes_validation: bool,
    feed: Feed,
    back: mpsc::UnboundedSender<u64>,
    next_id: u64,
    /// The thread that calls are made on. `None`: none was needed yet, or the last one is stuck.
    worker: Option<Worker>,
    stuck: Vec<Worker>,
    watchers: Vec<Watcher>,
    /// Functions that the driver served when NVML listed its GPUs.
    bound: BTreeSet<String>,
    /// The driver may serve others by now, and NVML could not list them anew: threads held the library.
    outdated: bool,
    status: NvmlStatus,
    /// What the last look at the file system found, when it led to a try.
    seen: Option<Found>,
    /// When to try next if nothing changes before.
    try_at: Instant,
    /// Until then, failures are soon tried again.
    eager_until: Instant,
    /// Hangs since NVML was ready last.
    hangs: u32,
    /// The driver is not to be held.
    let_go: bool,
    /// There while it is not.
    letting_go: PathBuf,
}

impl Keeper {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut came_back: mpsc::UnboundedReceiver<u64>,
        mut bindings: mpsc::Receiver<()>,
    ) {
        loop {
            self.until = Instant::now() + pace::STEP;
            self.keep_open().await;
            let next = tokio::select! {
                biased;
                Some(id) = came_back.recv() => Next::CameBack(id),
                Some(()) = bindings.recv() => Next::Binding,
                // Before the signs: a folder may be busy for ever.
                command = commands.recv() => match command {
                    Some(command) => Next::Command(command),
                    None => return,
                },
                sign = self.signs.next(self.is_looking()) => Next::Sign(sign),
                () = tokio::time::sleep(self.pause()) => continue,
            };
            self.until = Instant::now() + pace::STEP;
            match next {
                Next::CameBack(id) => self.take_back(id).await,
                Next::Binding => self.reopen("NVML tells of a driver binding").await,
                Next::Command(command) => self.answer(command).await,
                Next::Sign(sign) => self.on_sign(sign).await,
            }
        }
    }

    fn set(&mut self, state: NvmlState, message: impl Into<String>) {
        let status = NvmlStatus {
            state,
            message: message.into(),
        };
        if self.status != status {
            tracing::info!(state = %status.state, message = status.message, "NVML");
            self.status = status.clone();
            self.feed.tell(Item::State(status));
        }
    }
}
