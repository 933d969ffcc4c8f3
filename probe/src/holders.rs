//! Threads that hold the library beside the worker: each is known from before it starts until it has let go, whoever still listens to who
//! started it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::worker::{CallClock, STACK};

/// One wait for events. An event ends it at once; without any it bounds how long giving up the driver takes, and so how soon a GPU that was
/// bound is seen.
pub const WAIT: Duration = Duration::from_millis(250);

/// One wait for news of which the rest of it is no news: it need not be short, because what it waits for is itself the reason to let go. No
/// thread waits longer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It waits for events, so long at a time.
    Events(Duration),
    /// It validates infoROMs: calls that may take the driver long.
    Inforom,
}

/// All such threads.
#[derive(Debug, Clone)]
pub struct Holders {
    call_timeout: Duration,
    slow_call_timeout: Duration,
    all: Arc<Mutex<Vec<Arc<Holder>>>>,
}

/// What both ends of such a thread see.
#[derive(Debug)]
pub struct Holder {
    work: Work,
    /// Its calls may take so long.
    deadline: Duration,
    stop: AtomicBool,
    ended: AtomicBool,
    /// The clock of the thread's calls.
    pub clock: CallClock,
}

impl Holder {
    /// Asks the thread to end after its current call.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether the thread is asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether the thread has let go of the library.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether its current call has passed its deadline.
    pub fn is_stuck(&self) -> bool {
        self.taking().is_some_and(|taking| taking > self.deadline)
    }

    fn taking(&self) -> Option<Duration> {
        self.clock.current().map(|(_, since)| since.elapsed())
    }
}

/// Says that the thread has ended, also when it panics.
struct Ending(Arc<Holder>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl Holders {
    /// Deadlines of a call, and of one that may take long.
    pub fn new(call_timeout: Duration, slow_call_timeout: Duration) -> Self {
        Self {
            call_timeout,
            slow_call_timeout,
            all: Arc::default(),
        }
    }

    /// Starts a thread. When `run` is over it holds nothing of the library. `None`: the system has no thread for it.
    pub fn spawn(&self, name: &str, work: Work, run: impl FnOnce(&Holder) + Send + 'static) -> Option<Arc<Holder>> {
        let holder = Arc::new(Holder {
            work,
            deadline: match work {
                Work::Events(wait) => self.call_timeout + wait,
                Work::Inforom => self.slow_call_timeout,
            },
            stop: AtomicBool::default(),
            ended: AtomicBool::default(),
            clock: CallClock::default(),
        });
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&holder));
        // Dropped with the closure where there is no thread.
        let ending = Ending(Arc::clone(&holder));
        let started = std::thread::Builder::new()
            .name(name.into())
            .stack_size(STACK)
            .spawn(move || {
                // Whole, so that it is dropped after all that `run` has.
                let ending = ending;
                run(&ending.0);
            });
        match started {
            Ok(_) => Some(holder),
            Err(error) => {
                tracing::error!(%error, name, "no thread");
                None
            }
        }
    }

    /// Those that have not let go.
    fn left(&self) -> Vec<Arc<Holder>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|holder| !holder.has_ended());
        all.clone()
    }

    /// Whether all have let go.
    pub fn are_gone(&self) -> bool {
        self.left().is_empty()
    }

    /// Whether threads that were asked to let go have not: they hold what an earlier session opened.
    pub fn are_leaving(&self) -> bool {
        self.left().iter().any(|holder| holder.is_stopped())
    }

    /// Whether infoROMs are being validated, or a thread is left behind in that.
    pub fn validate(&self) -> bool {
        self.left().iter().any(|holder| holder.work == Work::Inforom)
    }

    /// Calls past their deadlines.
    pub fn stuck(&self) -> usize {
        self.left().iter().filter(|holder| holder.is_stuck()).count()
    }

    /// What each is in: the name of a call, or `None` between two.
    pub fn current_calls(&self) -> Vec<Option<&'static str>> {
        let call = |holder: &Arc<Holder>| holder.clock.current().map(|(call, _)| call);
        self.left().iter().map(call).collect()
    }

    /// For how long a slow call that is under way may still take; zero: there is none.
    pub fn slow_call_may_take(&self) -> Duration {
        let left = self.left();
        let slow = left.iter().filter(|holder| holder.work == Work::Inforom);
        let rest = slow.filter_map(|holder| Some(holder.deadline.saturating_sub(holder.taking()?)));
        rest.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_thread_that_nobody_listens_to_holds_until_it_ends_and_one_that_panics_does_not_hold_for_ever() {
        let holders = Holders::new(Duration::ZERO, Duration::from_secs(60));
        let (end, ended) = mpsc::channel::<()>();
        let run = move |me: &Holder| me.clock.run("nvmlA", || assert!(ended.recv().is_ok()));
        drop(holders.spawn("a", Work::Inforom, run));
        assert!(!holders.are_gone() && holders.validate());
        drop(holders.spawn("b", Work::Events(WAIT), |_| panic!("for the test")));
        let start = std::time::Instant::now();
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
        };
        until(&|| holders.current_calls() == [Some("nvmlA")]);
        assert!(holders.slow_call_may_take() > Duration::ZERO);
        assert_eq!(holders.stuck(), 0);
        end.send(()).unwrap();
        until(&|| holders.are_gone());
        assert_eq!(
            (holders.validate(), holders.slow_call_may_take()),
            (false, Duration::ZERO)
        );
    }
}
