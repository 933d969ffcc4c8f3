//! The agent's picture of its node: written by the observer, read by the link whenever it has something to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_core::facts::{GpuChecks, GpuSample, NodeFacts};
use berth_core::health::{GpuHealth, NodeHealth, Recent, Tracker};
use tokio::sync::watch;

use crate::facts::Facts;
use crate::handover::Handover;
use crate::pods::Pods;
use crate::ring::Ring;
use crate::xids::Xids;

/// Counts of changes: what a session has sent is compared with these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revision {
    /// Facts changed.
    pub facts: u64,
    /// Health changed.
    pub health: u64,
    /// A round of readings came in.
    pub samples: u64,
    /// Events were added.
    pub events: u64,
}

/// Handle to the picture; clones are the same picture.
#[derive(Clone)]
pub struct Picture(Arc<Shared>);

struct Shared {
    epoch: Instant,
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
}

/// The picture itself.
#[derive(Default)]
pub struct State {
    /// What the hardware is.
    pub facts: Facts,
    /// How healthy.
    pub tracker: Tracker,
    /// What outlives this process.
    pub handover: Handover,
    /// Events not yet acknowledged.
    pub ring: Ring,
    /// Events of the last moments: what two sources tell of counts once.
    pub recent: Recent,
    /// Readings by UUID, with the time they came in; they had an age by then. Empty while NVML is away.
    pub samples: BTreeMap<String, (GpuSample, Duration)>,
    /// Who uses the GPUs. The readings have it on them.
    pub pods: Pods,
    /// When a round of readings came in last; it is kept while NVML is away.
    pub sampled: Option<Duration>,
    /// What the health checks read, by UUID, with the time it came in. Empty while NVML is away.
    pub checks: BTreeMap<String, (GpuChecks, Duration)>,
    /// When a round of checks came in last; it is kept while NVML is away.
    pub checked: Option<Duration>,
    /// XIDs so far.
    pub xids: Xids,
    /// Calls that the probe left behind.
    pub stuck_calls: u32,
    /// UUIDs that the last round of readings found lost.
    pub lost: Vec<String>,
    /// PCI functions changed since health was judged last.
    pub unjudged: bool,
    /// NVML's list lost a GPU then, and sysfs was not scanned since.
    pub unscanned: Option<Duration>,
    /// Health as of the last change of its revision.
    told: NodeHealth,
}

impl Picture {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            epoch: Instant::now(),
            state: Mutex::new(State {
                handover: Handover::new(),
                ..State::default()
            }),
            revision: watch::Sender::default(),
        }))
    }

    /// Time on the picture's clock.
    pub fn now(&self) -> Duration {
        self.0.epoch.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the picture.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the picture; whoever follows learns what kind of change it was. Health is derived, so its change is found by comparison.
    pub fn update<R>(&self, change: impl FnOnce(&mut State, &mut Revision, Duration) -> R) -> R {
        let now = self.now();
        let mut state = self.lock();
        let mut revision = *self.0.revision.borrow();
        let result = change(&mut state, &mut revision, now);
        if let Some(memory) = state.handover.take_over() {
            state.tracker.remember(memory);
        }
        let memory = state.tracker.memory();
        if state.handover.keep(memory) {
            revision.health += 1;
        }
        // Against what followers were told last, because health changes with time alone, too.
        let health = state.tracker.health(now);
        if !same_health(&state.told, &health) {
            state.told = health;
            revision.health += 1;
        }
        drop(state);
        self.0.revision.send_if_modified(|old| {
            let changed = *old != revision;
            *old = revision;
            changed
        });
        result
    }

    /// Counts as of now.
    pub fn revision(&self) -> Revision {
        *self.0.revision.borrow()
    }

    /// Follows changes.
    pub fn follow(&self) -> watch::Receiver<Revision> {
        self.0.revision.subscribe()
    }
}

impl State {
    /// Facts with ages as of `now`.
    pub fn node_facts(&self, now: Duration) -> NodeFacts {
        self.facts.at(now)
    }

    /// Readings with ages as of `now`.
    pub fn samples_at(&self, now: Duration) -> Vec<GpuSample> {
        self.samples
            .values()
            .map(|(sample, at)| GpuSample {
                age: sample.age + now.saturating_sub(*at),
                pods_age: sample.pods_age.map(|age| age + now.saturating_sub(*at)),
                ..sample.clone()
            })
            .collect()
    }
}

/// Equal but for the time that has passed.
fn same_health(a: &NodeHealth, b: &NodeHealth) -> bool {
    let timeless = |g: &GpuHealth| GpuHealth {
        since: Duration::ZERO,
        ..g.clone()
    };
    a.nvml == b.nvml && a.missing_gpus == b.missing_gpus && a.gpus.iter().map(timeless).eq(b.gpus.iter().map(timeless))
}
