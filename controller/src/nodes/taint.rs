//! The one taint that is ours: put on a node whose GPUs are out for their health, taken away when they are ready again.
//!
//! ```text
//! picture (breaker's decision, health, taints) ─► plan (pure) ─► JSON patch that tests the node's version ─► Event
//! ```
//!
//! Not by server-side apply: `spec.taints` is one value to it, so that whoever applies one taint owns all of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use berth_core::health::breaker::Decision;
use berth_core::health::{NodeHealth, all_out};
use berth_core::placement::node::Taint;
use berth_crds::access::{TAINT_EFFECT, UNHEALTHY_TAINT};
use berth_crds::conditions::Reason;
use berth_crds::names::managers;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::readiness::reference;
use super::{WRITERS, backoff, is_paused};
use crate::args::{NodesMode, TaintWhen};
use crate::cluster::{Node, is_our_taint};
use crate::context::Context;
use crate::placement::patch::{is_outdated, operations_patch};

/// Longest wait for the API server's answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a conflict the watch brings the node as it is now; then it is tried again.
const CONFLICT_REST: Duration = Duration::from_millis(200);
/// Nodes that one page of a list holds.
const PAGE: u32 = 500;
/// Tries on a node that others change at the same time, where no watch follows it.
const TRIES: usize = 5;

/// What becomes of our taint on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Put,
    /// Its place in the list.
    Take(usize),
}

/// `None`: it is as it is to be, or nothing is known.
fn plan(when: TaintWhen, decision: Decision<'_>, health: Option<&NodeHealth>, taints: &[Taint]) -> Option<Change> {
    let place = taints.iter().position(is_our_taint);
    let wanted = match (when, decision) {
        (TaintWhen::Never, _) | (_, Decision::Ready) => false,
        // What is held back counts as it did; what is unknown, too.
        (_, Decision::Unknown | Decision::Held { .. }) => return None,
        (TaintWhen::Any, Decision::Excluded { .. }) => true,
        (TaintWhen::All, Decision::Excluded { .. }) => all_out(health?),
    };
    match (wanted, place) {
        (true, None) => Some(Change::Put),
        (false, Some(place)) => Some(Change::Take(place)),
        (true, Some(_)) | (false, None) => None,
    }
}

/// Fails where the node is another one, or no longer as it was when its taints were seen.
fn operations(change: Change, node: &Node) -> Vec<Value> {
    let taint = json!({"key": UNHEALTHY_TAINT, "effect": TAINT_EFFECT});
    let mut operations = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": node.uid}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": node.whole_version}),
    ];
    operations.extend(match change {
        Change::Put if node.taints.is_empty() => vec![json!({"op": "add", "path": "/spec/taints", "value": [taint]})],
        Change::Put => vec![json!({"op": "add", "path": "/spec/taints/-", "value": taint})],
        Change::Take(place) => {
            let path = format!("/spec/taints/{place}");
            vec![
                json!({"op": "test", "path": format!("{path}/key"), "value": UNHEALTHY_TAINT}),
                json!({"op": "test", "path": format!("{path}/effect"), "value": TAINT_EFFECT}),
                json!({"op": "remove", "path": path}),
            ]
        }
    });
    operations
}

/// What is remembered of nodes.
#[derive(Debug, Default)]
pub(super) struct Taints {
    failures: Mutex<HashMap<String, u32>>,
    /// What was reported as what would be done.
    observed: Mutex<HashMap<String, Change>>,
}

struct Planned {
    node: Node,
    change: Change,
    cause: String,
}

impl Taints {
    /// Looks at one node. Its conditions were looked at before: placement first, then what is said, then what others are kept from.
    pub async fn serve(&self, context: &Context, name: &str) {
        let Some(Planned { node, change, cause }) = planned(context, name) else {
            self.failures.lock().remove(name);
            self.observed.lock().remove(name);
            return;
        };
        if context.settings.nodes_mode == NodesMode::Observe {
            if self.observed.lock().insert(name.to_owned(), change) != Some(change) {
                tracing::info!(
                    node = name,
                    ?change,
                    cause,
                    "would change the taint (nodes mode is observe)"
                );
            }
            return;
        }
        match write(context, &node, change).await {
            Ok(now) => {
                let cluster = &context.cluster;
                cluster.apply_node(Node::from_api(&now, &cluster.extra_conditions));
                self.failures.lock().remove(name);
                tell(context, &node, change, &cause);
            }
            Err(WriteError::Outdated) => {
                tracing::debug!(node = name, "the node has changed since its taint was decided on");
                let again = Instant::now() + CONFLICT_REST;
                context.cluster.readiness.push_at(name.to_owned(), again);
            }
            Err(WriteError::Failed(error)) => {
                let attempt = {
                    let mut failures = self.failures.lock();
                    let attempt = failures.entry(name.to_owned()).or_insert(0);
                    *attempt += 1;
                    *attempt
                };
                let delay = backoff(attempt);
                tracing::warn!(node = name, error, attempt, retry_in = ?delay, "the taint was not written");
                context
                    .cluster
                    .readiness
                    .push_at(name.to_owned(), Instant::now() + delay);
            }
        }
    }
}

