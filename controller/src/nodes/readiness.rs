//! Keeps the readiness conditions of every node in step with the health of its GPUs.
//!
//! ```text
//! cluster.readiness ─► condition (pure: what it is to say) ─► plan (pure: whose it is, what differs) ─► write (apply on status) ─► Event
//!                   └► taint, afterwards
//! ```
//!
//! Placement does not wait for any of this: it reads the same picture.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use berth_core::health::breaker::Decision;
use berth_crds::access::NODE_CONDITIONS;
use berth_crds::conditions::{Reason, Status};
use berth_crds::names::managers;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as ApiNode, ObjectReference};
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::condition::{self, AMD, NVIDIA, Wanted, Word, Words};
use super::taint::Taints;
use super::{WRITERS, backoff, is_paused};
use crate::args::{KeyFamily, NodesMode, Settings};
use crate::cluster::{Node, NodeCondition, Picture};
use crate::context::Context;

/// Changes of one moment are looked at together; short, since a GPU that failed is to be seen at once.
const GATHER: Duration = Duration::from_millis(10);
/// Longest wait for the API server's answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Follows health, until the process ends.
pub(super) async fn run(context: &Context) {
    let readiness = Readiness {
        context,
        state: Mutex::default(),
        taints: Taints::default(),
    };
    loop {
        let batch = context.cluster.readiness.next_batch(GATHER).await;
        futures::stream::iter(batch)
            .for_each_concurrent(WRITERS, |name| readiness.serve(name))
            .await;
    }
}

struct Readiness<'a> {
    context: &'a Context,
    state: Mutex<State>,
    taints: Taints,
}

/// What is remembered of nodes.
#[derive(Default)]
struct State {
    /// Since when no probe has answered a node's agent.
    probe_away: HashMap<String, Instant>,
    failures: HashMap<String, u32>,
    /// UID and condition type that was reported as another manager's.
    left: HashSet<(String, String)>,
    /// What was reported as what would be written.
    observed: HashMap<String, Vec<Value>>,
}

/// One write: the whole set of conditions that are ours, and what is news in it.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// `None`: the node has it already.
    write: Option<Vec<Value>>,
    /// Transitions, and what has become worth watching.
    news: Vec<(String, Wanted)>,
    /// Types that are left to another manager, which is named.
    left: Vec<(String, String)>,
}

/// What the conditions are to say and whose they are in, one write out. `now`: the time of a transition that is one.
fn plan(node: &Node, wanted: Vec<(&str, KeyFamily, Word)>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut conditions = Vec::new();
    let mut differs = false;
    // What is ours and no longer named stays as it is: nobody allows it to be taken away.
    let unnamed = node
        .conditions
        .iter()
        .filter(|c| c.managers.contains(managers::NODES_HEALTH) && !wanted.iter().any(|(type_, ..)| *type_ == c.type_));
    let unnamed: Vec<_> = unnamed
        .map(|c| (c.type_.as_str(), KeyFamily::Auto, Word::Keep))
        .collect();
    for (type_, rule, word) in wanted.into_iter().chain(unnamed) {
        let before = node.conditions.iter().find(|c| c.type_ == type_);
        let ours = before.is_some_and(|c| c.managers.contains(managers::NODES_HEALTH));
        let other = before.and_then(|c| c.managers.iter().find(|m| *m != managers::NODES_HEALTH));
        let wanted = match (rule, word) {
            (KeyFamily::Never, _) | (_, Word::None) => None,
            (KeyFamily::Auto, Word::Say(_)) if !ours && other.is_some() => {
                plan.left.extend(other.map(|m| (type_.to_owned(), m.clone())));
                None
            }
            // Silence makes no condition where there was none.
            (_, Word::Say(wanted)) if !ours && wanted.reason == condition::AGENT_SILENT => None,
            (KeyFamily::Auto | KeyFamily::Always, Word::Say(wanted)) => Some(wanted),
            (_, Word::Keep) => before.filter(|_| ours).and_then(said),
        };
        let Some(wanted) = wanted else {
            differs |= ours;
            continue;
        };
        let same_status = before.filter(|c| c.status == wanted.status.as_str());
        let since = same_status.and_then(|c| c.last_transition.clone());
        differs |= !ours
            || before.is_none_or(|c| {
                c.status != wanted.status.as_str() || c.reason != wanted.reason || c.message != wanted.message
            });
        conditions.push(json!({
            "type": type_,
            "status": wanted.status.as_str(),
            "reason": wanted.reason,
            "message": wanted.message,
            "lastTransitionTime": since.unwrap_or_else(|| now.to_string()),
        }));
        // That all is well from the first is no news, and what further conditions say was said by these.
        let turned = same_status.is_none() && (before.is_some() || wanted.status != Status::True);
        let is_suspect = wanted.status == Status::True && wanted.reason != condition::ALL_READY;
        let is_news = turned || is_suspect && same_status.is_none_or(|c| c.reason != wanted.reason);
        if is_news && NODE_CONDITIONS.contains(&type_) {
            plan.news.push((type_.to_owned(), wanted));
        }
    }
    plan.write = differs.then_some(conditions);
    plan
}

