//! The agent link on the wire: who is refused, and that nobody speaks for another node.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_proto::v1::{self, agent_link_client::AgentLinkClient, agent_message::Body, controller_message};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

fn main() -> ExitCode {
    Suite::new("link")
        .trial(
            "a wrong audience, another ServiceAccount and an unbound token are refused and counted",
            |c| refused(Fixture::new(c)),
        )
        .trial("a session without TLS or with another CA gets nowhere", |c| {
            no_tls(Fixture::new(c))
        })
        .trial(
            "an agent says nothing to a controller of another CA or another name",
            |c| agent_is_wary(Fixture::new(c)),
        )
        .trial("connections without a session are few and end", |c| {
            strangers(Fixture::new(c))
        })
        .trial(
            "an agent's token speaks for its own node only, whatever it sends",
            |c| own_node_only(Fixture::new(c)),
        )
        .trial("a session ends with its pod", |c| ends_with_pod(Fixture::new(c)))
        .trial("Renew keeps a session past its first token, its absence ends it", |c| {
            renew(Fixture::new(c))
        })
        .trial("the leader label follows the leader and agents follow the label", |c| {
            leader_label(Fixture::new(c))
        })
        .trial(
            "a deleted Secret and ConfigMap are made anew and agents come back",
            |c| trust_is_repaired(Fixture::new(c)),
        )
        .run()
}

const NAMESPACE: &str = "berth-system";

async fn token(f: &Fixture, account: &str, audience: &str, pod: Option<&Pod>, seconds: i64) -> anyhow::Result<String> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.into()],
            expiration_seconds: Some(seconds),
            bound_object_ref: pod.map(|p| BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: p.metadata.name.clone(),
                uid: p.metadata.uid.clone(),
            }),
        },
        ..Default::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(f.client(), NAMESPACE);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.context("no token in the answer")?.token)
}

async fn agent_pod(f: &Fixture, node: &str) -> anyhow::Result<Pod> {
    let pods = Api::<Pod>::namespaced(f.client(), NAMESPACE);
    let list = pods
        .list(
            &ListParams::default()
                .labels("app.kubernetes.io/component=agent")
                .fields(&format!("spec.nodeName={node}")),
        )
        .await?;
    list.items
        .into_iter()
        .next()
        .with_context(|| format!("no agent pod on {node}"))
}

/// The controller's CA, as agents get it.
async fn own_ca(f: &Fixture) -> anyhow::Result<String> {
    let ca = Api::<ConfigMap>::namespaced(f.client(), NAMESPACE)
        .get("berth-ca")
        .await?;
    ca.data
        .unwrap_or_default()
        .remove("ca.crt")
        .context("berth-ca has no ca.crt")
}

/// The API server's: a good one, but not the controller's.
fn other_ca(f: &Fixture) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(&f.cluster.control_plane().ca)?)
}

fn controller_name() -> String {
    format!("berth-controller.{NAMESPACE}.svc")
}

/// A connection as an agent would have it.
async fn channel(f: &Fixture) -> anyhow::Result<Channel> {
    trusting(f, &own_ca(f).await?).await
}

/// A connection that trusts the given CA alone.
async fn trusting(f: &Fixture, pem: &str) -> anyhow::Result<Channel> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem))
        .domain_name(controller_name());
    let address = f.link_address().await?;
    Ok(Channel::from_shared(format!("https://{address}"))?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(5))
        .connect()
        .await?)
}

/// An open session as an agent would have it.
struct Session {
    up: tokio::sync::mpsc::Sender<v1::AgentMessage>,
    down: tonic::Streaming<v1::ControllerMessage>,
    seq: u64,
}

