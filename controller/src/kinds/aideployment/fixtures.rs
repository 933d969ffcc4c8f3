//! AIDeployments for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_crds::premlabs::aideployment::PlacementPolicy;
use berth_crds::premlabs::{AIDeployment, AIModelMap};
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::build::{Children, build};
use super::fetch::Observed;
use super::models::Maps;
use super::validate::{Defaults, Surroundings, Validated, validate};
use crate::kinds::children::subset::pruned;
use crate::kinds::status::problems::Problems;
use crate::kinds::watch::key_of;

/// An AIDeployment `name` in namespace `shop` with this spec in YAML.
pub fn aideployment(name: &str, spec: &str) -> AIDeployment {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    from_json(name, spec)
}

/// The same from JSON.
pub fn from_json(name: &str, spec: Value) -> AIDeployment {
    serde_json::from_value(json!({
        "apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment",
        "metadata": {"name": name, "namespace": "shop", "uid": "uid-of-it", "generation": 7},
        "spec": spec,
    }))
    .unwrap()
}

/// An AIModelMap.
pub fn model_map(namespace: &str, name: &str, spec: Value) -> AIModelMap {
    serde_json::from_value(json!({
        "apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}"), "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

/// As an AIDeployment finds them.
pub fn maps(maps: impl IntoIterator<Item = AIModelMap>) -> Maps {
    let entry = |map: AIModelMap| (key_of(&map), Arc::new(DeserializeGuard(Ok(map))));
    maps.into_iter().map(entry).collect()
}

/// What an installation sets that sets nothing.
pub fn defaults() -> Defaults {
    Defaults {
        policy: PlacementPolicy::Managed,
        images: BTreeMap::new(),
        gpu_tolerations: vec![],
    }
}

/// Read with [`defaults`] and without maps.
pub fn read(object: &AIDeployment) -> Result<Validated, Problems> {
    read_with(object, &defaults(), &Maps::default())
}

/// Read with these.
pub fn read_with(object: &AIDeployment, defaults: &Defaults, maps: &Maps) -> Result<Validated, Problems> {
    validate(object, Surroundings { defaults, maps })
}

/// The children as they are applied, before marks are added.
pub fn children(name: &str, spec: &str) -> Children {
    let object = aideployment(name, spec);
    let model = read(&object).unwrap_or_else(|problems| panic!("{problems}"));
    build(&model, &Observed::default())
}

/// As sent to the API server.
pub fn sent(object: &impl serde::Serialize) -> Value {
    pruned(serde_json::to_value(object).unwrap())
}