/// What a condition on the node says.
fn said(condition: &NodeCondition) -> Option<Wanted> {
    let status = [Status::True, Status::False, Status::Unknown];
    Some(Wanted {
        status: status.into_iter().find(|s| s.as_str() == condition.status)?,
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    })
}

/// Every condition that is ours, with its rule and what it is to say.
fn wanted<'a>(settings: &'a Settings, words: Words, decision: Decision<'_>) -> Vec<(&'a str, KeyFamily, Word)> {
    let for_repair = words.for_repair(matches!(decision, Decision::Excluded { .. }));
    let words = match decision {
        Decision::Held { .. } => words.held(),
        Decision::Ready | Decision::Unknown | Decision::Excluded { .. } => words,
    };
    let mut wanted = vec![
        (NVIDIA, settings.nvidia_condition, words.nvidia),
        (AMD, settings.amd_condition, words.amd),
    ];
    let extra = settings.extra_conditions.iter();
    wanted.extend(extra.map(|(type_, rule)| (type_.as_str(), *rule, for_repair.clone())));
    wanted
}

impl Readiness<'_> {
    async fn serve(&self, name: String) {
        self.conditions(&name).await;
        self.taints.serve(self.context, &name).await;
    }

    async fn conditions(&self, name: &str) {
        let Some((uid, plan)) = self.planned(name) else { return };
        let node = reference(name, &uid);
        for (type_, manager) in &plan.left {
            if self.state.lock().left.insert((uid.clone(), type_.clone())) {
                let note = format!("condition {type_} is left to field manager {manager:?}, which owns it");
                tracing::info!(node = name, manager, type_, "a condition is left to its owner");
                self.context
                    .events
                    .normal(node.clone(), Reason::ConditionOwnedByOthers, "Report", &note);
            }
        }
        let Some(conditions) = plan.write else {
            self.state.lock().failures.remove(name);
            return;
        };
        if self.context.settings.nodes_mode == NodesMode::Observe {
            let new = self.state.lock().observed.insert(name.to_owned(), conditions.clone());
            let told = |list: &[Value]| {
                list.iter()
                    .map(|c| (c["status"].clone(), c["reason"].clone()))
                    .collect::<Vec<_>>()
            };
            if new.is_none_or(|before| told(&before) != told(&conditions)) {
                tracing::info!(
                    node = name,
                    ?conditions,
                    "would write conditions (nodes mode is observe)"
                );
            }
            return;
        }
        match self.write(name, &uid, &conditions).await {
            Ok(now) => {
                let cluster = &self.context.cluster;
                cluster.apply_node(Node::from_api(&now, &cluster.extra_conditions));
                self.state.lock().failures.remove(name);
                for (type_, wanted) in plan.news {
                    self.tell(node.clone(), &type_, &wanted);
                }
            }
            Err(error) => {
                let attempt = {
                    let mut state = self.state.lock();
                    let attempt = state.failures.entry(name.to_owned()).or_insert(0);
                    *attempt += 1;
                    *attempt
                };
                let delay = backoff(attempt);
                tracing::warn!(node = name, error, attempt, retry_in = ?delay, "conditions were not written");
                self.context
                    .cluster
                    .readiness
                    .push_at(name.to_owned(), Instant::now() + delay);
            }
        }
    }

    /// `None`: nothing may be done. What time alone changes is looked at again by then.
    fn planned(&self, name: &str) -> Option<(String, Plan)> {
        let now = Instant::now();
        let picture = self.context.cluster.read();
        let mut state = self.state.lock();
        let Some(node) = picture.nodes.get(name) else {
            state.probe_away.remove(name);
            state.failures.remove(name);
            state.observed.remove(name);
            return None;
        };
        let words = words(&picture, node, &mut state.probe_away, now)?;
        if let Some(at) = words.again_at {
            self.context.cluster.readiness.push_at(name.to_owned(), at);
        }
        if is_paused(node) {
            return None;
        }
        let decision = picture.breaker.decision(name);
        let wanted = wanted(&self.context.settings, words, decision);
        let plan = plan(node, wanted, Timestamp::now());
        Some((node.uid.clone(), plan))
    }

    async fn write(&self, name: &str, uid: &str, conditions: &[Value]) -> Result<ApiNode, String> {
        let nodes: Api<ApiNode> = Api::all(self.context.client.clone());
        let patch = Patch::Apply(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "uid": uid},
            "status": {"conditions": conditions},
        }));
        let params = PatchParams::apply(managers::NODES_HEALTH).force();
        match tokio::time::timeout(DEADLINE, nodes.patch_status(name, &params, &patch)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
        }
    }

    fn tell(&self, node: ObjectReference, type_: &str, wanted: &Wanted) {
        let Wanted {
            status,
            reason,
            message,
        } = wanted;
        tracing::info!(
            node = node.name,
            type_,
            status = status.as_str(),
            reason,
            message,
            "readiness"
        );
        let note = format!("{type_} is {}: {reason}: {message}", status.as_str());
        let events = &self.context.events;
        match status {
            Status::True if reason != condition::ALL_READY => {
                events.warning(node, Reason::GPUsSuspect, "Report", &note)
            }
            Status::True => events.normal(node, Reason::GPUsReady, "Report", &note),
            Status::False => events.warning(node, Reason::GPUsNotReady, "Report", &note),
            Status::Unknown => events.warning(node, Reason::GPUsUnknown, "Report", &note),
        }
    }
}

