use std::collections::BTreeSet;

use super::*;
use crate::kinds::children::apply::{Decision, decide};

const OURS: &str = "berth/aideployment";

fn owner() -> OwnerReference {
    OwnerReference {
        api_version: "premlabs.io/v1alpha1".into(),
        kind: "AIDeployment".into(),
        name: "m".into(),
        uid: "u".into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn intent() -> Intent {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "m", "namespace": "ns"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "m"}}, "template": {"spec": {"containers": [{"name": "serving"}]}}}});
    Intent::new(Kind::Deployment, &owner(), object)
}

fn fields_of_the_original() -> Value {
    json!({"f:metadata": {"f:ownerReferences": {}}, "f:spec": {"f:replicas": {}, "f:selector": {},
        "f:template": {"f:spec": {"f:dnsPolicy": {}}}}})
}

fn entry(manager: &str, operation: &str, second: i64, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields,
        "time": Timestamp::from_second(second).unwrap().to_string()})
}

fn status_of(manager: &str) -> Value {
    let mut entry = entry(manager, "Update", 9, json!({"f:status": {}}));
    entry["subresource"] = "status".into();
    entry
}

fn object(marks: &[(&str, &str)], entries: &[Value]) -> DynamicObject {
    let annotations: serde_json::Map<_, _> = marks.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "m", "namespace": "ns", "uid": "d", "resourceVersion": "7", "ownerReferences": [owner()],
            "managedFields": entries},
        "spec": {"replicas": 3, "template": {"spec": {"dnsPolicy": "x"}}}});
    if !annotations.is_empty() {
        object["metadata"]["annotations"] = annotations.into();
    }
    if marks.iter().any(|(k, _)| *k == names::APPLIED) {
        object["metadata"]["labels"] = json!({names::MANAGED_BY: names::MANAGED_BY_BERTH});
    }
    serde_json::from_value(object).unwrap()
}

fn terms(contests: &Contests) -> Terms<'_> {
    let owner = ObjectMeta {
        generation: Some(2),
        ..ObjectMeta::default()
    };
    Terms::of(&owner, contests, Timestamp::from_second(100).unwrap())
}

fn planned(found: &DynamicObject, terms: &Terms<'_>) -> Plan {
    plan(found, &intent(), OURS, &owner(), terms)
}

/// `(manager, operation, its fields)` of the entries that a plan writes.
fn written(plan: &Plan) -> Vec<(String, String, Value)> {
    let Some(value) = plan.patch.iter().find(|o| o["path"] == "/metadata/managedFields") else {
        return vec![];
    };
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let entries = value["value"].as_array().unwrap().iter();
    entries
        .map(|e| (text(&e["manager"]), text(&e["operation"]), e["fieldsV1"].clone()))
        .collect()
}

fn mark_of(plan: &Plan) -> Option<&Value> {
    plan.patch
        .iter()
        .find(|o| o["path"].as_str().unwrap().starts_with("/metadata/annotations"))
}

#[test]
fn what_the_original_made_becomes_ours_but_for_the_template() {
    let contests = Contests::default();
    let found = object(
        &[],
        &[
            entry("manager", "Update", 5, fields_of_the_original()),
            status_of("kube-controller-manager"),
            entry(
                "kubectl-edit",
                "Update",
                6,
                json!({"f:metadata": {"f:labels": {"f:x": {}}}}),
            ),
        ],
    );
    let plan = planned(&found, &terms(&contests));
    assert_eq!(plan.evidence, None, "Berth never wrote it");
    let aside = json!({"f:spec": {"f:template": {"f:spec": {"f:dnsPolicy": {}}}}});
    assert_eq!(
        written(&plan),
        [
            (
                "kube-controller-manager".into(),
                "Update".into(),
                json!({"f:status": {}})
            ),
            (
                "kubectl-edit".into(),
                "Update".into(),
                json!({"f:metadata": {"f:labels": {"f:x": {}}}})
            ),
            (
                OURS.into(),
                "Apply".into(),
                json!({"f:metadata": {"f:ownerReferences": {}}, "f:spec": {"f:replicas": {}, "f:selector": {}}})
            ),
            ("berth/adopted".into(), "Update".into(), aside),
        ]
    );
    assert_eq!(mark_of(&plan).unwrap()["value"], json!({"berth.dev/adopted": "2"}));
    let last = plan.patch.last().unwrap();
    assert_eq!(
        (&last["path"], &last["value"]),
        (&json!("/metadata/resourceVersion"), &json!("7"))
    );
    let part = plan.part.unwrap();
    assert!(part.body["spec"].get("template").is_none() && part.body["spec"]["replicas"] == 1);
    assert_ne!(part.hash, intent().hash);
}

