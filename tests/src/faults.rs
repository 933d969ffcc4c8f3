//! Stands between the controller and the API server, and lets one call of a namespace fail.
//!
//! ```text
//! controller ─ TLS ─► Faults ─ TLS ─► API server        the caller's own token, streams as they are
//!                        └─► the n-th call about a namespace: refused, or done with the answer lost
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_local::Cluster;
use futures::StreamExt;
use kube::Client;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 500, and nothing was done. (503 the client itself tries again.)
    Refused,
    /// The connection breaks before anything was done.
    Broken,
    /// It was done, and the connection breaks before the answer is whole.
    Lost,
}

impl Fault {
    /// All.
    pub const ALL: [Self; 3] = [Self::Refused, Self::Broken, Self::Lost];
}

/// The calls about one namespace so far, reads and writes. Watches and lists are of the whole cluster, and not among them.
#[derive(Debug, Default, Clone)]
pub struct Round {
    /// Which call fails, counted from 1, and how.
    fault: Option<(usize, Fault)>,
    /// What was called: `PATCH /apis/…`.
    pub calls: Vec<String>,
}

impl Round {
    /// Whether the call that was to fail has come.
    pub fn has_failed(&self) -> bool {
        self.fault.is_some_and(|(n, _)| self.calls.len() >= n)
    }
}

/// The running proxy.
#[derive(Clone)]
pub struct Faults {
    upstream: Client,
    rounds: Arc<Mutex<HashMap<String, Round>>>,
}

impl Faults {
    /// Starts it; its URL. Ends with the runtime.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<(Self, String)> {
        // Who asks is said by the caller's token alone.
        let url = cluster.control_plane().server.parse()?;
        let mut config = kube::Config::new(url);
        let roots = CertificateDer::pem_file_iter(&cluster.control_plane().ca)?.collect::<Result<Vec<_>, _>>()?;
        config.root_cert = Some(roots.into_iter().map(|root| root.to_vec()).collect());
        // Watches live as long as their callers want.
        config.read_timeout = None;
        let faults = Self {
            upstream: Client::try_from(config)?,
            rounds: Arc::default(),
        };

        let (certificate, key) = cluster.server_certificate();
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let router = axum::Router::new().fallback(forward).with_state(faults.clone());
        let listener = TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
        };
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((faults, url))
    }

    /// From now on calls about a namespace are counted, and the n-th (from 1) fails once.
    pub fn expect(&self, namespace: &str, fault: Option<(usize, Fault)>) {
        let round = Round { fault, calls: vec![] };
        self.rounds.lock().insert(namespace.to_owned(), round);
    }

    /// The calls about a namespace since [`Self::expect`].
    pub fn round(&self, namespace: &str) -> Round {
        self.rounds.lock().get(namespace).cloned().unwrap_or_default()
    }

    /// Counts a call; how it fails.
    fn count(&self, method: &Method, path: &str) -> Option<Fault> {
        let mut below = path.split("/namespaces/").nth(1)?.split('/');
        let (namespace, resource) = (below.next()?, below.next()?);
        // Events are sent on the side, at any time, and nothing depends on them.
        if resource == "events" {
            return None;
        }
        let mut rounds = self.rounds.lock();
        let round = rounds.get_mut(namespace)?;
        round.calls.push(format!("{method} {path}"));
        round
            .fault
            .filter(|(n, _)| *n == round.calls.len())
            .map(|(_, fault)| fault)
    }
}

async fn forward(State(faults): State<Faults>, request: Request) -> Response {
    let fault = faults.count(request.method(), request.uri().path());
    match fault {
        Some(Fault::Refused) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Fault::Broken) => return cut_off(StatusCode::OK),
        Some(Fault::Lost) | None => {}
    }
    let (mut parts, body) = request.into_parts();
    // The client sets its own.
    parts.headers.remove(header::HOST);
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => kube::client::Body::from(body),
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    };
    match faults.upstream.send(axum::http::Request::from_parts(parts, body)).await {
        Ok(answer) if fault == Some(Fault::Lost) => cut_off(answer.status()),
        Ok(answer) => answer.map(Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// An answer whose connection breaks after the head.
fn cut_off(status: StatusCode) -> Response {
    let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let body = Body::from_stream(futures::stream::once(async move { Err::<Vec<u8>, _>(broken()) }).boxed());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let accepted = async {
                let (stream, address) = self.listener.accept().await?;
                std::io::Result::Ok((self.acceptor.accept(stream).await?, address))
            };
            match accepted.await {
                Ok(accepted) => return accepted,
                // A caller that went away during the handshake.
                Err(error) => tracing::debug!(%error, "a connection did not come about"),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
