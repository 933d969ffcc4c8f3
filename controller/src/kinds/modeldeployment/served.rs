//! What is served, written down on what serves it: while a later version has not passed its validation, the spec no longer says it. Pure.

use std::collections::BTreeMap;
use std::fmt;

use berth_crds::names;
use berth_crds::sathvik::ModelDeploymentSpec;
use serde::{Deserialize, Serialize};

use super::validate::{Defaults, Server, server};
use crate::kinds::status::problems::Findings;

/// The user's part of what is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// Of what was validated.
    pub revision: String,
    spec: ModelDeploymentSpec,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// Annotations that decide on the servers' pods.
const ANNOTATIONS: &[&str] = &[
    names::GPU_CLASS,
    names::GPU_MEMORY,
    names::GPU_COUNT,
    names::COMPUTE_CAPABILITY,
    names::ON_NO_FIT,
];

impl Served {
    /// Of an object.
    pub fn of(revision: String, spec: &ModelDeploymentSpec, annotations: &BTreeMap<String, String>) -> Self {
        let spec = ModelDeploymentSpec {
            model_uri: spec.model_uri.clone(),
            runtime: spec.runtime.clone(),
            runtime_image: spec.runtime_image.clone(),
            resources: spec.resources.clone(),
            version: spec.version.clone(),
            ..ModelDeploymentSpec::default()
        };
        let annotations = annotations
            .iter()
            .filter(|(key, _)| ANNOTATIONS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Self {
            revision,
            spec,
            annotations,
        }
    }

    /// Out of an annotation; `None`: somebody else wrote it.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Its version.
    pub fn version(&self) -> &str {
        self.spec.version.trim()
    }

    /// What serves it.
    pub fn server(&self, defaults: &Defaults) -> Option<Server> {
        let mut findings = Findings::default();
        let server = server(&self.spec, &self.annotations, defaults, &mut findings)?;
        let record = self.to_string();
        findings.problems.is_empty().then_some(Server { record, ..server })
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).expect("plain data with text keys always serialises");
        f.write_str(&text)
    }
}