#[test]
fn a_number_that_the_spec_does_not_give_is_kept_whoever_set_it() {
    let contests = Contests::default();
    let terms = Terms {
        replicas_given: false,
        ..terms(&contests)
    };
    for entries in [vec![entry("manager", "Update", 5, fields_of_the_original())], vec![]] {
        let plan = planned(&object(&[], &entries), &terms);
        assert!(plan.part.as_ref().unwrap().body["spec"].get("replicas").is_none());
        let kept = (
            "berth/adopted-replicas".into(),
            "Update".into(),
            json!({"f:spec": {"f:replicas": {}}}),
        );
        assert!(written(&plan).contains(&kept), "{plan:?}");
    }
}

#[test]
fn the_template_is_released_by_generation_inputs_or_wish_and_by_nothing_else() {
    let contests = Contests::default();
    let now = terms(&contests);
    let reapply = Terms { reapply: true, ..now };
    let inputs = Terms { inputs: "ab", ..now };
    for (mark, terms, holds) in [
        ("2", now, true),
        ("3", now, true),
        ("1", now, false),
        ("2", reapply, false),
        ("2", inputs, false),
        ("2/ab", inputs, true),
        ("2/cd", inputs, false),
        ("soon", now, false),
    ] {
        let marks = [(names::ADOPTED, mark), (names::APPLIED, "x")];
        let mut seen = object(&marks, &[]);
        slim(&mut seen.metadata);
        assert_eq!(terms.holds(&Child::new(seen)), holds, "{mark}");
    }
    let plan = planned(
        &object(&[], &[entry("manager", "Update", 5, fields_of_the_original())]),
        &reapply,
    );
    assert_eq!(
        (mark_of(&plan), &plan.part),
        (None, &None),
        "nothing is held to begin with"
    );
}

#[test]
fn a_release_moves_the_template_to_us_with_the_mark() {
    let contests = Contests::default();
    let found = object(
        &[(names::ADOPTED, "1"), (names::APPLIED, "x")],
        &[
            entry(OURS, "Apply", 5, json!({"f:spec": {"f:selector": {}}})),
            entry("berth/adopted", "Update", 5, json!({"f:spec": {"f:template": {}}})),
        ],
    );
    let mut slimmed = found.clone();
    slim(&mut slimmed.metadata);
    let seen = Child::new(slimmed);
    assert!(must_move(&seen, &owner(), &terms(&contests)));
    let plan = planned(&found, &terms(&contests));
    assert_eq!(
        written(&plan),
        [(
            OURS.into(),
            "Apply".into(),
            json!({"f:spec": {"f:selector": {}, "f:template": {}}})
        )]
    );
    assert_eq!(mark_of(&plan).unwrap()["op"], "remove");
    assert_eq!(plan.part, None);
    // A mark taken away by hand is a release too.
    let mut unmarked = object(
        &[(names::APPLIED, "x")],
        &[entry("berth/adopted", "Update", 5, json!({}))],
    );
    slim(&mut unmarked.metadata);
    assert!(must_move(&Child::new(unmarked), &owner(), &terms(&contests)));
}

