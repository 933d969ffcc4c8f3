//! Turns a CRD as derived from the Rust types into the one that is installed.
//!
//! Two things stand between them: embedded core types carry descriptions that would push the CRD over the 256 KiB that plain
//! `kubectl apply` can store, and their quantities are declared as strings although the API takes integers too.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{premlabs, tmforum, youxam};

/// Largest CRD that plain `kubectl apply` can keep in its last-applied annotation, in bytes.
pub const MAX_CRD_BYTES: usize = 256 * 1024;

/// Every CRD that Berth serves, ready to install, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        finish(premlabs::AIDeployment::crd()),
        finish(premlabs::AIModelMap::crd()),
        finish(premlabs::AutoNodeLabeler::crd()),
        finish(youxam::AIModel::crd()),
        finish(tmforum::MLModel::crd()),
    ]
}

/// Embedded core types: property names under which everything is upstream's, so their descriptions go.
const EMBEDDED: &[&str] = &["template", "env", "resources", "conditions"];

fn finish(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(&crd).expect("a CRD is plain data");
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                quantities(schema);
                embedded(schema);
                spec_is_optional(schema);
            }
        }
    }
    serde_json::from_value(value).expect("still a CRD")
}

/// The originals accept an object without a spec; the default lets everything behind the API server rely on there being one.
fn spec_is_optional(schema: &mut Value) {
    if let Value::Object(map) = schema {
        map.remove("required");
        map.remove("title");
    }
    if let Some(Value::Object(spec)) = schema.pointer_mut("/properties/spec") {
        spec.insert("default".into(), json!({}));
    }
}

/// Declares every quantity as the API does: an integer or a string.
fn quantities(schema: &mut Value) {
    if let Value::Object(map) = schema {
        let is_quantity = map
            .get("description")
            .and_then(Value::as_str)
            .is_some_and(|d| d.starts_with("Quantity is a fixed-point representation of a number"));
        if is_quantity && map.get("type").is_some_and(|t| t == "string") {
            map.remove("type");
            map.insert("x-kubernetes-int-or-string".into(), json!(true));
            map.remove("description");
            return;
        }
    }
    children(schema, &mut quantities);
}

fn embedded(schema: &mut Value) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            if EMBEDDED.contains(&name.as_str()) {
                let own = property.get("description").cloned();
                strip_descriptions(property);
                if let (Some(own), Value::Object(map)) = (own, &mut *property) {
                    map.insert("description".into(), own);
                }
            } else {
                embedded(property);
            }
        }
    }
    if let Some(items) = schema.get_mut("items") {
        embedded(items);
    }
}

fn strip_descriptions(schema: &mut Value) {
    if let Value::Object(map) = schema {
        map.remove("description");
    }
    children(schema, &mut strip_descriptions);
}

/// Applies `f` to every sub-schema; property names are not schemas, their values are.
fn children(schema: &mut Value, f: &mut dyn FnMut(&mut Value)) {
    let Value::Object(map) = schema else { return };
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(&mut *f);
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(sub @ Value::Object(_)) = map.get_mut(key) {
            f(sub);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(subs)) = map.get_mut(key) {
            subs.iter_mut().for_each(&mut *f);
        }
    }
}

/// The CRD as a YAML-ready value: without the empty status that serialising the type adds.
pub fn manifest(crd: &CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(crd).expect("a CRD is plain data");
    if let Value::Object(map) = &mut value {
        map.remove("status");
        if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
            // Uninstalling the chart must not delete the users' objects with it.
            let annotations = metadata
                .entry("annotations")
                .or_insert_with(|| Value::Object(Map::new()));
            annotations["helm.sh/resource-policy"] = json!("keep");
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property<'a>(crd: &'a Value, path: &[&str]) -> &'a Value {
        let mut at = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for name in path {
            at = &at["properties"][name];
        }
        at
    }

    #[test]
    fn every_crd_can_be_applied_with_plain_kubectl() {
        for crd in all() {
            let size = manifest(&crd).to_string().len();
            assert!(
                size < MAX_CRD_BYTES,
                "{}: {size} bytes",
                crd.metadata.name.unwrap_or_default()
            );
        }
    }

    #[test]
    fn quantities_take_integers_and_strings() {
        let aid = manifest(&all()[0]);
        let limits = property(&aid, &["spec", "deployment", "resources", "limits"]);
        assert_eq!(
            limits["additionalProperties"],
            json!({"x-kubernetes-int-or-string": true})
        );
        let memory = property(&aid, &["spec", "deployment", "accelerator", "memory"]);
        assert_eq!(memory["x-kubernetes-int-or-string"], json!(true), "{memory}");
    }

    #[test]
    fn a_variant_is_named_as_in_the_original() {
        let map = manifest(&all()[1]);
        for list in ["localai", "vllm", "deepspeed-mii", "tensor_rt"] {
            let item = &property(&map, &["spec", list])["items"];
            assert_eq!(item["required"], json!(["variant"]), "{list}");
            let pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
            assert_eq!(item["properties"]["variant"]["pattern"], pattern, "{list}");
        }
    }

    /// Paths of fields without a description, those of embedded Kubernetes types left out.
    fn unexplained(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if !property["description"].is_string() {
                found.push(path.clone());
            }
            if !EMBEDDED.contains(&name.as_str()) {
                unexplained(property, &path, found);
                unexplained(&property["items"], &path, found);
            }
        }
    }

    #[test]
    fn our_own_fields_are_explained() {
        for crd in all() {
            let mut found = Vec::new();
            let manifest = manifest(&crd);
            for top in ["spec", "status"] {
                unexplained(property(&manifest, &[top]), top, &mut found);
            }
            assert!(found.is_empty(), "{:?}: {found:#?}", crd.metadata.name);
        }
    }

    #[test]
    fn the_check_for_explanations_sees_one_that_is_missing() {
        let mut found = Vec::new();
        let schema = json!({"properties": {"a": {"description": "x", "items": {"properties": {"b": {}}}}}});
        unexplained(&schema, "spec", &mut found);
        assert_eq!(found, ["spec.a.b"]);
    }

    #[test]
    fn aideployments_are_listed_with_what_people_ask_first() {
        let aid = manifest(&all()[0]);
        let version = &aid["spec"]["versions"][0];
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        let names: Vec<&str> = columns.iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, ["Engine", "Class", "Ready", "Replicas", "Status", "Age"]);
        assert_eq!(
            version["subresources"]["scale"]["specReplicasPath"],
            ".spec.deployment.replicas"
        );
        assert_eq!(aid["spec"]["names"]["shortNames"], json!(["aid"]));
    }
}
