//! Says which step is under way, how long it takes, and what was there already.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A step that lasts longer says so every so often.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Where progress is shown, and how far it has come.
#[derive(Clone)]
pub struct Progress {
    sink: Arc<dyn Fn(&str) + Send + Sync>,
    done: Arc<AtomicUsize>,
    total: usize,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({}/{})", self.done.load(Ordering::Relaxed), self.total)
    }
}

impl Progress {
    /// Lines go to `sink`; there will be `total` steps.
    pub fn new(total: usize, sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            sink: Arc::new(sink),
            done: Arc::new(AtomicUsize::new(0)),
            total,
        }
    }

    /// Lines go to stdout.
    pub fn stdout(total: usize) -> Self {
        // Nobody reading any more is no reason to stop.
        Self::new(total, |line| drop(writeln!(std::io::stdout(), "{line}")))
    }

    /// Lines go nowhere.
    pub fn silent() -> Self {
        Self::new(0, |_| {})
    }

    /// A line that is no step.
    pub fn say(&self, line: &str) {
        (self.sink)(line);
    }

    /// A step that needs no work.
    pub fn skip(&self, name: &str, why: &str) {
        let step = self.next();
        self.say(&format!("{step} {name:<26} {why}"));
    }

    /// Begins a step; end it with [`Step::done`].
    pub fn begin(&self, name: &str, doing: &str) -> Step {
        let step = self.next();
        if !doing.is_empty() {
            self.say(&format!("{step} {name:<26} {doing}"));
        }
        Step {
            progress: self.clone(),
            step,
            name: name.to_owned(),
            started: Instant::now(),
        }
    }

    fn next(&self) -> String {
        let n = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        format!("[{n:>2}/{}]", self.total.max(n))
    }
}

/// A step under way.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    step: String,
    name: String,
    started: Instant,
}

impl Step {
    /// Waits for the work of this step, and says every 20 s that it is still under way.
    pub async fn watch<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut beat = tokio::time::interval_at((self.started + HEARTBEAT).into(), HEARTBEAT);
        loop {
            tokio::select! {
                out = &mut work => return out,
                _ = beat.tick() => self.progress.say(&format!(
                    "{} {:<26} … {} s", self.step, self.name, self.started.elapsed().as_secs()
                )),
            }
        }
    }

    /// Ends the step.
    pub fn done(self, result: &str) {
        let elapsed = self.started.elapsed().as_secs_f32();
        self.progress
            .say(&format!("{} {:<26} {result} ({elapsed:.1} s)", self.step, self.name));
    }
}
