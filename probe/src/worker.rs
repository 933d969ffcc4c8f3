//! A thread that makes NVML calls, and the clock by which others see how long the current one takes.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc as async_mpsc, oneshot};

use crate::session::Session;

/// Which call a thread is in, and since when.
#[derive(Debug, Clone, Default)]
pub struct CallClock(Arc<Mutex<Option<(&'static str, Instant)>>>);

impl CallClock {
    /// Makes one NVML call.
    pub fn run<R>(&self, call: &'static str, f: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        self.set(Some((call, begun)));
        let result = f();
        self.set(None);
        tracing::trace!(
            call,
            us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            "NVML"
        );
        result
    }

    fn set(&self, to: Option<(&'static str, Instant)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// The call that is being made, and since when.
    pub fn current(&self) -> Option<(&'static str, Instant)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a thread gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// A call, or a batch of them, passed its deadline. The thread may come back.
    #[error("{call} has not come back for {} ms", after.as_millis())]
    Hung {
        /// C name of the call.
        call: &'static str,
        /// Time waited.
        after: Duration,
    },
    /// The thread is gone: it panicked.
    #[error("the NVML thread crashed")]
    Crashed,
}

type Job = Box<dyn FnOnce(&mut Option<Session>) -> Unheard + Send>;

/// Whether the one who asked had stopped listening when the answer was ready.
type Unheard = bool;

/// A thread with at most one open session.
#[derive(Debug)]
pub struct Worker {
    /// Tells threads apart.
    pub id: u64,
    jobs: mpsc::Sender<Job>,
    clock: CallClock,
}

/// Stack of a thread that calls into the driver's library. Reserved, not used: what counts is what the deepest call touches (the loader's
/// table of some 400 symbols passes over the stack more than once).
pub const STACK: usize = 2 * 1024 * 1024;

impl Worker {
    /// Starts a thread. It says its id to `back` whenever it comes back from a job that was given up.
    pub fn start(id: u64, back: async_mpsc::UnboundedSender<u64>) -> std::io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name(format!("nvml-{id}"))
            .stack_size(STACK)
            .spawn(move || {
                let mut session = None;
                for job in todo {
                    if job(&mut session) {
                        // The keeper is gone only when the process ends.
                        let _ = back.send(id);
                    }
                }
            })?;
        Ok(Self {
            id,
            jobs,
            clock: CallClock::default(),
        })
    }

    /// Name of the call that it is in.
    pub fn current_call(&self) -> Option<&'static str> {
        self.clock.current().map(|(call, _)| call)
    }

    /// Runs a job and waits for it: each NVML call in it may take `per_call`, all together `in_all`.
    pub async fn ask<R: Send + 'static>(
        &self,
        per_call: Duration,
        in_all: Duration,
        job: impl FnOnce(&mut Option<Session>, &CallClock) -> R + Send + 'static,
    ) -> Result<R, NoAnswer> {
        let (answer, mut answered) = oneshot::channel();
        let clock = self.clock.clone();
        let start = Instant::now();
        let job: Job = Box::new(move |session| answer.send(job(session, &clock)).is_err());
        self.jobs.send(job).map_err(|_| NoAnswer::Crashed)?;
        loop {
            let now = Instant::now();
            let (call, since) = self.clock.current().unwrap_or(("the worker", now));
            let deadline = (since + per_call).min(start + in_all);
            if now >= deadline {
                // After this either the answer is here, or the thread will find nobody listening and say that it is back.
                answered.close();
                return answered.try_recv().map_err(|_| NoAnswer::Hung {
                    call,
                    after: now.saturating_duration_since(since.max(start)),
                });
            }
            tokio::select! {
                result = &mut answered => return result.map_err(|_| NoAnswer::Crashed),
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(40);
    const LONG: Duration = Duration::from_secs(60);

    fn worker() -> (Worker, async_mpsc::UnboundedReceiver<u64>) {
        let (back, came_back) = async_mpsc::unbounded_channel();
        (Worker::start(7, back).unwrap(), came_back)
    }

    #[tokio::test]
    async fn a_stuck_call_is_named_and_its_thread_says_when_it_is_back() {
        let (worker, mut came_back) = worker();
        assert_eq!(worker.ask(LONG, LONG, |_, clock| clock.run("nvmlA", || 1)).await, Ok(1));
        let (release, held) = mpsc::channel::<()>();
        let stuck = worker.ask(SHORT, LONG, move |_, clock| {
            clock.run("nvmlA", || ());
            clock.run("nvmlB", || held.recv().is_ok());
        });
        match stuck.await {
            Err(NoAnswer::Hung { call: "nvmlB", after }) => assert!(after >= SHORT),
            other => panic!("{other:?}"),
        }
        assert!(came_back.try_recv().is_err());
        release.send(()).unwrap();
        assert_eq!(came_back.recv().await, Some(7));
        assert_eq!(worker.ask(LONG, LONG, |_, _| 2).await, Ok(2));
    }

    #[tokio::test]
    async fn calls_that_are_each_in_time_may_still_take_too_long_together() {
        let (worker, _) = worker();
        let slow = worker.ask(LONG, SHORT, |_, clock| {
            for _ in 0..20 {
                clock.run("nvmlA", || std::thread::sleep(SHORT / 4));
            }
        });
        assert!(matches!(slow.await, Err(NoAnswer::Hung { .. })));
    }

    #[tokio::test]
    async fn a_panic_is_not_a_hang() {
        let (worker, _) = worker();
        let crash = worker.ask(LONG, LONG, |_, _| -> u32 { panic!("for the test") });
        assert_eq!(crash.await, Err(NoAnswer::Crashed));
        assert_eq!(worker.ask(LONG, LONG, |_, _| ()).await, Err(NoAnswer::Crashed));
    }
}
