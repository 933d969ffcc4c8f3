//! AutoNodeLabeler: puts labels on the nodes whose own labels match, and takes them away again.
//!
//! ```text
//! watch ─► index ─┬─► validate (pure) ─► evaluate (pure, all nodes, oldest rule first) ─► nodes::write ─► status
//! cluster.rules ──┘
//! ```
//!
//! Whether a label on a node came from a rule is read from the node (field manager `berth/nodes-rules`); nothing is remembered, so a
//! restart changes nothing.

mod evaluate;
mod index;
mod status;
mod validate;

use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_crds::conditions::{self, Desired};
use berth_crds::names::managers;
use berth_crds::premlabs::AutoNodeLabeler;
use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde_json::json;

use crate::args::NodesMode;
use crate::cluster::{Cluster, ObjectKey};
use crate::context::Context;
use crate::nodes::{WRITERS, backoff, write};
use evaluate::{Evaluation, Outcome, Part, Participant, Write};
use index::Index;
use status::{Standing, Writing};

/// Changes that come within this time are one pass.
const GATHER: Duration = Duration::from_millis(100);
/// Nodes that are evaluated under one lock of the picture: some milliseconds with a hundred rules.
const CHUNK: usize = 128;
/// Longest wait for the answer to one status write.
const DEADLINE: Duration = Duration::from_secs(10);

/// Serves the kind, until the process ends.
pub async fn run(context: Context) {
    let index = Mutex::new(Index::default());
    tokio::join!(index::watch(&context, &index), passes(&context, &index));
}

async fn passes(context: &Context, index: &Mutex<Index>) {
    let mut failures = 0;
    let mut observed = Vec::new();
    loop {
        context.cluster.rules.next_batch(GATHER).await;
        let Some(objects) = ready(context, index) else { continue };
        if pass(context, index, objects, &mut observed).await {
            failures = 0;
            continue;
        }
        failures += 1;
        context.cluster.rules.push_at((), Instant::now() + backoff(failures));
    }
}

/// All objects, once nodes and rules are complete: before that, labels would seem to match nothing.
fn ready(context: &Context, index: &Mutex<Index>) -> Option<Vec<(ObjectKey, Arc<AutoNodeLabeler>)>> {
    if !context.cluster.read().nodes_synced {
        return None;
    }
    index.lock().by_age()
}

/// One pass over all rules and nodes; whether everything that it wanted was written.
async fn pass(
    context: &Context,
    index: &Mutex<Index>,
    objects: Vec<(ObjectKey, Arc<AutoNodeLabeler>)>,
    observed: &mut Vec<Write>,
) -> bool {
    let verdicts: Vec<Verdict> = objects.iter().map(|(key, o)| verdict(context, key, o)).collect();
    let participants: Vec<Participant> = verdicts.iter().filter_map(|v| v.participant.clone()).collect();
    let mut evaluation = evaluated(&context.cluster, &participants).await;
    let (failed, writing) = if context.settings.nodes_mode == NodesMode::Observe {
        report(&evaluation.writes, observed);
        (false, observed_by_rule(&evaluation, participants.len()))
    } else {
        let failures = written(context, std::mem::take(&mut evaluation.writes)).await;
        (!failures.is_empty(), failed_by_rule(failures, participants.len()))
    };
    let mut results = evaluation.outcomes.into_iter().zip(writing);
    let standings = verdicts.into_iter().map(|v| {
        let result = v.participant.is_some().then(|| results.next()).flatten();
        v.standing(result)
    });
    let settled = futures::stream::iter(objects.into_iter().zip(standings))
        .map(|((key, object), standing)| settle(context, index, key, object, standing))
        .buffer_unordered(WRITERS)
        .fold(true, |all, one| std::future::ready(all && one))
        .await;
    settled && !failed
}

/// What is made of one object before any node is looked at.
struct Verdict {
    participant: Option<Participant>,
    /// Where the object stands for a reason of its own; `None`: where its rule's outcome puts it.
    own: Option<Standing>,
}

impl Verdict {
    fn standing(self, result: Option<(Outcome, Writing)>) -> Standing {
        self.own.unwrap_or_else(|| {
            let (outcome, writing) = result.unwrap_or((Outcome::default(), Writing::Done));
            Standing::Evaluated(outcome, writing)
        })
    }
}

fn verdict(context: &Context, key: &ObjectKey, object: &AutoNodeLabeler) -> Verdict {
    let settings = &context.settings;
    let part = |part| Some(Participant { key: key.clone(), part });
    if index::is_paused(object) {
        return Verdict {
            participant: part(Part::Paused(object.spec.labels.clone())),
            own: Some(Standing::Paused),
        };
    }
    if !settings.labeler_namespaces.is_empty() && !settings.labeler_namespaces.contains(&key.0) {
        return Verdict {
            participant: None,
            own: Some(Standing::NotAllowed),
        };
    }
    match validate::validate(&object.spec, &settings.labeler_allow_keys) {
        Ok(rule) => Verdict {
            participant: part(Part::Rule(rule)),
            own: None,
        },
        Err(errors) => Verdict {
            participant: None,
            own: Some(Standing::Invalid(errors)),
        },
    }
}

