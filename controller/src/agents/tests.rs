//! The link over real TLS and real gRPC, with a reviewer that answers by table.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::facts::NvmlState;
use berth_core::sampling::Sampling;
use berth_proto::v1::agent_link_client::AgentLinkClient;
use berth_proto::v1::agent_message::Body;
use berth_proto::v1::controller_message::Body as Answer;
use berth_proto::v1::{self, AgentMessage, ControllerMessage, Hello};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::door::{Door, Limits};
use super::identity::{Expected, Identifier, Reviewer, tests::token};
use super::link::Link;
use super::server;
use crate::cluster::{Cluster, Node, Pod};
use crate::metrics::Metrics;

mod limits;
mod orders;

/// Knows the tokens that it was told of and no others.
#[derive(Default)]
struct Table(Mutex<HashMap<String, serde_json::Value>>);

impl Reviewer for Table {
    fn review<'a>(&'a self, token: &'a str, _: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async move {
            let status = self
                .0
                .lock()
                .get(token)
                .cloned()
                .unwrap_or_else(|| json!({"error": "unknown token"}));
            serde_json::from_value(status).map_err(|e| e.to_string())
        })
    }
}

/// A served link, and what is needed to call it.
struct Harbour {
    table: Arc<Table>,
    link: Arc<Link>,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    ca: String,
    endpoint: Endpoint,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// What the link under test tells.
const SAMPLING: Sampling = Sampling {
    busy: Duration::from_millis(250),
    idle: Duration::from_millis(750),
};

/// Seconds from now, for a token's end.
const HOUR: i64 = 3600;

impl Harbour {
    async fn open() -> Self {
        Self::with_limits(Limits::default()).await
    }

    async fn with_limits(limits: Limits) -> Self {
        let (tls, ca) = crate::trust::for_tests("localhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (table, metrics) = (Arc::new(Table::default()), Arc::new(Metrics::default()));
        let identifier = Identifier::new(table.clone(), Expected::agents("quay", "berth-agent"));
        let link = Arc::new(Link::new(
            identifier,
            Arc::new(Cluster::new()),
            metrics.clone(),
            SAMPLING,
        ));
        let stop = CancellationToken::new();
        let server = tokio::spawn({
            let (link, stop) = (link.clone(), stop.clone());
            let door = Arc::new(Door::new(limits, metrics.clone()));
            async move { server::serve(listener, tls, link, door, stop).await.unwrap() }
        });
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&ca))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        Self {
            table,
            link,
            metrics,
            address,
            ca,
            endpoint,
            stop,
            server,
        }
    }

    /// A token of `pod` on `node` that ends in `seconds`, good unless `change` makes it something else.
    fn token(&self, node: &str, pod: &str, seconds: i64, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let extra = |name: &str| format!("authentication.kubernetes.io/{name}");
        let mut status = json!({"authenticated": true, "audiences": ["berth-controller"], "user": {
            "username": "system:serviceaccount:quay:berth-agent", "extra": {
                extra("pod-name"): [pod], extra("pod-uid"): [format!("{pod}-uid")],
                extra("node-name"): [node], extra("node-uid"): [format!("{node}-uid")]}}});
        change(&mut status);
        let end = Timestamp::now().as_second() + seconds;
        // Made unique: two tokens of one pod and second are still two.
        let jti = self.table.0.lock().len();
        let token = token(&json!({"exp": end, "aud": ["berth-controller"], "sub": "claimed", "jti": jti}));
        self.table.0.lock().insert(token.clone(), status);
        token
    }

    fn good(&self, node: &str, pod: &str) -> String {
        self.token(node, pod, HOUR, |_| {})
    }

    async fn channel(&self) -> Channel {
        self.endpoint.connect().await.unwrap()
    }

