//! What the readiness conditions of a node are to say: what its agent reported and what is observed in, at most one write out.

use std::time::Instant;

use berth_core::facts::{AmdGpu, NodeFacts, NvmlState, VENDOR_AMD};
use berth_core::freshness::READY_UNKNOWN;
use berth_core::health::{GpuHealth, GpuState, NodeHealth, Reason, is_of_hardware};
use berth_crds::conditions::{Status, shortened};

use crate::cluster::{Agent, HELD, NVIDIA_READY};

/// Whether all NVIDIA GPUs of the node may be handed out.
pub(super) const NVIDIA: &str = NVIDIA_READY;
/// The same of AMD.
pub(super) const AMD: &str = "amd.com/GPUReady";

/// Longest message, in bytes: a node has a condition for people, not a report.
const LONGEST: usize = 1024;
/// Reason while every GPU is ready and nothing is worth watching.
pub(super) const ALL_READY: &str = "AllGPUsReady";
/// Reason while the agent is silent.
pub(super) const AGENT_SILENT: &str = "AgentSilent";

/// A condition, before its time of transition is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub status: Status,
    pub reason: String,
    pub message: String,
}

/// What becomes of one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It says this.
    Say(Wanted),
    /// Nothing new is known: it stays as it is, or absent.
    Keep,
    /// The node has no such GPUs.
    None,
}

/// Both conditions, and when time alone makes a difference.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub nvidia: Word,
    pub amd: Word,
    pub again_at: Option<Instant>,
}

impl Words {
    /// The fleet breaker holds the node back: said where people look.
    pub fn held(mut self) -> Self {
        if let Word::Say(Wanted { status, message, .. }) = &mut self.nvidia
            && *status == Status::False
        {
            *message = shortened(std::mem::take(message), LONGEST - HELD.len()) + HELD;
        }
        self
    }

    /// What a condition says on which others act, by draining or replacing the node: the worst of both vendors. Of NVIDIA's it is False
    /// only where the fleet breaker took the node out (`excluded`): neither while it doubts the verdict, nor for one MIG slice, nor for what
    /// is no fault of the hardware. Of AMD's, which the breaker does not follow, it is False for each fault of the hardware.
    pub fn for_repair(&self, excluded: bool) -> Word {
        let rank = |word: &&Word| match word {
            Word::None => 0,
            Word::Keep => 1,
            Word::Say(wanted) => match wanted.status {
                Status::True => 2,
                Status::Unknown => 3,
                Status::False => 4,
            },
        };
        let doubted = |word: &Word, believed: &dyn Fn(&Wanted) -> bool| match word.clone() {
            Word::Say(wanted) if wanted.status == Status::False && !believed(&wanted) => Word::Say(Wanted {
                status: Status::Unknown,
                ..wanted
            }),
            word => word,
        };
        let words = [
            doubted(&self.amd, &|wanted| is_of_hardware(&wanted.reason)),
            doubted(&self.nvidia, &|_| excluded),
        ];
        words.into_iter().max_by_key(|word| rank(&word)).unwrap_or(Word::None)
    }
}

fn say(status: Status, reason: impl Into<String>, message: impl Into<String>) -> Word {
    Word::Say(Wanted {
        status,
        reason: reason.into(),
        message: shortened(message.into(), LONGEST),
    })
}

/// Computes both. `agent`: of this very node; `leads_since`: when this process began to listen for agents; `probe_away_since`: since when
/// the agent has reported that no probe answers.
pub(super) fn words(
    agent: Option<&Agent>,
    leads_since: Instant,
    probe_away_since: Option<Instant>,
    now: Instant,
) -> Words {
    let silent_at = agent.map_or(leads_since, |a| a.heard.max(leads_since)) + READY_UNKNOWN;
    let connected = agent.is_some_and(|a| a.connected);
    if !connected && now >= silent_at {
        let silent = || {
            let message = format!(
                "nothing was heard of the node's berth-agent for {} s",
                READY_UNKNOWN.as_secs()
            );
            say(Status::Unknown, AGENT_SILENT, message)
        };
        return Words {
            nvidia: silent(),
            amd: silent(),
            again_at: None,
        };
    }
    let again_at = (!connected).then_some(silent_at);
    let Some((agent, facts)) = agent.and_then(|a| Some((a, a.facts.as_ref()?))) else {
        return Words {
            nvidia: Word::Keep,
            amd: Word::Keep,
            again_at,
        };
    };
    let away_at = probe_away_since.map(|since| since + READY_UNKNOWN);
    Words {
        nvidia: match &agent.health {
            Some(health) => nvidia(facts, health, away_at.is_some_and(|at| now >= at)),
            None => Word::Keep,
        },
        amd: amd(facts),
        again_at: [again_at, away_at.filter(|at| now < *at)].into_iter().flatten().min(),
    }
}

