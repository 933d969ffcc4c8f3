//! Calls into NVML, each with a deadline, and the threads that did not come back from one.

use std::time::{Duration, Instant};

use berth_core::facts::{NvmlState, NvmlStatus, Round};

use super::Keeper;
use crate::inforom::Validation;
use crate::pace;
use crate::session::{Broken, Session};
use crate::worker::{CallClock, NoAnswer};

impl Keeper {
    /// Reads from the open session; whatever goes wrong ends up in the state.
    pub(super) async fn read<T: Send + 'static>(
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

    /// A round of checks, without what takes long; `slow`: that is begun.
    pub(super) async fn check(&mut self, slow: bool) -> Option<Round> {
        let is_under_way = self.holders.validate();
        // One under way answers whoever asks meanwhile, unless what it finds is told to nobody any more.
        self.owes_validation |= slow && !(is_under_way && self.validation.is_some());
        // Nor where NVML is to be opened anew first: it would have to wait for this.
        let begin = (self.owes_validation && !is_under_way && !self.outdated).then(|| self.holders.clone());
        let (round, begun) = self
            .read(move |session, clock| {
                let round = session.checks(clock)?;
                // After the readings, so that they do not wait for it.
                Ok((round, begin.and_then(|holders| Validation::start(session, &holders))))
            })
            .await?;
        if begun.is_some() {
            self.validation = begun;
            self.owes_validation = false;
        }
        Some(round)
    }

    /// Time that one call may take. While a call that may take long is under way the driver may keep others waiting: that is no hang.
    pub(super) fn patience(&self) -> Duration {
        self.call_timeout + self.holders.slow_call_may_take()
    }

    /// So long, or as much of it as the step has left.
    pub(super) fn within(&self, wanted: Duration) -> Duration {
        wanted.min(self.until.saturating_duration_since(Instant::now()))
    }

    /// Leaves the current thread behind.
    pub(super) fn lose_worker(&mut self, why: NoAnswer) {
        self.retire_watchers();
        // Perhaps it was the validation that the driver hangs in: the next is for who asks the next time.
        self.owes_validation = false;
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
    pub(super) async fn take_back(&mut self, id: u64) {
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
}
