//! One picture of the cluster in memory: nodes, GPUs, pods. Watches and agent sessions write it, everything that decides reads it.
//!
//! ```text
//! watch Nodes ──┐                       ┌─► nodes/      which node needs its labels looked at
//! watch Pods  ──┼─► Cluster (RwLock) ───┼─► placement/  a pod waits, or something changed that may let it fit
//! agent link  ──┘      + queues         └─► kinds/      whose pods changed
//! ```
//!
//! The lock is never held across an await. Writers put what changed into the queues of those who care; a queue is a set, so a burst of
//! changes to one thing is looked at once.

mod health;
mod node;
mod pod;
mod queue;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use berth_core::facts::{GpuSample, NodeFacts};
use berth_core::health::NodeHealth;
use berth_core::health::breaker::{Breaker, Limits};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::{RwLock, RwLockReadGuard};

pub use health::{Clock, HELD, NVIDIA_READY, is_our_taint};
pub use node::{Node, NodeCondition};
#[cfg(test)]
pub use pod::Scheduling;
pub use pod::{Container, Pod, PodKey, Served, class_list, compute_capability};
pub use queue::Queue;
pub use watch::run as watch;

use crate::kinds::is_older;
use crate::placement::Outcome;

/// An object of a namespaced kind: namespace and name.
pub type ObjectKey = (String, String);

/// What one node's agent reported, as far as the current session and those before it tell.
#[derive(Debug, Clone)]
pub struct Agent {
    /// UID of the node, by the token's claim.
    pub node_uid: String,
    /// Whether a session is open now.
    pub connected: bool,
    /// When anything was last heard.
    pub heard: Instant,
    /// Hardware facts; `None` until the first inventory.
    pub facts: Option<NodeFacts>,
    /// When `facts` came.
    pub facts_at: Option<Instant>,
    /// Health; `None` until the first report.
    pub health: Option<NodeHealth>,
    /// What came with it for the node's next agent, whatever it says; empty: nothing.
    pub memory: Vec<u8>,
    /// Latest sample a GPU, with the moment it was taken.
    pub samples: HashMap<String, (GpuSample, Instant)>,
    /// Version the agent said in Hello.
    pub version: String,
}

/// The picture itself. Plain data; changed only through [`Cluster`]'s methods.
#[derive(Debug, Default)]
pub struct Picture {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Pods by UID, all that are not finished.
    pub pods: HashMap<PodKey, Pod>,
    /// UIDs of the pods that name an object of ours, by its kind and key.
    pub pods_of: HashMap<(Served, ObjectKey), BTreeSet<PodKey>>,
    /// Agents by node name. Kept while the node exists, connected or not.
    pub agents: HashMap<String, Agent>,
    /// What placement last concluded for each waiting or placed pod.
    pub outcomes: HashMap<PodKey, Outcome>,
    /// The first list of nodes is complete.
    pub nodes_synced: bool,
    /// The first list of pods is complete.
    pub pods_synced: bool,
    /// When this process became leader, for the warm-up of live facts.
    pub leader_since: Option<Instant>,
    /// Which nodes are out for their health, and which are held back.
    pub breaker: Breaker,
    /// The breaker's clock.
    pub clock: Clock,
    /// Why a node's labels do not follow the configuration of the device plugin, by node.
    pub plugin_problems: BTreeMap<String, String>,
}

impl Picture {
    /// What a pod held is free: that its siblings fit nowhere was concluded before, and is open again until placement has looked.
    fn undecide(&mut self, gone: &Pod) {
        let (Some(owner), true) = (gone.served(), gone.node.is_some()) else {
            return;
        };
        for sibling in self.pods_of.get(&owner).into_iter().flatten() {
            if matches!(self.outcomes.get(sibling), Some(Outcome::Waiting { .. })) {
                self.outcomes.remove(sibling);
            }
        }
    }

    fn unlist(&mut self, owner: Option<&(Served, ObjectKey)>, uid: &PodKey) {
        if let Some(owner) = owner
            && let Some(listed) = self.pods_of.get_mut(owner)
        {
            listed.remove(uid);
            if listed.is_empty() {
                self.pods_of.remove(owner);
            }
        }
    }
}

