//! The unix socket: `berth.probe.v1.Probe`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use berth_core::facts::{GpuSample, NodeChecks, NvmlStatus, Round};
use berth_proto::probe::v1 as wire;
use berth_proto::v1;
use tokio::net::UnixListener;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::fabric_manager::FabricManager;
use crate::feed::{Feed, Item};
use crate::keeper::{Ending, Handle};
use crate::pods::Pods;
use crate::vgpu::{self, Vgpus};

/// All that answers come from.
pub struct Service {
    /// NVML.
    pub keeper: Handle,
    /// Events.
    pub feed: Feed,
    /// Virtual GPUs, by their configuration space.
    pub vgpus: Arc<Vgpus>,
    /// Which process of the machine keeps an NVLink fabric.
    pub fabric_manager: FabricManager,
    /// Who holds GPUs.
    pub pods: Pods,
}

/// Serves until the process ends.
pub async fn serve(socket: &Path, service: Service) -> io::Result<()> {
    let listener = bind(socket)?;
    tracing::info!(socket = %socket.display(), "serving");
    tonic::transport::Server::builder()
        .add_service(wire::probe_server::ProbeServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .map_err(io::Error::other)
}

/// Binds the socket in place of one that an earlier process left.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    // The agent runs as another user. Who can reach the folder may ask: it is a volume of this pod alone.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl From<Ending> for Status {
    fn from(ending: Ending) -> Self {
        Self::unavailable(ending.to_string())
    }
}

fn wire_state(status: &NvmlStatus) -> i32 {
    v1::NvmlState::from(status.state).into()
}

/// Readings as they are sent, each as old as it is by now.
pub fn gpus(samples: Vec<(GpuSample, Instant)>) -> Vec<v1::GpuSample> {
    let aged = |(sample, at): (GpuSample, Instant)| GpuSample {
        age: at.elapsed(),
        ..sample
    };
    samples.into_iter().map(|sample| aged(sample).into()).collect()
}

fn reply(item: Item) -> wire::EventsReply {
    use wire::events_reply::Body;
    let body = match item {
        Item::Event(mut event, at) => {
            event.age = at.elapsed();
            Body::Event(event.into())
        }
        Item::State(status) => Body::State(wire::StateChange {
            state: wire_state(&status),
            message: status.message,
        }),
    };
    wire::EventsReply { body: Some(body) }
}

#[tonic::async_trait]
impl wire::probe_server::Probe for Service {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<wire::EventsReply, Status>> + Send>>;

    async fn inventory(&self, _: Request<wire::InventoryRequest>) -> Result<Response<wire::InventoryReply>, Status> {
        let answer = self.keeper.inventory().await?;
        let mut reply = wire::InventoryReply {
            state: wire_state(&answer.status),
            message: answer.status.message,
            stuck_calls: answer.stuck_calls,
            vgpus: vgpu::look(&self.vgpus).await.into_iter().map(Into::into).collect(),
            ..wire::InventoryReply::default()
        };
        if let Some(found) = answer.found {
            reply.driver = Some(found.driver.into());
            reply.gpus = found.gpus.into_iter().map(Into::into).collect();
            reply.library = Some(found.library.display().to_string());
        }
        Ok(Response::new(reply))
    }

    async fn sample(&self, _: Request<wire::SampleRequest>) -> Result<Response<wire::SampleReply>, Status> {
        let answer = self.keeper.sample().await?;
        let found = answer.found.unwrap_or_default();
        Ok(Response::new(wire::SampleReply {
            state: wire_state(&answer.status),
            message: answer.status.message,
            gpus: gpus(found.samples),
            stuck_calls: answer.stuck_calls,
            lost: found
                .lost
                .into_iter()
                .map(|(uuid, error)| wire::LostGpu { uuid, error })
                .collect(),
        }))
    }

    async fn checks(&self, request: Request<wire::ChecksRequest>) -> Result<Response<wire::ChecksReply>, Status> {
        let answer = self.keeper.checks(request.into_inner().slow).await?;
        let Round { gpus, node } = answer.found.unwrap_or_default();
        Ok(Response::new(wire::ChecksReply {
            state: wire_state(&answer.status),
            message: answer.status.message,
            gpus: gpus.into_iter().map(Into::into).collect(),
            stuck_calls: answer.stuck_calls,
            node: Some(
                NodeChecks {
                    fabric_manager_running: self.fabric_manager.runs(),
                    ..node
                }
                .into(),
            ),
        }))
    }

    async fn pods(&self, _: Request<wire::PodsRequest>) -> Result<Response<wire::PodsReply>, Status> {
        Ok(Response::new(self.pods.look(&self.keeper).await?))
    }

    async fn events(&self, _: Request<wire::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let (unheard, live) = self.feed.listen();
        let live = BroadcastStream::new(live).filter_map(|item| match item {
            Ok(item) => Some(item),
            Err(lagged) => {
                tracing::error!(%lagged, "events dropped: the agent does not read them");
                None
            }
        });
        let all = tokio_stream::iter(unheard).chain(live).map(|item| Ok(reply(item)));
        Ok(Response::new(Box::pin(all)))
    }

    async fn release(&self, _: Request<wire::ReleaseRequest>) -> Result<Response<wire::ReleaseReply>, Status> {
        let release = self.keeper.release().await?;
        Ok(Response::new(wire::ReleaseReply {
            released: release.released,
            message: release.message,
        }))
    }

    async fn resume(&self, _: Request<wire::ResumeRequest>) -> Result<Response<wire::ResumeReply>, Status> {
        let status = self.keeper.resume().await?;
        Ok(Response::new(wire::ResumeReply {
            state: wire_state(&status),
        }))
    }
}