    async fn call(&self, authorization: Option<&str>) -> Result<Call, Status> {
        let (send, messages) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value.parse().unwrap());
        }
        let answers = AgentLinkClient::new(self.channel().await)
            .session(request)
            .await?
            .into_inner();
        Ok(Call { send, answers, seq: 0 })
    }

    async fn session(&self, token: &str) -> Call {
        let mut call = self.call(Some(&format!("Bearer {token}"))).await.unwrap();
        call.say(hello()).await;
        assert!(matches!(call.answer().await, Answer::Welcome(w) if w.protocol == 1 && w.sample_interval_ms == 250));
        assert!(matches!(call.answer().await, Answer::Ack(a) if a.seq == 1));
        call
    }

    fn refusals(&self, reason: &str) -> bool {
        let text = self.metrics.encode(&self.link.cluster.read(), Instant::now()).unwrap();
        text.contains(&format!("berth_agent_refusals_total{{reason=\"{reason}\"}} 1"))
    }

    fn connected(&self, node: &str) -> Option<bool> {
        self.link.cluster.read().agents.get(node).map(|a| a.connected)
    }

    async fn close(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.server)
            .await
            .unwrap()
            .unwrap();
    }
}

/// The agent's side of a session.
struct Call {
    send: mpsc::Sender<AgentMessage>,
    answers: Streaming<ControllerMessage>,
    seq: u64,
}

impl Call {
    async fn say(&mut self, body: impl Into<Option<Body>>) {
        self.seq += 1;
        self.send
            .send(AgentMessage {
                seq: self.seq,
                body: body.into(),
            })
            .await
            .unwrap();
    }

    async fn next(&mut self) -> Result<Option<Answer>, Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.answers.message());
        Ok(next
            .await
            .expect("an answer within ten seconds")?
            .map(|m| m.body.unwrap()))
    }

    async fn answer(&mut self) -> Answer {
        self.next().await.unwrap().expect("an answer before the end")
    }

    /// Waits until everything said is acknowledged.
    async fn settle(&mut self) {
        while !matches!(self.answer().await, Answer::Ack(a) if a.seq == self.seq) {}
    }

    /// The status that the session ends with.
    async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

fn hello() -> Body {
    Body::Hello(Hello {
        protocol_min: 1,
        protocol_max: 1,
        agent_version: "0.1.0".into(),
    })
}

