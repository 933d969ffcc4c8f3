//! Connections without a session are few and do not last.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

const PATIENCE: Duration = Duration::from_millis(400);
const LIMITS: Limits = Limits {
    strangers: 3,
    patience: PATIENCE,
};

impl Harbour {
    /// A connection that says nothing once its handshake is done.
    async fn silent(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap())
            .unwrap();
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.encode(&self.link.cluster.read(), Instant::now()).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    fn strangers(&self) -> u64 {
        self.metric("berth_agent_connections_without_session")
    }

    fn closed(&self) -> u64 {
        self.metric("berth_agent_refusals_total{reason=\"NoSession\"}")
    }
}

/// Reads until the other side has closed.
async fn ends(mut connection: impl tokio::io::AsyncRead + Unpin) {
    let mut sink = Vec::new();
    // With or without an error: it is over.
    let over = tokio::time::timeout(Duration::from_secs(10), connection.read_to_end(&mut sink));
    let _ = over.await.expect("closed within ten seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_nothing_is_shown_the_door_and_agents_get_in() {
    let harbour = Harbour::with_limits(LIMITS).await;
    // One that does not even shake hands, and two that do: all places are taken.
    let mute = TcpStream::connect(harbour.address).await.unwrap();
    let (one, two) = (harbour.silent().await, harbour.silent().await);
    eventually("all places are taken", || harbour.strangers() == 3).await;
    let late: Vec<_> = futures::future::join_all((0..5).map(|_| TcpStream::connect(harbour.address))).await;
    assert_eq!(harbour.strangers(), 3, "others wait");
    let mut session = harbour.session(&harbour.good("n1", "p1")).await;
    session.say(inventory("in")).await;
    session.settle().await;
    ends(mute).await;
    ends(one).await;
    ends(two).await;
    for connection in late {
        ends(connection.unwrap()).await;
    }
    assert_eq!(harbour.closed(), 2, "those that shook hands");
    // The session had its patience many times over.
    session.say(inventory("still in")).await;
    session.settle().await;
    eventually("only the session is left", || harbour.strangers() == 0).await;
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_refused_buy_no_time_and_a_session_that_ends_leaves_a_stranger() {
    let harbour = Harbour::with_limits(LIMITS).await;
    let channel = harbour.channel().await;
    let began = Instant::now();
    while harbour.closed() == 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "refused calls kept it open");
        let (_send, messages) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(messages));
        request
            .metadata_mut()
            .insert("authorization", "Bearer made-up".parse().unwrap());
        let refused = AgentLinkClient::new(channel.clone()).session(request).await;
        assert!(refused.is_err());
        tokio::time::sleep(PATIENCE / 20).await;
    }
    drop(channel);

    let channel = harbour.channel().await;
    let (send, messages) = mpsc::channel(16);
    let mut request = Request::new(ReceiverStream::new(messages));
    let bearer = format!("Bearer {}", harbour.good("n1", "p1"));
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    let answers = AgentLinkClient::new(channel.clone())
        .session(request)
        .await
        .unwrap()
        .into_inner();
    let mut call = Call { send, answers, seq: 0 };
    call.say(hello()).await;
    call.settle().await;
    eventually("no stranger", || harbour.strangers() == 0).await;
    tokio::time::sleep(PATIENCE * 2).await;
    let closed = harbour.closed();
    drop(call);
    eventually("the connection is closed", || harbour.closed() == closed + 1).await;
    eventually("and gone", || harbour.strangers() == 0).await;
    drop(channel);
    harbour.close().await;
}
