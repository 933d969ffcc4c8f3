//! Opening NVML: when it is tried, how a try ends, and when what is open is opened anew.

use std::time::{Duration, Instant};

use berth_core::facts::{NvmlState, NvmlStatus};

use super::Keeper;
use crate::feed::Item;
use crate::library::{DEVICES, Found};
use crate::session::Session;
use crate::signs::Sign;
use crate::watcher::Watcher;
use crate::worker::Worker;
use crate::{bound, pace, system_events};

impl Keeper {
    /// One step towards an open NVML, where it is not open and may be.
    pub(super) async fn keep_open(&mut self) {
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

    pub(super) async fn open(&mut self, found: Found) {
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

    /// NVML lists the GPUs that it found when it was opened. Those that the driver serves may be others by now.
    pub(super) async fn compare_bound(&mut self) {
        // Where the list is known to be old, it is made anew as soon as that is possible.
        if self.status.state == NvmlState::Ready && !self.outdated && bound::functions(&self.sysfs) != self.bound {
            self.reopen("the driver serves other functions").await;
        }
    }

    /// Closes NVML and opens it again. Who asks meanwhile waits, so that the state between is nobody's.
    pub(super) async fn reopen(&mut self, why: &str) {
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

    /// Whether an earlier session has not let go of the library: a worker that opens it then is not the one that initialises it.
    pub(super) fn is_held(&self) -> bool {
        !self.stuck.is_empty() || self.holders.are_leaving()
    }

    pub(super) fn pause(&self) -> Duration {
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
    pub(super) fn is_looking(&self) -> bool {
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

    pub(super) async fn on_sign(&mut self, sign: Sign) {
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
}
