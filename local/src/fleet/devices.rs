//! Plays a kubelet's device manager: which device a pod got, and the PodResources socket that tells.
//!
//! ```text
//! kubelet (watch of pods) ─► hold, release ─► Devices ─► v1.PodResourcesLister on <root>/var/lib/kubelet/pod-resources/kubelet.sock
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_proto::podresources::v1 as wire;
use berth_proto::podresources::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use k8s_openapi::api::core::v1 as core;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::{NodeSpec, hardware};
use crate::error::{Error, Result};
use crate::files;

/// Where a kubelet's socket is on its machine.
const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";

/// The devices of one machine. Clones are the same machine's.
#[derive(Debug, Clone)]
pub struct Devices {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    serving: Arc<Mutex<Option<Serving>>>,
}

/// A server that ends when it is dropped, as a kubelet does that is killed: its socket stays.
#[derive(Debug)]
struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Default)]
struct State {
    /// Ids as the device plugin names them, in the order in which they are handed out.
    units: Vec<String>,
    /// There is a device plugin, and it calls its devices healthy.
    offered: bool,
    /// By UID.
    pods: BTreeMap<String, Pod>,
    /// It takes a call and does not answer.
    hangs: bool,
}

#[derive(Debug)]
struct Pod {
    namespace: String,
    name: String,
    /// Ids by container.
    containers: Vec<(String, Vec<String>)>,
}

impl Devices {
    /// Those of a machine with this `/`. Nobody offers them yet, and nobody tells.
    pub fn new(root: &Path, spec: &NodeSpec) -> Result<Self> {
        let uuids: Vec<String> = hardware::gpus(spec)?.into_iter().map(|gpu| gpu.uuid).collect();
        // A plugin that shares spreads pods over the GPUs before it puts a second on one.
        let units = match spec.sharing.replicas {
            1 => uuids,
            replicas => (0..replicas)
                .flat_map(|n| uuids.iter().map(move |uuid| format!("{uuid}::{n}")))
                .collect(),
        };
        let state = State {
            units,
            ..State::default()
        };
        Ok(Self {
            socket: root.join(SOCKET),
            state: Arc::new(Mutex::new(state)),
            serving: Arc::default(),
        })
    }

    /// The device plugin comes or goes.
    pub(super) fn offer(&self, offered: bool) {
        self.state.lock().offered = offered;
    }

    /// The kubelet starts, or starts again: its socket takes the place of the one that is there.
    pub fn serve(&self) -> Result<()> {
        if let Some(folder) = self.socket.parent() {
            files::folder(folder)?;
        }
        files::remove(&self.socket)?;
        let listener = UnixListener::bind(&self.socket).map_err(Error::file("listen on", &self.socket))?;
        let serving = tonic::transport::Server::builder()
            .add_service(PodResourcesListerServer::new(Service(self.state.clone())))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "a PodResources socket ended");
            }
        });
        *self.serving.lock() = Some(Serving(task));
        Ok(())
    }

    /// The kubelet dies. What it handed out stays in use.
    pub fn kill(&self) {
        *self.serving.lock() = None;
    }

    /// Whether the kubelet takes calls without answering.
    pub fn set_hangs(&self, hangs: bool) {
        self.state.lock().hangs = hangs;
    }

    /// Hands a pod what its containers ask for, once. Of a device that nobody has left there is none: kube-scheduler counts them.
    pub fn hold(&self, pod: &core::Pod) {
        let (Some(uid), Some(spec)) = (&pod.metadata.uid, &pod.spec) else {
            return;
        };
        let mut state = self.state.lock();
        if state.pods.contains_key(uid) {
            return;
        }
        let mut containers = Vec::new();
        for container in &spec.containers {
            let ids = state.free(&containers).take(asked(container)).collect();
            containers.push((container.name.clone(), ids));
        }
        let pod = Pod {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            containers,
        };
        state.pods.insert(uid.clone(), pod);
    }

    /// A pod is gone, or has finished.
    pub fn release(&self, uid: &str) {
        self.state.lock().pods.remove(uid);
    }

    /// UIDs of the pods that are known here.
    pub fn pods(&self) -> Vec<String> {
        self.state.lock().pods.keys().cloned().collect()
    }
}

