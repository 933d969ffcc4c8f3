//! What the picture tells the fleet breaker, and whom its decisions concern.

use std::time::{Duration, Instant, SystemTime};

use berth_core::health::breaker::Change;
use berth_core::health::{NodeState, cause_told, is_of_hardware};
use berth_crds::access::UNHEALTHY_TAINT;
use berth_crds::names::{NVIDIA_GPU, managers};
use jiff::Timestamp;

use super::{Agent, Cluster, Node, Picture};

/// Type of the condition that says whether a node's NVIDIA GPUs may be handed out.
pub const NVIDIA_READY: &str = "nvidia.com/GPUReady";
/// End of that condition's message on a node that is held back: what is on a node outlives the controller.
pub const HELD: &str = "; still counted for placement, the fleet breaker is open";

/// Time since 1970 that does not go back while the process lives: what conditions say can be compared with it.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    since_1970: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            start: Instant::now(),
            since_1970: since_1970.unwrap_or_default(),
        }
    }
}

impl Clock {
    /// A moment on it.
    pub fn at(&self, moment: Instant) -> Duration {
        self.since_1970 + moment.saturating_duration_since(self.start)
    }

    /// The moment of a time on it.
    pub fn moment(&self, time: Duration) -> Instant {
        self.start + time.saturating_sub(self.since_1970)
    }
}

impl Picture {
    /// The node's agent said something.
    pub(super) fn agent_spoke(&mut self, name: &str, now: Instant) -> Change {
        let now = self.clock.at(now);
        let Some((agent, health)) = self.agents.get(name).and_then(|a| Some((a, a.health.as_ref()?))) else {
            return Change::default();
        };
        match has_gpus(agent) {
            true => {
                let driver = agent.facts.as_ref().and_then(|f| f.driver.as_ref());
                let driver = driver.map(|d| d.version.as_str());
                self.breaker.observe(name, driver, NodeState::of(health), now)
            }
            false => self.breaker.forget(name, now),
        }
    }

    /// The node is known, or changed. What an earlier process decided on it is taken over once.
    pub(super) fn node_came(&mut self, node: &Node, now: Instant) -> Change {
        let condition = node.conditions.iter().find(|c| c.type_ == NVIDIA_READY);
        let offers_gpus = node.allocatable.whole(NVIDIA_GPU) > 0;
        let tainted = node.taints.iter().any(|t| t.key == UNHEALTHY_TAINT);
        let has_none = |a: &Agent| a.node_uid == node.uid && a.health.is_some() && !has_gpus(a);
        let says_none = self.agents.get(&node.name).is_some_and(has_none);
        if says_none || (condition.is_none() && !offers_gpus && !tainted) {
            return Change::default();
        }
        let now = self.clock.at(now);
        let ours = condition.filter(|c| c.managers.contains(managers::NODES_HEALTH) && c.status == "False");
        let excluded = ours.filter(|c| tainted || (is_of_hardware(&c.reason) && !c.message.ends_with(HELD)));
        let left = excluded.map(|c| {
            (
                cause_told(&c.reason, &c.message),
                transition(c.last_transition.as_deref()),
            )
        });
        let left = left.or_else(|| tainted.then(|| (String::new(), None)));
        let left = left
            .as_ref()
            .map(|(cause, at)| (cause.as_str(), at.unwrap_or_default()));
        self.breaker.recall(&node.name, left, now)
    }
}

fn transition(time: Option<&str>) -> Option<Duration> {
    let time: Timestamp = time?.parse().ok()?;
    Some(Duration::from_secs(u64::try_from(time.as_second()).ok()?))
}

/// Whether NVML ever listed a GPU, or PCI shows one that NVML does not.
fn has_gpus(agent: &Agent) -> bool {
    let listed = agent.facts.as_ref().is_some_and(|f| !f.gpus.is_empty());
    let judged = agent
        .health
        .as_ref()
        .is_some_and(|h| !h.gpus.is_empty() || h.missing_gpus > 0);
    listed || judged
}

