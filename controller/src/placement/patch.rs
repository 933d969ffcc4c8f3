//! The patches that placement writes, from what the pod looked like when it was decided on.

use berth_crds::names;
use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use kube::api::Patch;
use kube::core::Status;
use serde_json::{Value, json};

use crate::cluster::Pod;

/// Our gate goes and the pod is bound to one node: the API server lets the affinity of a gated pod be tightened, and both in one patch.
pub fn pin(pod: &Pod, node: &str, because: &str) -> Patch<()> {
    let name = requirement("metadata.name", &[node.to_owned()]);
    let affinity = tightened(pod.node_affinity.as_ref(), |term| {
        term.match_fields.get_or_insert_default().push(name.clone());
    });
    let mut operations = ungate(pod);
    operations.push(set_affinity(pod, &affinity));
    operations.push(match pod.has_annotations {
        true => json!({"op": "add", "path": format!("/metadata/annotations/{}", escaped(names::PLACED_BECAUSE)), "value": because}),
        false => json!({"op": "add", "path": "/metadata/annotations", "value": {names::PLACED_BECAUSE: because}}),
    });
    operations_patch(operations)
}

/// Our gate goes; of what Berth knows only the wanted classes still bind the pod.
pub fn release(pod: &Pod) -> Patch<()> {
    let mut operations = ungate(pod);
    if !pod.ask.classes.is_empty() {
        let class = requirement(names::GPU_CLASS, &pod.ask.classes);
        let affinity = tightened(pod.node_affinity.as_ref(), |term| {
            term.match_expressions.get_or_insert_default().push(class.clone());
        });
        operations.push(set_affinity(pod, &affinity));
    }
    operations_patch(operations)
}

/// One gate of several goes.
pub fn drop_gate(place: usize) -> Patch<()> {
    let path = format!("/spec/schedulingGates/{place}");
    operations_patch(vec![
        json!({"op": "test", "path": format!("{path}/name"), "value": names::GATE}),
        json!({"op": "remove", "path": path}),
    ])
}

/// A JSON patch of these operations.
pub fn operations_patch(operations: Vec<Value>) -> Patch<()> {
    Patch::Json(serde_json::from_value(Value::Array(operations)).expect("operations are literals of this crate"))
}

/// Whether a write was refused because the object is no longer as it was. A `test` of a JSON patch that fails is answered with 422 and,
/// unlike a validation, does not name the object.
pub fn is_outdated(answer: &Status) -> bool {
    let names_no_object = answer
        .details
        .as_ref()
        .is_none_or(|d| d.kind.is_empty() && d.causes.is_empty());
    answer.is_conflict() || (answer.code == 422 && names_no_object)
}

/// One reference token of a JSON pointer.
pub fn escaped(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

/// Tests that the pod is the one that was decided on, then takes our gate, which is its only one.
fn ungate(pod: &Pod) -> Vec<Value> {
    vec![
        json!({"op": "test", "path": "/metadata/uid", "value": pod.uid}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": pod.resource_version}),
        json!({"op": "test", "path": "/spec/schedulingGates", "value": [{"name": names::GATE}]}),
        json!({"op": "remove", "path": "/spec/schedulingGates"}),
    ]
}

fn requirement(key: &str, values: &[String]) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.into(),
        operator: "In".into(),
        values: Some(values.to_vec()),
    }
}

/// Terms are ORed, so that every one of them is tightened; without any, one is made. An empty term matches no node and stays so: with a
/// requirement it would match some, and the API server refuses that.
fn tightened(affinity: Option<&NodeAffinity>, tighten: impl FnMut(&mut NodeSelectorTerm)) -> NodeAffinity {
    let mut affinity = affinity.cloned().unwrap_or_default();
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    match required {
        Some(required) => {
            let terms = required.node_selector_terms.iter_mut();
            terms.filter(|t| **t != NodeSelectorTerm::default()).for_each(tighten);
        }
        None => {
            let mut terms = vec![NodeSelectorTerm::default()];
            terms.iter_mut().for_each(tighten);
            *required = Some(NodeSelector {
                node_selector_terms: terms,
            });
        }
    }
    affinity
}