/// The picture behind its lock, with the queues of those who follow it.
#[derive(Debug, Default)]
pub struct Cluster {
    picture: RwLock<Picture>,
    /// Nodes whose hardware labels need a look.
    pub hardware: Queue<String>,
    /// Nodes whose readiness conditions need a look.
    pub readiness: Queue<String>,
    /// Nodes whose agents may have to be told something else.
    pub orders: Queue<String>,
    /// Set when the fleet breaker holds other nodes back than before.
    pub breaker: Queue<()>,
    /// Types of node conditions that are ours besides [`NODE_CONDITIONS`](berth_crds::access::NODE_CONDITIONS).
    pub extra_conditions: Vec<String>,
    /// Set when node labels changed: AutoNodeLabelers need a look.
    pub rules: Queue<()>,
    /// Set when a waiting pod may be placeable now.
    pub placement: Queue<()>,
    /// AIDeployments whose pods changed, were placed or could not be.
    pub aideployments: Queue<ObjectKey>,
    /// The same of AIModels.
    pub aimodels: Queue<ObjectKey>,
    /// The same of MLModels.
    pub mlmodels: Queue<ObjectKey>,
    /// The same of ModelDeployments.
    pub modeldeployments: Queue<ObjectKey>,
    /// UIDs of pods that are gone: their agent sessions end.
    pub gone_pods: Queue<PodKey>,
}

impl Cluster {
    /// An empty picture.
    #[cfg(test)]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty picture of a fleet of which no more than this may be taken out, with more types of conditions.
    pub fn with(limits: Limits, extra_conditions: Vec<String>) -> Self {
        let picture = Picture {
            breaker: Breaker::new(limits),
            ..Picture::default()
        };
        Self {
            picture: RwLock::new(picture),
            extra_conditions,
            ..Self::default()
        }
    }