fn inventory(machine: &str) -> Body {
    Body::Inventory(v1::NodeFacts {
        machine: Some(machine.into()),
        ..v1::NodeFacts::default()
    })
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within five seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_a_right_are_turned_away() {
    let harbour = Harbour::open().await;
    let extra = "/user/extra/authentication.kubernetes.io~1node-name";
    let wrong_audience = harbour.token("n1", "p1", HOUR, |s| {
        s["audiences"] = json!(["https://kubernetes.default.svc"])
    });
    let other_account = harbour.token("n1", "p1", HOUR, |s| {
        s["user"]["username"] = "system:serviceaccount:quay:default".into()
    });
    let no_node = harbour.token("n1", "p1", HOUR, |s| *s.pointer_mut(extra).unwrap() = json!([]));
    let expired = harbour.token("n1", "p1", -1, |s| {
        *s = json!({"authenticated": false, "error": "expired"})
    });
    for (token, code, reason) in [
        (
            Some("Bearer made-up".to_owned()),
            Code::Unauthenticated,
            "NotAuthenticated",
        ),
        (
            Some(format!("Bearer {wrong_audience}")),
            Code::Unauthenticated,
            "WrongAudience",
        ),
        (Some(format!("Bearer {expired}")), Code::Unauthenticated, "Expired"),
        (
            Some(format!("Bearer {other_account}")),
            Code::PermissionDenied,
            "OtherServiceAccount",
        ),
        (Some(format!("Bearer {no_node}")), Code::PermissionDenied, "NoNodeClaim"),
        (Some("Basic eDp5".to_owned()), Code::Unauthenticated, "NoToken"),
    ] {
        let status = harbour.call(token.as_deref()).await.err().expect(reason);
        assert_eq!(status.code(), code, "{reason}: {status}");
        assert!(harbour.refusals(reason), "{reason} is counted");
    }
    let status = harbour.call(None).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        harbour.link.cluster.read().agents.is_empty(),
        "nobody got into the picture"
    );
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_runs_elsewhere_and_a_node_of_another_uid_are_turned_away() {
    let harbour = Harbour::open().await;
    let pod = Pod {
        uid: "p1-uid".into(),
        name: "p1".into(),
        node: Some("n2".into()),
        ..Pod::default()
    };
    harbour.link.cluster.apply_pod(pod);
    harbour.link.cluster.apply_node(Node {
        name: "n3".into(),
        uid: "new".into(),
        ..Node::default()
    });
    for (node, pod, reason) in [("n1", "p1", "PodElsewhere"), ("n3", "p3", "NodeReplaced")] {
        let token = harbour.good(node, pod);
        let status = harbour
            .call(Some(&format!("Bearer {token}")))
            .await
            .err()
            .expect(reason);
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(harbour.refusals(reason), "{reason}");
    }
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_says_is_in_the_picture_of_its_own_node_before_the_ack() {
    let harbour = Harbour::open().await;
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    call.say(inventory("DGX named n2")).await;
    let nvml_state = v1::NvmlState::Ready.into();
    call.say(Body::Health(v1::NodeHealth {
        nvml_state,
        ..v1::NodeHealth::default()
    }))
    .await;
    let sample = v1::GpuSample {
        uuid: "GPU-1".into(),
        age_ms: 40,
        memory_free_bytes: Some(7),
        ..Default::default()
    };
    call.say(Body::Samples(v1::Samples { gpus: vec![sample] })).await;
    // Of a newer protocol.
    call.say(None).await;
    call.settle().await;
    {
        let picture = harbour.link.cluster.read();
        assert_eq!(
            picture.agents.keys().collect::<Vec<_>>(),
            ["n1"],
            "the node is the token's claim"
        );
        let agent = &picture.agents["n1"];
        assert_eq!(
            (agent.node_uid.as_str(), agent.version.as_str(), agent.connected),
            ("n1-uid", "0.1.0", true)
        );
        assert_eq!(agent.facts.as_ref().unwrap().machine.as_deref(), Some("DGX named n2"));
        assert_eq!(agent.health.as_ref().unwrap().nvml.state, NvmlState::Ready);
        assert!(
            agent.samples["GPU-1"].1.elapsed() >= Duration::from_millis(40),
            "the age is kept"
        );
    }
    let hardware = harbour.link.cluster.hardware.next_batch(Duration::ZERO).await;
    assert!(hardware.contains("n1"));
    drop(call);
    eventually("disconnected", || harbour.connected("n1") == Some(false)).await;
    assert!(
        harbour.link.cluster.read().agents["n1"].facts.is_some(),
        "facts are kept"
    );
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_session_of_a_node_wins() {
    let harbour = Harbour::open().await;
    let token = harbour.good("n1", "p1");
    let mut old = harbour.session(&token).await;
    let mut new = harbour.session(&token).await;
    let status = old.end().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    new.say(inventory("new")).await;
    new.settle().await;
    assert_eq!(
        harbour.connected("n1"),
        Some(true),
        "the end of the older one does not disconnect the node"
    );
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lives_as_long_as_its_token_and_renew_extends_it() {
    let harbour = Harbour::open().await;
    let mut short = harbour.session(&harbour.token("n1", "p1", 3, |_| {})).await;
    let mut renewed = harbour.session(&harbour.token("n2", "p2", 3, |_| {})).await;
    renewed
        .say(Body::Renew(v1::Renew {
            token: harbour.good("n2", "p2"),
        }))
        .await;
    renewed.settle().await;
    let status = short.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "token expired")
    );
    eventually("disconnected", || harbour.connected("n1") == Some(false)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    renewed.say(inventory("still here")).await;
    renewed.settle().await;
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewing_with_the_token_of_another_pod_ends_the_session() {
    let harbour = Harbour::open().await;
    for (node, pod) in [("n1", "p2"), ("n2", "p1")] {
        let mut call = harbour.session(&harbour.good("n1", "p1")).await;
        call.say(Body::Renew(v1::Renew {
            token: harbour.good(node, pod),
        }))
        .await;
        assert_eq!(call.end().await.code(), Code::PermissionDenied, "{pod} on {node}");
    }
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    call.say(Body::Renew(v1::Renew {
        token: "made-up".into(),
    }))
    .await;
    assert_eq!(call.end().await.code(), Code::Unauthenticated);
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_named_and_ends_the_session() {
    let harbour = Harbour::open().await;
    let mut first = harbour
        .call(Some(&format!("Bearer {}", harbour.good("n1", "p1"))))
        .await
        .unwrap();
    first.say(inventory("before hello")).await;
    assert_eq!(first.end().await.code(), Code::InvalidArgument);
    assert!(harbour.link.cluster.read().agents.is_empty());
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    call.say(Body::Inventory(v1::NodeFacts {
        gpus: vec![v1::Gpu::default()],
        ..Default::default()
    }))
    .await;
    let status = call.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("gpu.uuid"), "{status}");
    let mut old = harbour
        .call(Some(&format!("Bearer {}", harbour.good("n1", "p1"))))
        .await
        .unwrap();
    old.say(Body::Hello(Hello {
        protocol_min: 99,
        protocol_max: 99,
        agent_version: String::new(),
    }))
    .await;
    let status = old.end().await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("upgrade the controller"), "{status}");
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_messages_are_asked_for_again() {
    let harbour = Harbour::open().await;
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    call.seq += 1;
    call.say(inventory("after a gap")).await;
    assert!(matches!(call.answer().await, Answer::Resync(_)));
    assert!(matches!(call.answer().await, Answer::Ack(a) if a.seq == 3));
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_pod() {
    let harbour = Harbour::open().await;
    let link = harbour.link.clone();
    let watching = tokio::spawn(async move { super::end_with_pods(&link).await });
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    let pod = Pod {
        uid: "p1-uid".into(),
        node: Some("n1".into()),
        ..Pod::default()
    };
    harbour.link.cluster.apply_pod(pod);
    harbour.link.cluster.delete_pod(&"p1-uid".to_owned());
    let status = call.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "pod is gone")
    );
    watching.abort();
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_leaves_is_handed_to_the_next_of_its_node() {
    let harbour = Harbour::open().await;
    let welcomed = async |node: &str, pod: &str| {
        let token = harbour.good(node, pod);
        let mut call = harbour.call(Some(&format!("Bearer {token}"))).await.unwrap();
        call.say(hello()).await;
        match call.answer().await {
            Answer::Welcome(welcome) => (call, welcome.memory),
            other => panic!("{other:?}"),
        }
    };
    for (pod, had, leaves) in [
        ("p1", "", "held"),
        ("p2", "held", "more"),
        ("p3", "more", ""),
        ("p4", "", ""),
    ] {
        let (mut call, memory) = welcomed("n1", pod).await;
        assert_eq!(memory, had.as_bytes(), "{pod}");
        call.say(Body::Health(v1::NodeHealth {
            memory: leaves.into(),
            ..v1::NodeHealth::default()
        }))
        .await;
        call.settle().await;
        assert_eq!(welcomed("n2", "p9").await.1, b"", "of another node");
    }
    harbour.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_the_process() {
    let harbour = Harbour::open().await;
    let mut call = harbour.session(&harbour.good("n1", "p1")).await;
    harbour.stop.cancel();
    assert_eq!(call.end().await.code(), Code::Unavailable);
    let began = Instant::now();
    harbour.close().await;
    assert!(began.elapsed() < Duration::from_secs(4));
}
