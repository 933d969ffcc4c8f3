//! Resources of the engine's container.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::kinds::status::problems::Findings;
use crate::kinds::workload::gpus::amount;

type Amounts = BTreeMap<String, Quantity>;

/// The container's own resources with those of the options over them, key by key.
pub fn merged(
    own: Option<ResourceRequirements>,
    over: Option<&ResourceRequirements>,
    findings: &mut Findings,
) -> ResourceRequirements {
    let own = own.unwrap_or_default();
    let over = over.cloned().unwrap_or_default();
    for (field, amounts) in [("requests", &over.requests), ("limits", &over.limits)] {
        for (name, quantity) in amounts.iter().flatten() {
            let path = || format!("spec.deployment.resources.{field}[{name}]");
            match amount(quantity) {
                None => findings.invalid(
                    path(),
                    format_args!("{:?} is no quantity", quantity.0),
                    "write it like 2, 500m or 16Gi",
                ),
                Some(n) if n < 0.0 => {
                    findings.invalid(path(), format_args!("{} is negative", quantity.0), "give 0 or more");
                }
                Some(_) => {}
            }
        }
    }
    ResourceRequirements {
        requests: overlaid(own.requests, over.requests),
        limits: overlaid(own.limits, over.limits),
        claims: over.claims.or(own.claims),
    }
}

fn overlaid(base: Option<Amounts>, over: Option<Amounts>) -> Option<Amounts> {
    let mut amounts = base.unwrap_or_default();
    amounts.extend(over.unwrap_or_default());
    (!amounts.is_empty()).then_some(amounts)
}

/// A claim of a container is one of its pod's, which only the template can name.
pub fn claims(resources: &ResourceRequirements, base: &PodSpec, findings: &mut Findings) {
    for claim in resources.claims.iter().flatten() {
        let known = base.resource_claims.iter().flatten().any(|c| c.name == claim.name);
        if !known {
            findings.invalid(
                "spec.deployment.resources.claims",
                format_args!("{:?} is no resource claim of the pod", claim.name),
                "name it in spec.deployment.template.spec.resourceClaims",
            );
        }
    }
}
