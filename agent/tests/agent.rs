//! The real agent, with the real probe on a fake driver, and a controller that writes down what it hears.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use berth_proto::probe::v1 as probe;
use berth_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Down;
use berth_proto::v1::{self, AgentMessage, ControllerMessage, GpuState, NvmlState};
use nvidia_ml::library;
use nvidia_ml::state::{Effect, Fault, STATE_ENV, State, Utilization, code};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

#[path = "agent/stream.rs"]
mod stream;

const NAME: &str = "berth-controller.berth-system.svc";
/// Far beyond anything expected; only something broken waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// One session as the controller has it.
struct Session {
    token: String,
    heard: mpsc::Receiver<AgentMessage>,
    say: mpsc::Sender<Result<ControllerMessage, Status>>,
}

impl Session {
    async fn tell(&self, body: Down) {
        self.say.send(Ok(ControllerMessage { body: Some(body) })).await.unwrap();
    }

    async fn end(&self, status: Status) {
        self.say.send(Err(status)).await.unwrap();
    }

    async fn message(&mut self) -> AgentMessage {
        tokio::time::timeout(PATIENCE, self.heard.recv())
            .await
            .expect("a message in time")
            .expect("the session goes on")
    }

    /// The next message that `pick` wants.
    async fn next<T>(&mut self, pick: impl Fn(&AgentMessage) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(&self.message().await) {
                return found;
            }
        }
    }

    async fn inventory(&mut self, state: NvmlState) -> v1::NodeFacts {
        self.next(|m| match &m.body {
            Some(Body::Inventory(facts)) if facts.nvml_state() == state => Some(facts.clone()),
            _ => None,
        })
        .await
    }

    async fn sample_of(&mut self, uuid: &str) -> v1::GpuSample {
        self.next(|m| match &m.body {
            Some(Body::Samples(samples)) => samples.gpus.iter().find(|s| s.uuid == uuid).cloned(),
            _ => None,
        })
        .await
    }

    async fn gpu_state(&mut self, uuid: &str, state: GpuState) {
        self.next(|m| match &m.body {
            Some(Body::Health(health)) => health
                .gpus
                .iter()
                .find(|g| g.uuid == uuid && g.state() == state)
                .map(drop),
            _ => None,
        })
        .await;
    }
}

struct Service(mpsc::Sender<Session>);

#[tonic::async_trait]
impl AgentLink for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let bearer = request
            .metadata()
            .get("authorization")
            .ok_or(Status::unauthenticated("no token"))?;
        let token = bearer.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let mut inbound = request.into_inner();
        let (say, said) = mpsc::channel(16);
        let (hear, heard) = mpsc::channel(1024);
        let welcome = v1::Welcome {
            protocol: 1,
            controller_version: "test".into(),
            sample_interval_ms: 100,
            token_expires_in_ms: 0,
        };
        say.send(Ok(ControllerMessage {
            body: Some(Down::Welcome(welcome)),
        }))
        .await
        .unwrap();
        let _ = self.0.send(Session { token, heard, say }).await;
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                if hear.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

struct Controller {
    address: SocketAddr,
    ca: String,
    sessions: mpsc::Receiver<Session>,
}

impl Controller {
    async fn start() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let identity = Identity::from_pem(leaf.pem(), key.serialize_pem());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, sessions) = mpsc::channel(8);
        tokio::spawn(
            Server::builder()
                .tls_config(ServerTlsConfig::new().identity(identity))
                .unwrap()
                .add_service(AgentLinkServer::new(Service(send)))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self {
            address,
            ca: ca_pem,
            sessions,
        }
    }

    async fn session(&mut self) -> Session {
        let mut session = tokio::time::timeout(PATIENCE, self.sessions.recv())
            .await
            .expect("a session in time")
            .unwrap();
        match session.message().await {
            AgentMessage {
                seq: 1,
                body: Some(Body::Hello(hello)),
            } => {
                assert_eq!((hello.protocol_min, hello.protocol_max), (1, 1));
            }
            other => panic!("{other:?}"),
        }
        session
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The library and the probe's program, built once.
fn built() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--package", "berth-probe"])
            .status()
            .unwrap();
        assert!(status.success(), "cargo build -p berth-probe failed");
        let probe = Path::new(env!("CARGO_BIN_EXE_berth-agent")).with_file_name("berth-probe");
        (library::build().unwrap(), probe)
    })
}

struct Node {
    dir: tempfile::TempDir,
    http: SocketAddr,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gpu = dir.path().join("sys/bus/pci/devices/0000:10:00.0");
        std::fs::create_dir_all(&gpu).unwrap();
        for (file, content) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2330")] {
            std::fs::write(gpu.join(file), content).unwrap();
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            dir,
            http: free.local_addr().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn identity(&self, controller: &Controller, token: &str) {
        std::fs::write(self.path("ca.crt"), &controller.ca).unwrap();
        std::fs::write(self.path("token"), token).unwrap();
    }

    fn agent(&self, controller: &Controller) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_berth-agent"))
            .arg("run")
            .arg(format!("--controller={}", controller.address))
            .arg(format!("--controller-name={NAME}"))
            .arg(format!("--ca={}", self.path("ca.crt").display()))
            .arg(format!("--token={}", self.path("token").display()))
            .arg(format!("--probe-socket={}", self.path("probe.sock").display()))
            .arg(format!("--sysfs-root={}", self.path("sys").display()))
            .arg(format!("--http-address={}", self.http))
            .spawn()
            .unwrap();
        Process(child)
    }

    fn probe(&self) -> Process {
        let child = Command::new(&built().1)
            .arg("serve")
            .arg(format!("--socket={}", self.path("probe.sock").display()))
            .arg(format!("--nvml-lib={}", built().0.display()))
            .arg("--call-timeout=500ms")
            .env(STATE_ENV, self.path("nvml.json"))
            .spawn()
            .unwrap();
        Process(child)
    }

    fn gpus(&self, count: u32) -> State {
        let state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
        state.write(&self.path("nvml.json")).unwrap();
        state
    }

    fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.path("nvml.json"), change).unwrap();
    }

    async fn get(&self, path: &str) -> String {
        let start = Instant::now();
        loop {
            if let Ok(mut stream) = TcpStream::connect(self.http).await {
                let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "nothing listens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

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