impl State {
    /// Ids that nobody has: neither a pod, nor `beside`.
    fn free(&self, beside: &[(String, Vec<String>)]) -> impl Iterator<Item = String> {
        let held = self.pods.values().flat_map(|pod| &pod.containers).chain(beside);
        let held: Vec<String> = held.flat_map(|(_, ids)| ids.clone()).collect();
        let units = self.units.clone();
        units.into_iter().filter(move |id| !held.contains(id))
    }
}

fn asked(container: &core::Container) -> usize {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let gpus = limits.and_then(|l| l.get(berth_crds::names::NVIDIA_GPU));
    gpus.and_then(|n| n.0.parse().ok()).unwrap_or(0)
}

struct Service(Arc<Mutex<State>>);

impl Service {
    async fn ready(&self) {
        let hangs = self.0.lock().hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
    }
}

/// One id an entry, near one NUMA node, as a kubelet tells it.
fn device(id: &str) -> wire::ContainerDevices {
    wire::ContainerDevices {
        resource_name: berth_crds::names::NVIDIA_GPU.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: Some(wire::TopologyInfo {
            nodes: vec![wire::NumaNode { id: 0 }],
        }),
    }
}

fn pod_resources(pod: &Pod) -> wire::PodResources {
    let containers = pod.containers.iter().map(|(name, ids)| wire::ContainerResources {
        name: name.clone(),
        devices: ids.iter().map(|id| device(id)).collect(),
        ..wire::ContainerResources::default()
    });
    wire::PodResources {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        containers: containers.collect(),
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<wire::ListPodResourcesRequest>,
    ) -> std::result::Result<Response<wire::ListPodResourcesResponse>, Status> {
        self.ready().await;
        let pod_resources = self.0.lock().pods.values().map(pod_resources).collect();
        Ok(Response::new(wire::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<wire::AllocatableResourcesRequest>,
    ) -> std::result::Result<Response<wire::AllocatableResourcesResponse>, Status> {
        self.ready().await;
        let state = self.0.lock();
        let offered = if state.offered { state.units.as_slice() } else { &[] };
        Ok(Response::new(wire::AllocatableResourcesResponse {
            devices: offered.iter().map(|id| device(id)).collect(),
            ..wire::AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        request: Request<wire::GetPodResourcesRequest>,
    ) -> std::result::Result<Response<wire::GetPodResourcesResponse>, Status> {
        self.ready().await;
        let wanted = request.into_inner();
        let state = self.0.lock();
        let found = state
            .pods
            .values()
            .find(|pod| pod.namespace == wanted.pod_namespace && pod.name == wanted.pod_name);
        let found = found.ok_or_else(|| Status::not_found("no such pod here"))?;
        Ok(Response::new(wire::GetPodResourcesResponse {
            pod_resources: Some(pod_resources(found)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, gpus: u32) -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}]},
        }))
        .unwrap()
    }

    fn held(devices: &Devices, uid: &str) -> Vec<String> {
        devices.state.lock().pods[uid].containers[0].1.clone()
    }

    #[test]
    fn a_device_is_one_pods_until_it_is_gone() {
        let spec = NodeSpec::new("n", "t4", 3);
        let devices = Devices::new(Path::new("/nowhere"), &spec).unwrap();
        let uuids: Vec<String> = hardware::gpus(&spec).unwrap().into_iter().map(|g| g.uuid).collect();
        devices.hold(&pod("a", 1));
        devices.hold(&pod("b", 2));
        devices.hold(&pod("a", 1));
        assert_eq!(
            (held(&devices, "a"), held(&devices, "b")),
            (uuids[..1].to_vec(), uuids[1..].to_vec())
        );
        devices.release("a");
        devices.hold(&pod("c", 1));
        assert_eq!(held(&devices, "c"), uuids[..1]);
    }

    #[test]
    fn shared_gpus_are_filled_evenly() {
        let mut spec = NodeSpec::new("n", "t4", 2);
        spec.sharing.replicas = 2;
        let devices = Devices::new(Path::new("/nowhere"), &spec).unwrap();
        devices.hold(&pod("a", 1));
        devices.hold(&pod("b", 1));
        let of = |uid| held(&devices, uid)[0].split_once("::").unwrap().0.to_owned();
        assert_ne!(of("a"), of("b"));
    }
}
