//! What a message changes in the picture, and for whom that matters. Pure.

use std::time::{Duration, Instant};

use berth_core::facts::{GpuSample, NodeFacts, PodUse};
use berth_core::freshness::SAMPLE_STALE;
use berth_core::health::{GpuHealth, NodeHealth};

use super::session::{MOST_PODS, MOST_SAMPLES};
use crate::cluster::{Agent, AgentChange};

/// A session of this agent is open.
pub fn connected(agent: &mut Agent, version: String) -> AgentChange {
    agent.connected = true;
    agent.version = version;
    AgentChange::Live
}

/// A whole inventory came.
pub fn facts(agent: &mut Agent, mut new: NodeFacts, now: Instant) -> AgentChange {
    if let (Some(old), Some(at)) = (&agent.facts, agent.facts_at) {
        carry_over(old, now.saturating_duration_since(at), &mut new);
    }
    let changed = agent.facts.as_ref().is_none_or(|old| !same_facts(old, &new));
    if changed && !new.gpus.is_empty() {
        let known = |uuid: &str| {
            new.gpus
                .iter()
                .any(|g| g.uuid == uuid || g.mig.iter().flat_map(|m| &m.devices).any(|d| d.uuid == uuid))
        };
        agent.samples.retain(|uuid, _| known(uuid));
    }
    agent.facts = Some(new);
    agent.facts_at = Some(now);
    if changed {
        AgentChange::Hardware
    } else {
        AgentChange::Nothing
    }
}

/// An agent that has just started has not read NVML yet. What was known of the GPUs before stays known, as within one life of the agent,
/// as long as the node still has cards; else each restart of an agent would make labels come and go.
fn carry_over(old: &NodeFacts, elapsed: Duration, new: &mut NodeFacts) {
    let never_read = new.gpus_age.is_none() && new.gpus.is_empty();
    if never_read && new.nvidia_display_functions().next().is_some() {
        new.gpus.clone_from(&old.gpus);
        new.gpus_age = old.gpus_age.map(|age| age + elapsed);
        if new.driver.is_none() {
            new.driver.clone_from(&old.driver);
        }
        if new.vgpus.is_empty() {
            new.vgpus.clone_from(&old.vgpus);
        }
    }
}

/// Ages apart.
fn same_facts(a: &NodeFacts, b: &NodeFacts) -> bool {
    let NodeFacts {
        machine,
        pci,
        nvml,
        driver,
        gpus,
        gpus_age,
        kernel_driver_version,
        vgpus,
        amd_gpus,
        amd_driver,
        intel_gpus,
    } = a;
    *machine == b.machine
        && *pci == b.pci
        && *nvml == b.nvml
        && *driver == b.driver
        && *gpus == b.gpus
        && gpus_age.is_some() == b.gpus_age.is_some()
        && *kernel_driver_version == b.kernel_driver_version
        && *vgpus == b.vgpus
        && *amd_gpus == b.amd_gpus
        && *amd_driver == b.amd_driver
        && *intel_gpus == b.intel_gpus
}

/// A whole health report came.
pub fn health(agent: &mut Agent, new: NodeHealth) -> AgentChange {
    let changed = agent.health.as_ref().is_none_or(|old| !same_health(old, &new));
    agent.health = Some(new);
    if changed {
        AgentChange::Live
    } else {
        AgentChange::Nothing
    }
}

/// Times in state apart.
fn same_health(a: &NodeHealth, b: &NodeHealth) -> bool {
    let NodeHealth {
        gpus,
        nvml,
        missing_gpus,
    } = a;
    let same_gpu = |a: &GpuHealth, b: &GpuHealth| {
        let GpuHealth {
            uuid,
            state,
            reason,
            message,
            since: _,
            cleared_by,
            gpu,
        } = a;
        *uuid == b.uuid
            && *state == b.state
            && *reason == b.reason
            && *message == b.message
            && *cleared_by == b.cleared_by
            && *gpu == b.gpu
    };
    *nvml == b.nvml
        && *missing_gpus == b.missing_gpus
        && gpus.len() == b.gpus.len()
        && gpus.iter().zip(&b.gpus).all(|(a, b)| same_gpu(a, b))
}

