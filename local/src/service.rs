//! Services on one machine: a loopback forwarder for each, to a pod that the Service's selector matches and that is Ready.
//!
//! ```text
//! agent ─► 127.0.0.1:<forwarder> ─► Service (selector, targetPort) ─► Ready pod with those labels ─► its host port
//! ```
//!
//! The endpoint is chosen at each connection, so a label that moves (the leader's) moves new connections; open ones stay,
//! as they do in a cluster.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::runtime::reflector::{ObjectRef, Store};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::port::Ports;

/// Which port of this machine a pod's port is.
#[derive(Debug, Clone, Default)]
pub struct HostPorts(Arc<Mutex<BTreeMap<(String, u16), u16>>>);

impl HostPorts {
    /// The port that a pod (by uid) has here, taken on first use and kept for the pod's life.
    pub fn get_or_take(&self, uid: &str, port: u16, ports: &Ports) -> Result<u16> {
        let mut map = self.0.lock();
        let key = (uid.to_owned(), port);
        if let Some(host) = map.get(&key) {
            return Ok(*host);
        }
        let host = ports.take()?;
        map.insert(key, host);
        Ok(host)
    }

    /// The port that a pod has here, if it has started.
    pub fn get(&self, uid: &str, port: u16) -> Option<u16> {
        self.0.lock().get(&(uid.to_owned(), port)).copied()
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|(owner, _), _| owner != uid);
    }
}

/// The forwarders of a cluster.
#[derive(Debug)]
pub struct Services {
    routes: Arc<Routes>,
    forwarders: Mutex<HashMap<(String, String, u16), SocketAddr>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Routes {
    services: Store<core::Service>,
    pods: Store<core::Pod>,
    host_ports: HostPorts,
}

impl Services {
    /// None yet; `pods` are those that really run here.
    pub fn new(
        services: Store<core::Service>,
        pods: Store<core::Pod>,
        host_ports: HostPorts,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let routes = Arc::new(Routes {
            services,
            pods,
            host_ports,
        });
        Self {
            routes,
            forwarders: Mutex::default(),
            tasks,
            shutdown,
        }
    }

    /// Where a Service's port can be reached on this machine; the Service need not exist yet.
    pub fn forwarder(&self, namespace: &str, name: &str, port: u16) -> Result<SocketAddr> {
        let mut forwarders = self.forwarders.lock();
        let key = (namespace.to_owned(), name.to_owned(), port);
        if let Some(address) = forwarders.get(&key) {
            return Ok(*address);
        }
        let failed = || Error::file("listen for", format!("{name}.{namespace}.svc:{port}"));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let listener = TcpListener::from_std(listener).map_err(failed())?;
        self.tasks.spawn(forward(
            listener,
            self.routes.clone(),
            key.clone(),
            self.tasks.clone(),
            self.shutdown.clone(),
        ));
        forwarders.insert(key, address);
        Ok(address)
    }

    /// Where a port of a running pod can be reached on this machine.
    pub fn pod_address(&self, namespace: &str, pod: &str, port: u16) -> Option<SocketAddr> {
        let pod = self.routes.pods.get(&ObjectRef::new(pod).within(namespace))?;
        let host = self.routes.host_ports.get(pod.metadata.uid.as_deref()?, port)?;
        Some((Ipv4Addr::LOCALHOST, host).into())
    }
}

async fn forward(
    listener: TcpListener,
    routes: Arc<Routes>,
    (namespace, name, port): (String, String, u16),
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let mut turn = 0;
    while let Some(Ok((mut inbound, _))) = shutdown.run_until_cancelled(listener.accept()).await {
        let endpoints = routes.endpoints(&namespace, &name, port);
        turn += 1;
        // No endpoint: the connection is closed, as a cluster refuses it.
        let Some(target) = (!endpoints.is_empty()).then(|| endpoints[turn % endpoints.len()]) else {
            continue;
        };
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            let copy = async {
                let mut outbound = TcpStream::connect(target).await?;
                let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
                tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await
            };
            // An error here is a peer that went away, which the other peer sees by itself.
            let _ = shutdown.run_until_cancelled(copy).await;
        });
    }
}

impl Routes {
    fn endpoints(&self, namespace: &str, name: &str, port: u16) -> Vec<SocketAddr> {
        let Some(service) = self.services.get(&ObjectRef::new(name).within(namespace)) else {
            return vec![];
        };
        let pods = self.pods.state();
        let ports = targets(&service, port, pods.iter().map(AsRef::as_ref));
        let hosts = ports
            .into_iter()
            .filter_map(|(uid, port)| self.host_ports.get(&uid, port));
        hosts.map(|host| (Ipv4Addr::LOCALHOST, host).into()).collect()
    }
}

/// The pods behind a Service's port: uid and container port. Pure.
fn targets<'a>(service: &core::Service, port: u16, pods: impl Iterator<Item = &'a core::Pod>) -> Vec<(String, u16)> {
    let Some(spec) = &service.spec else { return vec![] };
    let selector = spec.selector.clone().unwrap_or_default();
    let Some(declared) = spec.ports.iter().flatten().find(|p| p.port == i32::from(port)) else {
        return vec![];
    };
    let target = declared
        .target_port
        .clone()
        .unwrap_or(IntOrString::Int(i32::from(port)));
    if selector.is_empty() {
        return vec![];
    }
    pods.filter(|pod| pod.metadata.namespace == service.metadata.namespace)
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod))
        .filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            selector
                .iter()
                .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
        })
        .filter_map(|pod| {
            let containers = &pod.spec.as_ref()?.containers;
            let port = containers
                .iter()
                .find_map(|c| crate::kubelet::container_port(c, &target))?;
            Some((pod.metadata.uid.clone()?, port))
        })
        .collect()
}

fn is_ready(pod: &core::Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, leader: bool, ready: &str) -> core::Pod {
        let mut labels = json!({"app": "c"});
        if leader {
            labels["leader"] = "true".into();
        }
        serde_json::from_value(json!({
            "metadata": {"uid": uid, "namespace": "ns", "labels": labels},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "agents", "containerPort": 8443}]}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_service_goes_to_ready_pods_with_its_labels() {
        let service = |target: serde_json::Value| -> core::Service {
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns"},
                "spec": {"selector": {"app": "c", "leader": "true"}, "ports": [{"port": 443, "targetPort": target}]},
            }))
            .unwrap()
        };
        let pods = [pod("a", false, "True"), pod("b", true, "True"), pod("c", true, "False")];
        let cases = [
            (json!("agents"), 443, vec![("b".to_owned(), 8443)]),
            (json!(9000), 443, vec![("b".to_owned(), 9000)]),
            (json!("nope"), 443, vec![]),
            (json!("agents"), 80, vec![]),
        ];
        for (target, port, want) in cases {
            assert_eq!(
                targets(&service(target.clone()), port, pods.iter()),
                want,
                "{target} {port}"
            );
        }
    }
}