/// `None`: this process does not lead, or not yet.
fn words(picture: &Picture, node: &Node, probe_away: &mut HashMap<String, Instant>, now: Instant) -> Option<Words> {
    let leads_since = picture.leader_since?;
    // An agent of a node that had this name before says nothing of this one.
    let agent = picture.agents.get(&node.name).filter(|a| a.node_uid == node.uid);
    let away = agent
        .and_then(|a| a.health.as_ref())
        .is_some_and(condition::probe_is_away);
    let since = match away {
        true => Some(*probe_away.entry(node.name.clone()).or_insert(now)),
        false => {
            probe_away.remove(&node.name);
            None
        }
    };
    Some(condition::words(agent, leads_since, since, now))
}

pub(super) fn reference(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = managers::NODES_HEALTH;
    const THEN: &str = "2026-01-01T00:00:00Z";

    fn node(status: &str, reason: &str, owners: &[&str]) -> Node {
        Node {
            name: "n".into(),
            uid: "u".into(),
            conditions: vec![NodeCondition {
                type_: NVIDIA.into(),
                status: status.into(),
                reason: reason.into(),
                message: "m".into(),
                last_transition: Some(THEN.into()),
                written: None,
                managers: owners.iter().map(|m| (*m).to_owned()).collect(),
            }],
            ..Node::default()
        }
    }

    fn say(status: Status, reason: &str) -> Word {
        Word::Say(Wanted {
            status,
            reason: reason.into(),
            message: "m".into(),
        })
    }

    fn planned(node: &Node, word: Word, rule: KeyFamily) -> Plan {
        let wanted = vec![(NVIDIA, rule, word), (AMD, rule, Word::None)];
        plan(node, wanted, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_time_of_transition_moves_with_the_status_alone() {
        for (what, before, word, written, events) in [
            ("the same", node("True", "A", &[OURS]), say(Status::True, "A"), None, 0),
            (
                "another reason",
                node("False", "A", &[OURS]),
                say(Status::False, "B"),
                Some(THEN),
                0,
            ),
            (
                "another status",
                node("True", "A", &[OURS]),
                say(Status::False, "B"),
                Some("1970-01-01T00:00:00Z"),
                1,
            ),
            (
                "well from the first",
                Node::default(),
                say(Status::True, condition::ALL_READY),
                Some("1970-01-01T00:00:00Z"),
                0,
            ),
            (
                "well, and now worth watching",
                node("True", condition::ALL_READY, &[OURS]),
                say(Status::True, "B"),
                Some(THEN),
                1,
            ),
            (
                "well, and no longer worth watching",
                node("True", "B", &[OURS]),
                say(Status::True, condition::ALL_READY),
                Some(THEN),
                0,
            ),
            (
                "ill from the first",
                Node::default(),
                say(Status::False, "A"),
                Some("1970-01-01T00:00:00Z"),
                1,
            ),
            ("nothing is known", node("False", "A", &[OURS]), Word::Keep, None, 0),
            ("nothing was ever known", Node::default(), Word::Keep, None, 0),
            (
                "silence where there is no condition",
                Node::default(),
                say(Status::Unknown, condition::AGENT_SILENT),
                None,
                0,
            ),
            (
                "silence",
                node("True", "A", &[OURS]),
                say(Status::Unknown, condition::AGENT_SILENT),
                Some("1970-01-01T00:00:00Z"),
                1,
            ),
        ] {
            let plan = planned(&before, word, KeyFamily::Auto);
            let times = plan
                .write
                .map(|w| w[0]["lastTransitionTime"].as_str().map(str::to_owned));
            assert_eq!(times, written.map(|t| Some(t.to_owned())), "{what}");
            assert_eq!(plan.news.len(), events, "{what}");
        }
    }

    #[test]
    fn a_condition_of_another_owner() {
        let theirs = || node("True", "A", &["node-problem-detector"]);
        for (rule, before, writes, left) in [
            (KeyFamily::Auto, theirs(), None, 1),
            (KeyFamily::Always, theirs(), Some(1), 0),
            (KeyFamily::Never, theirs(), None, 0),
            // What was ours goes.
            (KeyFamily::Never, node("True", "A", &[OURS]), Some(0), 0),
            // Once ours, it stays ours.
            (KeyFamily::Auto, node("True", "A", &[OURS, "other"]), Some(1), 0),
        ] {
            let plan = planned(&before, say(Status::False, "B"), rule);
            assert_eq!(
                (plan.write.map(|w| w.len()), plan.left.len()),
                (writes, left),
                "{rule:?} {before:?}"
            );
        }
        // Whoever took it off the list did not say never: it is neither touched nor lost.
        let unnamed = plan(&node("True", "A", &[OURS]), vec![], Timestamp::UNIX_EPOCH);
        assert_eq!(unnamed, Plan::default());
        let gone = planned(&node("True", "A", &[OURS]), Word::None, KeyFamily::Auto);
        assert_eq!(gone.write, Some(Vec::new()), "the GPUs are gone");
    }
}
