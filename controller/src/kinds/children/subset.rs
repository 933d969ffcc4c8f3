//! Whether an object still holds everything that was asked of it, whatever others and the API server's defaults added.

use std::collections::BTreeSet;

use kube_quantity::ParsedQuantity;
use serde_json::{Map, Value};

/// Lists that the API server merges by key, with their keys: items of others may stand between ours.
const KEYED_LISTS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("imagePullSecrets", &["name"]),
    ("schedulingGates", &["name"]),
    ("claims", &["name"]),
    ("resourceClaims", &["name"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("hostAliases", &["ip"]),
    ("ownerReferences", &["uid"]),
];

/// Maps that the API server takes as a whole: a key too many is a difference.
const WHOLE_MAPS: &[&str] = &["nodeSelector", "selector", "labelSelector"];

/// Maps whose values, and fields whose value, are quantities.
const QUANTITY_MAPS: &[&str] = &["limits", "requests"];
const QUANTITY_FIELDS: &[&str] = &["sizeLimit", "divisor", "storage"];

/// Paths of what `desired` has and `observed` lacks or has otherwise.
pub fn differences(desired: &Value, observed: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    compare(desired, Some(observed), &mut Vec::new(), &mut found);
    found
}

fn compare(desired: &Value, observed: Option<&Value>, path: &mut Vec<String>, found: &mut BTreeSet<String>) {
    let Some(observed) = observed.filter(|o| !o.is_null()) else {
        if !is_zero(desired) {
            found.insert(path.join("."));
        }
        return;
    };
    let field = path.last().map_or("", String::as_str);
    match (desired, observed) {
        (Value::Object(want), Value::Object(have)) => {
            let whole = WHOLE_MAPS.contains(&field);
            for (key, value) in want {
                step(path, key.clone(), |path| compare(value, have.get(key), path, found));
            }
            if whole && have.keys().any(|k| !want.contains_key(k)) {
                found.insert(path.join("."));
            }
        }
        (Value::Array(want), Value::Array(have)) => match keys_of(field, want) {
            Some(keys) => {
                for item in want {
                    let id = identity(item, keys);
                    let same = have.iter().find(|h| identity(h, keys) == id);
                    step(path, id.join("/"), |path| compare(item, same, path, found));
                }
            }
            None if want.len() == have.len() => {
                for (i, (w, h)) in want.iter().zip(have).enumerate() {
                    step(path, i.to_string(), |path| compare(w, Some(h), path, found));
                }
            }
            None => {
                found.insert(path.join("."));
            }
        },
        (want, have) if want == have => {}
        (want, have) if is_quantity(path) && same_quantity(want, have) => {}
        _ => {
            found.insert(path.join("."));
        }
    }
}

fn step(path: &mut Vec<String>, name: String, f: impl FnOnce(&mut Vec<String>)) {
    path.push(name);
    f(path);
    path.pop();
}

/// What the API server leaves out when it answers: the zero values of its types.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(_) => false,
    }
}

/// The merge keys of a list, where it is merged by key at all. `ports` is the name of two such lists and of one that is not.
fn keys_of(field: &str, items: &[Value]) -> Option<&'static [&'static str]> {
    if field == "ports" {
        let has = |key: &str| items.iter().all(|i| i.get(key).is_some());
        return match () {
            () if has("containerPort") => Some(&["containerPort", "protocol"]),
            () if has("port") => Some(&["port", "protocol"]),
            () => None,
        };
    }
    KEYED_LISTS
        .iter()
        .find(|(name, keys)| *name == field && items.iter().all(|i| i.get(keys[0]).is_some()))
        .map(|(_, keys)| *keys)
}

fn identity(item: &Value, keys: &[&str]) -> Vec<String> {
    keys.iter()
        .map(|key| match (item.get(*key), *key) {
            (Some(Value::String(s)), _) => s.clone(),
            (Some(other), _) => other.to_string(),
            (None, "protocol") => "TCP".into(),
            (None, _) => String::new(),
        })
        .collect()
}

fn is_quantity(path: &[String]) -> bool {
    let up = |n: usize| path.iter().rev().nth(n).map_or("", String::as_str);
    QUANTITY_FIELDS.contains(&up(0)) || QUANTITY_MAPS.contains(&up(1))
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    match (amount(a), amount(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= f64::EPSILON * a.abs().max(b.abs()),
        _ => false,
    }
}

fn amount(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => ParsedQuantity::try_from(s.as_str()).ok()?.to_bytes_f64(),
        _ => None,
    }
}

