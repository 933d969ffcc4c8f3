//! Keeps what was seen of every GPU and says where each stands.
//!
//! ```text
//! event   ─► fault   ─► Suspect or Unhealthy ─► (what it needs is proven: see clearing) ─┐
//! reading ─► finding ─► Suspect or Unhealthy ─► (the check passes again) ────────────────┴─► Verifying ─► quiet ─► Healthy
//! ```
//!
//! What was only Suspect needs no verification. A MIG slice has a record of its own, and is never better than its GPU.

mod events;
mod lists;
mod memory;
mod record;
mod slices;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::events::Binding;
pub use self::memory::{Memory, Remembered};
use self::record::Record;
use self::slices::Slices;
use super::assess::missing_gpus;
use super::checks::{self, Observed, Row};
use super::clearing::{Proof, Signs};
use super::fault::Fault;
use super::history::History;
use super::xid::{Effect, Part};
use super::{NodeHealth, Reason};
use crate::facts::{Gpu, GpuChecks, GpuEvent, GpuSample, NodeChecks, NodeFacts, NvmlState, PciReadings, Round};

/// How long a GPU stays quiet after a fresh driver before it counts as recovered.
pub const VERIFY_FOR: Duration = Duration::from_secs(10);

/// Events of GPUs that no inventory has named yet. The oldest of more are dropped: an inventory follows within seconds.
const MAX_UNPLACED: usize = 64;

/// Health of one node's GPUs over time. The clock is the caller's, monotonic since any fixed start: a state begins with the first
/// [`Tracker::health`] after its cause.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    facts: NodeFacts,
    gpus: BTreeMap<String, Watched>,
    node: checks::Node,
    /// Seen before an inventory named their GPU, and when.
    unplaced: VecDeque<(GpuEvent, Duration)>,
    /// Of an earlier life, before NVML has listed the GPUs.
    remembered: Vec<Remembered>,
    /// Version of the kernel driver when one was loaded last.
    driver_version: Option<String>,
    /// The kernel driver was gone since NVML last answered: everything on it was reset.
    driver_went: bool,
    /// The latest time that the caller told.
    now: Duration,
}

/// One GPU.
#[derive(Debug, Clone, Default)]
struct Watched {
    index: u32,
    pci_address: Option<String>,
    part: Part,
    on_fabric: bool,
    record: Record,
    observed: Observed,
    signs: Signs,
    history: History,
    /// The worst that the checks find now.
    checked: Option<Fault>,
    /// The kernel told that a driver let go of it. It may have been told of late, or of a try: by itself this proves nothing.
    unbound: bool,
    /// Whether the vendor's driver held its function when sysfs had it last.
    held: Option<bool>,
    /// It left its driver or NVML's list.
    went: bool,
    /// NVML listed it since the driver was loaded.
    listed: bool,
    slices: Slices,
}

impl Tracker {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fault or driver event, from NVML or the kernel log, that comes in at `now`.
    pub fn on_event(&mut self, event: &GpuEvent, now: Duration) {
        self.now = self.now.max(now);
        let uuids = self.concerned(event);
        if uuids.is_empty() {
            let names_a_gpu = event.uuid.is_some() || event.pci_address.is_some();
            // What is told of the driver of a GPU that nobody knows is old by the time that it is known.
            if (names_a_gpu || self.gpus.is_empty()) && Binding::of(event).is_none() {
                if self.unplaced.len() >= MAX_UNPLACED {
                    self.unplaced.pop_front();
                }
                self.unplaced.push_back((event.clone(), now));
            }
            return;
        }
        self.place(event, &uuids);
        self.drop_removed();
        self.judge();
    }

    /// What the node's hardware is now.
    pub fn on_inventory(&mut self, facts: &NodeFacts) {
        if self.driver_is_gone(facts) {
            self.driver_went = true;
            // Whatever it told of GPUs that nobody knew is of before.
            self.unplaced.clear();
        }
        if let Some(version) = &facts.kernel_driver_version {
            self.driver_version = Some(version.clone());
        }
        self.facts = facts.clone();
        self.know(&facts.gpus);
        if facts.nvml.state == NvmlState::Ready {
            self.recall();
        }
        self.see_drivers();
        if facts.nvml.state == NvmlState::Ready {
            self.compare_with_list();
            self.driver_went = false;
        }
        for (mut event, came) in std::mem::take(&mut self.unplaced) {
            event.age += self.now.saturating_sub(came);
            self.on_event(&event, self.now);
        }
        self.check();
    }

    /// NVML answered that a GPU is lost; `error` is its error's name.
    pub fn on_lost(&mut self, uuid: &str, error: &str) {
        if let Some(gpu) = self.gpus.get_mut(uuid) {
            gpu.signs.on_lost();
            let message = format!("{error}: reset the GPU, or restart the machine");
            gpu.record
                .hold(Fault::seen(Effect::Unhealthy, Reason::GpuLost, message));
            self.settle();
        }
    }

    /// A round of the slow checks at `now`.
    pub fn on_round(&mut self, round: Round, now: Duration) {
        // The node first: a GPU that is lost in this round is not back.
        self.on_node_checks(&round.node, now);
        self.on_checks(round.gpus, now);
    }

    /// What the slow checks read at `now`.
    pub fn on_checks(&mut self, checks: Vec<GpuChecks>, now: Duration) {
        self.now = self.now.max(now);
        for new in checks {
            if let Some(gpu) = self.gpus.get_mut(&new.uuid) {
                if let Some((proof, by)) = gpu.signs.on_checks(&new) {
                    gpu.prove(proof, by);
                }
                gpu.observed.on_checks(new, now);
            }
        }
        self.check();
    }

