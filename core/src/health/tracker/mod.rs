//! Keeps what was seen of every GPU and says where each stands.
//!
//! ```text
//! event   ─► fault   ─► Suspect or Unhealthy ─► (what it needs is proven: see clearing) ─┐
//! reading ─► finding ─► Suspect or Unhealthy ─► (the check passes again) ────────────────┴─► Verifying ─► quiet ─► Healthy
//! ```
//!
//! What was only Suspect needs no verification. A MIG slice has a record of its own, and is never better than its GPU.

mod memory;
mod record;
mod slices;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use self::memory::{Memory, Remembered};
use self::record::Record;
use self::slices::Slices;
use super::assess::missing_gpus;
use super::checks::{self, Observed, Row};
use super::clearing::{Proof, Signs};
use super::fault::Fault;
use super::history::History;
use super::xid::{self, Effect, Part};
use super::{NodeHealth, Reason};
use crate::facts::{
    Gpu, GpuChecks, GpuEvent, GpuEventKind, GpuSample, NodeChecks, NodeFacts, NvmlState, PciFunction, PciReadings,
    Round,
};

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

    /// Whether `facts` say that the kernel driver is gone, or went since it was seen last.
    fn driver_is_gone(&self, facts: &NodeFacts) -> bool {
        let Some(last) = &self.driver_version else {
            return facts.nvml.state == NvmlState::NoDriver;
        };
        match &facts.kernel_driver_version {
            // A driver that answers is there, whatever sysfs has.
            None => facts.nvml.state != NvmlState::Ready,
            Some(version) => facts.nvml.state == NvmlState::NoDriver || version != last,
        }
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

    /// UUIDs of the known GPUs that an event is about: all of them where it names none.
    fn concerned(&self, event: &GpuEvent) -> Vec<String> {
        let slot = |address: &str| address.rsplit_once('.').map_or(address, |(slot, _)| slot).to_owned();
        self.gpus
            .iter()
            .filter(|(uuid, gpu)| match (&event.uuid, &event.pci_address) {
                (Some(wanted), _) => *uuid == wanted,
                (None, Some(address)) => gpu.pci_address.as_deref().map(slot) == Some(slot(address)),
                (None, None) => true,
            })
            .map(|(uuid, _)| uuid.clone())
            .collect()
    }

    fn place(&mut self, event: &GpuEvent, uuids: &[String]) {
        let named = event.uuid.is_some() || event.pci_address.is_some();
        let binding = Binding::of(event);
        for uuid in uuids {
            let Some(gpu) = self.gpus.get_mut(uuid) else {
                continue;
            };
            match binding {
                Some(Binding::Unbound) => gpu.unbound = true,
                Some(Binding::Bound) => gpu.went |= std::mem::take(&mut gpu.unbound),
                None => {}
            }
            if named {
                gpu.history.on_event(event, self.now.saturating_sub(event.age));
            }
            let Some(mut fault) = Fault::of(event, gpu.part, self.now) else {
                continue;
            };
            if !named && fault.effect > Effect::Counted {
                // It may be any of them: worth watching on all, no reason to take all away.
                fault.effect = Effect::Suspect;
                fault.message.push_str(" (GPU not named)");
            }
            if fault.effect == Effect::Suspect && gpu.history.is_repeated_on_its_link(event, self.now) {
                fault.effect = Effect::Unhealthy;
                fault
                    .message
                    .push_str(" (again on the same link): check the link and reset the GPU");
            }
            let of_a_slice = match event.kind {
                GpuEventKind::Xid(xid) if xid::may_be_contained(xid) => event.instance,
                GpuEventKind::Xid(_) | GpuEventKind::Other(_) => None,
            };
            if !of_a_slice.is_some_and(|instance| gpu.slices.hold(instance, &fault)) {
                gpu.record.hold(fault);
            }
        }
    }

    /// What sysfs says of the driver of each GPU.
    fn see_drivers(&mut self) {
        let functions: BTreeMap<&str, bool> = self
            .facts
            .nvidia_display_functions()
            .map(|f| (f.address.as_str(), f.driver.as_deref() == Some("nvidia")))
            .collect();
        for gpu in self.gpus.values_mut() {
            let Some(address) = gpu.pci_address.as_deref() else {
                continue;
            };
            match functions.get(address) {
                Some(held) => {
                    gpu.went |= !held && (gpu.unbound || gpu.held == Some(true));
                    gpu.held = Some(*held);
                }
                None => gpu.went |= gpu.unbound && gpu.held.is_some(),
            }
        }
    }

    /// GPUs that are no longer ours to judge: neither NVML nor the vendor's driver has them, and that on purpose; or the driver, as it was told
    /// when it was loaded, keeps them from everybody.
    fn drop_removed(&mut self) {
        if self.facts.nvml.state != NvmlState::Ready {
            return;
        }
        let facts = &self.facts;
        let excludes = facts.driver.as_ref().and_then(|d| d.excluded_gpus).unwrap_or(0) > 0;
        let all_are_accounted_for = excludes && missing_gpus(facts) == 0;
        self.gpus.retain(|uuid, gpu| {
            let is_excluded = all_are_accounted_for && !gpu.listed && gpu.held == Some(true);
            facts.gpus.iter().any(|g| g.uuid == *uuid) || !(is_excluded || gpu.was_taken_away(facts))
        });
    }

    fn know(&mut self, gpus: &[Gpu]) {
        let driver = self.facts.driver.as_ref().map(|driver| &*driver.version);
        let driver_major = driver.and_then(|version| version.split('.').next()?.parse().ok());
        for gpu in gpus {
            let known = self.gpus.entry(gpu.uuid.clone()).or_default();
            known.index = gpu.index;
            known.pci_address.clone_from(&gpu.pci_address);
            known.on_fabric = gpu.fabric.is_some();
            known.part = Part {
                driver_major,
                compute_capability: gpu.compute_capability,
            };
            if self.facts.nvml.state == NvmlState::Ready {
                known.slices.know(gpu.mig.as_ref().map_or(&[], |mig| &mig.devices));
            }
        }
    }

    /// NVML answers: who is there, who is not, and whose fault a fresh driver or a comeback ends.
    fn compare_with_list(&mut self) {
        if self.driver_went {
            self.gpus.values_mut().for_each(|gpu| gpu.listed = false);
        }
        self.drop_removed();
        let listed: BTreeSet<&str> = self.facts.gpus.iter().map(|g| g.uuid.as_str()).collect();
        let driver_went = self.driver_went;
        for (uuid, gpu) in &mut self.gpus {
            if listed.contains(uuid.as_str()) {
                gpu.listed = true;
                if driver_went {
                    gpu.prove(Proof::Rebound, "the driver was loaded anew");
                } else if gpu.went && !gpu.is_let_go(&self.facts) {
                    gpu.prove(Proof::Rebound, "the GPU was reset");
                }
                continue;
            }
            gpu.went = true;
            let message = "NVML no longer lists the GPU: restart the machine".into();
            gpu.record
                .hold(Fault::seen(Effect::Unhealthy, Reason::GpuMissing, message));
        }
    }

    fn settle(&mut self) {
        for gpu in self.gpus.values_mut() {
            gpu.record.settle(&self.facts.nvml, self.now);
            gpu.slices.settle(self.now);
        }
    }
}

