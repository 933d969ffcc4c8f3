//! Which pods use a GPU, for people.

use std::time::Instant;

use berth_core::facts::{Gpu, PodUse, PodsState};
use serde::Serialize;

use super::nodes::ms;
use crate::cluster::{Agent, Pod};
use crate::placement::holders::{is_of, pods_known};

/// What is known of who uses a GPU and its MIG devices.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OfGpu {
    /// Absent: not known. Empty: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<PodView>>,
    /// Absent: the node's kubelet is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pods_state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods_age_ms: Option<u64>,
    /// Of what may be handed out of the GPU, how much nobody holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    units_left: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodView {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<String>,
    /// The MIG device, where that is what it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    share: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
}

/// The node knows pods by name or by UID, and its word is some seconds old; `on_node` are the pods that the API server knows there. A pod
/// that is gone since is not shown.
pub fn of_gpu(agent: &Agent, gpu: &Gpu, on_node: &[&Pod], now: Instant) -> OfGpu {
    let mig = gpu.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str());
    let mut pods: Vec<PodView> = Vec::new();
    for uuid in std::iter::once(gpu.uuid.as_str()).chain(mig) {
        let device = (uuid != gpu.uuid).then_some(uuid);
        let used = agent.samples.get(uuid).into_iter().flat_map(|(sample, _)| &sample.pods);
        for (used, pod) in used.filter_map(|used| Some((used, on_node.iter().find(|pod| is_of(used, pod))?))) {
            // By the kubelet's list under its name, and by its processes under its UID.
            let same = |v: &&mut PodView| v.uid.as_ref() == Some(&pod.uid) && v.device.as_deref() == device;
            match pods.iter_mut().find(same) {
                Some(view) => view.memory_bytes = view.memory_bytes.or(used.memory_bytes),
                None => pods.push(PodView::new(used, pod, device)),
            }
        }
    }
    let sample = agent.samples.get(&gpu.uuid);
    let age = |taken: &Instant| now.saturating_duration_since(*taken);
    let known = sample.is_some_and(|(sample, taken)| pods_known(sample, age(taken)));
    OfGpu {
        pods: (known || !pods.is_empty()).then_some(pods),
        pods_state: sample.and_then(|(sample, _)| match sample.pods_state {
            PodsState::Off => None,
            PodsState::Known if known => Some("Known"),
            PodsState::Known | PodsState::NotAvailable => Some("NotAvailable"),
        }),
        pods_age_ms: sample.and_then(|(sample, taken)| Some(ms(sample.pods_age? + age(taken)))),
        units_left: sample.and_then(|(sample, _)| sample.units_left).filter(|_| known),
    }
}

impl PodView {
    fn new(used: &PodUse, pod: &Pod, device: Option<&str>) -> Self {
        Self {
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            containers: used.containers.clone(),
            device: device.map(str::to_owned),
            share: format!("{:?}", used.share),
            memory_bytes: used.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::{GpuSample, PodName, PodShare};
    use std::collections::HashMap;
    use std::time::Duration;

    const S: Duration = Duration::from_secs(1);

    fn pod(name: &str) -> Pod {
        Pod {
            uid: format!("uid-{name}"),
            namespace: "ns".into(),
            name: name.into(),
            ..Pod::default()
        }
    }

    fn shown(sample: GpuSample, on_node: &[&str], age: Duration) -> serde_json::Value {
        let now = Instant::now();
        let agent = Agent {
            node_uid: String::new(),
            connected: true,
            heard: now,
            facts: None,
            facts_at: None,
            health: None,
            memory: Vec::new(),
            samples: HashMap::from([("GPU-1".to_owned(), (sample, now))]),
            version: String::new(),
        };
        let gpu = Gpu {
            uuid: "GPU-1".into(),
            ..Gpu::default()
        };
        let pods: Vec<Pod> = on_node.iter().map(|name| pod(name)).collect();
        let pods: Vec<&Pod> = pods.iter().collect();
        serde_json::to_value(of_gpu(&agent, &gpu, &pods, now + age)).unwrap()
    }

    fn known() -> GpuSample {
        let held = |name: &str| PodUse {
            pod: Some(PodName {
                namespace: "ns".into(),
                name: name.into(),
            }),
            containers: vec!["c".into()],
            share: PodShare::Replica,
            ..PodUse::default()
        };
        let runs = PodUse {
            uid: Some("uid-a".into()),
            memory_bytes: Some(7),
            ..PodUse::default()
        };
        GpuSample {
            pods: vec![held("a"), held("gone"), runs],
            pods_state: PodsState::Known,
            pods_age: Some(S),
            units_left: Some(2),
            ..GpuSample::default()
        }
    }

    #[test]
    fn a_pod_is_shown_once_and_one_that_is_gone_is_not() {
        let a = serde_json::json!({"namespace": "ns", "name": "a", "uid": "uid-a", "containers": ["c"], "share": "Replica",
            "memoryBytes": 7});
        assert_eq!(
            shown(known(), &["a", "b"], S),
            serde_json::json!({"pods": [a], "podsState": "Known", "podsAgeMs": 2000, "unitsLeft": 2})
        );
    }

    #[test]
    fn nobody_is_not_the_same_as_not_known() {
        let empty = GpuSample {
            pods: vec![],
            ..known()
        };
        assert_eq!(shown(empty.clone(), &[], S)["pods"], serde_json::json!([]));
        assert_eq!(
            shown(empty, &[], S * 60),
            serde_json::json!({"podsState": "NotAvailable", "podsAgeMs": 61000}),
            "an agent that fell silent"
        );
        assert_eq!(shown(GpuSample::default(), &[], S), serde_json::json!({}));
    }
}
