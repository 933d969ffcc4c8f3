//! AIDeployments for tests.

use berth_crds::premlabs::AIDeployment;
use berth_crds::premlabs::aideployment::PlacementPolicy;
use serde_json::{Value, json};

use super::build::{Children, build};
use super::fetch::Observed;
use super::validate::{Defaults, Validated, validate};
use crate::kinds::problems::Problems;
use crate::kinds::subset::pruned;

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

/// Read with the installation's default policy Managed.
pub fn read(object: &AIDeployment) -> Result<Validated, Problems> {
    validate(
        object,
        Defaults {
            policy: PlacementPolicy::Managed,
        },
    )
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
