//! The probe beside this agent, as a client sees it.

use std::path::PathBuf;
use std::time::Duration;

use berth_core::facts::{GpuEvent, GpuSample, NvmlState, NvmlStatus, Round, Vgpu};
use berth_core::freshness;
use berth_core::pods::{Held, Kubelet};
use berth_proto::convert::{Malformed, gpus, nvml_status};
use berth_proto::probe::v1 as wire;
use berth_proto::probe::v1::events_reply::Body;
use berth_proto::probe::v1::probe_client::ProbeClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::facts::Inventory;
use crate::pods;

/// The probe ends each step within four NVML calls' time; beyond this it is broken.
const DEADLINE: Duration = Duration::from_secs(25);
const _: () = assert!(
    DEADLINE.as_secs() >= 5 * freshness::NVML_CALL.as_secs(),
    "the probe must be the first to give up"
);

/// A connection that opens itself when it is used, and again when it broke.
#[derive(Clone)]
pub struct Probe {
    client: ProbeClient<Channel>,
}

/// The probe gave no answer, or none that could be read.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nothing listens, or it hung up. The cause is not part of the message: it differs from try to try, and the state does not.
    #[error("no probe answers on its socket")]
    Unavailable(String),
    /// It did not answer in time.
    #[error("the probe did not answer within {} s", DEADLINE.as_secs())]
    Late,
    /// Its answer breaks the protocol.
    #[error("the probe's answer: {0}")]
    Malformed(#[from] Malformed),
}

impl NoAnswer {
    /// What this makes of NVML's state.
    pub fn status(&self) -> NvmlStatus {
        NvmlStatus {
            state: NvmlState::ProbeUnavailable,
            message: self.to_string(),
        }
    }
}

