//! What the picture tells the fleet breaker, and whom its decisions concern.

use std::time::{Duration, Instant, SystemTime};

use berth_core::health::breaker::Change;
use berth_core::health::{NodeState, cause_told, is_of_hardware};
use berth_core::placement::node::Taint;
use berth_crds::access::{TAINT_EFFECT, UNHEALTHY_TAINT};
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

/// Whether a taint is the one that we put and take.
pub fn is_our_taint(taint: &Taint) -> bool {
    taint.key == UNHEALTHY_TAINT && taint.effect == TAINT_EFFECT
}

impl Picture {
    /// The node's agent said something. What it says before the node itself is seen waits: what is on the node is to be recalled first.
    pub(super) fn agent_spoke(&mut self, name: &str, now: Instant) -> Change {
        let now = self.clock.at(now);
        let node = self.nodes.get(name);
        let agent = self.agents.get(name);
        let agent = agent.filter(|a| node.is_some_and(|n| n.uid == a.node_uid));
        let Some((agent, health)) = agent.and_then(|a| Some((a, a.health.as_ref()?))) else {
            return Change::default();
        };
        let driver = agent.facts.as_ref().and_then(|f| f.driver.as_ref());
        let driver = driver.map(|d| d.version.as_str());
        match gpus(agent) {
            Gpus::Seen => self.breaker.observe(name, driver, NodeState::of(health), now),
            Gpus::Expected => {
                // That nothing is wrong with GPUs that nobody sees says nothing of them.
                let state = match NodeState::of(health) {
                    NodeState::Ready => NodeState::Unknown,
                    state => state,
                };
                self.breaker.observe(name, driver, state, now)
            }
            Gpus::NotTold => Change::default(),
            Gpus::None => self.breaker.forget(name, now),
        }
    }

    /// The node is known, or changed. Of what an earlier process decided, what is on it is taken over once; what was decided on another
    /// node of this name is not its. To be called before the node takes its place in the picture.
    pub(super) fn node_came(&mut self, node: &Node, now: Instant) -> Change {
        let another = self.nodes.get(&node.name).is_some_and(|n| n.uid != node.uid);
        let forgotten = match another {
            true => self.breaker.forget(&node.name, self.clock.at(now)),
            false => Change::default(),
        };
        forgotten.and(self.recall(node, now))
    }

    fn recall(&mut self, node: &Node, now: Instant) -> Change {
        let condition = node.conditions.iter().find(|c| c.type_ == NVIDIA_READY);
        let offers_gpus = node.allocatable.whole(NVIDIA_GPU) > 0;
        let tainted = node.taints.iter().any(is_our_taint);
        let has_none = |a: &Agent| a.node_uid == node.uid && a.health.is_some() && gpus(a) == Gpus::None;
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
                // A node that was held back and then taken out has its transition from before.
                transition(c.last_transition.as_deref()).max(c.written.and_then(since_1970)),
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
    since_1970(time?.parse().ok()?)
}

fn since_1970(time: Timestamp) -> Option<Duration> {
    Some(Duration::from_secs(u64::try_from(time.as_second()).ok()?))
}

/// What an agent tells of its node's NVIDIA GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gpus {
    /// NVML listed some, or misses some.
    Seen,
    /// PCI shows cards, and NVML was not read since the agent started, or has no driver.
    Expected,
    /// Its facts have not come.
    NotTold,
    None,
}

fn gpus(agent: &Agent) -> Gpus {
    let health = agent.health.as_ref();
    let judged = health.is_some_and(|h| !h.gpus.is_empty() || h.missing_gpus > 0);
    match &agent.facts {
        _ if judged => Gpus::Seen,
        Some(facts) if !facts.gpus.is_empty() => Gpus::Seen,
        Some(facts) if facts.nvidia_cards().next().is_some() => Gpus::Expected,
        Some(_) => Gpus::None,
        None => Gpus::NotTold,
    }
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
#[path = "health_tests.rs"]
mod tests;
