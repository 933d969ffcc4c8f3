//! A controller that keeps the health it heard last, and the real agent and probe on a machine that is a folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Down;
use berth_proto::v1::{self, AgentMessage, ControllerMessage, GpuState, NvmlState};
use nvidia_ml::state::{STATE_ENV, State};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::machine::{Machine, fake_nvml};

const NAME: &str = "berth-controller.berth-system.svc";
/// Far beyond anything expected: rounds of checks are 15 s apart, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the controller heard.
#[derive(Default)]
pub struct Heard {
    /// (state, reason) by UUID.
    pub gpus: BTreeMap<String, (GpuState, String)>,
    /// Every state of NVML, in order, without repeats.
    pub nvml: Vec<NvmlState>,
    /// Messages with readings.
    pub samples: u64,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Heard>>);

impl Service {
    fn hear(&self, body: Body) {
        let mut heard = self.0.lock().unwrap();
        match body {
            Body::Health(health) => {
                if heard.nvml.last() != Some(&health.nvml_state()) {
                    heard.nvml.push(health.nvml_state());
                }
                heard.gpus = health
                    .gpus
                    .into_iter()
                    .map(|g| (g.uuid.clone(), (g.state(), g.reason)))
                    .collect();
            }
            Body::Samples(_) => heard.samples += 1,
            _ => {}
        }
    }
}

#[tonic::async_trait]
impl AgentLink for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let service = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                if let Some(body) = message.body {
                    service.hear(body);
                }
            }
        });
        let welcome = ControllerMessage {
            body: Some(Down::Welcome(v1::Welcome {
                protocol: 1,
                controller_version: "test".into(),
                sample_interval_ms: 200,
                token_expires_in_ms: 0,
                memory: Vec::new(),
            })),
        };
        Ok(Response::new(Box::pin(
            tokio_stream::once(Ok(welcome)).chain(tokio_stream::pending()),
        )))
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

/// A machine with a running agent and probe.
pub struct Node {
    pub machine: Machine,
    heard: Arc<Mutex<Heard>>,
    _processes: [Process; 2],
}

impl Node {
    pub async fn start(machine: Machine, probe_args: &[&str]) -> Self {
        let (address, ca, heard) = serve().await;
        machine.put("ca.crt", ca);
        machine.put("token", "token");
        let path = |name: &str| machine.path(name).display().to_string();
        let probe = Command::new(Path::new(env!("CARGO_BIN_EXE_berth-agent")).with_file_name("berth-probe"))
            .arg("serve")
            .arg(format!("--nvml-lib={}", fake_nvml().display()))
            .arg(format!("--socket={}", path("probe.sock")))
            .arg(format!("--driver-root={}", path("")))
            .arg(format!("--sysfs-root={}", path("sys")))
            .args(probe_args)
            .env(STATE_ENV, machine.path("nvml.json"))
            .spawn()
            .unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_berth-agent"))
            .arg("run")
            .arg(format!("--controller={address}"))
            .arg(format!("--controller-name={NAME}"))
            .arg(format!("--ca={}", path("ca.crt")))
            .arg(format!("--token={}", path("token")))
            .arg(format!("--probe-socket={}", path("probe.sock")))
            .arg(format!("--sysfs-root={}", path("sys")))
            .arg("--http-address=127.0.0.1:0")
            .spawn()
            .unwrap();
        Self {
            heard,
            _processes: [Process(probe), Process(agent)],
            machine,
        }
    }

    /// Changes the driver's state, and has the checks read at once: an event without a consequence brings them about.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        State::edit(&self.machine.path("nvml.json"), |state| {
            change(state);
            state.gpus[0].push_xid(43);
        })
        .unwrap();
    }

    pub fn heard<R>(&self, look: impl FnOnce(&Heard) -> R) -> R {
        look(&self.heard.lock().unwrap())
    }

    /// Waits until `wrong` has nothing to say.
    pub async fn eventually(&self, wrong: impl Fn(&Heard) -> Vec<String>) {
        let start = Instant::now();
        loop {
            let left = self.heard(&wrong);
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{left:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn serve() -> (SocketAddr, String, Arc<Mutex<Heard>>) {
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
    let service = Service::default();
    let heard = Arc::clone(&service.0);
    tokio::spawn(
        Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(AgentLinkServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, ca_pem, heard)
}