impl Session {
    async fn open(f: &Fixture, token: &str) -> anyhow::Result<Result<Self, tonic::Status>> {
        let mut client = AgentLinkClient::new(channel(f).await?);
        let (up, rx) = tokio::sync::mpsc::channel(16);
        let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(rx));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse()?);
        let hello = v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            agent_version: "test".into(),
        };
        up.send(v1::AgentMessage {
            seq: 1,
            body: Some(Body::Hello(hello)),
        })
        .await?;
        let down = match client.session(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut session = Self { up, down, seq: 1 };
        match session.next().await {
            Ok(Some(controller_message::Body::Welcome(_))) => Ok(Ok(session)),
            Ok(other) => bail!("first answer is {other:?}"),
            Err(status) => Ok(Err(status)),
        }
    }

    async fn next(&mut self) -> Result<Option<controller_message::Body>, tonic::Status> {
        match tokio::time::timeout(Duration::from_secs(30), self.down.message()).await {
            Ok(answer) => Ok(answer?.and_then(|m| m.body)),
            Err(_) => Err(tonic::Status::deadline_exceeded("nothing within 30 s")),
        }
    }

    async fn send(&mut self, body: Body) -> anyhow::Result<()> {
        self.seq += 1;
        Ok(self
            .up
            .send(v1::AgentMessage {
                seq: self.seq,
                body: Some(body),
            })
            .await?)
    }

    /// Reads until the stream ends, and says how.
    async fn end(mut self, within: Duration) -> anyhow::Result<tonic::Status> {
        let read = async {
            loop {
                match self.down.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return tonic::Status::ok("closed"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(within, read)
            .await
            .context("the session did not end")
    }
}

async fn refused(f: Fixture) -> anyhow::Result<()> {
    let pod = agent_pod(&f, "t4-0").await?;
    let controller_pods = Api::<Pod>::namespaced(f.client(), NAMESPACE)
        .list(&ListParams::default().labels("app.kubernetes.io/component=controller"))
        .await?;
    let table = [
        (
            "wrong audience",
            token(&f, "berth-agent", "somebody-else", Some(&pod), 600).await?,
        ),
        (
            "API server audience",
            token(&f, "berth-agent", "https://kubernetes.default.svc", Some(&pod), 600).await?,
        ),
        (
            "another ServiceAccount",
            token(
                &f,
                "berth-controller",
                "berth-controller",
                controller_pods.items.first(),
                600,
            )
            .await?,
        ),
        (
            "no node claim",
            token(&f, "berth-agent", "berth-controller", None, 600).await?,
        ),
        ("garbage", "not.a.token".into()),
    ];
    for (name, token) in table {
        let before = f.metric_sum("berth_agent_refusals_total").await?;
        match Session::open(&f, &token).await? {
            Ok(_) => bail!("{name}: was let in"),
            Err(status) => ensure!(
                matches!(
                    status.code(),
                    tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
                ),
                "{name}: {status:?}"
            ),
        }
        ensure!(
            f.metric_sum("berth_agent_refusals_total").await? > before,
            "{name}: not counted"
        );
    }
    let log = f.controller_logs().await?;
    for reason in ["WrongAudience", "OtherServiceAccount"] {
        let said = |line: &str| line.contains("agent refused") && line.contains(reason);
        ensure!(log.lines().any(said), "{reason} is not logged");
    }
    Ok(())
}

async fn no_tls(f: Fixture) -> anyhow::Result<()> {
    let address = f.link_address().await?;
    let plain = Channel::from_shared(format!("http://{address}"))?.connect().await;
    if let Ok(channel) = plain {
        let (_up, rx) = tokio::sync::mpsc::channel::<v1::AgentMessage>(1);
        let answer = AgentLinkClient::new(channel)
            .session(tokio_stream::wrappers::ReceiverStream::new(rx))
            .await;
        ensure!(answer.is_err(), "a plain-text session was let in");
    }
    match trusting(&f, &other_ca(&f)?).await {
        Ok(_) => bail!("a client that trusts another CA went on"),
        Err(error) => ensure!(
            format!("{error:#} {error:?}").contains("UnknownIssuer"),
            "not for its certificate: {error:?}"
        ),
    }
    // It was not for want of a server.
    channel(&f).await?;
    Ok(())
}

/// A real agent beside the DaemonSet's, which believes what a test tells it.
struct Agent {
    dir: tempfile::TempDir,
    _process: tokio::process::Child,
}

impl Agent {
    /// It trusts the CA in `ca`, for a controller of this name.
    async fn start(f: &Fixture, token: &str, ca: &str, name: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |file: &str| dir.path().join(file);
        std::fs::write(at("token"), token)?;
        std::fs::write(at("ca.crt"), ca)?;
        let running = f.cluster.process(&agent_pod(f, "t4-0").await?.name_any(), "agent")?;
        let process = tokio::process::Command::new(std::fs::read_link(format!("/proc/{}/exe", running.pid()))?)
            .arg("run")
            .arg(format!("--controller={}", f.link_address().await?))
            .arg(format!("--controller-name={name}"))
            .arg(format!("--ca={}", at("ca.crt").display()))
            .arg(format!("--token={}", at("token").display()))
            .arg(format!("--probe-socket={}", at("no-probe.sock").display()))
            .arg(format!("--sysfs-root={}", f.cluster.node("t4-0")?.sys().display()))
            .arg("--http-address=127.0.0.1:0")
            .stderr(std::fs::File::create(at("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { dir, _process: process })
    }

    async fn says(&self, what: &str) -> anyhow::Result<()> {
        eventually(what, Duration::from_secs(30), async || {
            let log = std::fs::read_to_string(self.dir.path().join("log"))?;
            ensure!(log.contains(what), "{log}");
            Ok(())
        })
        .await
    }
}

async fn agent_is_wary(f: Fixture) -> anyhow::Result<()> {
    let (node, pod) = f.bare_node_with_agent_pod("wary-0").await?;
    let token = token(&f, "berth-agent", "berth-controller", Some(&pod), 600).await?;
    let heard = async || -> anyhow::Result<bool> {
        let nodes = f.controller_json("/nodes").await?;
        Ok(nodes[&node]["agent"]["connected"].as_bool().is_some())
    };
    let other_name = Agent::start(&f, &token, &own_ca(&f).await?, "elsewhere.svc").await?;
    other_name.says("not valid for name").await?;
    ensure!(!heard().await?, "it spoke to a controller of another name");
    drop(other_name);

    let agent = Agent::start(&f, &token, &other_ca(&f)?, &controller_name()).await?;
    agent.says("UnknownIssuer").await?;
    ensure!(!heard().await?, "it spoke to a controller of another CA");
    // The same agent, as soon as it is given the right one: it was not for want of a controller.
    std::fs::write(agent.dir.path().join("ca.crt"), own_ca(&f).await?)?;
    eventually("a session", Duration::from_secs(60), async || {
        ensure!(heard().await?, "none yet");
        Ok(())
    })
    .await?;
    drop(agent);
    Api::<Node>::all(f.client())
        .delete(&node, &DeleteParams::default())
        .await?;
    Ok(())
}

async fn strangers(f: Fixture) -> anyhow::Result<()> {
    /// More than may be without a session at one time.
    const MANY: usize = 1_300;
    const BOUND: f64 = 1_024.0;
    let inside = async || f.metric_sum("berth_agent_connections_without_session").await;
    f.all_agents_connected().await?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own_ca(&f).await?.as_bytes())?)?;
    let tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(tls));
    let (address, name) = (f.link_address().await?, ServerName::try_from(controller_name())?);
    let mut silent = JoinSet::new();
    for _ in 0..MANY {
        let (tls, address, name) = (tls.clone(), address.clone(), name.clone());
        silent.spawn(async move {
            let tcp = TcpStream::connect(address).await?;
            let mut stream = tls.connect(name, tcp).await?;
            // Says nothing, and waits until it is over, which need not be in TLS's own words.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            std::io::Result::Ok(())
        });
    }
    let (mut most, mut inside_at_all): (f64, usize) = (0.0, 0);
    eventually("all are ended", Duration::from_secs(120), async || {
        most = most.max(inside().await?);
        while let Some(ended) = silent.try_join_next() {
            inside_at_all += usize::from(matches!(ended, Ok(Ok(()))));
        }
        ensure!(silent.is_empty(), "{} are not", silent.len());
        Ok(())
    })
    .await?;
    println!("{inside_at_all} were let in, at most {most} at one time");
    ensure!(inside_at_all > 0, "nobody came as far as being silent");
    ensure!(most > 0.0 && most <= BOUND, "{most} at one time");
    eventually("nobody is left", Duration::from_secs(30), async || {
        let is = inside().await?;
        ensure!(is == 0.0, "{is}");
        Ok(())
    })
    .await?;
    // Agents have sessions, and kept them.
    f.all_agents_connected().await
}

async fn own_node_only(f: Fixture) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(f.client());
    // A node of our own with an agent pod bound to it, so that no real agent competes.
    let (node, pod) = f.bare_node_with_agent_pod("liar-0").await?;
    let token = token(&f, "berth-agent", "berth-controller", Some(&pod), 600).await?;
    f.all_agents_connected().await?;
    let before = eventually("labels of the other node", Duration::from_secs(20), async || {
        let labels = nodes.get("h100-0").await?.metadata.labels.unwrap_or_default();
        ensure!(labels.contains_key("nvidia.com/gpu.product"), "{labels:?}");
        Ok(labels)
    })
    .await?;
    let mut session = Session::open(&f, &token)
        .await?
        .map_err(|s| anyhow::anyhow!("refused: {s}"))?;
    let facts = v1::NodeFacts {
        machine: Some("h100-0".into()),
        nvml_state: v1::NvmlState::Ready.into(),
        driver: Some(v1::NvidiaDriver {
            version: "1.2.3".into(),
            cuda_version: Some(12040),
            nvml_version: None,
            excluded_gpus: None,
        }),
        gpus: vec![v1::Gpu {
            uuid: "GPU-lie".into(),
            product: Some("Liar 9000".into()),
            memory_bytes: Some(1 << 30),
            ..Default::default()
        }],
        gpus_age_ms: Some(0),
        ..Default::default()
    };
    session.send(Body::Inventory(facts)).await?;
    eventually("labels on the token's node", Duration::from_secs(10), async || {
        let labels = nodes.get(&node).await?.metadata.labels.unwrap_or_default();
        ensure!(
            labels.get("nvidia.com/gpu.product").map(String::as_str) == Some("Liar-9000"),
            "{labels:?}"
        );
        Ok(())
    })
    .await?;
    let after = nodes.get("h100-0").await?.metadata.labels.unwrap_or_default();
    ensure!(after == before, "another node changed: {before:?} to {after:?}");
    // A second session of the same node wins over the first.
    let second = Session::open(&f, &token)
        .await?
        .map_err(|s| anyhow::anyhow!("refused: {s}"))?;
    let status = session.end(Duration::from_secs(10)).await?;
    ensure!(status.code() == tonic::Code::Aborted, "{status:?}");
    drop(second);
    nodes.delete(&node, &DeleteParams::default()).await?;
    Ok(())
}

async fn ends_with_pod(f: Fixture) -> anyhow::Result<()> {
    let (node, pod) = f.bare_node_with_agent_pod("gone-0").await?;
    let token = token(&f, "berth-agent", "berth-controller", Some(&pod), 600).await?;
    let session = Session::open(&f, &token)
        .await?
        .map_err(|s| anyhow::anyhow!("refused: {s}"))?;
    let pods = Api::<Pod>::namespaced(f.client(), NAMESPACE);
    pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
        .await?;
    let status = session.end(Duration::from_secs(15)).await?;
    ensure!(status.code() != tonic::Code::Ok, "{status:?}");
    match Session::open(&f, &token).await? {
        Ok(_) => bail!("the token of a deleted pod was let in"),
        // Ours while the API server still accepts it, the API server's afterwards.
        Err(status) => ensure!(
            matches!(
                status.code(),
                tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
            ),
            "{status:?}"
        ),
    }
    Api::<Node>::all(f.client())
        .delete(&node, &DeleteParams::default())
        .await?;
    Ok(())
}

async fn renew(f: Fixture) -> anyhow::Result<()> {
    // The API server gives no token of less than ten minutes, so what is tested live is that Welcome tells the remaining time and that
    // Renew is taken; the expiry itself runs against a shifted clock in the controller's own tests.
    let (node, pod) = f.bare_node_with_agent_pod("renew-0").await?;
    let first = token(&f, "berth-agent", "berth-controller", Some(&pod), 600).await?;
    let mut session = Session::open(&f, &first)
        .await?
        .map_err(|s| anyhow::anyhow!("refused: {s}"))?;
    let second = token(&f, "berth-agent", "berth-controller", Some(&pod), 1200).await?;
    session.send(Body::Renew(v1::Renew { token: second })).await?;
    loop {
        match session.next().await? {
            Some(controller_message::Body::Ack(ack)) if ack.seq >= 2 => break,
            Some(_) => {}
            None => bail!("the session ended"),
        }
    }
    // A token of another identity does not keep it alive.
    let foreign = token(&f, "berth-agent", "somebody-else", Some(&pod), 600).await?;
    session.send(Body::Renew(v1::Renew { token: foreign })).await?;
    let status = session.end(Duration::from_secs(10)).await?;
    ensure!(
        matches!(
            status.code(),
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
        ),
        "{status:?}"
    );
    Api::<Node>::all(f.client())
        .delete(&node, &DeleteParams::default())
        .await?;
    Ok(())
}

async fn leader_label(f: Fixture) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(f.client(), NAMESPACE);
    let leaders = async || -> anyhow::Result<Vec<String>> {
        let list = pods
            .list(&ListParams::default().labels("berth.dev/leader=true"))
            .await?;
        Ok(list
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .map(ResourceExt::name_any)
            .collect())
    };
    let first = eventually("one leader", Duration::from_secs(30), async || {
        let all = leaders().await?;
        ensure!(all.len() == 1, "{all:?}");
        Ok(all[0].clone())
    })
    .await?;
    pods.delete(&first, &DeleteParams::default()).await?;
    let second = eventually("another leader", Duration::from_secs(60), async || {
        let all = leaders().await?;
        ensure!(all.len() == 1 && all[0] != first, "{all:?}");
        Ok(all[0].clone())
    })
    .await?;
    println!("{first} -> {second}");
    f.all_agents_connected().await
}

async fn trust_is_repaired(f: Fixture) -> anyhow::Result<()> {
    let secrets = Api::<Secret>::namespaced(f.client(), NAMESPACE);
    let maps = Api::<ConfigMap>::namespaced(f.client(), NAMESPACE);
    let old = secrets.get("berth-trust").await?.uid();
    secrets.delete("berth-trust", &DeleteParams::default()).await?;
    maps.delete("berth-ca", &DeleteParams::default()).await?;
    eventually("a new Secret and ConfigMap", Duration::from_secs(90), async || {
        ensure!(secrets.get("berth-trust").await?.uid() != old);
        maps.get("berth-ca").await?;
        Ok(())
    })
    .await?;
    f.restart_agent("t4-0").await?;
    f.all_agents_connected().await?;
    Ok(())
}
