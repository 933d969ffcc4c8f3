//! What Prometheus is told.

use std::fmt;
use std::time::Instant;

use berth_core::facts::{GpuEvent, GpuEventKind};
use berth_core::freshness::NODE_SILENT;
use berth_core::health::breaker::Limit;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::cluster::Picture;
use crate::placement::Outcome;

/// XIDs go up to a few hundred; whatever a driver invents beyond does not become a time series.
const HIGHEST_XID: u64 = 999;

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: Gauge,
    refusals: Family<ReasonLabel, Counter>,
    sessions: Counter,
    strangers: Gauge,
    resyncs: Counter,
    events: Family<XidLabel, Counter>,
    events_lost: Counter,
    agents_connected: Gauge,
    agents_silent: Gauge,
    nodes: Gauge,
    pods: Gauge,
    pods_waiting: Gauge,
    gpu_nodes: Gauge,
    excluded: Gauge,
    held_back: Family<LimitLabel, Gauge>,
    plugin_problems: Gauge,
    model_deployments_created: Counter,
    model_validations: Family<StatusLabel, Counter>,
    watch_errors: Family<KindLabel, Counter>,
}

/// A step of the validation of a ModelDeployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// Its Job was made.
    Started,
    /// Its Job ended well.
    Success,
    /// Its Job failed.
    Failure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct XidLabel {
    xid: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        // Under the names that the original gives them.
        let model_deployments_created = Counter::default();
        all.register(
            "model_deployments_created",
            "ModelDeployments seen for the first time",
            model_deployments_created.clone(),
        );
        let model_validations = family(
            &mut all,
            "model_validations",
            "Validations of ModelDeployments: started, success, failure",
        );
        let registry = all.sub_registry_with_prefix("berth");
        registry.register(
            "build",
            "This build",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            leader: gauge(registry, "leader", "1 while this process leads"),
            refusals: family(
                registry,
                "agent_refusals",
                "Agent calls refused and sessions ended for cause",
            ),
            sessions: counter(registry, "agent_sessions", "Sessions that agents opened"),
            strangers: gauge(
                registry,
                "agent_connections_without_session",
                "Connections to the agents' port that have no session (yet)",
            ),
            resyncs: counter(
                registry,
                "agent_resyncs",
                "Sessions that had to send everything again, because messages were missing",
            ),
            events: family(registry, "gpu_events", "Faults that agents reported, by NVIDIA XID"),
            events_lost: {
                let lost = Counter::default();
                registry.register(
                    "gpu_events_lost",
                    "Faults that agents had to drop before they could report them",
                    lost.clone(),
                );
                lost
            },
            agents_connected: gauge(registry, "agents_connected", "Nodes whose agent has a session open"),
            agents_silent: gauge(registry, "agents_silent", "Agents once heard, and not for 15 seconds"),
            nodes: gauge(registry, "nodes", "Nodes in the picture"),
            pods: gauge(registry, "pods", "Unfinished pods in the picture"),
            pods_waiting: gauge(registry, "pods_waiting", "Pods that wait for a node from Berth"),
            gpu_nodes: gauge(registry, "gpu_nodes", "Nodes whose GPUs have a health"),
            excluded: gauge(
                registry,
                "health_excluded_nodes",
                "Nodes that are out of placement for their health",
            ),
            held_back: {
                let held_back = Family::default();
                registry.register(
                    "health_held_back_nodes",
                    "Nodes that count although they are ill: the fleet breaker is open",
                    held_back.clone(),
                );
                held_back
            },
            plugin_problems: gauge(
                registry,
                "device_plugin_config_unusable_nodes",
                "Nodes whose labels say nothing of MIG strategy and sharing, since the device plugin's configuration cannot be used",
            ),
            watch_errors: family(
                registry,
                "controller_watch_errors",
                "Watches of the API server that failed, were refused or were out of date, by the kind that is watched",
            ),
            model_deployments_created,
            model_validations,
            registry: all,
        }
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn family<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: Clone + fmt::Debug + Eq + std::hash::Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

impl Metrics {
    /// Whether this process leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// An agent was turned away.
    pub fn agent_refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An agent opened a session.
    pub fn agent_session(&self) {
        self.sessions.inc();
    }

    /// A connection to the agents' port has no session.
    pub fn stranger_came(&self) {
        self.strangers.inc();
    }

    /// It has one now, or is gone.
    pub fn stranger_went(&self) {
        self.strangers.dec();
    }

    /// Messages of a session were missing.
    pub fn agent_resync(&self) {
        self.resyncs.inc();
    }

    /// Objects of a kind are watched from now on.
    pub fn watch_begins(&self, kind: &'static str) {
        // A counter that is there from the start shows its first error as a growth.
        drop(self.watch_errors.get_or_create(&KindLabel { kind }));
    }

    /// A watch failed.
    pub fn watch_broke(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabel { kind }).inc();
    }

    /// A ModelDeployment was seen for the first time.
    pub fn model_deployment_created(&self) {
        self.model_deployments_created.inc();
    }

    /// A validation went a step.
    pub fn model_validation(&self, step: Validation) {
        let status = match step {
            Validation::Started => "started",
            Validation::Success => "success",
            Validation::Failure => "failure",
        };
        self.model_validations.get_or_create(&StatusLabel { status }).inc();
    }

    /// Faults that an agent reported.
    pub fn gpu_events(&self, events: &[GpuEvent], lost: u64) {
        for event in events {
            let xid = match event.kind {
                GpuEventKind::Xid(n) if n <= HIGHEST_XID => n.to_string(),
                GpuEventKind::Xid(_) | GpuEventKind::Other(_) => "other".into(),
            };
            self.events.get_or_create(&XidLabel { xid }).inc();
        }
        self.events_lost.inc_by(lost);
    }

    /// OpenMetrics text, with what the picture shows now.
    pub fn encode(&self, picture: &Picture, now: Instant) -> Result<String, fmt::Error> {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let silent = |heard: Instant| now.saturating_duration_since(heard) > NODE_SILENT;
        self.agents_connected
            .set(count(picture.agents.values().filter(|a| a.connected).count()));
        self.agents_silent
            .set(count(picture.agents.values().filter(|a| silent(a.heard)).count()));
        self.nodes.set(count(picture.nodes.len()));
        self.pods.set(count(picture.pods.len()));
        let waits = |o: &&Outcome| matches!(o, Outcome::Waiting { .. });
        self.pods_waiting
            .set(count(picture.outcomes.values().filter(waits).count()));
        self.gpu_nodes.set(count(picture.breaker.nodes()));
        self.excluded.set(count(picture.breaker.excluded()));
        for limit in Limit::ALL {
            let held = picture.breaker.held().filter(|(_, l, _)| *l == limit).count();
            let label = LimitLabel { limit: limit.as_str() };
            self.held_back.get_or_create(&label).set(count(held));
        }
        self.plugin_problems.set(count(picture.plugin_problems.len()));
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels() {
        let metrics = Metrics::default();
        metrics.set_leader(true);
        metrics.agent_refused("NoToken");
        let event = |kind| GpuEvent {
            kind,
            uuid: None,
            pci_address: None,
            age: std::time::Duration::ZERO,
            source: "nvml".into(),
            detail: String::new(),
            instance: None,
        };
        let events = [
            event(GpuEventKind::Xid(79)),
            event(GpuEventKind::Xid(u64::MAX)),
            event(GpuEventKind::Other("x".into())),
        ];
        metrics.gpu_events(&events, 3);
        metrics.model_deployment_created();
        metrics.model_validation(Validation::Started);
        metrics.model_validation(Validation::Failure);
        let text = metrics.encode(&Picture::default(), Instant::now()).unwrap();
        for line in [
            "berth_leader 1",
            "berth_agent_refusals_total{reason=\"NoToken\"} 1",
            "berth_gpu_events_total{xid=\"79\"} 1",
            "berth_gpu_events_total{xid=\"other\"} 2",
            "berth_gpu_events_lost_total 3",
            "berth_agents_connected 0",
            "berth_pods_waiting 0",
            "berth_gpu_nodes 0",
            "berth_health_excluded_nodes 0",
            "berth_health_held_back_nodes{limit=\"share\"} 0",
            "berth_device_plugin_config_unusable_nodes 0",
            "model_deployments_created_total 1",
            "model_validations_total{status=\"started\"} 1",
            "model_validations_total{status=\"failure\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
        assert!(text.contains("berth_build_info{version="), "{text}");
    }
}
