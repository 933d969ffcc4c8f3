//! The fleet breaker: how much of the fleet health may take away, and how fast.
//!
//! ```text
//! a node's state ─► gone ──────────────────────────────► excluded, always; it counts
//!                   sick ─► share? ► rate? ► same cause? ─► excluded, or held back: the node counts as it did
//!                   ready ─► free again, and the next of those held back gets its turn
//! ```
//!
//! A verdict can be wrong: a table with an error, a driver that reports nonsense. Then it is wrong on many nodes at once, and the fleet
//! is worth more than the verdict. What is gone (lost, missing, hung) is no verdict: to hold it back would make nothing run.
//!
//! It closes by itself: a node that is ready again makes room, and an exclusion counts against rate and cause for [`WINDOW`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::NodeState;

/// How long an exclusion counts as new.
pub const WINDOW: Duration = Duration::from_secs(600);

/// Causes that are remembered of one node: more than any has, and nobody fills our memory.
const CAUSES: usize = 16;

/// How much may be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Percent of the GPU nodes that may be out at the same time; of a small fleet one node at least.
    pub share_percent: u32,
    /// Nodes that may be taken out within [`WINDOW`].
    pub new: u32,
    /// Of these, nodes with the same cause and the same driver version.
    pub same_cause: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            share_percent: 25,
            new: 10,
            same_cause: 5,
        }
    }
}

/// Which limit holds a node back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Too large a part of the GPU nodes would be out.
    Share,
    /// Too many were taken out within [`WINDOW`].
    Rate,
    /// Too many of these have the same cause and driver version: rather a bad driver or a wrong table than so many bad GPUs.
    SameCause,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Share, Self::Rate, Self::SameCause];

    /// As written in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Rate => "rate",
            Self::SameCause => "same-cause",
        }
    }
}

/// What holds for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Its GPUs are ready, or it has none.
    Ready,
    /// Nothing is known of its hardware: whatever was decided stays.
    Unknown,
    /// It is out for its health.
    Excluded {
        /// As in [`NodeState`].
        cause: &'a str,
    },
    /// It would be out, and is not.
    Held {
        /// As in [`NodeState`].
        cause: &'a str,
        /// What holds it.
        limit: Limit,
    },
}

/// What became of the fleet with one piece of news.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Nodes that were held back and no longer are, or are from now on.
    pub turned: Vec<String>,
}

impl Change {
    /// This, and then the next.
    #[must_use]
    pub fn and(mut self, next: Self) -> Self {
        let new = next.turned.into_iter().filter(|name| !self.turned.contains(name));
        let new: Vec<_> = new.collect();
        self.turned.extend(new);
        self
    }
}

/// The fleet and what was decided on it. The clock is the caller's: any that does not go back.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    limits: Limits,
    nodes: BTreeMap<String, Known>,
    /// Exclusions of the last [`WINDOW`], by node: one for each cause, the latest.
    recent: BTreeMap<String, Vec<Exclusion>>,
    held_back: usize,
}

#[derive(Debug, Clone)]
struct Known {
    state: NodeState,
    driver: Option<String>,
    /// Since when it has been sick or gone.
    ill_since: Duration,
    excluded: bool,
    held: Option<Limit>,
}

#[derive(Debug, Clone)]
struct Exclusion {
    at: Duration,
    cause: String,
    driver: Option<String>,
}

impl Known {
    fn cause(&self) -> Option<&str> {
        match &self.state {
            NodeState::Sick { cause } | NodeState::Gone { cause } => Some(cause),
            NodeState::Ready | NodeState::Unknown => None,
        }
    }

    /// Whether nothing that is decided can depend on it, but for the number of nodes.
    fn is_calm(&self) -> bool {
        !self.excluded && self.cause().is_none()
    }
}

impl Breaker {
    /// An empty fleet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// A GPU node stands so now. `driver`: its version, where it is known.
    pub fn observe(&mut self, name: &str, driver: Option<&str>, state: NodeState, now: Duration) -> Change {
        let known = self.nodes.get_mut(name);
        let same = known.as_ref().is_some_and(|k| k.state == state);
        if let Some(known) = known {
            let another_driver = driver.is_some() && driver != known.driver.as_deref();
            if another_driver {
                known.driver = driver.map(str::to_owned);
                // Recalled before its agent had reported.
                let recalled = self.recent.get_mut(name).into_iter().flatten();
                recalled
                    .filter(|e| e.driver.is_none())
                    .for_each(|e| e.driver.clone_from(&known.driver));
            }
            if same {
                // Whom the driver's version made alike may be told apart now.
                return match another_driver && self.held_back > 0 {
                    true => self.settle(now),
                    false => Change::default(),
                };
            }
            let was_calm = known.is_calm();
            if known.cause().is_none() {
                known.ill_since = now;
            }
            known.state = state;
            if was_calm && known.is_calm() {
                return Change::default();
            }
            return self.settle(now);
        }
        self.add(name, Known::new(driver, state, now), now)
    }

    /// A node of which this process has heard nothing yet. `excluded`: what an earlier one left on it, its cause and when.
    pub fn recall(&mut self, name: &str, excluded: Option<(&str, Duration)>, now: Duration) -> Change {
        if self.nodes.contains_key(name) {
            return Change::default();
        }
        let mut known = Known::new(None, NodeState::Unknown, now);
        if let Some((cause, at)) = excluded {
            known.excluded = true;
            let exclusion = Exclusion {
                at: at.min(now),
                cause: cause.to_owned(),
                driver: None,
            };
            remember(&mut self.recent, name, exclusion);
        }
        self.add(name, known, now)
    }