impl Cluster {
    /// Time has passed: whom the fleet breaker held back may be out now.
    pub fn pass_time(&self, now: Instant) {
        let change = {
            let mut picture = self.picture.write();
            let now = picture.clock.at(now);
            picture.breaker.pass(now)
        };
        self.tell(change);
    }

    /// Those whose nodes turned have to look again.
    pub(super) fn tell(&self, change: Change) {
        if change.turned.is_empty() {
            return;
        }
        change.turned.into_iter().for_each(|node| self.readiness.push(node));
        self.placement.push(());
        self.breaker.push(());
    }
}

#[cfg(test)]
mod tests {
    use berth_core::health::breaker::{Breaker, Limits};
    use berth_core::placement::Resources;
    use berth_core::placement::node::Taint;

    use super::*;
    use crate::cluster::NodeCondition;

    const OURS: &str = managers::NODES_HEALTH;

    fn node(condition: Option<(&str, &str, &str, &str)>, tainted: bool, gpus: i64) -> Node {
        let conditions = condition.map(|(status, reason, message, manager)| NodeCondition {
            type_: NVIDIA_READY.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition: Some("2026-01-01T00:00:00Z".into()),
            managers: [manager.to_owned()].into(),
        });
        let taint = Taint {
            key: UNHEALTHY_TAINT.into(),
            ..Taint::default()
        };
        Node {
            name: "n".into(),
            uid: "u".into(),
            allocatable: Resources([(NVIDIA_GPU.to_owned(), gpus * 1000)].into()),
            conditions: conditions.into_iter().collect(),
            taints: tainted.then_some(taint).into_iter().collect(),
            ..Node::default()
        }
    }

    #[test]
    fn what_an_earlier_process_decided_is_read_from_the_node() {
        let held = format!("GPU-0: XID 62: reset the GPU{HELD}");
        for (what, node, known, excluded) in [
            ("no GPUs", node(None, false, 0), 0, 0),
            ("GPUs", node(None, false, 4), 1, 0),
            ("well", node(Some(("True", "AllGPUsReady", "", OURS)), false, 0), 1, 0),
            ("out", node(Some(("False", "ResetRequired", "m", OURS)), false, 0), 1, 1),
            (
                "held back",
                node(Some(("False", "ResetRequired", &held, OURS)), false, 4),
                1,
                0,
            ),
            (
                "tainted, whatever is said",
                node(Some(("False", "ResetRequired", &held, OURS)), true, 4),
                1,
                1,
            ),
            (
                "no fault of the hardware",
                node(Some(("False", "DriverUpgrading", "m", OURS)), false, 4),
                1,
                0,
            ),
            (
                "tainted before the driver went",
                node(Some(("False", "DriverUpgrading", "m", OURS)), true, 0),
                1,
                1,
            ),
            (
                "silent",
                node(Some(("Unknown", "AgentSilent", "m", OURS)), false, 4),
                1,
                0,
            ),
            (
                "another's word",
                node(Some(("False", "ResetRequired", "m", "other")), false, 4),
                1,
                0,
            ),
            ("only the taint is left", node(None, true, 0), 1, 1),
        ] {
            let mut picture = Picture {
                breaker: Breaker::new(Limits::default()),
                ..Picture::default()
            };
            picture.node_came(&node, Instant::now());
            let is = (picture.breaker.nodes(), picture.breaker.excluded());
            assert_eq!(is, (known, excluded), "{what}");
        }
    }

    #[test]
    fn the_clock_goes_there_and_back() {
        let clock = Clock::default();
        let later = Instant::now() + Duration::from_secs(90);
        assert_eq!(clock.moment(clock.at(later)), later);
        assert_eq!(transition(Some("1970-01-01T00:01:30Z")), Some(Duration::from_secs(90)));
        assert_eq!(transition(Some("never")), None);
    }
}
