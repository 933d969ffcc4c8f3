//! `/nodes`: what is known of each node and its GPUs right now, for people.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use berth_core::facts::Gpu;
use berth_core::health::breaker::Decision;
use serde::Serialize;

use super::pods::{self, OfGpu};
use crate::cluster::{Agent, Picture, Pod};

/// One node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    node: String,
    /// Whether the API server knows the node (an agent may be faster than the watch).
    exists: bool,
    /// Absent: no agent was ever heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<AgentView>,
    /// Absent: its health takes nothing away.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthView>,
    /// Why its labels say nothing of MIG strategy and sharing.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_plugin_problem: Option<String>,
    gpus: Vec<GpuView>,
}

/// What a node's health means for placement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthView {
    /// `Excluded`, or `HeldBack` by the fleet breaker: it counts although it is ill.
    decision: &'static str,
    /// Reason or XID.
    cause: String,
    /// What holds it back: `share`, `rate`, `same-cause`.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
}

fn health_view(decision: Decision<'_>) -> Option<HealthView> {
    let (decision, cause, limit) = match decision {
        Decision::Ready | Decision::Unknown => return None,
        Decision::Excluded { cause } => ("Excluded", cause, None),
        Decision::Held { cause, limit } => ("HeldBack", cause, Some(limit.as_str())),
    };
    Some(HealthView {
        decision,
        cause: cause.to_owned(),
        limit,
    })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentView {
    connected: bool,
    version: String,
    heard_ms_ago: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvml: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvml_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_gpus: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GpuView {
    index: u32,
    uuid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilization_percent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_age_ms: Option<u64>,
    #[serde(flatten)]
    pods: OfGpu,
}

/// All nodes by name, those known only by their agents included.
pub fn all(picture: &Picture, now: Instant) -> Vec<NodeView> {
    let names: std::collections::BTreeSet<&String> = picture.nodes.keys().chain(picture.agents.keys()).collect();
    let mut on_node: HashMap<&str, Vec<&Pod>> = HashMap::new();
    for pod in picture.pods.values() {
        if let Some(node) = &pod.node {
            on_node.entry(node).or_default().push(pod);
        }
    }
    let view = |name: &String| {
        let agent = picture.agents.get(name);
        NodeView {
            node: name.clone(),
            exists: picture.nodes.contains_key(name),
            agent: agent.map(|a| agent_view(a, now)),
            health: health_view(picture.breaker.decision(name)),
            device_plugin_problem: picture.plugin_problems.get(name).cloned(),
            gpus: agent
                .map(|a| gpu_views(a, &on_node.get(name.as_str()).cloned().unwrap_or_default(), now))
                .unwrap_or_default(),
        }
    };
    names.into_iter().map(view).collect()
}

fn agent_view(agent: &Agent, now: Instant) -> AgentView {
    let facts = agent.facts.as_ref();
    // Health is sent on change and so the fresher of the two.
    let nvml = agent.health.as_ref().map(|h| &h.nvml).or(facts.map(|f| &f.nvml));
    AgentView {
        connected: agent.connected,
        version: agent.version.clone(),
        heard_ms_ago: ms(now.saturating_duration_since(agent.heard)),
        nvml: nvml.map(|n| n.state.to_string()),
        nvml_message: nvml.map(|n| n.message.clone()).filter(|m| !m.is_empty()),
        driver: facts.and_then(|f| f.driver.as_ref()).map(|d| d.version.clone()),
        missing_gpus: agent.health.as_ref().map(|h| h.missing_gpus),
    }
}

fn gpu_views(agent: &Agent, on_node: &[&Pod], now: Instant) -> Vec<GpuView> {
    let view = |gpu: &Gpu| {
        let health = agent.health.iter().flat_map(|h| &h.gpus).find(|h| h.uuid == gpu.uuid);
        let sample = agent.samples.get(&gpu.uuid);
        GpuView {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            product: gpu.product.clone(),
            memory_bytes: gpu.memory_bytes,
            health: health.map(|h| format!("{:?}", h.state)),
            health_message: health.map(|h| h.message.clone()).filter(|m| !m.is_empty()),
            memory_free_bytes: sample.and_then(|(s, _)| s.memory_free_bytes),
            utilization_percent: sample.and_then(|(s, _)| s.gpu_utilization),
            sample_age_ms: sample.map(|(_, taken)| ms(now.saturating_duration_since(*taken))),
            pods: pods::of_gpu(agent, gpu, on_node, now),
        }
    };
    agent.facts.iter().flat_map(|f| &f.gpus).map(view).collect()
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{AgentChange, Cluster};
    use berth_core::facts::{GpuSample, NodeFacts};

    #[test]
    fn decisions_on_health() {
        use berth_core::health::breaker::Limit;
        let cause = "XID 62";
        for (decision, want) in [
            (Decision::Ready, serde_json::json!(null)),
            (Decision::Unknown, serde_json::json!(null)),
            (
                Decision::Excluded { cause },
                serde_json::json!({"decision": "Excluded", "cause": "XID 62"}),
            ),
            (
                Decision::Held {
                    cause,
                    limit: Limit::Share,
                },
                serde_json::json!({"decision": "HeldBack", "cause": "XID 62", "limit": "share"}),
            ),
        ] {
            assert_eq!(serde_json::to_value(health_view(decision)).unwrap(), want);
        }
    }

    #[test]
    fn a_node_shows_what_is_known_and_nothing_else() {
        let (cluster, now) = (Cluster::new(), Instant::now());
        cluster.apply_node(crate::cluster::Node {
            name: "bare".into(),
            ..Default::default()
        });
        cluster.update_agent("n1", "u", now, |agent| {
            let gpu = Gpu {
                uuid: "GPU-1".into(),
                ..Gpu::default()
            };
            agent.facts = Some(NodeFacts {
                gpus: vec![gpu],
                ..NodeFacts::default()
            });
            let sample = GpuSample {
                uuid: "GPU-1".into(),
                memory_free_bytes: Some(5),
                ..GpuSample::default()
            };
            agent.samples.insert("GPU-1".into(), (sample, now));
            AgentChange::Nothing
        });
        let got = serde_json::to_value(all(&cluster.read(), now + Duration::from_millis(7))).unwrap();
        let want = serde_json::json!([
            {"node": "bare", "exists": true, "gpus": []},
            {"node": "n1", "exists": false,
             "agent": {"connected": false, "version": "", "heardMsAgo": 7, "nvml": "Unknown"},
             "gpus": [{"index": 0, "uuid": "GPU-1", "memoryFreeBytes": 5, "sampleAgeMs": 7}]},
        ]);
        assert_eq!(got, want);
    }
}