/// Takes nulls, empty lists and the empty maps named in `maps` out of an object: applying them would claim fields for nothing.
pub fn pruned(value: Value) -> Value {
    const MAPS: &[&str] = &[
        "labels",
        "annotations",
        "nodeSelector",
        "limits",
        "requests",
        "matchLabels",
        "metadata",
    ];
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(k, v)| (k, pruned(v)))
                .filter(|(k, v)| match v {
                    Value::Null => false,
                    Value::Array(a) => !a.is_empty(),
                    Value::Object(o) => !(o.is_empty() && MAPS.contains(&k.as_str())),
                    _ => true,
                })
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(pruned).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_counts_as_a_difference() {
        let container = |extra: Value| {
            let mut c = json!({"name": "serving", "image": "a"});
            c.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"spec": {"containers": [c]}})
        };
        let plain = container(json!({}));
        let cases: &[(&str, Value, Value, &[&str])] = &[
            ("equal", plain.clone(), plain.clone(), &[]),
            (
                "defaults added",
                plain.clone(),
                container(json!({"terminationMessagePath": "/x"})),
                &[],
            ),
            (
                "a sidecar of others",
                plain.clone(),
                json!({"spec": {"containers": [{"name": "proxy"}, {"name": "serving", "image": "a"}]}}),
                &[],
            ),
            (
                "another image",
                plain.clone(),
                json!({"spec": {"containers": [{"name": "serving", "image": "b"}]}}),
                &["spec.containers.serving.image"],
            ),
            (
                "container gone",
                plain.clone(),
                json!({"spec": {"containers": [{"name": "x"}]}}),
                &["spec.containers.serving"],
            ),
            (
                "quantity forms",
                json!({"limits": {"cpu": "0.5", "nvidia.com/gpu": 1, "memory": "1024Mi"}}),
                json!({"limits": {"cpu": "500m", "nvidia.com/gpu": "1", "memory": "1Gi"}}),
                &[],
            ),
            (
                "quantity differs",
                json!({"limits": {"cpu": "0.5"}}),
                json!({"limits": {"cpu": "501m"}}),
                &["limits.cpu"],
            ),
            (
                "no quantity here",
                json!({"args": ["1"]}),
                json!({"args": [1]}),
                &["args.0"],
            ),
            (
                "args in order",
                json!({"args": ["a", "b"]}),
                json!({"args": ["b", "a"]}),
                &["args.0", "args.1"],
            ),
            (
                "args longer",
                json!({"args": ["a"]}),
                json!({"args": ["a", "b"]}),
                &["args"],
            ),
            (
                "zero left out",
                json!({"env": [{"name": "A", "value": ""}], "x": 0, "y": false, "z": []}),
                json!({"env": [{"name": "A"}]}),
                &[],
            ),
            (
                "an empty object counts",
                json!({"emptyDir": {}}),
                json!({}),
                &["emptyDir"],
            ),
            (
                "selector is a whole",
                json!({"selector": {"a": "1"}}),
                json!({"selector": {"a": "1", "b": "2"}}),
                &["selector"],
            ),
            (
                "node selector is a whole",
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"a": "1", "b": "2"}}),
                &["nodeSelector"],
            ),
            (
                "labels are not",
                json!({"labels": {"a": "1"}}),
                json!({"labels": {"a": "1", "b": "2"}}),
                &[],
            ),
            (
                "label gone",
                json!({"labels": {"a": "1"}}),
                json!({"labels": {}}),
                &["labels.a"],
            ),
            (
                "service ports by number",
                json!({"ports": [{"port": 80}]}),
                json!({"ports": [{"port": 79, "protocol": "TCP"}, {"port": 80, "protocol": "TCP", "nodePort": 3}]}),
                &[],
            ),
            (
                "service port gone",
                json!({"ports": [{"port": 80}]}),
                json!({"ports": [{"port": 80, "protocol": "UDP"}]}),
                &["ports.80/TCP"],
            ),
            (
                "container ports by number",
                json!({"ports": [{"containerPort": 80}]}),
                json!({"ports": [{"containerPort": 80, "protocol": "TCP"}]}),
                &[],
            ),
            ("other type", json!({"a": {"b": 1}}), json!({"a": [1]}), &["a"]),
            ("null is absent", json!({"a": 1}), json!({"a": null}), &["a"]),
        ];
        for (name, desired, observed, want) in cases {
            let found = differences(desired, observed);
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!(found, *want, "{name}");
        }
    }

    #[test]
    fn pruning_keeps_objects_that_mean_something() {
        let value = json!({"a": null, "b": [], "labels": {}, "emptyDir": {}, "c": [{"env": []}]});
        assert_eq!(pruned(value), json!({"emptyDir": {}, "c": [{}]}));
    }
}
