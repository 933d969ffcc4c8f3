//! The parts of a Node that Berth decides on.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::placement::Resources;
use berth_core::placement::node::Taint;
use berth_crds::access::NODE_CONDITIONS;
use berth_crds::names::managers::NODES_HEALTH;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};

use super::pod::resources;

/// A Node, slim.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Version of the object.
    pub resource_version: String,
    /// Version at which the whole of it was seen: `resource_version` may be that of a write of ours of which only metadata came back.
    pub whole_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Label key → field managers that own it.
    pub label_managers: BTreeMap<String, BTreeSet<String>>,
    /// Annotations with our domain.
    pub annotations: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Conditions of the types that are ours to write.
    pub conditions: Vec<NodeCondition>,
}

/// One condition of a Node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeCondition {
    /// Type.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
    /// RFC 3339.
    pub last_transition: Option<String>,
    /// When we last wrote conditions of the node, by `metadata.managedFields`.
    pub written: Option<Timestamp>,
    /// Field managers that own it.
    pub managers: BTreeSet<String>,
}

impl Node {
    /// Slims an API object down. `extra`: types of conditions that are ours by value.
    pub fn from_api(node: &core::Node, extra: &[String]) -> Self {
        let meta = &node.metadata;
        let spec = node.spec.clone().unwrap_or_default();
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            whole_version: meta.resource_version.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            label_managers: label_managers(meta),
            annotations: annotations(meta),
            taints: spec
                .taints
                .unwrap_or_default()
                .into_iter()
                .map(|t| Taint {
                    key: t.key,
                    value: t.value.unwrap_or_default(),
                    effect: t.effect,
                })
                .collect(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            allocatable: node
                .status
                .as_ref()
                .and_then(|s| s.allocatable.as_ref())
                .map(resources)
                .unwrap_or_default(),
            conditions: conditions(node, extra),
        }
    }

    /// The node with newer metadata, the rest as it was.
    pub fn with_metadata(self, meta: &ObjectMeta) -> Self {
        Self {
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            label_managers: label_managers(meta),
            annotations: annotations(meta),
            ..self
        }
    }

    /// Whether no decision of placement can differ between the two.
    pub fn same_for_placement(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.allocatable == other.allocatable
    }
}

fn conditions(node: &core::Node, extra: &[String]) -> Vec<NodeCondition> {
    let all = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut managers = condition_managers(&node.metadata);
    // One that is ours although no value names it any more is not to be lost sight of.
    let ours = |type_: &String| {
        NODE_CONDITIONS.contains(&type_.as_str())
            || extra.contains(type_)
            || managers.get(type_).is_some_and(|m| m.contains(NODES_HEALTH))
    };
    let ours: Vec<_> = all.filter(|c| ours(&c.type_)).collect();
    let written = conditions_written(&node.metadata);
    ours.into_iter()
        .map(|c| NodeCondition {
            type_: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone().unwrap_or_default(),
            message: c.message.clone().unwrap_or_default(),
            last_transition: c.last_transition_time.as_ref().map(|t| t.0.to_string()),
            written,
            managers: managers.remove(&c.type_).unwrap_or_default(),
        })
        .collect()
}

fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.iter().flatten();
    let ours = all.filter(|(k, _)| k.starts_with(berth_crds::names::DOMAIN));
    ours.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Which managers own which label keys, from `metadata.managedFields` (keys look like `f:metadata` / `f:labels` / `f:<key>`).
fn label_managers(meta: &ObjectMeta) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in meta.managed_fields.iter().flatten() {
        let (Some(manager), Some(fields)) = (&entry.manager, &entry.fields_v1) else {
            continue;
        };
        let Some(labels) = fields.0.pointer("/f:metadata/f:labels").and_then(|l| l.as_object()) else {
            continue;
        };
        for key in labels.keys().filter_map(|k| k.strip_prefix("f:")) {
            owners.entry(key.to_owned()).or_default().insert(manager.clone());
        }
    }
    owners
}

