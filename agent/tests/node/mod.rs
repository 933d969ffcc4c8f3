//! A node for the real agent and the real probe, with a controller that writes down what it hears.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use berth_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Down;
use berth_proto::v1::{self, AgentMessage, ControllerMessage, GpuState, NvmlState};
use nvidia_ml::library;
use nvidia_ml::state::{STATE_ENV, State};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

const NAME: &str = "berth-controller.berth-system.svc";
/// Far beyond anything expected; only something broken waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One session as the controller has it.
pub struct Session {
    pub token: String,
    pub heard: mpsc::Receiver<AgentMessage>,
    say: mpsc::Sender<Result<ControllerMessage, Status>>,
}

impl Session {
    pub async fn tell(&self, body: Down) {
        self.say.send(Ok(ControllerMessage { body: Some(body) })).await.unwrap();
    }

    pub async fn end(&self, status: Status) {
        self.say.send(Err(status)).await.unwrap();
    }

    pub async fn message(&mut self) -> AgentMessage {
        tokio::time::timeout(PATIENCE, self.heard.recv())
            .await
            .expect("a message in time")
            .expect("the session goes on")
    }

    /// The next message that `pick` wants.
    pub async fn next<T>(&mut self, pick: impl Fn(&AgentMessage) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(&self.message().await) {
                return found;
            }
        }
    }

    pub async fn inventory(&mut self, state: NvmlState) -> v1::NodeFacts {
        self.next(|m| match &m.body {
            Some(Body::Inventory(facts)) if facts.nvml_state() == state => Some(facts.clone()),
            _ => None,
        })
        .await
    }

    pub async fn sample_of(&mut self, uuid: &str) -> v1::GpuSample {
        self.next(|m| match &m.body {
            Some(Body::Samples(samples)) => samples.gpus.iter().find(|s| s.uuid == uuid).cloned(),
            _ => None,
        })
        .await
    }

    pub async fn gpu_state(&mut self, uuid: &str, state: GpuState) {
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

struct Service {
    sessions: mpsc::Sender<Session>,
    /// What the node's agent left for the next one.
    memory: Arc<Mutex<Vec<u8>>>,
}

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
            memory: self.memory.lock().unwrap().clone(),
        };
        say.send(Ok(ControllerMessage {
            body: Some(Down::Welcome(welcome)),
        }))
        .await
        .unwrap();
        let _ = self.sessions.send(Session { token, heard, say }).await;
        let memory = Arc::clone(&self.memory);
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                if let Some(Body::Health(health)) = &message.body {
                    memory.lock().unwrap().clone_from(&health.memory);
                }
                if hear.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

pub struct Controller {
    pub address: SocketAddr,
    ca: String,
    pub sessions: mpsc::Receiver<Session>,
}

impl Controller {
    pub async fn start() -> Self {
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
        let service = Service {
            sessions: send,
            memory: Arc::default(),
        };
        tokio::spawn(
            Server::builder()
                .tls_config(ServerTlsConfig::new().identity(identity))
                .unwrap()
                .add_service(AgentLinkServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self {
            address,
            ca: ca_pem,
            sessions,
        }
    }

    pub async fn session(&mut self) -> Session {
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
pub struct Process(pub Child);

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

pub struct Node {
    dir: tempfile::TempDir,
    http: SocketAddr,
}

impl Node {
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn identity(&self, controller: &Controller, token: &str) {
        std::fs::write(self.path("ca.crt"), &controller.ca).unwrap();
        std::fs::write(self.path("token"), token).unwrap();
    }

    pub fn agent(&self, controller: &Controller) -> Process {
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

    pub fn probe(&self) -> Process {
        let child = Command::new(&built().1)
            .arg("serve")
            .arg(format!("--socket={}", self.path("probe.sock").display()))
            .arg(format!("--nvml-lib={}", built().0.display()))
            .arg("--call-timeout=500ms")
            .arg(format!("--kernel-log={}", self.path("kmsg").display()))
            .env(STATE_ENV, self.path("nvml.json"))
            .spawn()
            .unwrap();
        Process(child)
    }

    pub fn gpus(&self, count: u32) -> State {
        let state = State::of("H100-80GB-HBM3", count, "node-a").unwrap();
        state.write(&self.path("nvml.json")).unwrap();
        state
    }

    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.path("nvml.json"), change).unwrap();
    }

    pub async fn get(&self, path: &str) -> String {
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