    /// Reads the picture. Do not hold across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Picture> {
        self.picture.read()
    }

    /// A node was added or changed. News older than what is known, as the watch brings it after a write of our own, is none.
    pub fn apply_node(&self, node: Node) {
        let name = node.name.clone();
        let (before, change) = {
            let mut picture = self.picture.write();
            let known = picture.nodes.get(&name);
            if known.is_some_and(|k| k.uid == node.uid && is_older(&node.resource_version, &k.resource_version)) {
                return;
            }
            let now = Instant::now();
            let change = picture.node_came(&node, now);
            let before = picture.nodes.insert(name.clone(), node.clone());
            // Its agent may have been heard first.
            (before, change.and(picture.agent_spoke(&name, now)))
        };
        self.tell(change);
        let labels_changed = before
            .as_ref()
            .is_none_or(|b| b.labels != node.labels || b.label_managers != node.label_managers)
            // `berth.dev/paused` came or went.
            || before.as_ref().is_some_and(|b| b.annotations != node.annotations);
        let another = before.as_ref().is_none_or(|b| b.uid != node.uid);
        if another
            || before.as_ref().is_some_and(|b| {
                b.conditions != node.conditions || b.annotations != node.annotations || b.taints != node.taints
            })
        {
            self.readiness.push(name.clone());
        }
        if labels_changed || another {
            self.orders.push(name.clone());
            self.hardware.push(name);
            self.rules.push(());
        }
        if before.is_none_or(|b| !b.same_for_placement(&node)) {
            self.placement.push(());
        }
    }

    /// The API server's answer to a write of our own. Without it the next decision would be on what was there before, as the watch lags
    /// behind, and the same would be written again.
    pub fn observe_node(&self, meta: &ObjectMeta) {
        let name = meta.name.as_deref().unwrap_or_default();
        let known = self.picture.read().nodes.get(name).cloned();
        if let Some(node) = known.filter(|n| Some(&n.uid) == meta.uid.as_ref()) {
            self.apply_node(node.with_metadata(meta));
        }
    }

    /// A node is gone, and with it what its agent said.
    pub fn delete_node(&self, name: &str) {
        let mut picture = self.picture.write();
        picture.nodes.remove(name);
        picture.agents.remove(name);
        picture.plugin_problems.remove(name);
        let now = picture.clock.at(Instant::now());
        let change = picture.breaker.forget(name, now);
        drop(picture);
        self.tell(change);
        // Its labels are forgotten too.
        self.hardware.push(name.to_owned());
        self.readiness.push(name.to_owned());
        self.rules.push(());
        self.placement.push(());
    }

    /// The complete list of nodes, after a (re)list.
    pub fn reset_nodes(&self, nodes: Vec<Node>) {
        let listed: HashSet<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        let gone: Vec<String> = {
            let picture = self.picture.read();
            let names = picture.nodes.keys();
            names.filter(|n| !listed.contains(n.as_str())).cloned().collect()
        };
        gone.iter().for_each(|n| self.delete_node(n));
        nodes.into_iter().for_each(|n| self.apply_node(n));
        self.picture.write().nodes_synced = true;
        self.rules.push(());
        self.placement.push(());
    }

    fn look_at(&self, (kind, key): (Served, ObjectKey)) {
        match kind {
            Served::AIDeployment => self.aideployments.push(key),
            Served::AIModel => self.aimodels.push(key),
            Served::MLModel => self.mlmodels.push(key),
            Served::ModelDeployment => self.modeldeployments.push(key),
        }
    }

    /// A pod was added or changed; a finished pod no longer holds anything.
    pub fn apply_pod(&self, pod: Pod) {
        if pod.finished {
            self.delete_pod(&pod.uid);
            return;
        }
        let (uid, owner) = (pod.uid.clone(), pod.served());
        let held = pod.holds_gpus_on().map(str::to_owned);
        let before = {
            let mut picture = self.picture.write();
            let before = picture.pods.insert(uid.clone(), pod.clone());
            let owner_before = before.as_ref().and_then(Pod::served);
            if owner_before != owner {
                picture.unlist(owner_before.as_ref(), &uid);
            }
            if let Some(owner) = &owner {
                picture.pods_of.entry(owner.clone()).or_default().insert(uid);
            }
            before
        };
        if before.as_ref().is_none_or(|b| !b.same_for_placement(&pod)) {
            self.placement.push(());
        }
        let held_before = before.as_ref().and_then(Pod::holds_gpus_on).map(str::to_owned);
        if held_before != held {
            held_before
                .into_iter()
                .chain(held)
                .for_each(|node| self.orders.push(node));
        }
        if let Some(owner) = owner {
            self.look_at(owner);
        }
    }

    /// A pod is gone or finished: what it held is free.
    pub fn delete_pod(&self, uid: &PodKey) {
        let mut picture = self.picture.write();
        picture.outcomes.remove(uid);
        let Some(pod) = picture.pods.remove(uid) else { return };
        picture.unlist(pod.served().as_ref(), uid);
        picture.undecide(&pod);
        drop(picture);
        self.gone_pods.push(uid.clone());
        if let Some(node) = pod.holds_gpus_on() {
            self.orders.push(node.to_owned());
        }
        self.placement.push(());
        if let Some(owner) = pod.served() {
            self.look_at(owner);
        }
    }

    /// The complete list of pods, after a (re)list.
    pub fn reset_pods(&self, pods: Vec<Pod>) {
        let known: HashSet<&PodKey> = pods.iter().map(|p| &p.uid).collect();
        let gone: Vec<PodKey> = self
            .picture
            .read()
            .pods
            .keys()
            .filter(|k| !known.contains(k))
            .cloned()
            .collect();
        gone.iter().for_each(|k| self.delete_pod(k));
        pods.into_iter().for_each(|p| self.apply_pod(p));
        self.picture.write().pods_synced = true;
        self.placement.push(());
    }

    /// What a node's agent said changed. `change` gets the agent's entry, made anew where there is none or the node is another one.
    pub fn update_agent(
        &self,
        node: &str,
        node_uid: &str,
        now: Instant,
        change: impl FnOnce(&mut Agent) -> AgentChange,
    ) {
        let mut picture = self.picture.write();
        let agent = picture
            .agents
            .entry(node.to_owned())
            .or_insert_with(|| Agent::new(node_uid, now));
        if agent.node_uid != node_uid {
            *agent = Agent::new(node_uid, now);
        }
        agent.heard = now;
        let what = change(agent);
        let turned = match what {
            AgentChange::Nothing => None,
            AgentChange::Hardware | AgentChange::Live => Some(picture.agent_spoke(node, now)),
        };
        drop(picture);
        if let Some(turned) = turned {
            self.tell(turned);
        }
        match what {
            AgentChange::Nothing => {}
            AgentChange::Hardware => {
                self.hardware.push(node.to_owned());
                self.readiness.push(node.to_owned());
                self.placement.push(());
            }
            AgentChange::Live => {
                self.readiness.push(node.to_owned());
                self.placement.push(());
            }
        }
    }

    /// The last session of a node's agent ended. What it said is kept while the node exists; when it was last heard stays as it is.
    pub fn disconnect_agent(&self, node: &str, node_uid: &str) {
        let mut picture = self.picture.write();
        let node_is_gone = picture.nodes_synced && !picture.nodes.contains_key(node);
        let Some(agent) = picture.agents.get_mut(node).filter(|a| a.node_uid == node_uid) else {
            return;
        };
        agent.connected = false;
        if node_is_gone {
            picture.agents.remove(node);
        }
        drop(picture);
        self.readiness.push(node.to_owned());
        self.placement.push(());
    }

    /// Why a node's labels do not follow the configuration of the device plugin; `None`: they do. Whether that is a problem that no node had
    /// before.
    pub fn set_plugin_problem(&self, node: &str, problem: Option<String>) -> bool {
        let mut picture = self.picture.write();
        let Some(problem) = problem else {
            picture.plugin_problems.remove(node);
            return false;
        };
        let is_known = picture.plugin_problems.values().any(|known| *known == problem);
        picture.plugin_problems.insert(node.to_owned(), problem);
        !is_known
    }

    /// Placement's conclusion on a pod.
    pub fn set_outcome(&self, pod: &PodKey, outcome: Outcome) {
        let mut picture = self.picture.write();
        let Some(owner) = picture.pods.get(pod).map(Pod::served) else {
            return;
        };
        let changed = picture
            .outcomes
            .insert(pod.clone(), outcome.clone())
            .is_none_or(|before| before != outcome);
        drop(picture);
        if let (true, Some(owner)) = (changed, owner) {
            self.look_at(owner);
        }
    }

    /// This process leads from now on.
    pub fn set_leader(&self, now: Instant) {
        let nodes: Vec<String> = {
            let mut picture = self.picture.write();
            picture.leader_since = Some(now);
            picture.nodes.keys().cloned().collect()
        };
        nodes.into_iter().for_each(|node| self.readiness.push(node));
        self.placement.push(());
    }
}