impl From<Status> for NoAnswer {
    fn from(status: Status) -> Self {
        // Where there is one, the cause at the bottom says more than "transport error".
        let mut cause: &dyn std::error::Error = &status;
        while let Some(next) = cause.source() {
            cause = next;
        }
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => Self::Unavailable(cause.to_string()),
            code => Self::Unavailable(format!("{code:?}: {}", status.message())),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer<T> {
    /// NVML's state.
    pub status: NvmlStatus,
    /// What was asked for.
    pub found: T,
    /// Calls left behind.
    pub stuck_calls: u32,
}

/// One round of readings.
#[derive(Debug, Default)]
pub struct Readings {
    /// GPUs and MIG devices.
    pub samples: Vec<GpuSample>,
    /// GPUs that are gone: UUID and error.
    pub lost: Vec<(String, String)>,
}

/// What the probe tells unasked.
#[derive(Debug)]
pub enum Told {
    /// A fault.
    Event(GpuEvent),
    /// NVML's state changed; `Ready` also says that the inventory may have.
    State(NvmlStatus),
}

impl Probe {
    /// The probe that listens on `socket`, once it does. Needs a runtime.
    pub fn new(socket: PathBuf) -> Self {
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://probe")
            .buffer_size(8)
            .connect_with_connector_lazy(connect);
        Self {
            client: ProbeClient::new(channel),
        }
    }

    /// Driver, GPUs, MIG; and virtual GPUs, which do not need NVML.
    pub async fn inventory(&self) -> Result<Answer<(Inventory, Vec<Vgpu>)>, NoAnswer> {
        let mut client = self.client.clone();
        let reply = in_time(client.inventory(wire::InventoryRequest {})).await?;
        Ok(Answer {
            status: nvml_status(reply.state, reply.message),
            found: (
                Inventory {
                    driver: reply.driver.map(Into::into),
                    gpus: gpus(reply.gpus)?,
                },
                reply.vgpus.into_iter().map(Into::into).collect(),
            ),
            stuck_calls: reply.stuck_calls,
        })
    }

    /// One reading of every GPU.
    pub async fn sample(&self) -> Result<Answer<Readings>, NoAnswer> {
        let mut client = self.client.clone();
        let reply = in_time(client.sample(wire::SampleRequest {})).await?;
        Ok(Answer {
            status: nvml_status(reply.state, reply.message),
            found: Readings {
                samples: reply.gpus.into_iter().map(Into::into).collect(),
                lost: reply.lost.into_iter().map(|l| (l.uuid, l.error)).collect(),
            },
            stuck_calls: reply.stuck_calls,
        })
    }

    /// What the health checks read; `slow`: begin what takes long, which is in a later answer. `Ok(None)`: the probe is older than that.
    pub async fn checks(&self, slow: bool) -> Result<Option<Answer<Round>>, NoAnswer> {
        let mut client = self.client.clone();
        let asked = tokio::time::timeout(DEADLINE, client.checks(wire::ChecksRequest { slow })).await;
        let reply = match asked.map_err(|_| NoAnswer::Late)? {
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            reply => reply?.into_inner(),
        };
        Ok(Some(Answer {
            status: nvml_status(reply.state, reply.message),
            found: Round {
                gpus: reply.gpus.into_iter().map(Into::into).collect(),
                node: reply.node.map(Into::into).unwrap_or_default(),
            },
            stuck_calls: reply.stuck_calls,
        }))
    }

    /// Who uses the GPUs. `Ok(None)`: the probe is older than that.
    pub async fn pods(&self) -> Result<Option<pods::Answer>, NoAnswer> {
        let mut client = self.client.clone();
        let asked = tokio::time::timeout(DEADLINE, client.pods(wire::PodsRequest {})).await;
        let reply = match asked.map_err(|_| NoAnswer::Late)? {
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            reply => reply?.into_inner(),
        };
        let held: Result<Vec<Held>, Malformed> = reply.held.into_iter().map(TryInto::try_into).collect();
        let kubelet = Kubelet {
            held: held?,
            allocatable: reply
                .allocatable
                .map(|a| a.devices.into_iter().map(Into::into).collect()),
        };
        let processes = reply.processes.into_iter().map(Into::into).collect();
        Ok(Some(pods::Answer {
            kubelet: lane(reply.kubelet, kubelet),
            processes: lane(reply.process_lane, processes),
        }))
    }

    /// Opens the stream of what the probe tells.
    pub async fn events(&self) -> Result<Events, NoAnswer> {
        let mut client = self.client.clone();
        Ok(Events(in_time(client.events(wire::EventsRequest {})).await?))
    }

    /// Closes every NVML handle. `Ok(Err(why))`: a stuck call still holds the driver.
    pub async fn release(&self) -> Result<Result<(), String>, NoAnswer> {
        let mut client = self.client.clone();
        let reply = in_time(client.release(wire::ReleaseRequest {})).await?;
        Ok(if reply.released { Ok(()) } else { Err(reply.message) })
    }

    /// Opens NVML again.
    pub async fn resume(&self) -> Result<(), NoAnswer> {
        let mut client = self.client.clone();
        in_time(client.resume(wire::ResumeRequest {})).await.map(drop)
    }
}

fn lane<T>(lane: Option<wire::Lane>, found: T) -> pods::Lane<T> {
    let lane = lane.unwrap_or_default();
    match lane.state() {
        wire::LaneState::Unspecified => pods::Lane::Off,
        wire::LaneState::Available => pods::Lane::Says(found),
        wire::LaneState::NotAvailable => pods::Lane::Silent(lane.message),
    }
}

async fn in_time<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, NoAnswer> {
    let reply = tokio::time::timeout(DEADLINE, call).await.map_err(|_| NoAnswer::Late)?;
    Ok(reply?.into_inner())
}

/// The open stream.
pub struct Events(tonic::Streaming<wire::EventsReply>);

impl Events {
    /// The next thing told. It ends with an error when the probe does.
    pub async fn next(&mut self) -> Result<Told, NoAnswer> {
        loop {
            match self.0.message().await?.map(|reply| reply.body) {
                None => return Err(NoAnswer::Unavailable("it ended".into())),
                // Of a newer probe.
                Some(None) => {}
                Some(Some(Body::Event(event))) => return Ok(Told::Event(event.try_into()?)),
                Some(Some(Body::State(change))) => {
                    return Ok(Told::State(nvml_status(change.state, change.message)));
                }
            }
        }
    }
}
