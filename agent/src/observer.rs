//! Keeps the picture up to date: a scan of sysfs, and five conversations with the probe that do not wait for each other, so that an XID
//! gets through while a reading hangs.

#[cfg(test)]
mod order;
#[cfg(test)]
mod soak;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::facts::{
    GpuEvent, GpuSample, NvmlState, NvmlStatus, PciReadings, Round, SOURCE_KERNEL_LOG_EARLIER, Vgpu,
};
use berth_core::freshness;
use tokio::sync::{Notify, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::facts::Inventory;
use crate::metrics::Metrics;
use crate::picture::{Picture, Revision, State};
use crate::pods;
use crate::probe::{Answer, NoAnswer, Probe, Readings, Told};
use crate::sysfs::{self, Ask, Cause, Changes, Sysfs};

/// The first scan takes milliseconds.
const FIRST_SCAN: Duration = Duration::from_secs(1);
/// Pause before another look for a probe that is not there.
const RECONNECT: Duration = Duration::from_millis(500);
/// The inventory is read when something says that it changed, and this often in case nothing did.
const INVENTORY: Duration = Duration::from_secs(60);
/// The same while NVML is not ready.
const INVENTORY_NOT_READY: Duration = Duration::from_secs(5);
/// What changes slowly is read this often, and after each event.
const CHECKS: Duration = Duration::from_secs(15);
/// Events come in bursts, and the driver takes a moment to make up its mind.
const AFTER_EVENT: Duration = Duration::from_millis(200);
/// The infoROM's checksum takes the driver long.
const SLOW_CHECKS: Duration = Duration::from_secs(3600);
/// Pause before the probe is asked again to let go of the driver, or to take it, after it did not.
const DRIVER_AGAIN: Duration = Duration::from_secs(2);
/// Readings are taken this often unless the controller says otherwise.
const SAMPLE: Duration = Duration::from_secs(1);
/// Who uses the GPUs is asked this often, and when a process came or went. A pod may hold a GPU for long before any process shows.
const PODS: Duration = Duration::from_secs(5);
/// The same where it is nobody's to say: the probe may be replaced by one that is told to look.
const PODS_OFF: Duration = Duration::from_secs(60);
/// A scan of sysfs takes milliseconds. Where none succeeds, what NVML says is judged without.
const SCAN: Duration = Duration::from_secs(30);
/// Processes come and go in numbers.
const AFTER_PROCESS: Duration = Duration::from_secs(1);
/// What the controller may say.
const FASTEST_SAMPLE: Duration = Duration::from_millis(100);

/// What the controller wants of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// NVML may be open.
    Hold,
    /// It may not: the driver is about to be unloaded.
    LetGo,
}

/// What the controller can change.
#[derive(Clone)]
pub struct Handle {
    interval: watch::Sender<Duration>,
    driver: watch::Sender<Option<Driver>>,
}

impl Handle {
    /// Sets the time between readings; 0 is the default.
    pub fn set_interval(&self, ms: u64) {
        let wanted = match ms {
            0 => SAMPLE,
            ms => Duration::from_millis(ms).clamp(FASTEST_SAMPLE, freshness::SLOWEST_SAMPLE),
        };
        self.interval
            .send_if_modified(|old| std::mem::replace(old, wanted) != wanted);
    }

    /// Has the driver let go of, or taken again. It stays so when the probe restarts. Said again it is done again: this process may have
    /// started beside a probe that was told otherwise before.
    pub fn set_driver(&self, driver: Driver) {
        self.driver.send_replace(Some(driver));
    }

    /// Time between readings.
    pub fn interval(&self) -> Duration {
        *self.interval.borrow()
    }
}

#[derive(Clone)]
struct Observer {
    probe: Probe,
    picture: Picture,
    metrics: Arc<Metrics>,
    /// Asks for an inventory.
    look: Arc<Notify>,
    /// Asks for the slow readings.
    recheck: Arc<Notify>,
    /// Asks who uses the GPUs.
    repods: Arc<Notify>,
    /// Asks for a scan of sysfs.
    rescan: Ask,
}

/// Starts all of it, and waits a moment for the first scan of sysfs, so that the picture is not empty.
pub fn start(sysfs_root: PathBuf, probe: Probe, picture: Picture, metrics: Arc<Metrics>) -> Handle {
    let observer = Observer {
        probe,
        picture,
        metrics,
        look: Arc::default(),
        recheck: Arc::default(),
        repods: Arc::default(),
        rescan: Ask::new(),
    };
    let handle = Handle {
        interval: watch::Sender::new(SAMPLE),
        driver: watch::Sender::new(None),
    };
    let (scanned, first) = std::sync::mpsc::channel();
    let scanner = observer.clone();
    std::thread::spawn(move || scanner.follow_sysfs(&sysfs_root, &scanned));
    // Late is no reason to wait on: the scan goes on by itself.
    let _ = first.recv_timeout(FIRST_SCAN);
    tokio::spawn(observer.clone().follow_events(handle.driver.subscribe()));
    tokio::spawn(observer.clone().follow_inventory());
    tokio::spawn(observer.clone().follow_readings(handle.interval.subscribe()));
    tokio::spawn(observer.clone().follow_checks());
    tokio::spawn(observer.clone().follow_pods());
    tokio::spawn(observer.obey(handle.driver.subscribe()));
    handle
}

