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

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth_core::facts::{NvmlState, NvmlStatus, Round};
use tokio::sync::{mpsc, oneshot};

use crate::args::Serve;
use crate::feed::{Feed, Item};
use crate::holders::{Holders, LONGEST_WAIT};
use crate::inforom::Validation;
use crate::library::{DEVICES, Found, Search};
use crate::processes::OnGpu;
use crate::session::{Broken, Inventory, Readings, Session};
use crate::signs::{Sign, Signs};
use crate::watcher::Watcher;
use crate::worker::{CallClock, NoAnswer, Worker};
use crate::{bound, pace, system_events};

/// An answer, with the state it was given in.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// NVML's state.
    pub status: NvmlStatus,
    /// Present when the state is ready.
    pub found: Option<T>,
    /// Calls that are left behind and have not come back.
    pub stuck_calls: u32,
}

/// Whether the driver can be unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `false`: a stuck call still holds it.
    pub released: bool,
    /// For people.
    pub message: String,
}

enum Command {
    Inventory(oneshot::Sender<Answer<Inventory>>),
    Sample(oneshot::Sender<Answer<Readings>>),
    Checks(bool, oneshot::Sender<Answer<Round>>),
    Processes(oneshot::Sender<Answer<Vec<OnGpu>>>),
    Release(oneshot::Sender<Release>),
    Resume(oneshot::Sender<NvmlStatus>),
}

/// How the socket's calls reach the keeper.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

/// Extension of the file beside the socket that is there while the driver is not to be held.
const LETTING_GO: &str = "released";

/// Callers that wait for the keeper. There is one agent, which asks one thing at a time.
const QUEUE: usize = 8;

/// The keeper's task is gone: the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("the probe is ending")]
pub struct Ending;

impl Handle {
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ending> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }

    /// Driver, GPUs, MIG.
    pub async fn inventory(&self) -> Result<Answer<Inventory>, Ending> {
        self.ask(Command::Inventory).await
    }

    /// One reading of every GPU.
    pub async fn sample(&self) -> Result<Answer<Readings>, Ending> {
        self.ask(Command::Sample).await
    }

    /// What the health checks read; `slow`: begin what takes long, too.
    pub async fn checks(&self, slow: bool) -> Result<Answer<Round>, Ending> {
        self.ask(|reply| Command::Checks(slow, reply)).await
    }

    /// Processes on the GPUs.
    pub async fn processes(&self) -> Result<Answer<Vec<OnGpu>>, Ending> {
        self.ask(Command::Processes).await
    }

    /// Lets go of the driver and stays away from it.
    pub async fn release(&self) -> Result<Release, Ending> {
        self.ask(Command::Release).await
    }

    /// Opens the driver again.
    pub async fn resume(&self) -> Result<NvmlStatus, Ending> {
        self.ask(Command::Resume).await
    }
}

