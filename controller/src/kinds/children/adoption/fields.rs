//! Sets of field paths as managed fields write them (`FieldsV1`): a tree whose leaves, and nodes with a `.`, are members. Pure.

use serde_json::{Map, Value, json};

/// What is in either.
pub fn union(a: &Value, b: &Value) -> Value {
    let mut all = members(a);
    for (key, more) in members(b) {
        let both = match (all.get(&key), &more) {
            (None, _) => more,
            // A leaf is a member itself, and stays one when something below it becomes one too.
            (Some(have), more) if is_leaf(have) != is_leaf(more) => union(&union(have, more), &json!({".": {}})),
            (Some(have), more) => union(have, more),
        };
        all.insert(key, both);
    }
    Value::Object(all)
}

/// Takes a path and everything below it out of a set; answers the set of what was taken, if anything was.
pub fn take(set: &mut Value, path: &[&str]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let inside = set.as_object_mut()?;
    let below = if rest.is_empty() {
        inside.remove(*first)?
    } else {
        let next = inside.get_mut(*first)?;
        let taken = take(next, rest)?;
        // A node that is left without anything would read as a member.
        if is_leaf(next) {
            inside.remove(*first);
        }
        taken
    };
    Some(json!({*first: below}))
}

/// Whether a set holds annotations, labels and finalizers alone: of the object, or of its pod template.
pub fn are_notes(set: &Value) -> bool {
    const NOTES: [&str; 3] = ["f:annotations", "f:labels", "f:finalizers"];
    let mut rest = set.clone();
    for note in NOTES {
        take(&mut rest, &["f:metadata", note]);
        take(&mut rest, &["f:spec", "f:template", "f:metadata", note]);
    }
    is_empty(&rest)
}

/// Whether nothing is in it.
pub fn is_empty(set: &Value) -> bool {
    is_leaf(set)
}

fn is_leaf(node: &Value) -> bool {
    node.as_object().is_none_or(Map::is_empty)
}

fn members(set: &Value) -> Map<String, Value> {
    set.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_has_the_members_of_both() {
        let a = json!({"f:spec": {"f:replicas": {}, "f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}}, "f:data": {}});
        let b = json!({"f:spec": {"f:selector": {}, "f:ports": {".": {}, "k:{\"port\":80}": {"f:protocol": {}}}}, "f:data": {"f:x": {}}});
        let want = json!({
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:ports": {".": {}, "k:{\"port\":80}": {".": {}, "f:port": {}, "f:protocol": {}}}},
            "f:data": {".": {}, "f:x": {}},
        });
        assert_eq!(union(&a, &b), want);
        assert_eq!(union(&b, &a), want);
        assert_eq!(union(&json!({}), &a), a);
    }

    #[test]
    fn notes_are_annotations_and_labels_alone() {
        let annotation = json!({"f:annotations": {"f:a": {}}, "f:labels": {".": {}, "f:b": {}}});
        assert!(are_notes(&json!({"f:metadata": annotation})));
        assert!(are_notes(
            &json!({"f:spec": {"f:template": {"f:metadata": annotation}}})
        ));
        assert!(!are_notes(
            &json!({"f:metadata": annotation, "f:spec": {"f:replicas": {}}})
        ));
        assert!(!are_notes(&json!({"f:metadata": {"f:ownerReferences": {}}})));
    }

    #[test]
    fn what_is_taken_leaves_no_empty_node() {
        let template = json!({"f:metadata": {"f:labels": {".": {}}}});
        let mut set = json!({"f:spec": {"f:template": template}, "f:metadata": {"f:labels": {}}});
        assert_eq!(
            take(&mut set, &["f:spec", "f:template"]),
            Some(json!({"f:spec": {"f:template": template}}))
        );
        assert_eq!(set, json!({"f:metadata": {"f:labels": {}}}));
        assert_eq!(take(&mut set, &["f:spec", "f:template"]), None);
        assert_eq!(take(&mut set, &["f:metadata", "f:x"]), None);

        let mut both = json!({"f:spec": {"f:replicas": {}, "f:template": {}}});
        take(&mut both, &["f:spec", "f:replicas"]);
        assert_eq!(both, json!({"f:spec": {"f:template": {}}}));
        let mut member = json!({"f:spec": {".": {}, "f:template": {}}});
        take(&mut member, &["f:spec", "f:template"]);
        assert_eq!(member, json!({"f:spec": {".": {}}}));
    }
}
