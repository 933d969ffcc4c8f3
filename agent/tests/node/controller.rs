//! A controller: a gRPC server with an authority of its own, whose sessions a test leads.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use berth_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Down;
use berth_proto::v1::{self, AgentMessage, ControllerMessage, GpuState, NvmlState};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::PATIENCE;

/// The name in its certificate.
pub const NAME: &str = "berth-controller.berth-system.svc";

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
    /// Sessions that it answers and does not welcome, from the first on.
    unwelcome: AtomicU32,
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
        let is_welcome = self
            .unwelcome
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_err();
        if is_welcome {
            say.send(Ok(ControllerMessage {
                body: Some(Down::Welcome(welcome)),
            }))
            .await
            .unwrap();
        }
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
    pub ca: String,
    pub sessions: mpsc::Receiver<Session>,
}

impl Controller {
    pub async fn start() -> Self {
        Self::that_does_not_welcome(0).await
    }

    /// One that answers the first sessions and says nothing.
    pub async fn that_does_not_welcome(unwelcome: u32) -> Self {
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
            unwelcome: unwelcome.into(),
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
