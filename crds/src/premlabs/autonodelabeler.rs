//! AutoNodeLabeler: puts labels on the nodes whose labels match.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which nodes get which labels. The original's single `matchExpression` and Berth's `matchExpressions` must all hold.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "premlabs.io",
    version = "v1alpha1",
    kind = "AutoNodeLabeler",
    plural = "autonodelabelers",
    singular = "autonodelabeler",
    namespaced,
    status = "AutoNodeLabelerStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Puts labels on the nodes whose own labels match, and takes them away when they no longer do.",
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.matchedNodes"),
    printcolumn(name = "Conflicts", type_ = "integer", json_path = ".status.conflictCount"),
    printcolumn(
        name = "Applied",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Applied\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Applied\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoNodeLabelerSpec {
    /// Labels for every node that matches.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// One condition on a node's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_expression: Option<MatchExpression>,
    /// Further conditions on a node's labels; all must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<MatchExpression>,
}

/// A condition on one label of a node. `key` and `operator` are optional in the schema, as in the original; a missing one is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MatchExpression {
    /// Label key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Exists`, `DoesNotExist`, `In`, `NotIn`, `Gt` or `Lt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Values for In and NotIn; one integer for Gt and Lt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Observed state of an AutoNodeLabeler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoNodeLabelerStatus {
    /// Nodes that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched_nodes: Option<i32>,
    /// Names of the first 20 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Labels that were not written because somebody else holds them with another value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict_count: Option<i32>,
    /// The first 20 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<LabelConflict>,
    /// `Accepted`, `Applied`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One label on one node that another owner holds with a different value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabelConflict {
    /// Node name.
    pub node: String,
    /// Label key.
    pub key: String,
    /// `namespace/name` of the winning AutoNodeLabeler, or the field manager that owns the label.
    pub with: String,
}