/// Which managers own which conditions, from `metadata.managedFields`.
fn condition_managers(meta: &ObjectMeta) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in meta.managed_fields.iter().flatten() {
        let (Some(manager), Some(fields)) = (&entry.manager, &entry.fields_v1) else {
            continue;
        };
        let list = fields
            .0
            .pointer("/f:status/f:conditions")
            .and_then(serde_json::Value::as_object);
        for key in list.into_iter().flat_map(|l| l.keys()) {
            let key = key
                .strip_prefix("k:")
                .and_then(|k| serde_json::from_str::<serde_json::Value>(k).ok());
            if let Some(type_) = key.as_ref().and_then(|k| k["type"].as_str()) {
                owners.entry(type_.to_owned()).or_default().insert(manager.clone());
            }
        }
    }
    owners
}

/// When we last wrote conditions. The entry of our taint has the same manager and no conditions.
fn conditions_written(meta: &ObjectMeta) -> Option<Timestamp> {
    let entries = meta.managed_fields.iter().flatten();
    let of_conditions = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref();
        entry.manager.as_deref() == Some(NODES_HEALTH)
            && fields.is_some_and(|f| f.0.pointer("/f:status/f:conditions").is_some())
    };
    let times = entries.filter(of_conditions).filter_map(|e| e.time.as_ref());
    times.map(|time| time.0).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_of_labels_are_read_from_managed_fields() {
        let node: core::Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "uid": "u", "labels": {"a/b": "1", "c": "2"}, "managedFields": [
                {"manager": "berth/nodes-hardware", "operation": "Apply", "fieldsV1": {"f:metadata": {"f:labels": {"f:a/b": {}}}}},
                {"manager": "nfd", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {"f:a/b": {}, "f:c": {}, ".": {}}}}},
            ]}
        }))
        .unwrap();
        let slim = Node::from_api(&node, &[]);
        assert_eq!(slim.label_managers["a/b"].len(), 2);
        assert_eq!(slim.label_managers["c"].iter().collect::<Vec<_>>(), ["nfd"]);
    }

    #[test]
    fn when_we_wrote_conditions_is_read_from_managed_fields() {
        let conditions =
            || serde_json::json!({"f:status": {"f:conditions": {"k:{\"type\":\"nvidia.com/GPUReady\"}": {}}}});
        let node: core::Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "managedFields": [
                {"manager": "kubelet", "operation": "Update", "time": "2026-01-04T00:00:00Z", "fieldsV1": conditions()},
                {"manager": "berth/nodes-health", "operation": "Apply", "time": "2026-01-02T00:00:00Z", "fieldsV1": conditions()},
                {"manager": "berth/nodes-health", "operation": "Update", "time": "2026-01-03T00:00:00Z",
                    "fieldsV1": {"f:spec": {"f:taints": {}}}},
            ]},
            "status": {"conditions": [{"type": "nvidia.com/GPUReady", "status": "False"}]},
        }))
        .unwrap();
        let slim = Node::from_api(&node, &[]);
        let written = slim.conditions[0].written.map(|time| time.to_string());
        assert_eq!(written.as_deref(), Some("2026-01-02T00:00:00Z"));
    }

    #[test]
    fn managers_of_conditions_are_read_from_managed_fields() {
        let node: core::Node = serde_json::from_value(serde_json::json!({"metadata": {"name": "n", "managedFields": [
            {"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {"f:conditions": {
                ".": {}, "k:{\"type\":\"Ready\"}": {"f:status": {}}}}}},
            {"manager": "berth/nodes-health", "operation": "Apply", "fieldsV1": {"f:status": {"f:conditions": {
                "k:{\"type\":\"nvidia.com/GPUReady\"}": {".": {}, "f:status": {}}}}}},
        ]}}))
        .unwrap();
        let owners = condition_managers(&node.metadata);
        assert_eq!(owners.len(), 2);
        assert!(owners["nvidia.com/GPUReady"].contains("berth/nodes-health") && owners["Ready"].contains("kubelet"));
    }
}