impl Observer {
    fn scan(&self, root: &Path, nvswitches: u32, cause: Cause) -> std::io::Result<()> {
        let began = self.picture.now();
        // What could not be read says nothing: least of all that it is gone.
        let found = sysfs::scan(root)?;
        // Before what may wait for a sick GPU: what was held against it is not held until its binding is known.
        let bindings = sysfs::bindings(root, &found.pci);
        self.picture.update(|state, _, _| state.handover.on_bindings(bindings));
        let pci = sysfs::pci::readings(root, &found.pci, nvswitches);
        self.metrics.scanned(cause);
        self.on_scan(found, &pci, cause, began);
        Ok(())
    }

    /// A scan that began at `began`.
    fn on_scan(&self, found: Sysfs, pci: &PciReadings, cause: Cause, began: Duration) {
        let changed = self.picture.update(|state, revision, now| {
            let before = state.node_facts(now).kernel_driver_version;
            let changed = state.facts.on_sysfs(found);
            let awaited = state.unscanned.is_some_and(|since| began >= since);
            if awaited {
                facts_changed(state, revision, now);
            } else if changed {
                tracing::info!(?cause, "PCI functions, or the driver of one");
                let same_driver = state.node_facts(now).kernel_driver_version == before;
                if same_driver && state.facts.nvml().state == NvmlState::Ready {
                    // A GPU that came or went shows in NVML's list a moment later: no fault until that was read again.
                    state.unjudged = true;
                    revision.facts += 1;
                } else {
                    facts_changed(state, revision, now);
                }
            }
            judge_pci(state, pci, now);
            changed
        });
        if changed {
            self.look.notify_one();
        }
    }

    /// What the functions of the last scan say now.
    fn read_pci(&self, root: &Path, nvswitches: u32) {
        let functions = self.picture.read(|state| state.facts.pci().to_vec());
        let pci = sysfs::pci::readings(root, &functions, nvswitches);
        self.picture.update(|state, revision, now| {
            if state.facts.on_pci(&pci) {
                revision.facts += 1;
            }
            judge_pci(state, &pci, now);
        });
    }

    /// On a thread of its own: some files are answered by the GPU's driver, and one that hangs would take the agent with it.
    fn follow_sysfs(self, root: &Path, scanned: &std::sync::mpsc::Sender<()>) {
        let nvswitches = sysfs::pci::nvswitches(root);
        let mut changes = Changes::of(root, self.rescan.clone());
        let mut cause = Some(Cause::Start);
        loop {
            match cause {
                Some(cause) => {
                    changes.watch();
                    if let Err(why) = self.scan(root, nvswitches, cause) {
                        tracing::warn!(%why, ?cause, "sysfs could not be scanned");
                        changes.failed();
                    }
                }
                None => self.read_pci(root, nvswitches),
            }
            // Only the first is waited for.
            let _ = scanned.send(());
            cause = changes.wait();
        }
    }

    /// NVML's state, as told or as part of an answer. Being ready counts only with the inventory that follows.
    fn on_state(&self, status: NvmlStatus) {
        if status.state == NvmlState::Ready {
            return self.look.notify_one();
        }
        let changed = self.picture.update(|state, revision, now| {
            let changed = state.facts.on_nvml(status.clone());
            if changed {
                tracing::info!(state = %status.state, message = status.message, "NVML");
                state.samples.clear();
                state.checks.clear();
                facts_changed(state, revision, now);
            }
            changed
        });
        // One answer that failed alone must not wait for the patience of a time when all was well.
        if changed {
            self.look.notify_one();
        }
    }

    fn on_stuck_calls(&self, stuck_calls: u32) {
        self.picture.update(|state, _, _| state.stuck_calls = stuck_calls);
    }

    async fn follow_events(self, driver: watch::Receiver<Option<Driver>>) {
        loop {
            match self.listen(&driver).await {
                Ok(never) => match never {},
                Err(why) => {
                    tracing::debug!(?why, "the probe's events");
                    self.on_state(why.status());
                    self.on_stuck_calls(0);
                }
            }
            sleep(RECONNECT).await;
        }
    }

