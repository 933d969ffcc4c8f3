//! Spec → rule: everything that is wrong with it at once, or something that [`evaluate`](super::evaluate) can carry out without a doubt.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::labels::grammar;
use berth_crds::names;
use berth_crds::premlabs::autonodelabeler::{AutoNodeLabelerSpec, MatchExpression};

/// A valid rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For every node that matches.
    pub labels: BTreeMap<String, String>,
    /// All must hold; at least one.
    pub requirements: Vec<Requirement>,
}

/// A condition on one label of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What must hold of it.
    pub test: Test,
}

/// What must hold of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present, with one of the values.
    In(BTreeSet<String>),
    /// Absent, or with another value.
    NotIn(BTreeSet<String>),
    /// Present, an integer, greater.
    Gt(i64),
    /// Present, an integer, less.
    Lt(i64),
}

impl Test {
    /// Whether it holds of a label's value; `None`: the label is absent.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let integer = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::In(values) => value.is_some_and(|v| values.contains(v)),
            Self::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Self::Gt(bound) => integer().is_some_and(|v| v > *bound),
            Self::Lt(bound) => integer().is_some_and(|v| v < *bound),
        }
    }
}

/// What the spec says, or every reason why it cannot be carried out, each with what to do. `allowed` are protected keys that the
/// administrator permits.
pub fn validate(spec: &AutoNodeLabelerSpec, allowed: &[String]) -> Result<Rule, Vec<String>> {
    let mut errors = Vec::new();
    let mut requirements = Vec::new();
    let single = spec
        .match_expression
        .iter()
        .map(|e| ("spec.matchExpression".to_owned(), e));
    let further = spec.match_expressions.iter().enumerate();
    let further = further.map(|(i, e)| (format!("spec.matchExpressions[{i}]"), e));
    for (path, expression) in single.chain(further) {
        requirements.extend(requirement(&path, expression, &mut errors));
    }
    if spec.match_expression.is_none() && spec.match_expressions.is_empty() {
        errors.push("spec.matchExpression: missing; say which nodes are meant (key and operator)".into());
    }
    if spec.labels.is_empty() {
        errors.push("spec.labels: missing; say which labels matching nodes get".into());
    }
    for (key, value) in &spec.labels {
        check_label(key, value, allowed, &mut errors);
    }
    if errors.is_empty() {
        Ok(Rule {
            labels: spec.labels.clone(),
            requirements,
        })
    } else {
        Err(errors)
    }
}

fn check_label(key: &str, value: &str, allowed: &[String], errors: &mut Vec<String>) {
    if !grammar::is_key(key) {
        errors.push(format!("spec.labels: {key:?} is not a label key"));
    } else if names::is_protected(key) && !allowed.iter().any(|a| a == key) {
        errors.push(format!(
            "spec.labels: {key:?} is in a protected domain; use a key of your own, or have an administrator allow it"
        ));
    }
    if !grammar::is_value(value) {
        errors.push(format!(
            "spec.labels[{key}]: {value:?} is not a label value (at most 63 letters, digits, '-', '_', '.', with a letter or digit at both ends)"
        ));
    }
}

fn requirement(path: &str, expression: &MatchExpression, errors: &mut Vec<String>) -> Option<Requirement> {
    let key = match expression.key.as_deref() {
        None | Some("") => {
            errors.push(format!("{path}.key: missing; name the label to look at"));
            None
        }
        Some(key) if !grammar::is_key(key) => {
            errors.push(format!("{path}.key: {key:?} is not a label key"));
            None
        }
        Some(key) => Some(key.to_owned()),
    };
    let test = test(path, expression, errors);
    Some(Requirement { key: key?, test: test? })
}