/// Whether the agent reports that no probe answers it: nothing is known of the GPUs then.
pub(super) fn probe_is_away(health: &NodeHealth) -> bool {
    matches!(health.nvml.state, NvmlState::ProbeUnavailable | NvmlState::Unknown)
}

fn nvidia(facts: &NodeFacts, health: &NodeHealth, away_for_long: bool) -> Word {
    if facts.nvidia_cards().next().is_none() && health.gpus.is_empty() {
        return Word::None;
    }
    if probe_is_away(health) {
        return match away_for_long {
            true => say(
                Status::Unknown,
                Reason::ProbeUnavailable.as_str(),
                &*health.nvml.message,
            ),
            // A probe that restarts says nothing of the GPUs.
            false => Word::Keep,
        };
    }
    let not_ready = |g: &&GpuHealth| !g.state.may_be_handed_out();
    // A slice that is as its GPU is says nothing new.
    let troubles: Vec<&GpuHealth> = health.troubles().collect();
    let count = troubles.iter().copied().filter(not_ready).count();
    let gpus = health.gpus.iter().filter(|g| g.gpu.is_none()).count();
    // The first of the worst: they are in NVML's order.
    let worst = troubles.iter().rev().max_by_key(|g| g.state);
    match worst {
        Some(worst) if !worst.state.may_be_handed_out() => {
            let others = match count {
                1 => String::new(),
                n if troubles.len() == gpus => format!("; {n} of {gpus} GPUs are not ready"),
                n => format!("; {n} GPUs and MIG slices are not ready"),
            };
            say(Status::False, &*worst.reason, format!("{}{others}", told(worst)))
        }
        _ if health.missing_gpus > 0 => say(
            Status::False,
            Reason::GpuMissing.as_str(),
            format!(
                "{} GPU(s) of the node are not listed by NVML: restart the machine",
                health.missing_gpus
            ),
        ),
        Some(worst) if worst.state == GpuState::Suspect => say(Status::True, &*worst.reason, told(worst)),
        Some(_) => say(Status::True, ALL_READY, format!("{gpus} GPU(s)")),
        None => {
            let reason = match health.nvml.state {
                NvmlState::Ready => Reason::GpuMissing,
                NvmlState::NoLibrary | NvmlState::NoDriver => Reason::DriverNotLoaded,
                NvmlState::VersionMismatch | NvmlState::Released => Reason::DriverUpgrading,
                NvmlState::ReleaseBlocked => Reason::DriverReleaseBlocked,
                NvmlState::Hung => Reason::GPUDriverHung,
                NvmlState::Error | NvmlState::ProbeUnavailable | NvmlState::Unknown => Reason::NvmlError,
            };
            say(Status::False, reason.as_str(), &*health.nvml.message)
        }
    }
}

fn told(gpu: &GpuHealth) -> String {
    format!("{}: {}", gpu.uuid, gpu.message)
}

/// PCI classes of AMD's accelerators: processing accelerator, and display controller that is no VGA.
fn is_accelerator(class: u32) -> bool {
    class >> 16 == 0x12 || class >> 8 == 0x03_80
}