    async fn listen(&self, driver: &watch::Receiver<Option<Driver>>) -> Result<std::convert::Infallible, NoAnswer> {
        let mut events = self.probe.events().await?;
        // A probe that has just started does not know.
        let driver = *driver.borrow();
        self.tell(driver).await?;
        self.look.notify_one();
        loop {
            match events.next().await? {
                Told::State(status) => self.on_state(status),
                Told::Event(event) => self.on_event(event),
            }
        }
    }

    fn on_event(&self, event: GpuEvent) {
        tracing::warn!(kind = ?event.kind, uuid = event.uuid, pci = event.pci_address, "GPU event");
        self.picture.update(|state, revision, now| {
            // Both reports of one fault count for health: the second may tell more.
            state.tracker.on_event(&event, now);
            if event.source != SOURCE_KERNEL_LOG_EARLIER && state.recent.is_new(&event, now) {
                state.xids.on_event(&event, now);
                self.metrics.events.inc();
                state.ring.push(event, now);
                revision.events += 1;
            }
        });
        // The driver may ask for something, or errors were counted.
        self.recheck.notify_one();
    }

    async fn follow_inventory(self) {
        loop {
            let patience = self.picture.read(|state| match state.facts.nvml().state {
                NvmlState::Ready => INVENTORY,
                _ => INVENTORY_NOT_READY,
            });
            // Either is a reason to look.
            let _ = tokio::time::timeout(patience, self.look.notified()).await;
            match self.probe.inventory().await {
                Ok(answer) => self.on_inventory(answer),
                Err(why) => self.on_state(why.status()),
            }
        }
    }

    fn on_inventory(&self, answer: Answer<(Inventory, Vec<Vgpu>)>) {
        self.on_stuck_calls(answer.stuck_calls);
        let (inventory, vgpus) = answer.found;
        self.picture.update(|state, revision, now| {
            if state.facts.on_vgpus(vgpus) {
                facts_changed(state, revision, now);
            }
        });
        if answer.status.state != NvmlState::Ready {
            return self.on_state(answer.status);
        }
        self.picture.update(|state, revision, now| {
            let gpus = inventory.gpus.len();
            let is_listed = |uuid: &str| inventory.gpus.iter().any(|gpu| gpu.uuid == uuid);
            let was_ready = state.facts.nvml().state == NvmlState::Ready;
            if was_ready && !state.facts.gpus().iter().all(|gpu| is_listed(&gpu.uuid)) {
                // It may have been given away or removed on purpose: sysfs says so, and not yet perhaps.
                state.unscanned.get_or_insert(now);
            }
            let changed = state.facts.on_inventory(inventory, now);
            if changed {
                tracing::info!(gpus, "NVML inventory");
            }
            match state.unscanned {
                Some(since) if now.saturating_sub(since) < SCAN => {
                    revision.facts += u64::from(changed);
                    self.rescan.scan();
                }
                _ if changed => facts_changed(state, revision, now),
                _ if state.unjudged || state.unscanned.is_some() => judge(state, now),
                _ => {}
            }
        });
    }

    async fn follow_readings(self, mut wanted: watch::Receiver<Duration>) {
        let mut revision = self.picture.follow();
        loop {
            let ready = |state: &State| state.facts.nvml().state == NvmlState::Ready;
            // Nothing to read is nothing to do: a node without GPUs, driver or probe costs nothing here.
            while !self.picture.read(ready) {
                if revision.changed().await.is_err() {
                    return;
                }
            }
            let mut ticks = ticks_every(*wanted.borrow_and_update());
            while self.picture.read(ready) {
                tokio::select! {
                    _ = ticks.tick() => self.read().await,
                    changed = wanted.changed() => match changed {
                        Ok(()) => ticks = ticks_every(*wanted.borrow_and_update()),
                        Err(_) => return,
                    },
                }
            }
        }
    }

    async fn follow_checks(self) {
        let mut revision = self.picture.follow();
        let mut slow_at = Duration::ZERO;
        loop {
            while !self.picture.read(|state| state.facts.nvml().state == NvmlState::Ready) {
                // Another driver, perhaps another card.
                slow_at = Duration::ZERO;
                if revision.changed().await.is_err() {
                    return;
                }
            }
            let slow = self.picture.now() >= slow_at;
            match self.probe.checks(slow).await {
                Ok(Some(answer)) => {
                    self.on_stuck_calls(answer.stuck_calls);
                    if answer.status.state == NvmlState::Ready {
                        if slow {
                            slow_at = self.picture.now() + SLOW_CHECKS;
                        }
                        self.on_checks(answer.found);
                    } else {
                        self.on_state(answer.status);
                    }
                }
                // During an upgrade: the probe knows no more.
                Ok(None) => {}
                Err(why) => self.on_state(why.status()),
            }
            tokio::select! {
                () = sleep(CHECKS) => {}
                () = self.recheck.notified() => sleep(AFTER_EVENT).await,
            }
        }
    }

