//! Keeps the labels of every node in step with its hardware, and writes node labels for whoever computes them.
//!
//! ```text
//! cluster.hardware ─► facts ─► core::labels ─► plan (pure: wanted, observed ─► write or leave) ─► write (server-side apply)
//! ```
//!
//! Labels follow facts, never the lack of them: an agent that is away changes nothing.

mod plan;
mod reports;
mod write;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use berth_core::labels;
use berth_crds::names::managers;
use futures::StreamExt;
use parking_lot::Mutex;

pub use plan::owned;
pub use write::write;

use crate::args::NodesMode;
use crate::cluster::{Node, Picture};
use crate::context::Context;
use plan::{Families, Plan};
use reports::Reports;

/// Changes that come within this time are looked at together; short, since a new node waits for its first labels.
const GATHER: Duration = Duration::from_millis(20);
/// Writes under way at the same time.
pub const WRITERS: usize = 16;
/// First delay after a failed write; doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Follows hardware facts, until the process ends.
pub async fn run(context: Context) {
    let families = Families::of(&context.settings);
    let reports = Mutex::new(Reports::default());
    let failures = Mutex::new(HashMap::new());
    loop {
        let batch = context.cluster.hardware.next_batch(GATHER).await;
        futures::stream::iter(batch)
            .for_each_concurrent(WRITERS, |name| serve(&context, families, name, &reports, &failures))
            .await;
    }
}

/// Looks at one node.
async fn serve(
    context: &Context,
    families: Families,
    name: String,
    reports: &Mutex<Reports>,
    failures: &Mutex<HashMap<String, u32>>,
) {
    let planned = {
        let picture = context.cluster.read();
        match planned(&picture, families, &name) {
            Some(planned) => planned,
            None => {
                if !picture.nodes.contains_key(&name) {
                    reports.lock().forget(&name);
                    failures.lock().remove(&name);
                }
                return;
            }
        }
    };
    for (manager, keys) in reports.lock().newly_left(&name, &planned.uid, &planned.plan.left) {
        report_left(context, &planned, &name, &manager, &keys);
    }
    for key in &planned.plan.refused {
        tracing::error!(
            node = name,
            key,
            "a computed label is outside of what may be written; it was left out"
        );
    }
    let Some(wanted) = &planned.plan.write else {
        failures.lock().remove(&name);
        return;
    };
    if context.settings.nodes_mode == NodesMode::Observe {
        if reports.lock().newly_observed(&name, wanted) {
            tracing::info!(node = name, labels = ?wanted, "would write hardware labels (nodes mode is observe)");
        }
        return;
    }
    match write(&context.client, managers::NODES_HARDWARE, &name, &planned.uid, wanted).await {
        Ok(now) => {
            context.cluster.observe_node(&now);
            failures.lock().remove(&name);
            tracing::info!(node = name, labels = wanted.len(), "hardware labels written");
        }
        Err(error) => {
            let attempt = {
                let mut failures = failures.lock();
                let attempt = failures.entry(name.clone()).or_insert(0);
                *attempt += 1;
                *attempt
            };
            let delay = backoff(attempt);
            tracing::warn!(node = name, %error, attempt, retry_in = ?delay, "hardware labels were not written");
            context.cluster.hardware.push_at(name, Instant::now() + delay);
        }
    }
}

/// Delay before the attempt after the `failures`-th failed one.
pub fn backoff(failures: u32) -> Duration {
    BACKOFF
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
        .min(MAX_BACKOFF)
}

struct Planned {
    uid: String,
    plan: Plan,
}

/// `None`: nothing is known, or nothing may be done. The agent must be one of this very node, not of one that had its name before.
fn planned(picture: &Picture, families: Families, name: &str) -> Option<Planned> {
    let node = picture.nodes.get(name)?;
    let agent = picture.agents.get(name)?;
    let facts = agent.facts.as_ref()?;
    if agent.node_uid != node.uid || is_paused(node) {
        return None;
    }
    let computed = labels::labels(facts, &labels::Settings::default());
    let plan = plan::plan(computed, labels::waits_for_nvml(facts), node, families);
    Some(Planned {
        uid: node.uid.clone(),
        plan,
    })
}

/// Whether a person stopped all label writes on the node.
pub fn is_paused(node: &Node) -> bool {
    node.annotations.contains_key(berth_crds::names::PAUSED)
}

fn report_left(context: &Context, planned: &Planned, name: &str, manager: &str, keys: &[String]) {
    let note = format!(
        "{} label(s) are left to field manager {manager:?}, which owns them: {}",
        keys.len(),
        keys.join(", ")
    );
    tracing::info!(
        node = name,
        manager,
        keys = keys.len(),
        "labels are left to their owner"
    );
    let node = k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(planned.uid.clone()),
        ..Default::default()
    };
    let reason = berth_crds::conditions::Reason::LabelsOwnedByOthers;
    context.events.normal(node, reason, "Label", &note);
}

/// Labels as written: key to value.
pub type Labels = BTreeMap<String, String>;