/// Evaluates all nodes, some at a time, so that nobody who writes the picture waits long.
async fn evaluated(cluster: &Cluster, participants: &[Participant]) -> Evaluation {
    let mut evaluation = Evaluation::new(participants.len());
    let mut last: Option<String> = None;
    loop {
        {
            let picture = cluster.read();
            let after = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let chunk: Vec<_> = picture
                .nodes
                .range::<str, _>((after, Bound::Unbounded))
                .take(CHUNK)
                .collect();
            chunk.iter().for_each(|(_, node)| evaluation.add(participants, node));
            match chunk.last() {
                Some((name, _)) if chunk.len() == CHUNK => last = Some((*name).clone()),
                _ => return evaluation,
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Writes nodes; those that failed, with the error.
async fn written(context: &Context, writes: Vec<Write>) -> Vec<(Write, String)> {
    let results: Vec<Option<(Write, String)>> = futures::stream::iter(writes)
        .map(|w| async move {
            match write(&context.client, managers::NODES_RULES, &w.node, &w.uid, &w.labels).await {
                Ok(now) => {
                    context.cluster.observe_node(&now);
                    tracing::info!(node = w.node, labels = w.labels.len(), "labels of rules written");
                    None
                }
                Err(error) => {
                    tracing::warn!(node = w.node, %error, "labels of rules were not written");
                    Some((w, error.to_string()))
                }
            }
        })
        .buffered(WRITERS)
        .collect()
        .await;
    results.into_iter().flatten().collect()
}

fn failed_by_rule(failures: Vec<(Write, String)>, rules: usize) -> Vec<Writing> {
    let mut writing = vec![Writing::Done; rules];
    for (write, error) in failures {
        for rule in &write.rules {
            match &mut writing[*rule] {
                Writing::Failed { nodes, .. } => *nodes += 1,
                other => {
                    *other = Writing::Failed {
                        nodes: 1,
                        error: error.clone(),
                    }
                }
            }
        }
    }
    writing
}

fn observed_by_rule(evaluation: &Evaluation, rules: usize) -> Vec<Writing> {
    let mut pending = vec![0; rules];
    for rule in evaluation.writes.iter().flat_map(|w| &w.rules) {
        pending[*rule] += 1;
    }
    let writing = |nodes| {
        if nodes == 0 {
            Writing::Done
        } else {
            Writing::Observed { nodes }
        }
    };
    pending.into_iter().map(writing).collect()
}

fn report(writes: &[Write], observed: &mut Vec<Write>) {
    for write in writes.iter().filter(|w| !observed.contains(w)) {
        tracing::info!(node = write.node, labels = ?write.labels, "would write labels of rules (nodes mode is observe)");
    }
    *observed = writes.to_vec();
}

/// Writes the status where it changed, and tells transitions; whether the object has it now.
async fn settle(
    context: &Context,
    index: &Mutex<Index>,
    key: ObjectKey,
    object: Arc<AutoNodeLabeler>,
    standing: Standing,
) -> bool {
    let status = status::status(&object, &standing, Timestamp::now());
    if object.status.as_ref() == Some(&status) {
        return true;
    }
    let (namespace, name) = &key;
    let api: Api<AutoNodeLabeler> = Api::namespaced(context.client.clone(), namespace);
    let patch = Patch::Apply(json!({
        "apiVersion": AutoNodeLabeler::api_version(&()),
        "kind": AutoNodeLabeler::kind(&()),
        "metadata": {"name": name, "namespace": namespace, "uid": object.metadata.uid},
        "status": status,
    }));
    let params = PatchParams::apply(managers::AUTONODELABELER_STATUS)
        .force()
        .validation_strict();
    match tokio::time::timeout(DEADLINE, api.patch_status(name, &params, &patch)).await {
        Ok(Ok(_)) => {
            for transition in status::transitions(&object, &standing) {
                tell(context, &object, &transition);
            }
            index.lock().set_status(&key, object.metadata.uid.as_deref(), status);
            true
        }
        Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => {
            tracing::debug!(
                namespace,
                name,
                "AutoNodeLabeler is gone or another one; its status is not written"
            );
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(namespace, name, %error, "status of AutoNodeLabeler was not written");
            false
        }
        Err(_) => {
            tracing::warn!(namespace, name, "no answer to the status of AutoNodeLabeler in time");
            false
        }
    }
}

fn tell(context: &Context, object: &AutoNodeLabeler, transition: &Desired) {
    use conditions::{Reason, Status};
    let note = if transition.message.is_empty() {
        format!("{} is {}", transition.type_.as_str(), transition.status.as_str())
    } else {
        transition.message.clone()
    };
    let reference = object.object_ref(&());
    let expected = transition.status == Status::True
        || matches!(transition.reason, Reason::NoMatch | Reason::Observed | Reason::Paused);
    if expected {
        context.events.normal(reference, transition.reason, "Label", &note);
    } else {
        context.events.warning(reference, transition.reason, "Label", &note);
    }
}
