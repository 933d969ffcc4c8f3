//! Keeps what was seen of every GPU and says where each stands.
//!
//! ```text
//! fault   ─► Suspect or Unhealthy ─► (driver loaded anew, or the GPU left NVML's list and came back) ─┐
//! finding ─► Suspect or Unhealthy ─► (the check passes again) ────────────────────────────────────────┴─► Verifying ─► quiet ─► Healthy
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use super::assess::{Assessment, Fault, assess, missing_gpus};
use super::checks::{Observed, Row};
use super::xid::Effect;
use super::{GpuHealth, GpuState, NodeHealth, Reason};
use crate::facts::{Gpu, GpuChecks, GpuEvent, GpuEventKind, GpuSample, NodeFacts, NvmlState};

/// How long a GPU stays quiet after a fresh driver before it counts as recovered.
pub const VERIFY_FOR: Duration = Duration::from_secs(10);

/// Events of GPUs that no inventory has named yet; more are dropped, since an inventory follows within seconds.
const MAX_UNPLACED: usize = 64;

/// Health of one node's GPUs over time. The clock is the caller's: a state begins with the first [`Tracker::health`] after its cause.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    facts: NodeFacts,
    gpus: BTreeMap<String, Record>,
    /// Seen before an inventory named their GPU.
    unplaced: Vec<GpuEvent>,
    /// The kernel driver was gone since NVML last answered: everything on it was reset.
    driver_went: bool,
}

#[derive(Debug, Clone, Default)]
struct Record {
    index: u32,
    pci_address: Option<String>,
    fault: Option<Fault>,
    observed: Observed,
    /// The worst that the checks find now.
    finding: Option<Fault>,
    recovering: bool,
    /// Its own driver binding went away, or it left NVML's list or the bus.
    went: bool,
    /// PCI has shown it.
    on_bus: bool,
    cleared_by: Option<String>,
    standing: Option<Standing>,
}

/// Where a GPU stands and since when, on the caller's clock.
#[derive(Debug, Clone)]
struct Standing {
    assessment: Assessment,
    age: Duration,
    entered: OnceLock<Duration>,
}

impl Tracker {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fault or driver event, from NVML or the kernel log.
    pub fn on_event(&mut self, event: &GpuEvent) {
        let uuids = self.concerned(event);
        if uuids.is_empty() {
            let names_a_gpu = event.uuid.is_some() || event.pci_address.is_some();
            if (names_a_gpu || self.gpus.is_empty()) && self.unplaced.len() < MAX_UNPLACED {
                self.unplaced.push(event.clone());
            }
            return;
        }
        self.place(event, &uuids);
        self.settle();
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
        for event in std::mem::take(&mut self.unplaced) {
            self.on_event(&event);
        }
        self.check();
    }

    /// NVML answered that a GPU is lost; `error` is its error's name.
    pub fn on_lost(&mut self, uuid: &str, error: &str) {
        if let Some(record) = self.gpus.get_mut(uuid) {
            record.hold(Fault {
                effect: Effect::Unhealthy,
                reason: Reason::GpuLost,
                message: format!("{error}: restart the machine"),
                age: Duration::ZERO,
            });
            self.settle();
        }
    }

    /// What the slow checks read at `now`.
    pub fn on_checks(&mut self, checks: Vec<GpuChecks>, now: Duration) {
        for new in checks {
            if let Some(record) = self.gpus.get_mut(&new.uuid) {
                // What an XID 154 left open is answered: the driver asks for nothing (any more).
                let answered = |f: &Fault| f.reason == Reason::RecoveryAction && new.recovery_action == Some(0);
                if record.fault.as_ref().is_some_and(answered) {
                    record.clear("the driver asks for nothing any more");
                }
                record.observed.on_checks(new, now);
            }
        }
        self.check();
    }

