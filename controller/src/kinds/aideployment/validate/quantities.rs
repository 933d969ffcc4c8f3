//! Quantities of the pod template. The API server refuses a pod with a malformed one without saying which it is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::kinds::status::problems::Findings;
use crate::kinds::workload::gpus::is_quantity;

/// Checks every quantity of the environment of the engine, and of the template's pod spec.
pub fn check(variables: &[EnvVar], spec: &PodSpec, findings: &mut Findings) {
    const PATH: &str = "spec.deployment.template.spec";
    let mut look = |path: String, quantity: &Quantity| {
        if !is_quantity(&quantity.0) {
            findings.invalid(
                path,
                format_args!("{:?} is no quantity", quantity.0),
                "write it like 2, 500m or 16Gi",
            );
        }
    };
    of_variables("spec.env", variables, &mut look);
    let init = spec.init_containers.iter().flatten().enumerate();
    let main = spec.containers.iter().enumerate();
    let lists = main
        .map(|c| ("containers", c))
        .chain(init.map(|c| ("initContainers", c)));
    for (list, (i, container)) in lists {
        of_container(&format!("{PATH}.{list}[{i}]"), container, &mut look);
    }
    amounts(&format!("{PATH}.overhead"), spec.overhead.as_ref(), &mut look);
    if let Some(own) = &spec.resources {
        amounts(&format!("{PATH}.resources.requests"), own.requests.as_ref(), &mut look);
        amounts(&format!("{PATH}.resources.limits"), own.limits.as_ref(), &mut look);
    }
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("{PATH}.volumes[{i}]");
        if let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) {
            look(format!("{path}.emptyDir.sizeLimit"), limit);
        }
        let claim = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref());
        if let Some(own) = claim.and_then(|c| c.spec.resources.as_ref()) {
            let path = format!("{path}.ephemeral.volumeClaimTemplate.spec.resources");
            amounts(&format!("{path}.requests"), own.requests.as_ref(), &mut look);
            amounts(&format!("{path}.limits"), own.limits.as_ref(), &mut look);
        }
        let files = volume.downward_api.iter().flat_map(|d| d.items.iter().flatten());
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        let projected = projected.flat_map(|s| s.downward_api.iter().flat_map(|d| d.items.iter().flatten()));
        for divisor in files
            .chain(projected)
            .filter_map(|f| f.resource_field_ref.as_ref()?.divisor.as_ref())
        {
            look(format!("{path}: resourceFieldRef.divisor"), divisor);
        }
    }
}

fn of_container(path: &str, container: &Container, look: &mut dyn FnMut(String, &Quantity)) {
    if let Some(own) = &container.resources {
        amounts(&format!("{path}.resources.requests"), own.requests.as_ref(), look);
        amounts(&format!("{path}.resources.limits"), own.limits.as_ref(), look);
    }
    of_variables(
        &format!("{path}.env"),
        container.env.as_deref().unwrap_or_default(),
        look,
    );
}

fn of_variables(path: &str, variables: &[EnvVar], look: &mut dyn FnMut(String, &Quantity)) {
    for (i, variable) in variables.iter().enumerate() {
        let from = variable.value_from.as_ref().and_then(|v| v.resource_field_ref.as_ref());
        if let Some(divisor) = from.and_then(|r| r.divisor.as_ref()) {
            look(format!("{path}[{i}].valueFrom.resourceFieldRef.divisor"), divisor);
        }
    }
}

fn amounts(path: &str, amounts: Option<&BTreeMap<String, Quantity>>, look: &mut dyn FnMut(String, &Quantity)) {
    for (name, quantity) in amounts.into_iter().flatten() {
        look(format!("{path}[{name}]"), quantity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for good in [
            "0", " 1 ", "2", "500m", "16Gi", "-1", "+2", "1e3", "1E", "1E-2", "5.", ".5", "0.1n", "1Ei",
        ] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in [
            "",
            "1 1",
            "x",
            "Gi",
            "1Zi",
            "1gi",
            "1.2.3",
            ".",
            "--1",
            "1e",
            "1e99999999999",
            "1K",
            "é",
            "0x10",
        ] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }

    #[test]
    fn every_one_of_a_template_is_found() {
        let spec: PodSpec = serde_saphyr::from_str(
            "{overhead: {cpu: x}, containers: [{name: a, resources: {limits: {cpu: x}}, env: [{name: e, valueFrom: {resourceFieldRef: {resource: r, divisor: x}}}]}],
            initContainers: [{name: b, resources: {requests: {memory: x, cpu: 1}}}], volumes: [{name: v, emptyDir: {sizeLimit: x}},
            {name: w, ephemeral: {volumeClaimTemplate: {spec: {resources: {requests: {storage: x}}}}}},
            {name: d, downwardAPI: {items: [{path: p, resourceFieldRef: {resource: r, divisor: x}}]}}]}",
        )
        .unwrap();
        let mut findings = Findings::default();
        check(&[], &spec, &mut findings);
        assert_eq!(findings.problems.iter().count(), 7, "{}", findings.problems);
    }
}
