//! The real agent, with the real probe on a fake driver, and a controller that writes down what it hears.
#![allow(clippy::unwrap_used)]

mod machine;
mod node;
#[path = "agent/stream.rs"]
mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_proto::probe::v1 as probe;
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Down;
use berth_proto::v1::{self, AgentMessage, GpuState, NvmlState};
use node::{Controller, Node};
use nvidia_ml::state::{Effect, Fault, Utilization, code};
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A probe with one GPU whose readings were long in coming, and fail once when told to.
#[derive(Clone, Default)]
struct SlowProbe(Arc<AtomicBool>);

const SLOW_MS: u64 = 7000;
const SLOW_GPU: &str = "GPU-1";

impl SlowProbe {
    fn serve(&self, node: &Node) {
        let listener = UnixListener::bind(node.path("probe.sock")).unwrap();
        let server = Server::builder().add_service(probe::probe_server::ProbeServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }
}

#[tonic::async_trait]
impl probe::probe_server::Probe for SlowProbe {
    type EventsStream = Pin<Box<dyn Stream<Item = Result<probe::EventsReply, Status>> + Send>>;

    async fn inventory(&self, _: Request<probe::InventoryRequest>) -> Result<Response<probe::InventoryReply>, Status> {
        Ok(Response::new(probe::InventoryReply {
            state: NvmlState::Ready.into(),
            gpus: vec![v1::Gpu {
                uuid: SLOW_GPU.into(),
                ..v1::Gpu::default()
            }],
            ..probe::InventoryReply::default()
        }))
    }

    async fn checks(
        &self,
        _: tonic::Request<probe::ChecksRequest>,
    ) -> Result<tonic::Response<probe::ChecksReply>, Status> {
        Err(Status::unimplemented("as a probe that is older"))
    }
    async fn sample(&self, _: Request<probe::SampleRequest>) -> Result<Response<probe::SampleReply>, Status> {
        if self.0.swap(false, Ordering::SeqCst) {
            return Err(Status::internal("for the test"));
        }
        Ok(Response::new(probe::SampleReply {
            state: NvmlState::Ready.into(),
            gpus: vec![v1::GpuSample {
                uuid: SLOW_GPU.into(),
                age_ms: SLOW_MS,
                gpu_utilization: Some(1),
                ..v1::GpuSample::default()
            }],
            ..probe::SampleReply::default()
        }))
    }

    async fn pods(&self, _: Request<probe::PodsRequest>) -> Result<Response<probe::PodsReply>, Status> {
        Err(Status::unimplemented("as a probe that is older"))
    }

    async fn events(&self, _: Request<probe::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn release(&self, _: Request<probe::ReleaseRequest>) -> Result<Response<probe::ReleaseReply>, Status> {
        Err(Status::unimplemented("for the test"))
    }

    async fn resume(&self, _: Request<probe::ResumeRequest>) -> Result<Response<probe::ResumeReply>, Status> {
        Err(Status::unimplemented("for the test"))
    }
}

#[tokio::test]
async fn a_reading_is_as_old_as_the_probe_says_and_one_that_fails_alone_is_soon_forgotten() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    let probe = SlowProbe::default();
    probe.serve(&node);
    let _agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    let sample = session.sample_of(SLOW_GPU).await;
    assert!(sample.age_ms >= SLOW_MS, "{} ms", sample.age_ms);