    fn add(&mut self, name: &str, known: Known, now: Duration) -> Change {
        let is_calm = known.is_calm();
        self.nodes.insert(name.to_owned(), known);
        // A whole fleet is heard of at a start: one more node that is well changes something for those that wait for room alone.
        match is_calm && self.held_back == 0 {
            true => Change::default(),
            false => self.settle(now),
        }
    }

    /// A node is gone, or has no GPUs any more. That it was taken out still counts as new for its time.
    pub fn forget(&mut self, name: &str, now: Duration) -> Change {
        match self.nodes.remove(name) {
            Some(_) => self.settle(now),
            None => Change::default(),
        }
    }

    /// Time has passed.
    pub fn pass(&mut self, now: Duration) -> Change {
        self.settle(now)
    }

    /// What holds for a node now.
    pub fn decision(&self, name: &str) -> Decision<'_> {
        let Some(known) = self.nodes.get(name) else {
            return Decision::Ready;
        };
        match (&known.state, known.held) {
            (NodeState::Ready, _) => Decision::Ready,
            (NodeState::Unknown, _) => Decision::Unknown,
            (NodeState::Sick { cause } | NodeState::Gone { cause }, None) => Decision::Excluded { cause },
            (NodeState::Sick { cause } | NodeState::Gone { cause }, Some(limit)) => Decision::Held { cause, limit },
        }
    }

    /// Whether a node counts although its health says otherwise.
    pub fn is_held(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|k| k.held.is_some())
    }

    /// The nodes that are held back, by name, with what holds them and their cause.
    pub fn held(&self) -> impl Iterator<Item = (&str, Limit, &str)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(name, k)| Some((name.as_str(), k.held?, k.cause().unwrap_or_default())))
    }

    /// Nodes with GPUs.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that are out for their health.
    pub fn excluded(&self) -> usize {
        self.nodes.values().filter(|k| k.excluded).count()
    }

    /// How many may be out at the same time.
    pub fn most(&self) -> usize {
        let percent = usize::try_from(self.limits.share_percent).unwrap_or(usize::MAX);
        (self.nodes.len().saturating_mul(percent) / 100).max(1)
    }

    /// When time alone may make a difference.
    pub fn again_at(&self) -> Option<Duration> {
        let waits = |k: &Known| matches!(k.held, Some(Limit::Rate | Limit::SameCause));
        let waiting = self.nodes.values().any(waits);
        let first = self.recent.values().flatten().map(|e| e.at + WINDOW).min();
        first.filter(|_| waiting)
    }

    fn settle(&mut self, now: Duration) -> Change {
        self.recent.retain(|_, list| {
            list.retain(|e| now < e.at + WINDOW);
            !list.is_empty()
        });
        let mut before = BTreeMap::new();
        let mut sick = Vec::new();
        for (name, known) in &mut self.nodes {
            if let Some(limit) = known.held.take() {
                before.insert(name.clone(), limit);
            }
            match known.state {
                NodeState::Ready => known.excluded = false,
                NodeState::Unknown => {}
                NodeState::Gone { .. } if !known.excluded => {
                    known.excluded = true;
                    remember(&mut self.recent, name, known.exclusion(now));
                }
                NodeState::Sick { .. } if !known.excluded => sick.push((known.ill_since, name.clone())),
                NodeState::Gone { .. } | NodeState::Sick { .. } => {}
            }
        }
        // Those that have waited longest first.
        sick.sort();
        let mut out = self.excluded();
        for (_, name) in sick {
            let limit = self.limit(&name, out);
            let Some(known) = self.nodes.get_mut(&name) else {
                continue;
            };
            known.held = limit;
            if limit.is_none() {
                known.excluded = true;
                out += 1;
                let exclusion = known.exclusion(now);
                remember(&mut self.recent, &name, exclusion);
            }
        }
        self.held_back = self.nodes.values().filter(|k| k.held.is_some()).count();
        let turned = self
            .nodes
            .iter()
            .filter(|(name, k)| k.held != before.get(*name).copied());
        Change {
            turned: turned.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// What speaks against taking this node out while so many are.
    fn limit(&self, name: &str, out: usize) -> Option<Limit> {
        if out >= self.most() {
            return Some(Limit::Share);
        }
        let known = self.nodes.get(name)?;
        // A node that comes and goes is one node.
        let others = || self.recent.iter().filter(|(n, _)| *n != name).map(|(_, list)| list);
        let reached = |count: usize, limit: u32| count >= usize::try_from(limit).unwrap_or(usize::MAX);
        if reached(others().count(), self.limits.new) {
            return Some(Limit::Rate);
        }
        // A version that is not known yet, as after a restart, tells nobody apart.
        let same_driver = |e: &Exclusion| known.driver.is_none() || e.driver.is_none() || known.driver == e.driver;
        let alike = |e: &&Exclusion| known.cause() == Some(&e.cause) && same_driver(e);
        let alike = others().filter(|list| list.iter().any(|e| alike(&e))).count();
        reached(alike, self.limits.same_cause).then_some(Limit::SameCause)
    }
}

fn remember(recent: &mut BTreeMap<String, Vec<Exclusion>>, name: &str, exclusion: Exclusion) {
    let list = recent.entry(name.to_owned()).or_default();
    list.retain(|e| e.cause != exclusion.cause);
    if list.len() >= CAUSES {
        list.remove(0);
    }
    list.push(exclusion);
}

impl Known {
    fn new(driver: Option<&str>, state: NodeState, now: Duration) -> Self {
        Self {
            state,
            driver: driver.map(str::to_owned),
            ill_since: now,
            excluded: false,
            held: None,
        }
    }

    fn exclusion(&self, now: Duration) -> Exclusion {
        Exclusion {
            at: now,
            cause: self.cause().unwrap_or_default().to_owned(),
            driver: self.driver.clone(),
        }
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
