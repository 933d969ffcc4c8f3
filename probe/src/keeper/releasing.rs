//! Letting go of the driver, so that it can be unloaded, and taking it again.

use std::time::{Duration, Instant};

use berth_core::facts::{NvmlState, NvmlStatus};

use super::Keeper;
use super::commands::Release;
use crate::holders::LONGEST_WAIT;
use crate::session::Session;
use crate::worker::{CallClock, NoAnswer, Worker};

/// Extension of the file beside the socket that is there while the driver is not to be held.
pub(super) const LETTING_GO: &str = "released";

impl Keeper {
    pub(super) async fn release(&mut self) -> Release {
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
    pub(super) fn say_released(&mut self) {
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

    pub(super) async fn resume(&mut self) {
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

    /// Closes the session, if any, within the deadline.
    pub(super) async fn close(&mut self) {
        self.retire_watchers();
        let Some(worker) = &self.worker else { return };
        if let Err(no_answer) = self.close_on(worker).await {
            self.lose_worker(no_answer);
        }
    }

    /// Closes a thread's session, if it has one, within the deadline.
    pub(super) async fn close_on(&self, worker: &Worker) -> Result<(), NoAnswer> {
        let allowed = self.within(self.call_timeout);
        let shut = |slot: &mut Option<Session>, clock: &CallClock| clock.run("nvmlShutdown", || *slot = None);
        worker.ask(allowed, allowed, shut).await
    }

    /// Waits for threads that were asked to let go of the library, no longer than their last call may take.
    pub(super) async fn holders_gone(&mut self) {
        let patience = Instant::now() + self.within(LONGEST_WAIT + self.call_timeout);
        while !self.holders.are_gone() && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The threads that share the session's library are asked to let go of it.
    pub(super) fn retire_watchers(&mut self) {
        self.watchers.clear();
        // What was found is of GPUs that may be others when the driver is back. What was not told is found anew then.
        let lost = self.validation.take().is_some_and(|validation| validation.is_awaited());
        self.owes_validation |= lost;
    }
}