    /// What the slow checks read once a node at `now`.
    pub fn on_node_checks(&mut self, checks: &NodeChecks, now: Duration) {
        self.now = self.now.max(now);
        self.node.on_checks(checks, &self.facts, now);
        for (uuid, error) in &checks.lost {
            self.on_lost(uuid, error);
        }
        self.check();
    }

    /// What the kernel alone says of the GPUs' PCI functions at `now`.
    pub fn on_pci(&mut self, read: &PciReadings, now: Duration) {
        self.now = self.now.max(now);
        self.node.on_nvswitches(read.nvswitches);
        for gpu in self.gpus.values_mut() {
            let Some(address) = gpu.pci_address.as_deref() else {
                continue;
            };
            let function = read.functions.iter().find(|f| f.address == address);
            gpu.observed.on_pci(function, now);
        }
        self.check();
    }

    /// Readings at `now`.
    pub fn on_samples<'s>(&mut self, samples: impl IntoIterator<Item = &'s GpuSample>, now: Duration) {
        self.now = self.now.max(now);
        let mut changed = false;
        for sample in samples {
            let Some(gpu) = self.gpus.get_mut(&sample.uuid) else {
                continue;
            };
            gpu.signs.on_sample();
            if let Some(reasons) = sample.clocks_event_reasons {
                changed |= gpu.observed.on_clocks(reasons, now);
            }
        }
        if changed {
            self.check();
        }
    }

    /// What each check says of each GPU that NVML lists, in NVML's order.
    pub fn rows(&self) -> Vec<(&Gpu, Vec<Row>)> {
        let listed = self.facts.gpus.iter();
        listed
            .filter_map(|gpu| {
                let watched = self.gpus.get(&gpu.uuid)?;
                Some((gpu, watched.observed.rows(gpu, self.links_of_peers(gpu))))
            })
            .collect()
    }

    /// What the checks of the node as a whole say.
    pub fn node_rows(&self) -> Vec<Row> {
        self.node.rows(&self.facts)
    }

    /// NVLinks of the other GPUs of the same part, at most.
    fn links_of_peers(&self, gpu: &Gpu) -> u32 {
        let peers = self
            .facts
            .gpus
            .iter()
            .filter(|g| g.uuid != gpu.uuid && g.product == gpu.product);
        let links = peers.filter_map(|g| Some(self.gpus.get(&g.uuid)?.observed.links()));
        links.max().unwrap_or(0)
    }

    /// Judges the readings anew.
    fn check(&mut self) {
        let of_node = self.node_rows();
        let found: Vec<(String, Option<Fault>)> = self
            .rows()
            .into_iter()
            .map(|(gpu, mut rows)| {
                rows.extend_from_slice(&of_node);
                (gpu.uuid.clone(), Fault::worst(&rows))
            })
            .collect();
        for (uuid, checked) in found {
            if let Some(gpu) = self.gpus.get_mut(&uuid) {
                gpu.checked = checked;
            }
        }
        self.judge();
    }

    /// Judges the events anew, as they stand beside each other.
    fn judge(&mut self) {
        let patterns: Vec<Option<Fault>> = self
            .gpus
            .iter()
            .map(|(uuid, gpu)| {
                let others = self.gpus.iter().filter(|(other, _)| *other != uuid);
                gpu.history
                    .pattern(others.map(|(_, gpu)| &gpu.history), gpu.on_fabric, self.now)
            })
            .collect();
        for (gpu, pattern) in self.gpus.values_mut().zip(patterns) {
            let checked = gpu.checked.clone();
            gpu.record.find(match (checked, pattern) {
                (Some(checked), Some(pattern)) if pattern.effect > checked.effect => Some(pattern),
                (checked, pattern) => checked.or(pattern),
            });
        }
        self.settle();
    }

    /// Health of the node at `now`, which does not go back between calls: of each GPU in NVML's order, its MIG slices after it.
    pub fn health(&self, now: Duration) -> NodeHealth {
        let mut gpus: Vec<_> = self.gpus.iter().collect();
        gpus.sort_by_key(|(_, gpu)| gpu.index);
        let healths = gpus.into_iter().flat_map(|(uuid, gpu)| {
            let health = gpu.record.health(uuid, now);
            let slices = gpu.slices.health(&health, now);
            std::iter::once(health).chain(slices)
        });
        NodeHealth {
            gpus: healths.collect(),
            nvml: self.facts.nvml.clone(),
            missing_gpus: missing_gpus(&self.facts),
        }
    }

    fn settle(&mut self) {
        for gpu in self.gpus.values_mut() {
            gpu.record.settle(&self.facts.nvml, self.now);
            gpu.slices.settle(self.now);
        }
    }
}

impl Watched {
    /// Something is proven. After a reset, counters start anew, and what was seen of the GPU before says nothing of it.
    fn prove(&mut self, proof: Proof, by: &str) {
        if proof >= Proof::Reset {
            self.observed = Observed::default();
            self.checked = None;
        }
        if proof == Proof::Rebound {
            (self.went, self.unbound) = (false, false);
            self.signs = Signs::default();
        }
        self.record.end(proof, by);
        self.slices.end(proof, by);
    }
}

#[cfg(test)]
mod tests;
