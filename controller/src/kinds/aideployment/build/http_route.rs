//! HTTPRoutes of the Gateway API: its types are no dependency, the few fields that are set are written out.

use berth_crds::premlabs::aideployment::ParentReference;
use serde_json::{Value, json};

use super::with_name;
use crate::kinds::aideployment::validate::Validated;

/// One HTTPRoute a port, since the hosts of a route are those of all its rules. The first has the name of the AIDeployment.
pub fn http_routes(model: &Validated) -> Vec<Value> {
    if model.gateways.is_empty() {
        return Vec::new();
    }
    let mut ports: Vec<u16> = Vec::new();
    for port in &model.serving.endpoint_ports {
        if !ports.contains(port) {
            ports.push(*port);
        }
    }
    let parents: Vec<Value> = model.gateways.iter().map(parent).collect();
    let route = |(at, port): (usize, &u16)| {
        let name = match at {
            0 => model.name.clone(),
            _ => format!("{}-{port}", model.name),
        };
        let hosts = model.hosts.iter().zip(&model.serving.endpoint_ports);
        let of_port: Vec<&String> = hosts.filter(|(_, p)| *p == port).map(|(host, _)| host).collect();
        // An empty host stands for every host, and a route without hosts takes them all.
        let hostnames = match of_port.iter().any(|host| host.is_empty()) {
            true => Vec::new(),
            false => of_port,
        };
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {
                "name": name,
                "namespace": model.namespace,
                "labels": model.ingress.labels,
                "annotations": with_name(model, &model.ingress.annotations),
            },
            "spec": {
                "parentRefs": parents,
                "hostnames": hostnames,
                "rules": [{
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"name": model.name, "port": port}],
                }],
            },
        })
    };
    ports.iter().enumerate().map(route).collect()
}

fn parent(parent: &ParentReference) -> Value {
    json!({"name": parent.name, "namespace": parent.namespace, "sectionName": parent.section_name})
}