/// What the kernel told of a function's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    Bound,
    Unbound,
}

impl Binding {
    fn of(event: &GpuEvent) -> Option<Self> {
        match &event.kind {
            GpuEventKind::Other(name) if name == "DriverBound" => Some(Self::Bound),
            GpuEventKind::Other(name) if name == "DriverUnbound" => Some(Self::Unbound),
            GpuEventKind::Other(_) | GpuEventKind::Xid(_) => None,
        }
    }
}

impl Watched {
    /// Its function among those that sysfs has, where sysfs ever had it.
    fn function<'f>(&self, facts: &'f NodeFacts) -> Option<Option<&'f PciFunction>> {
        self.held?;
        let address = self.pci_address.as_deref()?;
        Some(facts.nvidia_display_functions().find(|f| f.address == address))
    }

    /// Whether sysfs says that the vendor's driver does not have it now.
    fn is_let_go(&self, facts: &NodeFacts) -> bool {
        self.function(facts)
            .is_some_and(|f| f.is_none_or(|f| f.driver.as_deref() != Some("nvidia")))
    }

    /// Whether its function has another driver or none (passthrough), or is gone after it was seen so (an orderly removal). A card that is torn
    /// out is unbound as well, and missed.
    fn was_taken_away(&self, facts: &NodeFacts) -> bool {
        self.is_let_go(facts) && self.held == Some(false)
    }

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
