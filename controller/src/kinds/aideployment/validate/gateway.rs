//! Publishing by a Gateway instead of an Ingress.

use berth_crds::premlabs::aideployment::{AIDeploymentSpec, ParentReference};

use crate::kinds::status::problems::Findings;

/// Most hosts of one HTTPRoute.
const MOST_HOSTS: usize = 16;

/// Gateways that publish the hosts; none: an Ingress does, or there are no hosts.
pub fn parents(spec: &AIDeploymentSpec, findings: &mut Findings) -> Vec<ParentReference> {
    let Some(gateway) = &spec.gateway else {
        return Vec::new();
    };
    for (i, _) in gateway
        .parent_refs
        .iter()
        .enumerate()
        .filter(|(_, p)| p.name.is_empty())
    {
        findings.invalid(
            format!("spec.gateway.parentRefs[{i}].name"),
            "is empty",
            "name a Gateway",
        );
    }
    if gateway.parent_refs.is_empty() {
        findings.invalid(
            "spec.gateway.parentRefs",
            "is empty",
            "name a Gateway, or remove spec.gateway",
        );
    }
    if spec.endpoint.is_empty() {
        findings.ignored("spec.gateway", "there is no endpoint to publish");
        return Vec::new();
    }
    if spec.endpoint.len() > MOST_HOSTS {
        findings.invalid(
            "spec.endpoint",
            format_args!(
                "{} hosts are given, and an HTTPRoute takes {MOST_HOSTS}",
                spec.endpoint.len()
            ),
            "give fewer, or publish by an Ingress",
        );
    }
    if let Some(ingress) = &spec.ingress {
        let why = "the endpoints are published by spec.gateway";
        if ingress.tls == Some(true) {
            findings.ignored("spec.ingress.tls", format_args!("{why}, whose listeners terminate TLS"));
        }
        if ingress.class_name.is_some() {
            findings.ignored("spec.ingress.className", why);
        }
    }
    gateway.parent_refs.clone()
}
