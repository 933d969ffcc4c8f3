//! Pod templates without our gate, and which ReplicaSet a Deployment will find for one.

use berth_crds::names;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::placement::patch::escaped;

/// Annotation of a Deployment while it is released: whether it was paused before.
pub const WAS_PAUSED: &str = "berth.dev/was-paused";
/// Annotation in the template of a ReplicaSet that must not be found for its Deployment.
const SET_APART: &str = "berth.dev/set-apart";
/// Where the deployment controller counts rollouts.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Label that the deployment controller adds to the template of a ReplicaSet, and leaves out when it compares.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Template of a Deployment.
pub fn of_deployment(deployment: &Deployment) -> Option<&PodTemplateSpec> {
    Some(&deployment.spec.as_ref()?.template)
}

/// Template of a ReplicaSet.
pub fn of_replica_set(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref()
}

/// Place of our gate in a template.
pub fn gate(template: Option<&PodTemplateSpec>) -> Option<usize> {
    let gates = template?.spec.as_ref()?.scheduling_gates.as_ref()?;
    gates.iter().position(|g| g.name == names::GATE)
}

/// Takes our gate from the template, if it is still there.
pub fn ungate(template: Option<&PodTemplateSpec>) -> Vec<Value> {
    let Some(place) = gate(template) else {
        return Vec::new();
    };
    let path = format!("/spec/template/spec/schedulingGates/{place}");
    vec![
        json!({"op": "test", "path": format!("{path}/name"), "value": names::GATE}),
        json!({"op": "remove", "path": path}),
    ]
}

/// Whether a Deployment was paused before a release began, perhaps one that was cut off.
pub fn was_paused(deployment: &Deployment) -> bool {
    match deployment.annotations().get(WAS_PAUSED) {
        Some(before) => before == "true",
        None => deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false),
    }
}

/// Undoes the pause.
pub fn resume(was_paused: bool) -> Vec<Value> {
    vec![
        json!({"op": "add", "path": "/spec/paused", "value": was_paused}),
        json!({"op": "remove", "path": format!("/metadata/annotations/{}", escaped(WAS_PAUSED))}),
    ]
}

/// ReplicaSets other than the current one whose template equals the Deployment's without our gate. Of equal ones the deployment
/// controller takes the oldest, and would move all pods to it.
pub fn older_twins<'a>(deployment: &Deployment, sets: &'a [ReplicaSet]) -> Vec<&'a ReplicaSet> {
    let Some(template) = of_deployment(deployment) else {
        return Vec::new();
    };
    let bare_template = bare(template);
    let revision = deployment.annotations().get(REVISION);
    sets.iter()
        .filter(|s| revision.is_some() && s.annotations().get(REVISION) != revision)
        .filter(|s| of_replica_set(s).is_some_and(|t| bare(t) == bare_template))
        .collect()
}

/// Makes the template of a ReplicaSet differ from all others.
pub fn set_apart(set: &ReplicaSet) -> Vec<Value> {
    let annotations = of_replica_set(set).and_then(|t| t.metadata.as_ref()?.annotations.as_ref());
    vec![match annotations {
        Some(_) => {
            json!({"op": "add", "path": format!("/spec/template/metadata/annotations/{}", escaped(SET_APART)), "value": "true"})
        }
        None => json!({"op": "add", "path": "/spec/template/metadata/annotations", "value": {SET_APART: "true"}}),
    }]
}

/// Without our gate, and without what the deployment controller does not compare.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(TEMPLATE_HASH);
        }
        meta.creation_timestamp = None;
    }
    if let Some(spec) = &mut template.spec {
        if let Some(gates) = &mut spec.scheduling_gates {
            gates.retain(|g| g.name != names::GATE);
        }
        spec.scheduling_gates = spec.scheduling_gates.take().filter(|g| !g.is_empty());
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str, gates: &[&str], hash: Option<&str>) -> Value {
        let gates: Vec<Value> = gates.iter().map(|g| json!({"name": g})).collect();
        let mut labels = json!({"app": "m"});
        if let Some(hash) = hash {
            labels[TEMPLATE_HASH] = hash.into();
        }
        let mut spec = json!({"containers": [{"name": "c", "image": image}]});
        if !gates.is_empty() {
            spec["schedulingGates"] = gates.into();
        }
        json!({"metadata": {"labels": labels}, "spec": spec})
    }

    fn deployment(annotations: Value, paused: Option<bool>, template: Value) -> Deployment {
        let spec = json!({"paused": paused, "selector": {}, "template": template});
        serde_json::from_value(json!({"metadata": {"name": "m", "annotations": annotations}, "spec": spec})).unwrap()
    }

    fn set(name: &str, revision: &str, template: Value) -> ReplicaSet {
        let spec = json!({"selector": {}, "template": template});
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": {REVISION: revision}}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn our_gate_alone_goes() {
        let d = deployment(json!({}), None, template("i", &["other", names::GATE], None));
        assert_eq!(
            ungate(of_deployment(&d)),
            [
                json!({"op": "test", "path": "/spec/template/spec/schedulingGates/1/name", "value": "berth.dev/placement"}),
                json!({"op": "remove", "path": "/spec/template/spec/schedulingGates/1"}),
            ]
        );
        assert!(
            ungate(of_deployment(&deployment(
                json!({}),
                None,
                template("i", &["other"], None)
            )))
            .is_empty()
        );
    }

    #[test]
    fn the_pause_of_before_comes_back_after_a_run_that_was_cut_off() {
        let of = |annotations: Value, paused| was_paused(&deployment(annotations, paused, template("i", &[], None)));
        assert!(!of(json!({}), None));
        assert!(of(json!({}), Some(true)));
        assert!(
            !of(json!({WAS_PAUSED: "false"}), Some(true)),
            "paused by the run that was cut off"
        );
        assert!(of(json!({WAS_PAUSED: "true"}), Some(true)));
    }

    #[test]
    fn twins_are_the_other_replica_sets_with_the_same_template_but_the_gate() {
        let d = deployment(json!({REVISION: "3"}), None, template("i", &[names::GATE], None));
        let apart = {
            let mut t = template("i", &[], Some("d"));
            t["metadata"]["annotations"] = json!({SET_APART: "true"});
            t
        };
        let sets = [
            set("before-the-gate", "1", template("i", &[], Some("a"))),
            set("another-image", "2", template("j", &[names::GATE], Some("b"))),
            set("current", "3", template("i", &[names::GATE], Some("c"))),
            set("apart-already", "0", apart),
        ];
        let names: Vec<String> = older_twins(&d, &sets).iter().map(|s| s.name_any()).collect();
        assert_eq!(names, ["before-the-gate"]);
        // The run that was cut off after the current one had lost its gate finds the same.
        let sets = sets.map(|mut s| {
            s.spec
                .as_mut()
                .unwrap()
                .template
                .as_mut()
                .unwrap()
                .spec
                .as_mut()
                .unwrap()
                .scheduling_gates = None;
            s
        });
        let names: Vec<String> = older_twins(&d, &sets).iter().map(|s| s.name_any()).collect();
        assert_eq!(names, ["before-the-gate"]);
    }
}