/// What of an agent's entry changed, and so who has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChange {
    /// Nothing that anybody decides on.
    Nothing,
    /// Facts: labels, placement and readiness.
    Hardware,
    /// Health, samples or the connection: placement and readiness.
    Live,
}

impl Agent {
    fn new(node_uid: &str, now: Instant) -> Self {
        Self {
            node_uid: node_uid.to_owned(),
            connected: false,
            heard: now,
            facts: None,
            facts_at: None,
            health: None,
            memory: Vec::new(),
            samples: HashMap::new(),
            version: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(version: &str, label: &str) -> Node {
        Node {
            name: "n".into(),
            uid: "u".into(),
            resource_version: version.into(),
            whole_version: version.into(),
            labels: [("l".to_owned(), label.to_owned())].into(),
            ..Node::default()
        }
    }

    #[test]
    fn an_own_write_is_known_at_once_and_not_undone_by_older_news() {
        let cluster = Cluster::new();
        let label = || cluster.read().nodes["n"].labels["l"].clone();
        let answer = |uid: &str| -> ObjectMeta {
            serde_json::from_value(
                json!({"name": "n", "uid": uid, "resourceVersion": "9", "labels": {"l": "written"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:metadata": {"f:labels": {"f:l": {}}}}}]}),
            )
            .unwrap()
        };
        cluster.apply_node(node("5", "first"));
        cluster.observe_node(&answer("another"));
        assert_eq!(label(), "first", "of a namesake");
        cluster.observe_node(&answer("u"));
        assert_eq!(label(), "written");
        let versions = || {
            let picture = cluster.read();
            let node = &picture.nodes["n"];
            (node.resource_version.clone(), node.whole_version.clone())
        };
        assert_eq!(
            versions(),
            ("9".into(), "5".into()),
            "of taints the answer says nothing"
        );
        assert!(cluster.read().nodes["n"].label_managers["l"].contains("m"));
        cluster.apply_node(node("8", "older"));
        assert_eq!(label(), "written");
        cluster.apply_node(node("10", "newer"));
        assert_eq!(label(), "newer");
        assert_eq!(versions(), ("10".into(), "10".into()));
        // A node that is not there is not made.
        cluster.delete_node("n");
        cluster.observe_node(&answer("u"));
        assert!(cluster.read().nodes.is_empty());
    }

    #[test]
    fn a_problem_of_the_device_plugin_is_news_once_however_many_nodes_have_it() {
        let cluster = Cluster::new();
        let set = |node: &str, problem: &str| {
            cluster.set_plugin_problem(node, Some(problem).filter(|p| !p.is_empty()).map(str::to_owned))
        };
        assert!(set("a", "key x"));
        assert!(!set("b", "key x"), "another node");
        assert!(!set("a", "key x"), "looked at again");
        assert!(set("b", "key y"));
        assert_eq!(cluster.read().plugin_problems.len(), 2, "each node has its own");
        assert!(!set("a", "") && !set("b", ""));
        assert!(cluster.read().plugin_problems.is_empty());
        assert!(set("a", "key x"), "after it was gone");
    }
}