/// Samples of some GPUs came. A waiting pod can only gain by a GPU that became live or has more room than before, or by news of who holds
/// which; nobody is woken for the rest.
pub fn samples(agent: &mut Agent, new: Vec<GpuSample>, now: Instant) -> AgentChange {
    let mut change = AgentChange::Nothing;
    for mut sample in new {
        // Older than this machine's uptime: nothing can be told from it.
        let Some(taken) = now.checked_sub(sample.age) else {
            continue;
        };
        if let Some((before, at)) = agent.samples.get(&sample.uuid) {
            if *at > taken {
                continue;
            }
            let was_stale = now.saturating_duration_since(*at) > SAMPLE_STALE;
            let others_hold_it = sample.units_left != before.units_left || !same_pods(&sample.pods, &before.pods);
            if was_stale || sample.memory_free_bytes > before.memory_free_bytes || others_hold_it {
                change = AgentChange::Live;
            }
        } else if agent.samples.len() >= MOST_SAMPLES {
            // More than any node has: whoever sends them is not to fill our memory.
            continue;
        } else {
            change = AgentChange::Live;
        }
        if sample.pods.len() > MOST_PODS {
            sample.pods.truncate(MOST_PODS);
            sample.units_left = None;
        }
        agent.samples.insert(sample.uuid.clone(), (sample, taken));
    }
    change
}

