//! Labels, annotations and node selectors that end up on children: the API server's own words for a bad one do not always say where it is.

use std::collections::BTreeMap;

use berth_core::labels::grammar;
use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kinds::status::problems::Findings;

/// Most bytes of all annotations of an object, keys and values.
const ANNOTATIONS: usize = 256 * 1024;

type Texts = BTreeMap<String, String>;

/// Checks every map of the spec that becomes labels, annotations or a node selector.
pub fn check(spec: &AIDeploymentSpec, findings: &mut Findings) {
    if let Some(service) = &spec.service {
        labels("spec.service.labels", &service.labels, findings);
        annotations("spec.service.annotations", &service.annotations, findings);
    }
    if let Some(ingress) = &spec.ingress {
        labels("spec.ingress.labels", &ingress.labels, findings);
        annotations("spec.ingress.annotations", &ingress.annotations, findings);
    }
    let Some(deployment) = &spec.deployment else { return };
    labels("spec.deployment.labels", &deployment.labels, findings);
    annotations("spec.deployment.annotations", &deployment.annotations, findings);
    labels("spec.deployment.nodeSelector", &deployment.node_selector, findings);
    let Some(template) = &deployment.template else { return };
    let none = ObjectMeta::default();
    let metadata = template.metadata.as_ref().unwrap_or(&none);
    for own in metadata.labels.iter() {
        labels("spec.deployment.template.metadata.labels", own, findings);
    }
    for own in metadata.annotations.iter() {
        annotations("spec.deployment.template.metadata.annotations", own, findings);
    }
    if let Some(selector) = template.spec.as_ref().and_then(|s| s.node_selector.as_ref()) {
        labels("spec.deployment.template.spec.nodeSelector", selector, findings);
    }
}

fn labels(path: &str, labels: &Texts, findings: &mut Findings) {
    for (key, value) in labels {
        if !grammar::is_key(key) {
            bad_key(path, key, findings);
        } else if !grammar::is_value(value) {
            findings.invalid(
                format!("{path}[{key}]"),
                format_args!("{value:?} is no label value"),
                "use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
            );
        }
    }
}

fn annotations(path: &str, annotations: &Texts, findings: &mut Findings) {
    for key in annotations
        .keys()
        .filter(|key| !grammar::is_key(&key.to_ascii_lowercase()))
    {
        bad_key(path, key, findings);
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS {
        findings.invalid(
            path,
            format_args!("has {size} bytes"),
            format_args!("an object takes at most {ANNOTATIONS} bytes of annotations"),
        );
    }
}

fn bad_key(path: &str, key: &str, findings: &mut Findings) {
    findings.invalid(
        path,
        format_args!("{key:?} is no key"),
        "write keys as in `name` or `example.com/name`, the name with at most 63 letters, digits, '-', '_' and '.'",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_children_cannot_bear_is_named_where_it_was_written() {
        let long = "a".repeat(64);
        for (spec, wanted) in [
            (
                format!("{{service: {{labels: {{a: {long}}}}}}}"),
                "spec.service.labels[a]: ",
            ),
            (
                format!("{{service: {{annotations: {{{long}: x}}}}}}"),
                "spec.service.annotations: ",
            ),
            ("{ingress: {labels: {'a b': x}}}".into(), "spec.ingress.labels: "),
            ("{deployment: {labels: {a: 'é'}}}".into(), "spec.deployment.labels[a]: "),
            (
                "{deployment: {nodeSelector: {'/x': y}}}".into(),
                "spec.deployment.nodeSelector: ",
            ),
            (
                "{deployment: {template: {spec: {containers: [], nodeSelector: {a: 'b c'}}}}}".into(),
                "spec.deployment.template.spec.nodeSelector[a]: ",
            ),
            (
                format!("{{deployment: {{annotations: {{a: {}}}}}}}", "x".repeat(300_000)),
                "spec.deployment.annotations: has 300001 bytes",
            ),
        ] {
            let mut findings = Findings::default();
            check(&serde_saphyr::from_str(&spec).unwrap(), &mut findings);
            let said = findings.problems.to_string();
            assert!(said.starts_with(wanted), "{said}");
        }
    }

    #[test]
    fn what_kubernetes_takes_is_well() {
        let spec = "{service: {labels: {a: '', example.com/B_c: x.Y-1}, annotations: {Example.COM/x: 'any é'}}, deployment: {annotations: {a: ''}}}";
        let mut findings = Findings::default();
        check(&serde_saphyr::from_str(spec).unwrap(), &mut findings);
        assert!(findings.problems.is_empty(), "{}", findings.problems);
    }
}
