//! A kubelet's PodResources socket: a real gRPC server, and what can be wrong with one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use berth_proto::podresources::v1 as wire;
use berth_proto::podresources::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What it says: pods, and what is offered.
#[derive(Debug, Clone, Default)]
pub struct Says {
    pub pods: Vec<wire::PodResources>,
    /// `None`: it is older than that call.
    pub offered: Option<Vec<wire::ContainerDevices>>,
    /// It takes the call, and that is all.
    pub hangs: bool,
}

/// A listening kubelet. Dropped, it is gone; its socket stays, as after a crash.
pub struct Kubelet {
    pub says: Arc<Mutex<Says>>,
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn socket(dir: &Path) -> PathBuf {
    dir.join("kubelet.sock")
}

impl Kubelet {
    /// Puts its socket in place of any that is there.
    pub fn start(dir: &Path, says: Says) -> Self {
        let listener = listen(dir);
        let says = Arc::new(Mutex::new(says));
        let service = PodResourcesListerServer::new(Service(says.clone()));
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { says, task }
    }

    pub fn set(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().unwrap());
    }
}

/// Something that accepts and never says a word: not even HTTP.
pub fn mute(dir: &Path) -> JoinHandle<()> {
    let listener = listen(dir);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    })
}

/// Something that answers whatever comes with what is no gRPC.
pub fn babbler(dir: &Path) -> JoinHandle<()> {
    use tokio::io::AsyncWriteExt as _;
    let listener = listen(dir);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n<html>").await;
        }
    })
}

fn listen(dir: &Path) -> UnixListener {
    let _ = std::fs::remove_file(socket(dir));
    UnixListener::bind(socket(dir)).unwrap()
}

pub fn devices(resource: &str, ids: &[&str]) -> wire::ContainerDevices {
    wire::ContainerDevices {
        resource_name: resource.into(),
        device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        topology: Some(wire::TopologyInfo {
            nodes: vec![wire::NumaNode { id: 0 }],
        }),
    }
}

/// A pod of namespace `ml` with one container, `server`.
pub fn pod(name: &str, devices: Vec<wire::ContainerDevices>) -> wire::PodResources {
    wire::PodResources {
        name: name.into(),
        namespace: "ml".into(),
        containers: vec![wire::ContainerResources {
            name: "server".into(),
            devices,
            cpu_ids: vec![1, 2],
            ..wire::ContainerResources::default()
        }],
    }
}

struct Service(Arc<Mutex<Says>>);

impl Service {
    async fn says(&self) -> Says {
        let says = self.0.lock().unwrap().clone();
        if says.hangs {
            std::future::pending::<()>().await;
        }
        says
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<wire::ListPodResourcesRequest>,
    ) -> Result<Response<wire::ListPodResourcesResponse>, Status> {
        Ok(Response::new(wire::ListPodResourcesResponse {
            pod_resources: self.says().await.pods,
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<wire::AllocatableResourcesRequest>,
    ) -> Result<Response<wire::AllocatableResourcesResponse>, Status> {
        match self.says().await.offered {
            Some(devices) => Ok(Response::new(wire::AllocatableResourcesResponse {
                devices,
                ..wire::AllocatableResourcesResponse::default()
            })),
            None => Err(Status::unimplemented("for the test")),
        }
    }

    async fn get(
        &self,
        _: Request<wire::GetPodResourcesRequest>,
    ) -> Result<Response<wire::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}