/// Memory apart.
fn same_pods(a: &[PodUse], b: &[PodUse]) -> bool {
    let who = |used: &PodUse| PodUse {
        memory_bytes: None,
        ..used.clone()
    };
    a.len() == b.len() && a.iter().map(who).eq(b.iter().map(who))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{Gpu, Mig, MigDevice, PciFunction};
    use berth_core::health::GpuState;
    use std::collections::HashMap;

    fn agent() -> Agent {
        Agent {
            node_uid: "u".into(),
            connected: true,
            heard: Instant::now(),
            facts: None,
            facts_at: None,
            health: None,
            memory: Vec::new(),
            samples: HashMap::new(),
            version: String::new(),
        }
    }

    fn card() -> PciFunction {
        PciFunction {
            address: "0000:3b:00.0".into(),
            vendor: 0x10de,
            device: 0x2330,
            class: 0x030200,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: None,
            numa_node: None,
            sriov_total_vfs: None,
        }
    }

    fn inventory(gpus: &[&str], read: bool) -> NodeFacts {
        NodeFacts {
            pci: vec![card()],
            gpus: gpus
                .iter()
                .map(|u| Gpu {
                    uuid: (*u).into(),
                    ..Gpu::default()
                })
                .collect(),
            gpus_age: read.then_some(Duration::from_secs(1)),
            ..NodeFacts::default()
        }
    }

    fn sample(uuid: &str, age_ms: u64, free: Option<u64>) -> GpuSample {
        GpuSample {
            uuid: uuid.into(),
            age: Duration::from_millis(age_ms),
            memory_free_bytes: free,
            ..GpuSample::default()
        }
    }

    #[test]
    fn facts_wake_only_when_they_change() {
        let (mut a, now) = (agent(), Instant::now());
        assert_eq!(facts(&mut a, inventory(&["g"], true), now), AgentChange::Hardware);
        let mut older = inventory(&["g"], true);
        older.gpus_age = Some(Duration::from_secs(60));
        assert_eq!(facts(&mut a, older, now), AgentChange::Nothing);
        assert_eq!(
            a.facts.as_ref().unwrap().gpus_age,
            Some(Duration::from_secs(60)),
            "the age follows all the same"
        );
        assert_eq!(facts(&mut a, inventory(&["g", "h"], true), now), AgentChange::Hardware);
    }

    #[test]
    fn a_restarted_agent_does_not_wipe_what_was_known() {
        let (mut a, now) = (agent(), Instant::now());
        facts(&mut a, inventory(&["g"], true), now);
        let later = now + Duration::from_secs(30);
        assert_eq!(facts(&mut a, inventory(&[], false), later), AgentChange::Nothing);
        let kept = a.facts.as_ref().unwrap();
        assert_eq!((kept.gpus.len(), kept.gpus_age), (1, Some(Duration::from_secs(31))));
        // NVML was read and lists nothing: that is news.
        assert_eq!(facts(&mut a, inventory(&[], true), later), AgentChange::Hardware);
        assert!(a.facts.as_ref().unwrap().gpus.is_empty());
    }

    #[test]
    fn a_node_without_cards_keeps_no_gpus() {
        let (mut a, now) = (agent(), Instant::now());
        facts(&mut a, inventory(&["g"], true), now);
        assert_eq!(facts(&mut a, NodeFacts::default(), now), AgentChange::Hardware);
        assert!(a.facts.unwrap().gpus.is_empty());
    }

    #[test]
    fn samples_of_gpus_that_are_gone_go() {
        let (mut a, now) = (agent(), Instant::now());
        let mut first = inventory(&["g", "h"], true);
        let device = MigDevice {
            uuid: "MIG-1".into(),
            ..MigDevice::default()
        };
        first.gpus[0].mig = Some(Mig {
            enabled: true,
            pending: true,
            devices: vec![device],
        });
        let kept = NodeFacts {
            gpus: vec![first.gpus[0].clone()],
            ..first.clone()
        };
        facts(&mut a, first, now);
        samples(&mut a, ["g", "h", "MIG-1"].map(|u| sample(u, 0, None)).to_vec(), now);
        facts(&mut a, kept, now);
        let mut left: Vec<_> = a.samples.keys().cloned().collect();
        left.sort();
        assert_eq!(left, ["MIG-1", "g"]);
    }

    #[test]
    fn health_wakes_only_when_it_changes() {
        let mut a = agent();
        let report = |state, since| NodeHealth {
            gpus: vec![GpuHealth {
                uuid: "g".into(),
                state,
                reason: String::new(),
                message: String::new(),
                since: Duration::from_secs(since),
                cleared_by: None,
                gpu: None,
            }],
            ..NodeHealth::default()
        };
        assert_eq!(health(&mut a, report(GpuState::Healthy, 1)), AgentChange::Live);
        assert_eq!(health(&mut a, report(GpuState::Healthy, 2)), AgentChange::Nothing);
        assert_eq!(health(&mut a, report(GpuState::Unhealthy, 0)), AgentChange::Live);
        assert_eq!(a.health.unwrap().gpus[0].state, GpuState::Unhealthy);
    }

    #[test]
    fn invented_gpus_do_not_fill_the_memory() {
        let mut a = agent();
        for n in 0..3 * MOST_SAMPLES {
            samples(&mut a, vec![sample(&format!("GPU-{n}"), 0, None)], Instant::now());
        }
        assert_eq!(a.samples.len(), MOST_SAMPLES);
    }

    #[test]
    fn news_of_who_holds_a_gpu_wakes_and_is_bounded() {
        let (mut a, now) = (agent(), Instant::now());
        let used = |name: &str, memory| PodUse {
            uid: Some(name.into()),
            memory_bytes: Some(memory),
            ..PodUse::default()
        };
        let with = |pods: &[PodUse], left| GpuSample {
            pods: pods.to_vec(),
            units_left: left,
            ..sample("g", 0, Some(10))
        };
        let mut send = |s: GpuSample| samples(&mut a, vec![s], now);
        assert_eq!(send(with(&[], Some(1))), AgentChange::Live, "first");
        assert_eq!(send(with(&[used("a", 1)], Some(0))), AgentChange::Live, "a pod");
        assert_eq!(
            send(with(&[used("a", 2)], Some(0))),
            AgentChange::Nothing,
            "more memory"
        );
        assert_eq!(send(with(&[used("b", 2)], Some(0))), AgentChange::Live, "another pod");
        assert_eq!(
            send(with(&[used("b", 2)], None)),
            AgentChange::Live,
            "not known any more"
        );
        send(with(&vec![used("c", 1); 3 * MOST_PODS], Some(0)));
        let (kept, _) = &a.samples["g"];
        assert_eq!((kept.pods.len(), kept.units_left), (MOST_PODS, None));
    }

    #[test]
    fn samples_carry_their_age_and_wake_only_for_room() {
        let (mut a, now) = (agent(), Instant::now());
        let mut send = |at: Instant, s: GpuSample| samples(&mut a, vec![s], at);
        let s = Duration::from_secs;
        assert_eq!(send(now, sample("g", 200, Some(10))), AgentChange::Live, "first");
        assert_eq!(send(now + s(1), sample("g", 0, Some(10))), AgentChange::Nothing, "same");
        assert_eq!(
            send(now + s(2), sample("g", 0, Some(5))),
            AgentChange::Nothing,
            "less room"
        );
        assert_eq!(
            send(now + s(3), sample("g", 0, Some(6))),
            AgentChange::Live,
            "more room"
        );
        assert_eq!(
            send(now + s(4), sample("g", 3000, Some(99))),
            AgentChange::Nothing,
            "older than what is known"
        );
        assert_eq!(
            send(now + s(20), sample("g", 0, Some(6))),
            AgentChange::Live,
            "live again"
        );
        let absurd = sample("g", u64::MAX, Some(7));
        assert_eq!(send(now + s(21), absurd), AgentChange::Nothing, "of no time");
        let (kept, taken) = a.samples["g"].clone();
        assert_eq!((kept.memory_free_bytes, taken), (Some(6), now + s(20)));
    }
}