fn set_affinity(pod: &Pod, affinity: &NodeAffinity) -> Value {
    match pod.has_affinity {
        true => json!({"op": "add", "path": "/spec/affinity/nodeAffinity", "value": affinity}),
        false => json!({"op": "add", "path": "/spec/affinity", "value": {"nodeAffinity": affinity}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(affinity: Value, annotations: Value) -> Pod {
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "7"},
            "spec": {"containers": [], "schedulingGates": [{"name": names::GATE}]},
        });
        if !affinity.is_null() {
            object["spec"]["affinity"] = affinity;
        }
        if !annotations.is_null() {
            object["metadata"]["annotations"] = annotations;
        }
        Pod::from_api(&serde_json::from_value(object).unwrap())
    }

    /// Path and value of the operations after the tests and the removal of the gate.
    fn written(patch: &Patch<()>) -> Vec<(String, Value)> {
        let Patch::Json(operations) = patch else {
            panic!("a JSON patch")
        };
        let operations = serde_json::to_value(operations).unwrap();
        let operations = operations.as_array().unwrap();
        let tests = json!([
            {"op": "test", "path": "/metadata/uid", "value": "u"},
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "test", "path": "/spec/schedulingGates", "value": [{"name": "berth.dev/placement"}]},
            {"op": "remove", "path": "/spec/schedulingGates"},
        ]);
        assert_eq!(operations[..4], tests.as_array().unwrap()[..]);
        operations[4..]
            .iter()
            .map(|o| (o["path"].as_str().unwrap().to_owned(), o["value"].clone()))
            .collect()
    }

    fn required(terms: Value) -> Value {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
    }

    #[test]
    fn a_pin_goes_into_every_term() {
        let name = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
        let preferred = json!([{"weight": 1, "preference": {"matchExpressions": [zone]}}]);
        let with_preferred = |mut affinity: Value| {
            affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = preferred.clone();
            affinity
        };
        for (what, before, path, after) in [
            (
                "no affinity",
                Value::Null,
                "/spec/affinity",
                required(json!([{"matchFields": [name]}])),
            ),
            (
                "affinity to pods alone stays",
                json!({"podAntiAffinity": {}}),
                "/spec/affinity/nodeAffinity",
                required(json!([{"matchFields": [name]}]))["nodeAffinity"].clone(),
            ),
            (
                "two terms",
                required(json!([{"matchExpressions": [zone]}, {"matchExpressions": [zone], "matchFields": [name]}])),
                "/spec/affinity/nodeAffinity",
                required(json!([
                    {"matchExpressions": [zone], "matchFields": [name]},
                    {"matchExpressions": [zone], "matchFields": [name, name]},
                ]))["nodeAffinity"]
                    .clone(),
            ),
            (
                "preferences stay",
                with_preferred(json!({"nodeAffinity": {}})),
                "/spec/affinity/nodeAffinity",
                with_preferred(required(json!([{"matchFields": [name]}])))["nodeAffinity"].clone(),
            ),
        ] {
            let operations = written(&pin(&pod(before, json!({"a": "b"})), "n", "because"));
            assert_eq!(operations[0], (path.to_owned(), after), "{what}");
            let annotation = (
                "/metadata/annotations/berth.dev~1placed-because".to_owned(),
                json!("because"),
            );
            assert_eq!(operations[1..], [annotation], "{what}");
        }
    }

    #[test]
    fn annotations_are_made_where_there_are_none() {
        let operations = written(&pin(&pod(Value::Null, Value::Null), "n", "because"));
        assert_eq!(
            operations[1],
            (
                "/metadata/annotations".to_owned(),
                json!({"berth.dev/placed-because": "because"})
            )
        );
    }

    #[test]
    fn the_pod_is_seen_as_pinned_afterwards() {
        let zone = json!({"matchExpressions": [{"key": "z", "operator": "Exists"}]});
        for terms in [json!([zone]), json!([zone, {}])] {
            let operations = written(&pin(&pod(required(terms), Value::Null), "n", ""));
            let after = pod(json!({"nodeAffinity": operations[0].1}), Value::Null);
            assert_eq!(after.pinned_to.as_deref(), Some("n"));
        }
    }

    #[test]
    fn an_outdated_decision_is_told_from_a_refused_one() {
        // As kube-apiserver 1.36 answers.
        let of_a_test = json!({"code": 422, "reason": "Invalid", "details": {}});
        let of_a_validation = json!({"code": 422, "reason": "Invalid", "details": {"name": "p", "kind": "Pod", "causes": [
            {"reason": "FieldValueForbidden", "message": "Forbidden", "field": "spec"}]}});
        for (answer, want) in [
            (of_a_test, true),
            (of_a_validation, false),
            (
                json!({"code": 409, "reason": "Conflict", "details": {"name": "p", "kind": "pods"}}),
                true,
            ),
            (json!({"code": 403, "reason": "Forbidden"}), false),
            (json!({"code": 500, "reason": "InternalError"}), false),
        ] {
            let mut status = answer.clone();
            status["status"] = "Failure".into();
            let status: Status = serde_json::from_value(status).unwrap();
            assert_eq!(is_outdated(&status), want, "{answer}");
        }
    }

    #[test]
    fn a_released_pod_is_bound_by_its_classes_alone() {
        let class = json!({"key": "berth.dev/gpu-class", "operator": "In", "values": ["h100", "a100"]});
        let zone = json!({"key": "zone", "operator": "Exists"});
        let asks = json!({"berth.dev/gpu-class": "h100, a100"});
        for (what, before, annotations, after) in [
            ("no class asked", Value::Null, Value::Null, None),
            (
                "no affinity",
                Value::Null,
                asks.clone(),
                Some(("/spec/affinity", required(json!([{"matchExpressions": [class]}])))),
            ),
            (
                "an empty term goes on matching nothing",
                required(json!([{"matchExpressions": [zone]}, {}])),
                asks,
                Some((
                    "/spec/affinity/nodeAffinity",
                    required(json!([{"matchExpressions": [zone, class]}, {}]))["nodeAffinity"].clone(),
                )),
            ),
        ] {
            let operations = written(&release(&pod(before, annotations)));
            let after: Vec<_> = after
                .into_iter()
                .map(|(path, value)| (path.to_owned(), value))
                .collect();
            assert_eq!(operations, after, "{what}");
        }
    }
}