/// Starts the keeper's task.
pub fn start(args: &Serve, feed: Feed) -> Handle {
    let (send, commands) = mpsc::channel(QUEUE);
    let letting_go = args.socket.with_extension(LETTING_GO);
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
    Handle(send)
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

    /// So long, or as much of it as the step has left.
    fn within(&self, wanted: Duration) -> Duration {
        wanted.min(self.until.saturating_duration_since(Instant::now()))
    }

    fn pause(&self) -> Duration {
        let look = if self.told { pace::LOOK_WITH_SIGNS } else { pace::LOOK };
        match self.status.state {
            NvmlState::Ready if self.outdated => pace::LOOK,
            NvmlState::Ready | NvmlState::Released => pace::IDLE,
            NvmlState::Hung => pace::HUNG.min(self.call_timeout),
            NvmlState::ReleaseBlocked => pace::LOOK,
            NvmlState::NoLibrary | NvmlState::Unknown | NvmlState::ProbeUnavailable => look,
            NvmlState::NoDriver | NvmlState::VersionMismatch | NvmlState::Error => {
                let until_try = self.try_at.saturating_duration_since(Instant::now());
                until_try.clamp(pace::SHORTEST_PAUSE, look)
            }
        }
    }

    /// Whether a file may change anything.
    fn is_looking(&self) -> bool {
        match self.status.state {
            NvmlState::Ready | NvmlState::Released | NvmlState::ReleaseBlocked | NvmlState::Hung => false,
            NvmlState::Unknown
            | NvmlState::NoLibrary
            | NvmlState::NoDriver
            | NvmlState::VersionMismatch
            | NvmlState::ProbeUnavailable
            | NvmlState::Error => true,
        }
    }

    async fn on_sign(&mut self, sign: Sign) {
        tokio::time::sleep(pace::BURST).await;
        self.signs.forget();
        match sign {
            // What is there now is looked at anyhow.
            Sign::Files => {}
            Sign::Kernel => {
                self.seen = None;
                self.eager_until = Instant::now() + pace::EAGER;
                self.compare_bound().await;
            }
        }
    }

    /// NVML lists the GPUs that it found when it was opened. Those that the driver serves may be others by now.
    async fn compare_bound(&mut self) {
        // Where the list is known to be old, it is made anew as soon as that is possible.
        if self.status.state == NvmlState::Ready && !self.outdated && bound::functions(&self.sysfs) != self.bound {
            self.reopen("the driver serves other functions").await;
        }
    }

    /// Closes NVML and opens it again. Who asks meanwhile waits, so that the state between is nobody's.
    async fn reopen(&mut self, why: &str) {
        if self.status.state != NvmlState::Ready {
            return;
        }
        tracing::info!(why, "NVML is opened anew");
        // Until it has listed the GPUs anew.
        self.outdated = true;
        self.close().await;
        self.holders_gone().await;
        if self.status.state != NvmlState::Ready {
            return;
        }
        let found = self.search.look();
        self.open(found).await;
        if self.status.state == NvmlState::Ready {
            // No other state, but perhaps another inventory.
            self.feed.tell(Item::State(self.status.clone()));
        }
    }

    /// Waits for threads that were asked to let go of the library, no longer than their last call may take.
    async fn holders_gone(&mut self) {
        let patience = Instant::now() + self.within(LONGEST_WAIT + self.call_timeout);
        while !self.holders.are_gone() && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether an earlier session has not let go of the library: a worker that opens it then is not the one that initialises it.
    fn is_held(&self) -> bool {
        !self.stuck.is_empty() || self.holders.are_leaving()
    }

    async fn answer(&mut self, command: Command) {
        match command {
            // Nobody waits for it any more; do not let a slow driver pile up work.
            Command::Inventory(reply) if reply.is_closed() => {}
            Command::Sample(reply) if reply.is_closed() => {}
            Command::Checks(_, reply) if reply.is_closed() => {}
            Command::Processes(reply) if reply.is_closed() => {}
            Command::Processes(reply) => {
                let found = self.read(|session, clock| session.processes(clock)).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Checks(slow, reply) => {
                let mut found = self.check(slow).await;
                // Each answer goes out once, and not to somebody who has gone.
                if let (Some(round), Some(validation), false) = (&mut found, &self.validation, reply.is_closed()) {
                    validation.tell(round);
                }
                let _ = reply.send(self.with_state(found));
            }
            Command::Inventory(reply) => {
                self.compare_bound().await;
                let found = self.read(Session::inventory).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Sample(reply) => {
                let found = self.read(|session, clock| session.sample(clock)).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Release(reply) => {
                let release = self.release().await;
                let _ = reply.send(release);
            }
            Command::Resume(reply) => {
                if self.let_go {
                    self.resume().await;
                }
                let _ = reply.send(self.status.clone());
            }
        }
    }

    fn with_state<T>(&self, found: Option<T>) -> Answer<T> {
        Answer {
            status: self.status.clone(),
            found,
            stuck_calls: u32::try_from(self.stuck.len() + self.holders.stuck()).unwrap_or(u32::MAX),
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

    /// Time that one call may take. While a call that may take long is under way the driver may keep others waiting: that is no hang.
    fn patience(&self) -> Duration {
        self.call_timeout + self.holders.slow_call_may_take()
    }

    /// A round of checks, without what takes long; `slow`: that is begun.
    async fn check(&mut self, slow: bool) -> Option<Round> {
        let begin = (slow && !self.holders.validate()).then(|| self.holders.clone());
        let (round, begun) = self
            .read(move |session, clock| {
                let round = session.checks(clock)?;
                // After the readings, so that they do not wait for it.
                Ok((round, begin.and_then(|holders| Validation::start(session, &holders))))
            })
            .await?;
        if begun.is_some() {
            self.validation = begun;
        }
        Some(round)
    }

    /// Reads from the open session; whatever goes wrong ends up in the state.
    async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&mut Session, &CallClock) -> Result<T, Broken> + Send + 'static,
    ) -> Option<T> {
        if self.status.state != NvmlState::Ready {
            return None;
        }
        let patience = self.patience();
        let worker = self.worker.as_ref()?;
        let asked = worker
            .ask(self.within(patience), self.within(patience * 2), |session, clock| {
                session.as_mut().map(|session| read(session, clock))
            })
            .await;
        match asked {
            Ok(Some(Ok(found))) => return Some(found),
            Ok(Some(Err(broken))) => {
                let status = NvmlStatus::from(broken);
                self.close().await;
                if self.status.state != NvmlState::Hung {
                    self.set(status.state, status.message);
                }
                self.try_at = Instant::now() + pace::after_failure(Duration::ZERO);
            }
            Ok(None) => self.set(NvmlState::Unknown, "the session is closed"),
            Err(no_answer) => self.lose_worker(no_answer),
        }
        None
    }

    /// One step towards an open NVML, where it is not open and may be.
    async fn keep_open(&mut self) {
        if self.let_go {
            return self.say_released();
        }
        match self.status.state {
            NvmlState::Ready => {
                if self.outdated && !self.is_held() {
                    self.reopen("what held the library is gone").await;
                }
            }
            NvmlState::Released | NvmlState::ReleaseBlocked => {}
            NvmlState::Hung => {
                if Instant::now() >= self.try_at && (self.worker.is_some() || self.stuck.len() < pace::MAX_STUCK) {
                    let found = self.search.look();
                    self.open(found).await;
                }
            }
            NvmlState::Unknown
            | NvmlState::NoLibrary
            | NvmlState::NoDriver
            | NvmlState::VersionMismatch
            | NvmlState::ProbeUnavailable
            | NvmlState::Error => {
                // First, so that nothing falls in between.
                self.told = self.signs.watch(self.search.folders(), DEVICES);
                let found = self.search.look();
                let changed = self.seen.as_ref() != Some(&found);
                if found.libraries.is_empty() {
                    self.seen = Some(found);
                    self.set(
                        NvmlState::NoLibrary,
                        "libnvidia-ml.so.1 is in none of the places searched",
                    );
                } else if changed || Instant::now() >= self.try_at {
                    self.open(found).await;
                }
            }
        }
    }

    async fn open(&mut self, found: Found) {
        let candidates = found.libraries.clone();
        self.seen = Some(found);
        if self.worker.is_none() {
            match Worker::start(self.next_id, self.back.clone()) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    self.try_at = Instant::now() + pace::HUNG;
                    return self.set(NvmlState::Error, format!("no thread for NVML: {error}"));
                }
            }
            self.next_id += 1;
        }
        let Some(worker) = &self.worker else { return };
        let start = Instant::now();
        let (feed, news, holders) = (self.feed.clone(), self.news.clone(), self.holders.clone());
        // Before NVML looks: a change in between is one more reason to look.
        let bound = bound::functions(&self.sysfs);
        let is_held = self.is_held();
        // Initialising attaches every GPU, which without persistence mode takes a second each, in one call.
        let allowed = self.within(self.patience() * 2);
        let asked = worker
            .ask(allowed, allowed, move |slot, clock| {
                clock.run("nvmlShutdown", || *slot = None);
                let mut session = Session::open(&candidates, clock)?;
                // "Ready" is a promise: the readings must come, too, before it is given (again).
                session.sample(clock)?;
                let bindings = system_events::watch(&session, clock, feed.clone(), news, &holders);
                let faults = Watcher::start(&session, clock, feed, &holders).unwrap_or_else(|error| {
                    tracing::warn!(%error, "no events from this driver");
                    None
                });
                let library = session.library.clone();
                *slot = Some(session);
                Ok::<_, NvmlStatus>(([bindings, faults], library))
            })
            .await;
        match asked {
            Ok(Ok((watchers, library))) => {
                tracing::info!(library = %library.display(), "NVML is open");
                self.retire_watchers();
                self.watchers.extend(watchers.into_iter().flatten());
                if is_held {
                    // Initialised by an earlier worker, NVML lists the GPUs that there were then.
                    self.outdated |= self.bound != bound;
                } else {
                    self.outdated = false;
                    self.bound = bound;
                }
                self.hangs = 0;
                self.set(NvmlState::Ready, "");
            }
            Ok(Err(status)) => {
                let took = start.elapsed();
                let is_eager = start < self.eager_until;
                self.try_at = Instant::now() + pace::after_failure(if is_eager { Duration::ZERO } else { took });
                self.set(status.state, status.message);
            }
            Err(no_answer) => self.lose_worker(no_answer),
        }
    }

    /// Leaves the current thread behind.
    fn lose_worker(&mut self, why: NoAnswer) {
        self.retire_watchers();
        let worker = self.worker.take();
        let released = self.let_go;
        match why {
            NoAnswer::Hung { .. } => {
                self.stuck.extend(worker);
                self.hangs += 1;
                self.try_at = Instant::now() + pace::after_hang(self.call_timeout, self.hangs);
                // Still not ours to open again: the stuck call shows in the count alone.
                if !released {
                    self.set(NvmlState::Hung, why.to_string());
                }
            }
            NoAnswer::Crashed => {
                self.try_at = Instant::now() + pace::after_hang(self.call_timeout, 1);
                if !released {
                    self.set(NvmlState::Error, why.to_string());
                }
            }
        }
    }

    /// A thread that was left behind came back. Where there is no other, it is the one again, and NVML is tried on it at once.
    async fn take_back(&mut self, id: u64) {
        let Some(at) = self.stuck.iter().position(|w| w.id == id) else {
            return;
        };
        let worker = self.stuck.swap_remove(at);
        tracing::info!(stuck = self.stuck.len(), "a stuck NVML call came back");
        if self.let_go || self.worker.is_some() {
            // What it has open is closed before anybody is told that nothing is, and that is a call like any other.
            return match self.close_on(&worker).await {
                Ok(()) | Err(NoAnswer::Crashed) => {}
                Err(NoAnswer::Hung { .. }) => self.stuck.push(worker),
            };
        }
        self.worker = Some(worker);
        self.try_at = Instant::now();
    }

    /// The threads that share the session's library are asked to let go of it.
    fn retire_watchers(&mut self) {
        self.watchers.clear();
        // What was found is of GPUs that may be others when the driver is back.
        self.validation = None;
    }

    /// Closes the session, if any, within the deadline.
    async fn close(&mut self) {
        self.retire_watchers();
        let Some(worker) = &self.worker else { return };
        if let Err(no_answer) = self.close_on(worker).await {
            self.lose_worker(no_answer);
        }
    }

    async fn release(&mut self) -> Release {
        self.let_go = true;
        if let Err(error) = std::fs::write(&self.letting_go, "") {
            tracing::warn!(%error, "a probe that starts anew will take the driver again");
        }
        self.signs.unwatch();
        self.close().await;
        self.holders_gone().await;
        self.say_released();
        Release {
            released: self.status.state == NvmlState::Released,
            message: self.status.message.clone(),
        }
    }

    /// Says whether anything of this process still holds the driver.
    fn say_released(&mut self) {
        let workers = self.stuck.iter().map(Worker::current_call);
        let held: Vec<&str> = workers
            .chain(self.holders.current_calls())
            .map(|call| call.unwrap_or("nvmlShutdown"))
            .collect();
        if held.is_empty() {
            self.set(NvmlState::Released, "the driver was let go of on request");
        } else {
            let message = format!(
                "stuck NVML calls hold the driver, which cannot be unloaded until they come back: {}",
                held.join(", ")
            );
            self.set(NvmlState::ReleaseBlocked, message);
        }
    }

    async fn resume(&mut self) {
        self.let_go = false;
        match std::fs::remove_file(&self.letting_go) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a probe that starts anew will not take the driver");
            }
            _ => {}
        }
        self.seen = None;
        self.try_at = Instant::now();
        // No more threads than ever for a driver that does not answer.
        match self.stuck.first() {
            None => self.status = NvmlStatus::default(),
            Some(stuck) => {
                let call = stuck.current_call().unwrap_or("a call");
                self.set(NvmlState::Hung, format!("{call} has not come back"));
            }
        }
        self.keep_open().await;
    }

    /// Closes a thread's session, if it has one, within the deadline.
    async fn close_on(&self, worker: &Worker) -> Result<(), NoAnswer> {
        let allowed = self.within(self.call_timeout);
        let shut = |slot: &mut Option<Session>, clock: &CallClock| clock.run("nvmlShutdown", || *slot = None);
        worker.ask(allowed, allowed, shut).await
    }
}