    probe.0.store(true, Ordering::SeqCst);
    session.inventory(NvmlState::ProbeUnavailable).await;
    session.inventory(NvmlState::Ready).await;
}

#[tokio::test]
async fn a_node_without_probe_or_controller_is_ready_and_tells_its_pci_facts() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    let _agent = node.agent(&controller);
    assert!(node.get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(node.get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(node.get("/metrics").await.contains("berth_agent_connected 0\n"));

    // Token and CA come later, as they do on a new cluster.
    node.identity(&controller, "token-1\n");
    let mut session = controller.session().await;
    assert_eq!(session.token, "token-1");
    let facts = session.inventory(NvmlState::ProbeUnavailable).await;
    assert_eq!(
        (
            facts.pci.len(),
            facts.pci[0].device,
            facts.gpus.len(),
            facts.gpus_age_ms
        ),
        (1, 0x2330, 0, None)
    );
    let metrics = node.get("/metrics").await;
    assert!(metrics.contains("berth_agent_connected 1\n"), "{metrics}");
    assert!(
        metrics.contains("berth_agent_nvml_state{state=\"ProbeUnavailable\"} 1\n"),
        "{metrics}"
    );

    // A new token is handed on within the session.
    std::fs::write(node.path("token"), "token-2").unwrap();
    let renewed = session.next(|m| match &m.body {
        Some(Body::Renew(renew)) => Some(renew.token.clone()),
        _ => None,
    });
    assert_eq!(renewed.await, "token-2");
}

#[tokio::test]
async fn gpus_readings_and_faults_reach_the_controller() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    let state = node.gpus(2);
    let uuid = |n: usize| state.gpus[n].uuid.as_str();
    let _probe = node.probe();
    let _agent = node.agent(&controller);

    let mut session = controller.session().await;
    let facts = session.inventory(NvmlState::Ready).await;
    assert_eq!(
        facts.gpus.iter().map(|g| g.uuid.as_str()).collect::<Vec<_>>(),
        [uuid(0), uuid(1)]
    );
    assert_eq!(facts.driver.unwrap().version, "550.163.01");
    session.sample_of(uuid(1)).await;

    node.edit(|s| s.gpus[0].utilization = Some(Utilization { gpu: 87, memory: 40 }));
    loop {
        let sample = session.sample_of(uuid(0)).await;
        if sample.gpu_utilization == Some(87) {
            assert!(sample.age_ms < 1000);
            break;
        }
    }

    // A fatal XID: the GPU's health and the event itself. Unacknowledged, it comes again in the next session.
    node.edit(|s| s.gpus[1].push_xid(79));
    session.gpu_state(uuid(1), GpuState::Unhealthy).await;
    let xid = |m: &AgentMessage| match &m.body {
        Some(Body::Events(events)) => Some((m.seq, events.events.clone())),
        _ => None,
    };
    let (_, events) = session.next(xid).await;
    assert_eq!(events[0].kind, Some(v1::gpu_event::Kind::Xid(79)));
    session.end(Status::unavailable("going away")).await;
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    let (seq, again) = session.next(xid).await;
    assert_eq!(again[0].uuid.as_deref(), Some(uuid(1)));
    assert!(again[0].age_ms >= events[0].age_ms);
    session.tell(Down::Ack(v1::Ack { seq })).await;
    session
        .tell(Down::Resync(v1::Resync {
            reason: "for the test".into(),
        }))
        .await;
    session.inventory(NvmlState::Ready).await;
    session.end(Status::aborted("a newer session")).await;
    let mut session = controller.session().await;
    session.sample_of(uuid(0)).await;
    while let Ok(message) = session.heard.try_recv() {
        assert_eq!(xid(&message), None, "acknowledged before");
    }

    node.edit(|s| s.faults = vec![Fault::of_gpu(0, Effect::Error(code::GPU_IS_LOST))]);
    session.gpu_state(uuid(0), GpuState::Unhealthy).await;
}

#[tokio::test]
async fn a_probe_that_crashes_or_hangs_is_a_state_and_what_was_known_stays() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    node.gpus(2);
    let mut probe = node.probe();
    let _agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;

    // kill -9
    probe.0.kill().unwrap();
    probe.0.wait().unwrap();
    let facts = session.inventory(NvmlState::ProbeUnavailable).await;
    assert_eq!(facts.gpus.len(), 2);
    assert!(facts.gpus_age_ms.is_some() && facts.driver.is_some());
    let _probe = node.probe();
    session.inventory(NvmlState::Ready).await;

    node.edit(|s| s.faults = vec![Fault::of("nvmlDeviceGetPowerUsage", Effect::Stall(true))]);
    let facts = session.inventory(NvmlState::Hung).await;
    assert!(
        facts.nvml_message.contains("nvmlDeviceGetPowerUsage"),
        "{}",
        facts.nvml_message
    );
    assert_eq!(facts.gpus.len(), 2);
    let metrics = node.get("/metrics").await;
    assert!(metrics.contains("berth_agent_stuck_nvml_calls 1\n"), "{metrics}");
    node.edit(|s| s.faults.clear());
    session.inventory(NvmlState::Ready).await;
}

#[tokio::test]
async fn the_driver_is_let_go_of_on_request_even_by_a_probe_that_restarts() {
    let mut controller = Controller::start().await;
    let node = Node::new();
    node.identity(&controller, "token");
    node.gpus(1);
    let mut probe = node.probe();
    let _agent = node.agent(&controller);
    let mut session = controller.session().await;
    session.inventory(NvmlState::Ready).await;
    session.tell(Down::ReleaseDriver(v1::ReleaseDriver {})).await;
    session.inventory(NvmlState::Released).await;

    probe.0.kill().unwrap();
    probe.0.wait().unwrap();
    session.inventory(NvmlState::ProbeUnavailable).await;
    let _probe = node.probe();
    session.inventory(NvmlState::Released).await;

    session.tell(Down::ResumeDriver(v1::ResumeDriver {})).await;
    session.inventory(NvmlState::Ready).await;
}