/// `None`: nothing is to be done, or may be.
fn planned(context: &Context, name: &str) -> Option<Planned> {
    let picture = context.cluster.read();
    picture.leader_since?;
    let node = picture.nodes.get(name).filter(|n| !is_paused(n))?;
    let agent = picture.agents.get(name).filter(|a| a.node_uid == node.uid);
    let health = agent.and_then(|a| a.health.as_ref());
    let decision = picture.breaker.decision(name);
    let change = plan(context.settings.health_taint, decision, health, &node.taints)?;
    let cause = match decision {
        Decision::Excluded { cause } => cause.to_owned(),
        Decision::Ready | Decision::Unknown | Decision::Held { .. } => String::new(),
    };
    Some(Planned {
        node: node.clone(),
        change,
        cause,
    })
}

enum WriteError {
    /// The node is no longer as it was.
    Outdated,
    Failed(String),
}

async fn write(context: &Context, node: &Node, change: Change) -> Result<ApiNode, WriteError> {
    let api: Api<ApiNode> = Api::all(context.client.clone());
    patch(&api, &node.name, operations(change, node)).await
}

async fn patch(api: &Api<ApiNode>, name: &str, operations: Vec<Value>) -> Result<ApiNode, WriteError> {
    let params = PatchParams {
        field_manager: Some(managers::NODES_HEALTH.into()),
        ..PatchParams::default()
    };
    let patch: Patch<()> = operations_patch(operations);
    match tokio::time::timeout(DEADLINE, api.patch(name, &params, &patch)).await {
        Ok(Ok(now)) => Ok(now),
        Ok(Err(kube::Error::Api(status))) if is_outdated(&status) => Err(WriteError::Outdated),
        Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
        Err(_) => Err(WriteError::Failed(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

fn tell(context: &Context, node: &Node, change: Change, cause: &str) {
    let taint = format!("{UNHEALTHY_TAINT}:{TAINT_EFFECT}");
    let object = reference(&node.name, &node.uid);
    match change {
        Change::Put => {
            tracing::info!(node = node.name, cause, "tainted");
            let note = format!("taint {taint} is on the node: {cause}");
            context.events.warning(object, Reason::GPUTaintAdded, "Taint", &note);
        }
        Change::Take(_) => {
            tracing::info!(node = node.name, "taint taken away");
            let note = format!("taint {taint} is no longer on the node");
            context.events.normal(object, Reason::GPUTaintRemoved, "Taint", &note);
        }
    }
}

/// Takes our taint from every node, for good: nobody will be there to do it later. The running controller would put it back, so it is
/// stopped before.
pub async fn take_all(client: &Client) -> Result<(), String> {
    let api: Api<ApiNode> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let mut tainted = Vec::new();
    loop {
        let list = tokio::time::timeout(DEADLINE, api.list(&page));
        let nodes = match list.await {
            Ok(list) => list.map_err(|error| format!("cannot list Nodes: {error}"))?,
            Err(_) => return Err(format!("cannot list Nodes: no answer within {} s", DEADLINE.as_secs())),
        };
        let slim = nodes.items.iter().map(|n| Node::from_api(n, &[]));
        tainted.extend(slim.filter(|n| n.taints.iter().any(is_our_taint)));
        match nodes.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => break,
        }
    }
    let each = tainted.into_iter().map(|node| async {
        let name = node.name.clone();
        (name, take(&api, node).await)
    });
    let done: Vec<_> = stream::iter(each).buffer_unordered(WRITERS).collect().await;
    let mut left = Vec::new();
    for (name, result) in done {
        match result {
            Ok(()) => tracing::info!("Node {name}: the taint is gone"),
            Err(error) => left.push(format!("{name} ({error})")),
        }
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("the taint {UNHEALTHY_TAINT} is still on: {}", left.join(", "))),
    }
}

async fn take(api: &Api<ApiNode>, mut node: Node) -> Result<(), String> {
    for _ in 0..TRIES {
        let Some(place) = node.taints.iter().position(is_our_taint) else {
            return Ok(());
        };
        let operations = operations(Change::Take(place), &node);
        match patch(api, &node.name, operations).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Failed(error)) => return Err(error),
            Err(WriteError::Outdated) => {
                // No right to get one node: the list has it.
                let one = ListParams::default().fields(&format!("metadata.name={}", node.name));
                let now = api.list(&one).await.map_err(|error| error.to_string())?;
                match now.items.into_iter().find(|n| n.uid().as_ref() == Some(&node.uid)) {
                    Some(now) => node = Node::from_api(&now, &[]),
                    None => return Ok(()),
                }
            }
        }
    }
    Err("others change it all the time".into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_core::facts::{NvmlState, NvmlStatus};
    use berth_core::health::breaker::Limit;
    use berth_core::health::{GpuHealth, GpuState};

    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: String::new(),
            effect: effect.into(),
        }
    }

    fn health(states: &[GpuState]) -> NodeHealth {
        NodeHealth {
            gpus: states
                .iter()
                .map(|state| GpuHealth {
                    uuid: String::new(),
                    state: *state,
                    reason: String::new(),
                    message: String::new(),
                    since: Duration::ZERO,
                    cleared_by: None,
                    gpu: None,
                })
                .collect(),
            nvml: NvmlStatus {
                state: NvmlState::Ready,
                message: String::new(),
            },
            missing_gpus: 0,
        }
    }

    #[test]
    fn it_follows_the_decision_and_unknown_changes_nothing() {
        use GpuState::{Healthy, Unhealthy};
        let out = Decision::Excluded { cause: "A" };
        let held = Decision::Held {
            cause: "A",
            limit: Limit::Share,
        };
        let (one, both) = (health(&[Healthy, Unhealthy]), health(&[Unhealthy, Unhealthy]));
        let ours = || taint(UNHEALTHY_TAINT, "NoSchedule");
        let foreign = || taint("x", "NoSchedule");
        let (put, take) = (Some(Change::Put), Some(Change::Take(1)));
        for (what, when, decision, health, tainted, want) in [
            ("out", TaintWhen::Any, out, Some(&one), false, put),
            ("still out", TaintWhen::Any, out, Some(&one), true, None),
            ("one of two, all asked", TaintWhen::All, out, Some(&one), false, None),
            ("one is back, all asked", TaintWhen::All, out, Some(&one), true, take),
            ("all, all asked", TaintWhen::All, out, Some(&both), false, put),
            ("all asked, none reported", TaintWhen::All, out, None, true, None),
            ("ready", TaintWhen::Any, Decision::Ready, Some(&one), true, take),
            ("ready, clean", TaintWhen::Any, Decision::Ready, None, false, None),
            ("unknown keeps it", TaintWhen::Any, Decision::Unknown, None, true, None),
            (
                "unknown puts none",
                TaintWhen::Any,
                Decision::Unknown,
                None,
                false,
                None,
            ),
            ("held back", TaintWhen::Any, held, Some(&both), false, None),
            ("turned off", TaintWhen::Never, out, Some(&both), true, take),
            (
                "turned off, nothing known",
                TaintWhen::Never,
                Decision::Unknown,
                None,
                true,
                take,
            ),
            ("off", TaintWhen::Never, out, Some(&both), false, None),
        ] {
            let mut taints = vec![foreign()];
            taints.extend(tainted.then(ours));
            assert_eq!(plan(when, decision, health, &taints), want, "{what}");
        }
        // One of our key that somebody put with another effect is not ours.
        let theirs = [taint(UNHEALTHY_TAINT, "NoExecute")];
        assert_eq!(plan(TaintWhen::Any, Decision::Ready, None, &theirs), None);
        assert_eq!(plan(TaintWhen::Any, out, Some(&one), &theirs), Some(Change::Put));
    }

    #[test]
    fn a_patch_touches_our_taint_alone_and_holds_for_one_version() {
        for (change, taints, last) in [
            (
                Change::Put,
                0,
                json!({"op": "add", "path": "/spec/taints", "value": [{"key": UNHEALTHY_TAINT, "effect": "NoSchedule"}]}),
            ),
            (
                Change::Put,
                2,
                json!({"op": "add", "path": "/spec/taints/-", "value": {"key": UNHEALTHY_TAINT, "effect": "NoSchedule"}}),
            ),
            (Change::Take(1), 2, json!({"op": "remove", "path": "/spec/taints/1"})),
        ] {
            let node = Node {
                uid: "u".into(),
                // A write of ours since, of which only metadata came back: the taints are those of before.
                resource_version: "9".into(),
                whole_version: "7".into(),
                taints: vec![taint("x", "NoSchedule"); taints],
                ..Node::default()
            };
            let operations = operations(change, &node);
            assert_eq!(operations[0]["value"], "u");
            assert_eq!(
                operations[1],
                json!({"op": "test", "path": "/metadata/resourceVersion", "value": "7"})
            );
            assert_eq!(operations.last(), Some(&last));
            let tests: Vec<&Value> = operations[2..].iter().filter(|o| o["op"] == "test").collect();
            let ours = [
                json!({"op": "test", "path": "/spec/taints/1/key", "value": UNHEALTHY_TAINT}),
                json!({"op": "test", "path": "/spec/taints/1/effect", "value": "NoSchedule"}),
            ];
            match change {
                Change::Put => assert!(tests.is_empty(), "{tests:?}"),
                Change::Take(_) => assert_eq!(tests, ours.iter().collect::<Vec<_>>()),
            }
        }
    }
}
