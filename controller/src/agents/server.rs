//! The listening end: TCP, TLS with certificates that change, HTTP/2 with limits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::v1::agent_link_server::AgentLinkServer;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::door::{Connection, Door};
use super::link::{Link, LinkService};
use super::sessions::End;

/// Handshakes under way at one time.
const HANDSHAKES: usize = 256;
/// Pause after a failed accept (no file descriptors left): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that is gone without a word is noticed after interval and timeout together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// An inventory of 16 GPUs with 7 MIG devices each is below 32 KiB.
const LONGEST_MESSAGE: usize = 1024 * 1024;
/// An agent has one session; a second one overlaps while it reconnects.
const STREAMS_A_CONNECTION: u32 = 4;
/// A token is the largest header by far.
const HEADERS: u32 = 32 * 1024;
/// Longest wait for agents to take note that this process stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves until `stop`, then tells every agent and leaves.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    link: Arc<Link>,
    door: Arc<Door>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (accepted, incoming) = mpsc::channel(HANDSHAKES);
    let accepting = tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(accept(listener, tls, door, accepted)),
    );
    let service = AgentLinkServer::new(LinkService(link.clone())).max_decoding_message_size(LONGEST_MESSAGE);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS_A_CONNECTION)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        link.tasks.close();
        link.sessions.end_all(&End::ShuttingDown);
        tokio::time::sleep(DRAIN).await;
    };
    let served = tokio::select! {
        served = server => served,
        () = drained => Ok(()),
    };
    accepting.abort();
    served
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    door: Arc<Door>,
    accepted: mpsc::Sender<io::Result<Connection<TlsStream<TcpStream>>>>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(turn) = handshakes.clone().acquire_owned().await {
        let room = door.room().await;
        let (tcp, peer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = door.place(room);
        let (acceptor, accepted, door) = (acceptor.clone(), accepted.clone(), door.clone());
        tokio::spawn(async move {
            let _turn = turn;
            // Best effort: without it small messages are merely slower.
            let _ = tcp.set_nodelay(true);
            match tokio::time::timeout(door.patience(), acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => drop(accepted.send(Ok(door.connection(stream, peer, place))).await),
                // Health checks and port scans hang up like this; agents log their side.
                Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}
