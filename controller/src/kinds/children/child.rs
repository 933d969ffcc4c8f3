//! A child as last seen.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use serde_json::Value;

use super::adoption;

/// A child as last seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// UID.
    pub uid: String,
    /// Version of this view.
    pub resource_version: String,
    /// Deletion was asked for.
    pub terminating: bool,
    /// The owner with `controller: true`.
    pub controller: Option<OwnerReference>,
    /// The whole object; of its managed fields only what [`adoption::slim`] leaves.
    pub object: Value,
}

impl Child {
    /// From the API.
    pub fn new(mut object: DynamicObject) -> Self {
        adoption::slim(&mut object.metadata);
        let meta = &object.metadata;
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            terminating: meta.deletion_timestamp.is_some(),
            controller: meta
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .cloned(),
            object: serde_json::to_value(&object).unwrap_or_default(),
        }
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.object["metadata"]["annotations"][key].as_str()
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.object["metadata"]["labels"][key].as_str()
    }
}