    /// Readings at `now`.
    pub fn on_samples<'s>(&mut self, samples: impl IntoIterator<Item = &'s GpuSample>, now: Duration) {
        let mut changed = false;
        for sample in samples {
            if let (Some(record), Some(reasons)) = (self.gpus.get_mut(&sample.uuid), sample.clocks_event_reasons) {
                changed |= record.observed.on_clocks(reasons, now);
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
                let record = self.gpus.get(&gpu.uuid)?;
                Some((gpu, record.observed.rows(gpu, self.links_of_peers(gpu))))
            })
            .collect()
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

    fn check(&mut self) {
        let found: Vec<(String, Option<Fault>)> = self
            .rows()
            .into_iter()
            .map(|(gpu, rows)| (gpu.uuid.clone(), Fault::worst(&rows)))
            .collect();
        for (uuid, finding) in found {
            if let Some(record) = self.gpus.get_mut(&uuid) {
                record.find(finding);
            }
        }
        self.settle();
    }

    /// Health of the node at `now`, which is monotonic since any fixed start and does not go back between calls.
    pub fn health(&self, now: Duration) -> NodeHealth {
        let mut records: Vec<_> = self.gpus.iter().collect();
        records.sort_by_key(|(_, r)| r.index);
        NodeHealth {
            gpus: records.into_iter().map(|(uuid, r)| r.health(uuid, now)).collect(),
            nvml: self.facts.nvml.clone(),
            missing_gpus: missing_gpus(&self.facts),
        }
    }

    /// UUIDs of the known GPUs that an event is about: all of them where it names none.
    fn concerned(&self, event: &GpuEvent) -> Vec<String> {
        let slot = |address: &str| address.rsplit_once('.').map_or(address, |(slot, _)| slot).to_owned();
        self.gpus
            .iter()
            .filter(|(uuid, record)| match (&event.uuid, &event.pci_address) {
                (Some(wanted), _) => *uuid == wanted,
                (None, Some(address)) => record.pci_address.as_deref().map(slot) == Some(slot(address)),
                (None, None) => true,
            })
            .map(|(uuid, _)| uuid.clone())
            .collect()
    }

    fn place(&mut self, event: &GpuEvent, uuids: &[String]) {
        let named = event.uuid.is_some() || event.pci_address.is_some();
        let unbound = event.kind == GpuEventKind::Other("DriverUnbound".into());
        let fault = Fault::of(event).map(|mut fault| {
            if !named {
                // It may be any of them: worth watching on all, no reason to take all away.
                fault.effect = Effect::Suspect;
                fault.message.push_str(" (GPU not named)");
            }
            fault
        });
        for uuid in uuids {
            let Some(record) = self.gpus.get_mut(uuid) else {
                continue;
            };
            record.went |= unbound;
            if let Some(fault) = fault.clone() {
                record.hold(fault);
            }
        }
    }

    fn know(&mut self, gpus: &[Gpu]) {
        for gpu in gpus {
            let record = self.gpus.entry(gpu.uuid.clone()).or_default();
            record.index = gpu.index;
            record.pci_address.clone_from(&gpu.pci_address);
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
        let on_bus: BTreeSet<&str> = self.facts.pci.iter().map(|f| f.address.as_str()).collect();
        let driver_went = self.driver_went;
        self.gpus.retain(|uuid, record| {
            if listed.contains(uuid.as_str()) {
                let is_on_bus = record.pci_address.as_deref().is_some_and(|a| on_bus.contains(a));
                // Where PCI was never seen, nothing can be missed in it.
                if record.on_bus && !is_on_bus {
                    record.went = true;
                    record.hold(Fault {
                        effect: Effect::Unhealthy,
                        reason: Reason::GpuLost,
                        message: "its PCI function is gone: restart the machine".into(),
                        age: Duration::ZERO,
                    });
                    return true;
                }
                record.on_bus = is_on_bus;
                if driver_went {
                    record.reset("the driver was loaded anew");
                } else if record.went {
                    record.reset("the GPU was reset");
                }
                return true;
            }
            // Unbound from the driver on purpose (passthrough): no longer ours to judge.
            if record.pci_address.as_deref().is_some_and(|a| given_away.contains(a)) {
                return false;
            }
            record.went = true;
            record.hold(Fault {
                effect: Effect::Unhealthy,
                reason: Reason::GpuMissing,
                message: "NVML no longer lists the GPU: restart the machine".into(),
                age: Duration::ZERO,
            });
            true
        });
    }

    fn settle(&mut self) {
        for record in self.gpus.values_mut() {
            let assessment = assess(record.held(), record.recovering, &self.facts.nvml);
            let age = record.held().map_or(Duration::ZERO, |f| f.age);
            match &mut record.standing {
                Some(standing) if standing.assessment.state == assessment.state => standing.assessment = assessment,
                standing => {
                    *standing = Some(Standing {
                        assessment,
                        age,
                        entered: OnceLock::new(),
                    });
                }
            }
        }
    }
}

impl Record {
    /// Keeps the first of the worst faults: what follows a fault is mostly its consequence.
    fn hold(&mut self, fault: Fault) {
        self.recovering = false;
        if self.fault.as_ref().is_none_or(|f| fault.effect > f.effect) {
            self.fault = Some(fault);
            self.cleared_by = None;
        }
    }

    /// The worse of an event's fault and a check's finding; the fault where they are equally bad.
    fn held(&self) -> Option<&Fault> {
        match (&self.fault, &self.finding) {
            (Some(fault), Some(finding)) if finding.effect > fault.effect => Some(finding),
            (Some(fault), _) => Some(fault),
            (None, finding) => finding.as_ref(),
        }
    }

    /// What the checks find now.
    fn find(&mut self, finding: Option<Fault>) {
        let ill = |f: &Option<Fault>| f.as_ref().is_some_and(Fault::is_unhealthy);
        if ill(&finding) {
            self.recovering = false;
            self.cleared_by = None;
        } else if ill(&self.finding) && !ill(&self.fault) {
            self.recovering = true;
            self.cleared_by = Some("the check passes again".into());
        }
        self.finding = finding;
    }

    /// The GPU was reset: what was held against it is gone, and its counters start anew.
    fn reset(&mut self, by: &str) {
        self.went = false;
        self.observed = Observed::default();
        let finding = self.finding.take();
        if finding.is_some_and(|f| f.is_unhealthy()) {
            self.recovering = true;
            self.cleared_by = Some(by.to_owned());
        }
        self.clear(by);
    }

    fn clear(&mut self, by: &str) {
        if self.fault.take().is_some() {
            self.recovering = true;
            self.cleared_by = Some(by.to_owned());
        }
    }

    fn health(&self, uuid: &str, now: Duration) -> GpuHealth {
        let mut health = GpuHealth {
            uuid: uuid.to_owned(),
            state: GpuState::Healthy,
            reason: String::new(),
            message: String::new(),
            since: Duration::ZERO,
            cleared_by: self.cleared_by.clone(),
        };
        let Some(standing) = &self.standing else { return health };
        let entered = *standing.entered.get_or_init(|| now.saturating_sub(standing.age));
        let since = now.saturating_sub(entered);
        let assessment = &standing.assessment;
        if assessment.state == GpuState::Verifying && since >= VERIFY_FOR {
            health.since = since - VERIFY_FOR;
            // What is worth watching still is.
            if let Some(finding) = &self.finding {
                health.state = GpuState::Suspect;
                health.reason = finding.reason.to_string();
                health.message.clone_from(&finding.message);
            }
            return health;
        }
        health.state = assessment.state;
        health.reason = assessment.reason.map(|r| r.to_string()).unwrap_or_default();
        health.message.clone_from(&assessment.message);
        health.since = since;
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{NvidiaDriver, NvmlStatus, PciFunction};

    fn facts(state: NvmlState, gpus: &[u32]) -> NodeFacts {
        NodeFacts {
            nvml: NvmlStatus {
                state,
                message: String::new(),
            },
            gpus: gpus
                .iter()
                .map(|i| Gpu {
                    index: *i,
                    uuid: format!("GPU-{i}"),
                    pci_address: Some(format!("0000:0{i}:00.0")),
                    ..Gpu::default()
                })
                .collect(),
            pci: [0, 1]
                .map(|i| PciFunction {
                    address: format!("0000:0{i}:00.0"),
                    vendor: 0x10de,
                    device: 0x2330,
                    class: 0x03_0200,
                    subsystem_vendor: None,
                    subsystem_device: None,
                    driver: Some("nvidia".into()),
                    numa_node: None,
                    sriov_total_vfs: None,
                })
                .into(),
            kernel_driver_version: (state != NvmlState::NoDriver).then(|| "550.1".into()),
            ..NodeFacts::default()
        }
    }

    fn xid(number: u64, gpu: Option<u32>) -> GpuEvent {
        GpuEvent {
            kind: GpuEventKind::Xid(number),
            uuid: gpu.map(|i| format!("GPU-{i}")),
            pci_address: None,
            age: Duration::from_secs(1),
            source: "nvml".into(),
            detail: String::new(),
        }
    }

    fn states(tracker: &Tracker, now: u64) -> Vec<(GpuState, String)> {
        let health = tracker.health(Duration::from_secs(now));
        health.gpus.into_iter().map(|g| (g.state, g.reason)).collect()
    }

    fn ready() -> Tracker {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        tracker
    }

    #[test]
    fn a_fatal_xid_takes_its_gpu_alone_until_the_driver_was_loaded_anew() {
        use GpuState::*;
        let mut tracker = ready();
        tracker.health(Duration::from_secs(1));
        tracker.on_event(&xid(79, Some(1)));
        let health = tracker.health(Duration::from_secs(100));
        assert_eq!((health.gpus[0].state, health.gpus[1].state), (Healthy, Unhealthy));
        assert_eq!(health.gpus[1].reason, "FallenOffBus");
        assert_eq!(
            health.gpus[1].since,
            Duration::from_secs(1),
            "the event was a second old"
        );
        assert_eq!(
            tracker.health(Duration::from_secs(105)).gpus[1].since,
            Duration::from_secs(6)
        );

        // A probe that restarts, or a hang that ends, is no reset.
        for away in [NvmlState::ProbeUnavailable, NvmlState::Hung] {
            tracker.on_inventory(&facts(away, &[0, 1]));
            tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
            assert_eq!(states(&tracker, 110)[1].0, Unhealthy, "{away}");
        }
        tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
        assert_eq!(states(&tracker, 120)[0], (Unhealthy, "DriverNotLoaded".into()));
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 121)[1].0, Verifying);
        assert_eq!(states(&tracker, 121)[0].0, Healthy, "had no fault to recover from");
        let recovered = tracker.health(Duration::from_secs(132));
        assert_eq!(recovered.gpus[1].state, Healthy);
        assert_eq!(
            recovered.gpus[1].cleared_by.as_deref(),
            Some("the driver was loaded anew")
        );
        // A fault while it is verified starts over.
        tracker.on_event(&xid(48, Some(1)));
        assert_eq!(states(&tracker, 133)[1], (Unhealthy, "DoubleBitError".into()));
    }

    #[test]
    fn lighter_faults_neither_hide_nor_follow_a_heavy_one() {
        let mut tracker = ready();
        tracker.on_event(&xid(13, Some(0)));
        assert_eq!(states(&tracker, 1)[0], (GpuState::Healthy, String::new()));
        tracker.on_event(&xid(170, Some(0)));
        assert_eq!(states(&tracker, 1)[0], (GpuState::Suspect, "XidUnlisted".into()));
        tracker.on_event(&xid(95, Some(0)));
        tracker.on_event(&xid(171, Some(0)));
        assert_eq!(states(&tracker, 1)[0], (GpuState::Unhealthy, "ResetRequired".into()));
    }

    fn checks(gpu: u32, change: impl FnOnce(&mut GpuChecks)) -> Vec<GpuChecks> {
        let mut checks = GpuChecks {
            uuid: format!("GPU-{gpu}"),
            ..GpuChecks::default()
        };
        change(&mut checks);
        vec![checks]
    }

    #[test]
    fn a_finding_holds_while_it_is_there_and_is_verified_after() {
        use GpuState::*;
        let s = Duration::from_secs;
        let mut tracker = ready();
        tracker.on_checks(checks(1, |c| c.recovery_action = Some(1)), s(1));
        assert_eq!(
            states(&tracker, 1),
            [(Healthy, String::new()), (Unhealthy, "RecoveryAction".into())]
        );
        tracker.on_checks(checks(1, |c| c.recovery_action = Some(0)), s(20));
        assert_eq!(states(&tracker, 20)[1].0, Verifying);
        assert_eq!(states(&tracker, 31)[1].0, Healthy);
        assert_eq!(
            tracker.health(s(31)).gpus[1].cleared_by.as_deref(),
            Some("the check passes again")
        );
        // Something worth watching does not cut the verification short, and shows after it.
        tracker.on_checks(checks(1, |c| c.inforom_valid = Some(false)), s(40));
        assert_eq!(states(&tracker, 40)[1], (Unhealthy, "InforomCorrupted".into()));
        tracker.on_checks(
            checks(1, |c| {
                (c.inforom_valid, c.pcie_width, c.pcie_max_width) = (Some(true), Some(8), Some(16))
            }),
            s(50),
        );
        assert_eq!(states(&tracker, 50)[1].0, Verifying);
        assert_eq!(states(&tracker, 61)[1], (Suspect, "PcieWidth".into()));
    }

    #[test]
    fn no_action_recommended_clears_neither_a_fault_nor_another_finding() {
        for number in [48, 79, 95] {
            let mut tracker = ready();
            tracker.on_event(&xid(number, Some(0)));
            tracker.on_checks(checks(0, |c| c.recovery_action = Some(0)), Duration::from_secs(1));
            assert_eq!(states(&tracker, 60)[0].0, GpuState::Unhealthy, "XID {number}");
        }
        let mut tracker = ready();
        tracker.on_lost("GPU-0", "GPU_IS_LOST");
        tracker.on_checks(checks(0, |c| c.recovery_action = Some(0)), Duration::from_secs(1));
        assert_eq!(states(&tracker, 60)[0].0, GpuState::Unhealthy);
        let mut tracker = ready();
        let double_bit = |c: &mut GpuChecks| (c.recovery_action, c.ecc_uncorrected_volatile) = (Some(0), Some(2));
        tracker.on_checks(checks(0, double_bit), Duration::from_secs(1));
        assert_eq!(states(&tracker, 60)[0], (GpuState::Unhealthy, "DoubleBitError".into()));
        // A driver that was loaded anew starts counting at zero.
        tracker.on_inventory(&facts(NvmlState::NoDriver, &[0, 1]));
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 61)[0].0, GpuState::Verifying);
        tracker.on_checks(checks(0, double_bit), Duration::from_secs(62));
        assert_eq!(states(&tracker, 62)[0].0, GpuState::Unhealthy);
    }

    #[test]
    fn an_xid_154_without_text_is_answered_by_the_reading() {
        for (action, state) in [(0, GpuState::Verifying), (4, GpuState::Unhealthy)] {
            let mut tracker = ready();
            tracker.on_event(&xid(154, Some(0)));
            assert_eq!(states(&tracker, 1)[0], (GpuState::Suspect, "RecoveryAction".into()));
            tracker.on_checks(checks(0, |c| c.recovery_action = Some(action)), Duration::from_secs(1));
            assert_eq!(states(&tracker, 1)[0].0, state, "{action}");
        }
    }

    #[test]
    fn throttling_is_seen_in_samples() {
        let mut tracker = ready();
        for second in 0..400 {
            let sample = GpuSample {
                uuid: "GPU-0".into(),
                clocks_event_reasons: Some(0x40),
                ..GpuSample::default()
            };
            tracker.on_samples([&sample], Duration::from_secs(second));
        }
        assert_eq!(states(&tracker, 400)[0], (GpuState::Unhealthy, "Throttled".into()));
        assert_eq!(states(&tracker, 400)[1].0, GpuState::Healthy);
    }

    #[test]
    fn an_event_finds_its_gpu_by_address_and_waits_for_the_first_inventory() {
        let mut tracker = Tracker::new();
        let mut event = xid(79, None);
        event.pci_address = Some("0000:01:00".into());
        tracker.on_event(&event);
        assert!(tracker.health(Duration::ZERO).gpus.is_empty());
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 1)[0].0, GpuState::Healthy);
        assert_eq!(states(&tracker, 1)[1].0, GpuState::Unhealthy);
    }

    #[test]
    fn an_event_without_a_gpu_makes_all_suspect() {
        let mut tracker = ready();
        tracker.on_event(&xid(79, None));
        assert!(states(&tracker, 1).iter().all(|(s, _)| *s == GpuState::Suspect));
    }

    #[test]
    fn lost_and_missing_gpus() {
        let mut tracker = ready();
        tracker.on_lost("GPU-0", "GPU_IS_LOST");
        assert_eq!(states(&tracker, 1)[0], (GpuState::Unhealthy, "GpuLost".into()));
        // Listing it again is no proof.
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 1)[0].0, GpuState::Unhealthy);

        let mut tracker = ready();
        tracker.on_inventory(&facts(NvmlState::Ready, &[0]));
        assert_eq!(states(&tracker, 1)[1], (GpuState::Unhealthy, "GpuMissing".into()));
        assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 1);
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 2)[1].0, GpuState::Verifying);
        assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
    }

    #[test]
    fn a_gpu_that_left_the_bus_is_lost_until_it_is_back() {
        let mut tracker = ready();
        let mut unplugged = facts(NvmlState::Ready, &[0, 1]);
        unplugged.pci.pop();
        for _ in 0..2 {
            tracker.on_inventory(&unplugged);
            assert_eq!(states(&tracker, 1)[0].0, GpuState::Healthy);
            assert_eq!(states(&tracker, 1)[1], (GpuState::Unhealthy, "GpuLost".into()));
        }
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 2)[1].0, GpuState::Verifying);

        // No PCI at all is no news of a GPU.
        let mut tracker = Tracker::new();
        unplugged.pci.clear();
        tracker.on_inventory(&unplugged);
        tracker.on_inventory(&unplugged);
        assert_eq!(states(&tracker, 1)[1].0, GpuState::Healthy);
    }

    #[test]
    fn an_excluded_gpu_is_not_missed() {
        let mut held_back = facts(NvmlState::Ready, &[0]);
        for (excluded, missing) in [(None, 1), (Some(0), 1), (Some(1), 0), (Some(2), 0)] {
            held_back.driver = Some(NvidiaDriver {
                version: "550.163.01".into(),
                cuda_version: None,
                nvml_version: None,
                excluded_gpus: excluded,
            });
            let mut tracker = Tracker::new();
            tracker.on_inventory(&held_back);
            assert_eq!(tracker.health(Duration::ZERO).missing_gpus, missing, "{excluded:?}");
        }
    }

    #[test]
    fn a_gpu_that_was_unbound_and_is_back_is_verified() {
        let mut tracker = ready();
        tracker.on_event(&xid(95, Some(0)));
        let mut unbound = xid(0, Some(0));
        unbound.kind = GpuEventKind::Other("DriverUnbound".into());
        tracker.on_event(&unbound);
        assert_eq!(states(&tracker, 1)[0].0, GpuState::Unhealthy);
        tracker.on_inventory(&facts(NvmlState::Ready, &[0, 1]));
        assert_eq!(states(&tracker, 2)[0], (GpuState::Verifying, "Recovering".into()));
    }

    #[test]
    fn a_gpu_given_to_another_driver_is_no_longer_judged() {
        let mut tracker = ready();
        let mut passed = facts(NvmlState::Ready, &[0]);
        passed.pci[1].driver = Some("vfio-pci".into());
        tracker.on_inventory(&passed);
        assert_eq!(states(&tracker, 1).len(), 1);
        assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
    }

    #[test]
    fn missing_gpus_are_not_counted_while_nvml_is_away() {
        let mut tracker = Tracker::new();
        tracker.on_inventory(&facts(NvmlState::NoLibrary, &[]));
        assert_eq!(tracker.health(Duration::ZERO).missing_gpus, 0);
    }
}