#[test]
fn what_is_held_and_as_it_should_be_costs_nothing() {
    let contests = Contests::default();
    let terms = terms(&contests);
    let part = intent().without(&["template"]);
    let mut stored = part.body.clone();
    stored["metadata"]["annotations"][names::ADOPTED] = "2".into();
    stored["metadata"]["managedFields"] = json!([entry("berth/adopted", "Update", 5, json!({"f:spec": {}}))]);
    stored["spec"]["template"] = json!({"spec": {"dnsPolicy": "x"}});
    let seen = Child::new(serde_json::from_value(stored).unwrap());
    assert_eq!(terms.part_of(&intent(), &seen), Some(part.clone()));
    assert_eq!(decide(&part, &owner(), Some(&seen), &BTreeSet::new()), Decision::Keep);
    assert!(!must_move(&seen, &owner(), &terms));
}

#[test]
fn the_original_writing_after_us_is_evidence_and_a_hand_is_not() {
    let contests = Contests::default();
    let terms = terms(&contests);
    let ours = entry(
        OURS,
        "Apply",
        5,
        json!({"f:spec": {"f:selector": {}, "f:template": {"f:x": {}}}}),
    );
    let theirs = entry("manager", "Update", 8, json!({"f:spec": {"f:template": {"f:y": {}}}}));
    let applied = [(names::APPLIED, "x")];
    let of = |marks: &[(&str, &str)], entries: &[Value]| planned(&object(marks, entries), &terms);
    // Whole object replaced: our marks are gone, and where nothing else changed there is no entry of theirs.
    let silent = of(&[], std::slice::from_ref(&ours));
    let at = Timestamp::from_second(8).unwrap();
    assert_eq!(
        silent.evidence,
        Some(Evidence {
            manager: None,
            last: None,
            marks_gone: true
        })
    );
    let loud = of(&applied, &[ours.clone(), theirs.clone()]);
    assert_eq!(
        loud.evidence,
        Some(Evidence {
            manager: Some("manager".into()),
            last: Some(at),
            marks_gone: false
        })
    );
    // Adopted anew: the template is theirs again, and is left alone again.
    let aside = json!({"f:spec": {"f:template": {"f:x": {}, "f:y": {}}}});
    assert!(written(&loud).contains(&("berth/adopted".into(), "Update".into(), aside)));
    assert!(loud.part.is_some());

    let by_hand = entry(
        "kubectl-edit",
        "Update",
        8,
        json!({"f:spec": {"f:template": {"f:y": {}}}}),
    );
    for (marks, entries) in [
        (&applied[..], vec![ours.clone(), by_hand]),
        (&applied[..], vec![ours.clone(), status_of("manager")]),
        (&[][..], vec![theirs.clone()]),
    ] {
        assert_eq!(of(marks, &entries).evidence, None, "{entries:?}");
    }
    // As watched it is the same.
    let mut watched = object(&applied, &[ours, theirs]);
    slim(&mut watched.metadata);
    let seen = Child::new(watched);
    assert_eq!(evidence(&seen, &owner()), loud.evidence);
}

#[test]
fn little_of_managed_fields_is_kept() {
    let ours = entry(OURS, "Apply", 5, fields_of_the_original());
    let mut common = object(
        &[],
        &[ours.clone(), status_of("kube-controller-manager"), status_of("manager")],
    );
    slim(&mut common.metadata);
    assert_eq!(common.metadata.managed_fields, None);
    let mut contested = object(&[], &[ours, entry("manager", "Update", 8, fields_of_the_original())]);
    slim(&mut contested.metadata);
    let left = contested.metadata.managed_fields.unwrap();
    assert!(left.len() == 1 && left[0].fields_v1.is_none());
    // The same name on an object of others is somebody else.
    let mut foreign = object(&[], &[entry("manager", "Update", 8, fields_of_the_original())]);
    foreign.metadata.owner_references.as_mut().unwrap()[0].api_version = "apps/v1".into();
    slim(&mut foreign.metadata);
    assert_eq!(foreign.metadata.managed_fields, None);
}