fn test(path: &str, expression: &MatchExpression, errors: &mut Vec<String>) -> Option<Test> {
    let values = || -> BTreeSet<String> { expression.values.iter().cloned().collect() };
    let operator = expression.operator.as_deref().unwrap_or_default();
    let test = match operator {
        "" => Err(format!(
            "{path}.operator: missing; one of Exists, DoesNotExist, In, NotIn, Gt, Lt"
        )),
        "Exists" => Ok(Test::Exists),
        "DoesNotExist" => Ok(Test::DoesNotExist),
        "In" | "NotIn" if expression.values.is_empty() => {
            Err(format!("{path}.values: missing; {operator} needs at least one"))
        }
        "In" => Ok(Test::In(values())),
        "NotIn" => Ok(Test::NotIn(values())),
        "Gt" | "Lt" => match expression.values.as_slice() {
            [one] => one
                .parse()
                .map(if operator == "Gt" { Test::Gt } else { Test::Lt })
                .map_err(|_| format!("{path}.values: {one:?} is not an integer, which {operator} needs")),
            more => Err(format!(
                "{path}.values: {operator} needs exactly one integer, not {}",
                more.len()
            )),
        },
        other => Err(format!(
            "{path}.operator: {other:?} is none of Exists, DoesNotExist, In, NotIn, Gt, Lt"
        )),
    };
    test.map_err(|error| errors.push(error)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> AutoNodeLabelerSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn what_works_in_the_original_is_valid() {
        let rule = validate(
            &spec("{labels: {foo/bar.com: baz}, matchExpression: {key: kubernetes.io/arch, operator: Exists}}"),
            &[],
        )
        .unwrap();
        assert_eq!(rule.labels["foo/bar.com"], "baz");
        assert_eq!(rule.requirements[0].test, Test::Exists);
        let both = "{labels: {a: b}, matchExpression: {key: k, operator: In, values: [x, y]}, matchExpressions: [{key: l, operator: Gt, values: ['3']}]}";
        assert_eq!(validate(&spec(both), &[]).unwrap().requirements.len(), 2);
    }

    #[test]
    fn every_mistake_is_named_with_its_field() {
        let with = |expression: &str| format!("{{labels: {{a: b}}, matchExpression: {expression}}}");
        let labels = |labels: &str| format!("{{labels: {labels}, matchExpression: {{key: k, operator: Exists}}}}");
        for (yaml, wanted) in [
            (
                "{}".into(),
                &["spec.matchExpression: missing", "spec.labels: missing"][..],
            ),
            (
                with("{}"),
                &[
                    "spec.matchExpression.key: missing",
                    "spec.matchExpression.operator: missing",
                ],
            ),
            (with("{key: '', operator: Exists}"), &["key: missing"]),
            (with("{key: 'a b', operator: Exists}"), &["is not a label key"]),
            (with("{key: k, operator: exists}"), &["\"exists\" is none of Exists"]),
            (with("{key: k, operator: In}"), &["values: missing; In"]),
            (
                with("{key: k, operator: NotIn, values: []}"),
                &["values: missing; NotIn"],
            ),
            (
                with("{key: k, operator: Gt, values: [x]}"),
                &["\"x\" is not an integer"],
            ),
            (
                with("{key: k, operator: Lt, values: ['1', '2']}"),
                &["exactly one integer, not 2"],
            ),
            (with("{key: k, operator: Gt}"), &["exactly one integer, not 0"]),
            (labels("{'-x': y}"), &["\"-x\" is not a label key"]),
            (labels("{x: 'a b'}"), &["spec.labels[x]: \"a b\" is not a label value"]),
            (labels("{nvidia.com/gpu.count: '9'}"), &["protected domain"]),
            (labels("{node-restriction.kubernetes.io/x: y}"), &["protected domain"]),
            (
                labels("{berth.dev/gpu-class: y, cloud.google.com/z: 'é'}"),
                &["berth.dev", "cloud.google.com/z", "is not a label value"],
            ),
            (
                "{labels: {a: b}, matchExpressions: [{key: k, operator: Exists}, {operator: In}]}".into(),
                &[
                    "spec.matchExpressions[1].key: missing",
                    "spec.matchExpressions[1].values: missing",
                ],
            ),
        ] {
            let errors = validate(&spec(&yaml), &[]).unwrap_err();
            assert_eq!(errors.len(), wanted.len(), "{yaml}: {errors:?}");
            for (error, wanted) in errors.iter().zip(wanted) {
                assert!(error.contains(wanted), "{yaml}: {error:?} lacks {wanted:?}");
            }
        }
    }

    #[test]
    fn an_allowed_key_is_allowed_alone() {
        let spec = spec("{labels: {nvidia.com/a: x}, matchExpression: {key: k, operator: Exists}}");
        assert!(validate(&spec, &["nvidia.com/a".into()]).is_ok());
        assert!(validate(&spec, &["nvidia.com/b".into()]).is_err());
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let values = || BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        for (test, value, holds) in [
            (Test::Exists, Some(""), true),
            (Test::Exists, None, false),
            (Test::DoesNotExist, None, true),
            (Test::DoesNotExist, Some("x"), false),
            (Test::In(values()), Some("a"), true),
            (Test::In(values()), Some("c"), false),
            (Test::In(values()), None, false),
            (Test::NotIn(values()), Some("a"), false),
            (Test::NotIn(values()), Some("c"), true),
            (Test::NotIn(values()), None, true),
            (Test::Gt(3), Some("4"), true),
            (Test::Gt(3), Some("3"), false),
            (Test::Gt(-3), Some("-2"), true),
            (Test::Gt(3), Some("x"), false),
            (Test::Gt(3), None, false),
            (Test::Lt(3), Some("2"), true),
            (Test::Lt(3), Some("3"), false),
            (Test::Lt(3), None, false),
        ] {
            assert_eq!(test.holds(value), holds, "{test:?} {value:?}");
        }
    }
}