/// From sysfs alone: whether the driver serves every card, whether each answers, and the driver's counts of errors.
fn amd(facts: &NodeFacts) -> Word {
    let served = facts.amd_gpus.len();
    let amd = facts
        .pci
        .iter()
        .filter(|f| f.vendor == VENDOR_AMD && is_accelerator(f.class));
    let without = amd.filter(|f| f.driver.is_none()).count();
    let ill = |gpu: &AmdGpu| match (gpu.answers, gpu.uncorrectable_errors) {
        (Some(false), _) => Some((
            Reason::GpuLost,
            "has fallen off the bus: restart the machine".to_owned(),
        )),
        (_, Some(count @ 1..)) => Some((
            Reason::DoubleBitError,
            format!("{count} uncorrectable error(s): drain the node and load the driver anew"),
        )),
        _ => None,
    };
    let worst = facts.amd_gpus.iter().find_map(|gpu| Some((gpu, ill(gpu)?)));
    if let Some((gpu, (reason, why))) = worst {
        return say(Status::False, reason.as_str(), format!("{}: {why}", gpu.pci_address));
    }
    match (served, without) {
        (0, 0) => Word::None,
        (_, 0) => say(Status::True, ALL_READY, format!("{served} GPU(s)")),
        (_, n) => say(
            Status::False,
            Reason::DriverNotLoaded.as_str(),
            format!("{n} of {} GPU(s) have no driver", served + n),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use berth_core::facts::{NvmlStatus, PciFunction};

    use super::*;

    fn earlier(now: Instant, ago: Duration) -> Instant {
        now.checked_sub(ago).unwrap()
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn function(vendor: u16, class: u32, driver: Option<&str>) -> PciFunction {
        PciFunction {
            address: "0000:3b:00.0".into(),
            vendor,
            device: 0x2330,
            class,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: driver.map(str::to_owned),
            numa_node: None,
            sriov_total_vfs: None,
        }
    }

    fn gpu(n: u32, state: GpuState, reason: &str) -> GpuHealth {
        GpuHealth {
            uuid: format!("GPU-{n}"),
            state,
            reason: reason.into(),
            message: format!("{reason} seen"),
            since: Duration::ZERO,
            cleared_by: None,
            gpu: None,
        }
    }

    fn health(state: NvmlState, gpus: &[(GpuState, &str)], missing: u32) -> NodeHealth {
        NodeHealth {
            gpus: (0..)
                .zip(gpus)
                .map(|(n, (state, reason))| gpu(n, *state, reason))
                .collect(),
            nvml: NvmlStatus {
                state,
                message: "NVML's words".into(),
            },
            missing_gpus: missing,
        }
    }

    fn with_card(driver: Option<&str>) -> NodeFacts {
        NodeFacts {
            pci: vec![function(0x10de, 0x03_0200, driver)],
            ..NodeFacts::default()
        }
    }

    #[test]
    fn a_slice_counts_where_it_is_worse_than_its_gpu() {
        use GpuState::{Healthy, Unhealthy};
        let slice = |n: u32, state, of: u32| GpuHealth {
            gpu: Some(format!("GPU-{of}")),
            uuid: format!("MIG-{n}"),
            ..gpu(n, state, "ResetRequired")
        };
        for (what, gpus, want) in [
            (
                "all well",
                vec![gpu(0, Healthy, ""), slice(0, Healthy, 0), slice(1, Healthy, 0)],
                ("True", "AllGPUsReady", "1 GPU(s)"),
            ),
            (
                "one slice",
                vec![gpu(0, Healthy, ""), slice(0, Healthy, 0), slice(1, Unhealthy, 0)],
                ("False", "ResetRequired", "MIG-1: ResetRequired seen"),
            ),
            (
                "two slices",
                vec![gpu(0, Healthy, ""), slice(0, Unhealthy, 0), slice(1, Unhealthy, 0)],
                (
                    "False",
                    "ResetRequired",
                    "MIG-0: ResetRequired seen; 2 GPUs and MIG slices are not ready",
                ),
            ),
            (
                "their GPU",
                vec![
                    gpu(0, Unhealthy, "FallenOffBus"),
                    slice(0, Unhealthy, 0),
                    slice(1, Unhealthy, 0),
                ],
                ("False", "FallenOffBus", "GPU-0: FallenOffBus seen"),
            ),
        ] {
            let report = NodeHealth {
                gpus,
                ..health(NvmlState::Ready, &[], 0)
            };
            let Word::Say(said) = nvidia(&with_card(Some("nvidia")), &report, false) else {
                panic!("{what}");
            };
            assert_eq!((said.status.as_str(), &*said.reason, &*said.message), want, "{what}");
        }
    }

    #[test]
    fn the_worst_check_is_the_reason() {
        use GpuState::*;
        use Status::{False, True};
        for (state, gpus, missing, want) in [
            (
                NvmlState::Ready,
                &[(Healthy, ""), (Healthy, "")][..],
                0,
                (True, "AllGPUsReady", "2 GPU(s)"),
            ),
            (
                NvmlState::Ready,
                &[(Healthy, ""), (Suspect, "PcieWidth")],
                0,
                (True, "PcieWidth", "GPU-1: PcieWidth seen"),
            ),
            (
                NvmlState::Ready,
                &[(Suspect, "PcieWidth"), (Unhealthy, "FallenOffBus")],
                0,
                (False, "FallenOffBus", "GPU-1: FallenOffBus seen"),
            ),
            (
                NvmlState::Ready,
                &[(Verifying, "Recovering"), (Unhealthy, "A"), (Unhealthy, "B")],
                1,
                (False, "A", "GPU-1: A seen; 3 of 3 GPUs are not ready"),
            ),
            (
                NvmlState::Ready,
                &[(Verifying, "Recovering")],
                0,
                (False, "Recovering", "GPU-0: Recovering seen"),
            ),
            (
                NvmlState::Ready,
                &[(Healthy, "")],
                1,
                (
                    False,
                    "GpuMissing",
                    "1 GPU(s) of the node are not listed by NVML: restart the machine",
                ),
            ),
            (NvmlState::NoDriver, &[], 0, (False, "DriverNotLoaded", "NVML's words")),
            (
                NvmlState::VersionMismatch,
                &[],
                0,
                (False, "DriverUpgrading", "NVML's words"),
            ),
            (NvmlState::Released, &[], 0, (False, "DriverUpgrading", "NVML's words")),
            (
                NvmlState::ReleaseBlocked,
                &[],
                0,
                (False, "DriverReleaseBlocked", "NVML's words"),
            ),
            (NvmlState::Hung, &[], 0, (False, "GPUDriverHung", "NVML's words")),
            (NvmlState::Error, &[], 0, (False, "NvmlError", "NVML's words")),
        ] {
            let word = nvidia(&with_card(Some("nvidia")), &health(state, gpus, missing), false);
            assert_eq!(word, say(want.0, want.1, want.2), "{state} {gpus:?}");
        }
    }

    #[test]
    fn nodes_without_gpus_of_ours_have_no_condition() {
        let none = health(NvmlState::NoLibrary, &[], 0);
        for (facts, want) in [
            (NodeFacts::default(), true),
            (with_card(Some("vfio-pci")), true),
            (with_card(None), false),
        ] {
            assert_eq!(nvidia(&facts, &none, false) == Word::None, want, "{facts:?}");
        }
    }

    #[test]
    fn amd_by_its_driver() {
        let card = |driver| function(0x1002, 0x12_0000, driver);
        let served = AmdGpu::default();
        for (gpus, pci, want) in [
            (vec![], vec![], Word::None),
            (
                vec![served.clone()],
                vec![card(Some("amdgpu"))],
                say(Status::True, "AllGPUsReady", "1 GPU(s)"),
            ),
            (
                vec![
                    served.clone(),
                    AmdGpu {
                        pci_address: "0000:05:00.0".into(),
                        uncorrectable_errors: Some(2),
                        answers: Some(true),
                        ..AmdGpu::default()
                    },
                ],
                vec![card(Some("amdgpu"))],
                say(
                    Status::False,
                    "DoubleBitError",
                    "0000:05:00.0: 2 uncorrectable error(s): drain the node and load the driver anew",
                ),
            ),
            (
                vec![AmdGpu {
                    pci_address: "0000:05:00.0".into(),
                    uncorrectable_errors: Some(0),
                    answers: Some(false),
                    ..AmdGpu::default()
                }],
                vec![card(Some("amdgpu"))],
                say(
                    Status::False,
                    "GpuLost",
                    "0000:05:00.0: has fallen off the bus: restart the machine",
                ),
            ),
            (
                vec![served],
                vec![card(Some("amdgpu")), card(None)],
                say(Status::False, "DriverNotLoaded", "1 of 2 GPU(s) have no driver"),
            ),
            (vec![], vec![card(Some("vfio-pci"))], Word::None),
        ] {
            let facts = NodeFacts {
                pci,
                amd_gpus: gpus,
                ..NodeFacts::default()
            };
            assert_eq!(amd(&facts), want);
        }
    }

    fn agent(now: Instant, silent: Duration, connected: bool, state: NvmlState) -> Agent {
        Agent {
            node_uid: "u".into(),
            connected,
            heard: earlier(now, silent),
            facts: Some(with_card(Some("nvidia"))),
            facts_at: None,
            health: Some(health(state, &[(GpuState::Healthy, "")], 0)),
            memory: Vec::new(),
            samples: HashMap::new(),
            version: String::new(),
        }
    }

    fn status(word: &Word) -> Option<(Status, &str)> {
        match word {
            Word::Say(wanted) => Some((wanted.status, &wanted.reason)),
            Word::Keep | Word::None => None,
        }
    }

    #[test]
    fn silence_is_unknown_after_a_minute_and_not_before() {
        let now = Instant::now();
        let long_ago = earlier(now, S(100));
        for (silent, connected, leads, want, again) in [
            (1, true, long_ago, Some((Status::True, ALL_READY)), None),
            // Nothing to say is no silence.
            (90, true, long_ago, Some((Status::True, ALL_READY)), None),
            (10, false, long_ago, Some((Status::True, ALL_READY)), Some(now + S(50))),
            (60, false, long_ago, Some((Status::Unknown, AGENT_SILENT)), None),
            // A new leader gives it time.
            (
                90,
                false,
                earlier(now, S(20)),
                Some((Status::True, ALL_READY)),
                Some(now + S(40)),
            ),
        ] {
            let agent = agent(now, S(silent), connected, NvmlState::Ready);
            let words = words(Some(&agent), leads, None, now);
            assert_eq!(
                (status(&words.nvidia), words.again_at),
                (want, again),
                "{silent} s, {connected}"
            );
        }
        let early = words(None, earlier(now, S(5)), None, now);
        assert_eq!((early.nvidia, early.again_at), (Word::Keep, Some(now + S(55))));
        let late = words(None, long_ago, None, now);
        assert_eq!(status(&late.nvidia), Some((Status::Unknown, AGENT_SILENT)));
    }

    #[test]
    fn a_probe_that_restarts_changes_nothing_and_one_that_stays_away_is_unknown() {
        let now = Instant::now();
        let agent = agent(now, S(0), true, NvmlState::ProbeUnavailable);
        let at = |since: u64| words(Some(&agent), earlier(now, S(100)), Some(earlier(now, S(since))), now);
        assert_eq!((at(1).nvidia, at(1).again_at), (Word::Keep, Some(now + S(59))));
        assert_eq!(status(&at(60).nvidia), Some((Status::Unknown, "ProbeUnavailable")));
    }

    #[test]
    fn on_a_node_that_is_held_back_the_message_says_so() {
        let words = |status| Words {
            nvidia: say(status, "A", "m"),
            amd: Word::None,
            again_at: None,
        };
        assert_eq!(words(Status::True).held(), words(Status::True));
        let held = words(Status::False).held();
        assert_eq!(held.nvidia, say(Status::False, "A", format!("m{HELD}")));
        let endless = Words {
            nvidia: say(Status::False, "A", "é".repeat(1 << 16)),
            amd: Word::None,
            again_at: None,
        };
        match endless.held().nvidia {
            Word::Say(wanted) => assert!(wanted.message.len() <= LONGEST && wanted.message.ends_with(HELD)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_repairs_is_told_of_hardware_alone() {
        use Status::{False, True, Unknown};
        for (nvidia, amd, excluded, want) in [
            (say(True, "A", ""), Word::None, false, say(True, "A", "")),
            (say(False, "A", ""), say(True, "B", ""), true, say(False, "A", "")),
            (say(True, "A", ""), say(False, "B", ""), false, say(False, "B", "")),
            (say(False, "A", ""), say(False, "B", ""), true, say(False, "A", "")),
            // NVIDIA's is in doubt, AMD's is not.
            (say(False, "A", ""), say(False, "B", ""), false, say(False, "B", "")),
            (say(Unknown, "A", ""), say(True, "B", ""), false, say(Unknown, "A", "")),
            (
                say(False, "DriverUpgrading", ""),
                Word::None,
                false,
                say(Unknown, "DriverUpgrading", ""),
            ),
            (
                Word::None,
                say(False, "DriverNotLoaded", ""),
                false,
                say(Unknown, "DriverNotLoaded", ""),
            ),
            // Held back, or one MIG slice.
            (say(False, "A", ""), Word::None, false, say(Unknown, "A", "")),
            (Word::Keep, Word::None, false, Word::Keep),
            (Word::None, Word::None, false, Word::None),
        ] {
            let words = Words {
                nvidia,
                amd,
                again_at: None,
            };
            assert_eq!(words.for_repair(excluded), want, "{words:?}");
        }
    }

    #[test]
    fn an_endless_message_is_cut() {
        let mut endless = health(NvmlState::Ready, &[(GpuState::Unhealthy, "A")], 0);
        endless.gpus[0].message = "é".repeat(1 << 16);
        match nvidia(&with_card(None), &endless, false) {
            Word::Say(wanted) => assert!(wanted.message.len() <= LONGEST),
            other => panic!("{other:?}"),
        }
    }
}
