//! Keeps the labels of every node in step with its hardware, and writes node labels for whoever computes them.
//!
//! ```text
//! cluster.hardware ─► facts ──┬─► core::labels ─► plan (pure: wanted, observed ─► write or leave) ─► write (server-side apply)
//! device plugin's ConfigMap ──┘
//! cluster.readiness ─► health ─► condition ─► write (server-side apply on the status) ─► taint (JSON patch)
//! cluster.breaker   ─► who is held back is said
//! ```
//!
//! Labels follow facts, never the lack of them: an agent that is away changes nothing.

mod breaker;
mod condition;
mod device_plugin;
mod plan;
mod readiness;
mod reports;
mod taint;
mod write;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use berth_core::labels;
use berth_crds::conditions::Reason;
use berth_crds::names::managers;
use futures::StreamExt;
use parking_lot::Mutex;

pub use plan::owned;
pub use taint::take_all as take_all_taints;
pub use write::write;

use crate::args::NodesMode;
use crate::cluster::{Node, Picture};
use crate::context::Context;
use device_plugin::{DevicePlugin, Problem};
use plan::{Families, Plan};
use reports::Reports;

/// Changes that come within this time are looked at together; short, since a new node waits for its first labels.
const GATHER: Duration = Duration::from_millis(20);
/// Writes under way at the same time.
pub const WRITERS: usize = 16;
/// First delay after a failed write; doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Follows hardware facts and health, until the process ends.
pub async fn run(context: Context) {
    let plugin = DevicePlugin::new(context.settings.device_plugin_config.clone());
    tokio::join!(
        plugin.follow(&context),
        label(&context, &plugin),
        readiness::run(&context),
        breaker::run(&context)
    );
}

async fn label(context: &Context, plugin: &DevicePlugin) {
    let labeler = Labeler {
        context,
        plugin,
        families: Families::of(&context.settings),
        reports: Mutex::default(),
        failures: Mutex::default(),
    };
    plugin.ready().await;
    loop {
        let batch = context.cluster.hardware.next_batch(GATHER).await;
        futures::stream::iter(batch)
            .for_each_concurrent(WRITERS, |name| labeler.serve(name))
            .await;
    }
}

/// What looking at a node takes.
struct Labeler<'a> {
    context: &'a Context,
    plugin: &'a DevicePlugin,
    families: Families,
    reports: Mutex<Reports>,
    failures: Mutex<HashMap<String, u32>>,
}

impl Labeler<'_> {
    /// Looks at one node.
    async fn serve(&self, name: String) {
        let Self {
            context,
            reports,
            failures,
            ..
        } = self;
        let planned = {
            let picture = context.cluster.read();
            match self.planned(&picture, &name) {
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
        self.tell_of_plugin(&name, &planned).await;
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
            let mut lasting = wanted.clone();
            lasting.remove(plan::TIMESTAMP);
            if reports.lock().newly_observed(&name, &lasting) {
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

    /// `None`: nothing is known, or nothing may be done. The agent must be one of this very node, not of one that had its name before.
    fn planned(&self, picture: &Picture, name: &str) -> Option<Planned> {
        let node = picture.nodes.get(name)?;
        let agent = picture.agents.get(name)?;
        let facts = agent.facts.as_ref()?;
        if agent.node_uid != node.uid || is_paused(node) {
            return None;
        }
        let choice = self.plugin.choice(node);
        let settings = labels::Settings {
            timestamp: self.context.settings.gfd_timestamp.then(seconds_since_1970),
            ..choice.settings
        };
        // Where there are no GPUs of NVIDIA the device plugin hands nothing out.
        let has_gpus = facts.nvidia_display_functions().next().is_some();
        let computed = labels::labels(facts, &settings);
        let plan = plan::plan(computed, labels::waits_for_nvml(facts), node, self.families);
        Some(Planned {
            uid: node.uid.clone(),
            plan,
            problem: choice.problem.filter(|_| has_gpus),
        })
    }

    /// A configuration of the device plugin that nodes choose and that cannot be used: one Event, however many they are. Which ones is on the
    /// page `/nodes`.
    async fn tell_of_plugin(&self, name: &str, planned: &Planned) {
        let text = planned.problem.as_ref().map(|p| p.text().to_owned());
        if !self.context.cluster.set_plugin_problem(name, text) {
            return;
        }
        if let Some(Problem::Key(problem)) = &planned.problem {
            tracing::warn!(node = name, problem, "the device plugin's configuration is not used");
            let note = format!("{problem}; labels of the nodes that choose it say nothing of MIG strategy and sharing");
            let object = installation(self.context).await;
            let reason = Reason::DevicePluginConfigUnusable;
            self.context.events.warning(object, reason, "Label", &note);
        }
    }
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
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
    /// Why the device plugin's configuration does not count.
    problem: Option<Problem>,
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

/// Longest wait for the Deployment that Events of the whole installation are on.
const LOOK_UP: Duration = Duration::from_secs(5);

/// The controller's Deployment: what concerns no node alone is said there. `kubectl describe` asks for Events by UID.
async fn installation(context: &Context) -> k8s_openapi::api::core::v1::ObjectReference {
    let (namespace, name) = (&context.settings.namespace, &context.settings.deployment);
    let api: kube::Api<k8s_openapi::api::apps::v1::Deployment> =
        kube::Api::namespaced(context.client.clone(), namespace);
    let found = tokio::time::timeout(LOOK_UP, api.get_metadata_opt(name)).await;
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("apps/v1".into()),
        kind: Some("Deployment".into()),
        namespace: Some(namespace.clone()),
        name: Some(name.clone()),
        uid: found.ok().and_then(Result::ok).flatten().and_then(|d| d.metadata.uid),
        ..Default::default()
    }
}