    async fn follow_pods(self) {
        let mut revision = self.picture.follow();
        loop {
            while !self.picture.read(|state| state.facts.nvml().state == NvmlState::Ready) {
                if revision.changed().await.is_err() {
                    return;
                }
            }
            // An older probe says nothing; of one that is away others tell. What was known gets old.
            if let Ok(Some(answer)) = self.probe.pods().await {
                self.on_pods(answer);
            }
            let pause = match self.picture.read(|state| state.pods.is_off()) {
                true => PODS_OFF,
                false => PODS,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.repods.notified() => sleep(AFTER_PROCESS).await,
            }
        }
    }

    fn on_pods(&self, answer: pods::Answer) {
        self.picture.update(|state, revision, now| {
            let State {
                pods, facts, samples, ..
            } = state;
            pods.on_answer(answer, facts.gpus(), now);
            for (sample, _) in samples.values_mut() {
                pods.attach(sample, now);
            }
            revision.samples += 1;
        });
    }

    fn on_checks(&self, found: Round) {
        self.picture.update(|state, _, now| {
            let by_gpu = found.gpus.iter().map(|c| (c.uuid.clone(), (c.clone(), now)));
            state.checks = by_gpu.collect();
            state.checked = Some(now);
            state.tracker.on_round(found, now);
        });
    }

    async fn read(&self) {
        match self.probe.sample().await {
            Ok(answer) => self.on_readings(answer),
            Err(why) => self.on_state(why.status()),
        }
    }

    fn on_readings(&self, answer: Answer<Readings>) {
        self.on_stuck_calls(answer.stuck_calls);
        if answer.status.state != NvmlState::Ready {
            return self.on_state(answer.status);
        }
        self.metrics.rounds.inc();
        let others_are_lost = self.picture.update(|state, revision, now| {
            for (uuid, error) in &answer.found.lost {
                state.tracker.on_lost(uuid, error);
            }
            let lost: Vec<String> = answer.found.lost.into_iter().map(|(uuid, _)| uuid).collect();
            let others_are_lost = state.lost != lost;
            state.lost = lost;
            let mut samples = answer.found.samples;
            let before = |s: &GpuSample| state.samples.get(&s.uuid).and_then(|(s, _)| s.compute_processes);
            if samples.iter().any(|s| before(s) != s.compute_processes) {
                self.repods.notify_one();
            }
            for sample in &mut samples {
                state.pods.attach(sample, now);
            }
            state.samples = samples.into_iter().map(|s| (s.uuid.clone(), (s, now))).collect();
            state.sampled = Some(now);
            let samples = state.samples.values().map(|(sample, _)| sample);
            state.tracker.on_samples(samples, now);
            revision.samples += 1;
            others_are_lost
        });
        if others_are_lost {
            self.look.notify_one();
        }
    }

    /// Tells the probe. `Ok(false)`: it was told, and cannot do it yet.
    async fn tell(&self, driver: Option<Driver>) -> Result<bool, NoAnswer> {
        match driver {
            None => {}
            Some(Driver::Hold) => self.probe.resume().await?,
            Some(Driver::LetGo) => {
                if let Err(why) = self.probe.release().await? {
                    tracing::warn!(why, "the driver cannot be let go of yet");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn obey(self, mut orders: watch::Receiver<Option<Driver>>) {
        loop {
            let driver = *orders.borrow_and_update();
            let told = self.tell(driver).await;
            self.look.notify_one();
            if let Err(error) = &told {
                tracing::debug!(%error, ?driver, "the probe was not told");
            }
            let again = async {
                match told {
                    Ok(true) => std::future::pending().await,
                    Ok(false) | Err(_) => sleep(DRIVER_AGAIN).await,
                }
            };
            tokio::select! {
                changed = orders.changed() => if changed.is_err() {
                    return;
                },
                () = again => {}
            }
        }
    }
}

/// After a round that took long the next ones are as far apart as ever: no burst on a driver that is slow already.
fn ticks_every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn facts_changed(state: &mut State, revision: &mut Revision, now: Duration) {
    judge(state, now);
    revision.facts += 1;
}

/// PCI's view against NVML's.
fn judge(state: &mut State, now: Duration) {
    let facts = state.node_facts(now);
    state.tracker.on_inventory(&facts);
    (state.unjudged, state.unscanned) = (false, None);
}

/// What PCI alone says. A GPU that was given away is no lost one: who is whose has to be judged before.
fn judge_pci(state: &mut State, pci: &PciReadings, now: Duration) {
    if !state.unjudged && state.unscanned.is_none() {
        state.tracker.on_pci(pci, now);
    }
}
