//! Keeps what was seen of every GPU and says where each stands.
//!
//! ```text
//! event   ─► fault   ─► Suspect or Unhealthy ─► (what it needs is proven: see clearing) ─┐
//! reading ─► finding ─► Suspect or Unhealthy ─► (the check passes again) ────────────────┴─► Verifying ─► quiet ─► Healthy
//! ```
//!
//! What was only Suspect needs no verification. A MIG slice has a record of its own, and is never better than its GPU.

mod record;
mod slices;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::record::Record;
use self::slices::Slices;
use super::assess::missing_gpus;
use super::checks::{self, Observed, Row};
use super::clearing::{Proof, Signs};
use super::fault::Fault;
use super::history::History;
use super::xid::{self, Effect, Part};
use super::{NodeHealth, Reason};
use crate::facts::{Gpu, GpuChecks, GpuEvent, GpuEventKind, GpuSample, NodeChecks, NodeFacts, NvmlState, PciReadings};

/// How long a GPU stays quiet after a fresh driver before it counts as recovered.
pub const VERIFY_FOR: Duration = Duration::from_secs(10);

/// Events of GPUs that no inventory has named yet; more are dropped, since an inventory follows within seconds.
const MAX_UNPLACED: usize = 64;

/// Health of one node's GPUs over time. The clock is the caller's, monotonic since any fixed start: a state begins with the first
/// [`Tracker::health`] after its cause.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    facts: NodeFacts,
    gpus: BTreeMap<String, Watched>,
    node: checks::Node,
    /// Seen before an inventory named their GPU, and when.
    unplaced: Vec<(GpuEvent, Duration)>,
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
    /// Its own driver binding went away, or it left NVML's list.
    went: bool,
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
            if (names_a_gpu || self.gpus.is_empty()) && self.unplaced.len() < MAX_UNPLACED {
                self.unplaced.push((event.clone(), now));
            }
            return;
        }
        self.place(event, &uuids);
        self.judge();
    }

    /// What the node's hardware is now.
    pub fn on_inventory(&mut self, facts: &NodeFacts) {
        let driver_was_loaded = self.facts.kernel_driver_version.is_some();
        let driver_is_gone = facts.nvml.state == NvmlState::NoDriver
            || (driver_was_loaded && facts.kernel_driver_version != self.facts.kernel_driver_version);
        self.driver_went |= driver_is_gone;
        self.facts = facts.clone();
        self.know(&facts.gpus);
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
        let unbound = event.kind == GpuEventKind::Other("DriverUnbound".into());
        for uuid in uuids {
            let Some(gpu) = self.gpus.get_mut(uuid) else {
                continue;
            };
            gpu.went |= unbound;
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
        let listed: BTreeSet<&str> = self.facts.gpus.iter().map(|g| g.uuid.as_str()).collect();
        let given_away: BTreeSet<&str> = self
            .facts
            .nvidia_display_functions()
            .filter(|f| f.driver.as_deref() != Some("nvidia"))
            .map(|f| f.address.as_str())
            .collect();
        let driver_went = self.driver_went;
        self.gpus.retain(|uuid, gpu| {
            if listed.contains(uuid.as_str()) {
                if driver_went {
                    gpu.prove(Proof::Rebound, "the driver was loaded anew");
                } else if gpu.went {
                    gpu.prove(Proof::Rebound, "the GPU was reset");
                }
                return true;
            }
            // Unbound from the driver on purpose (passthrough): no longer ours to judge.
            if gpu.pci_address.as_deref().is_some_and(|a| given_away.contains(a)) {
                return false;
            }
            gpu.went = true;
            let message = "NVML no longer lists the GPU: restart the machine".into();
            gpu.record
                .hold(Fault::seen(Effect::Unhealthy, Reason::GpuMissing, message));
            true
        });
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
            self.went = false;
            self.signs = Signs::default();
        }
        self.record.end(proof, by);
        self.slices.end(proof, by);
    }
}

#[cfg(test)]
mod tests;
