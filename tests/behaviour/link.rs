//! The agent link on the wire: who is refused, and that nobody speaks for another node.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_proto::v1::{self, agent_link_client::AgentLinkClient, agent_message::Body, controller_message};
use berth_tests::{Fixture, Suite, eventually};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
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

/// A connection as an agent would have it.
async fn channel(f: &Fixture) -> anyhow::Result<Channel> {
    let ca = Api::<ConfigMap>::namespaced(f.client(), NAMESPACE)
        .get("berth-ca")
        .await?;
    let pem = ca
        .data
        .unwrap_or_default()
        .remove("ca.crt")
        .context("berth-ca has no ca.crt")?;
    trusting(f, &pem).await
}

/// A connection that trusts the given CA alone.
async fn trusting(f: &Fixture, pem: &str) -> anyhow::Result<Channel> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem))
        .domain_name(format!("berth-controller.{NAMESPACE}.svc"));
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
    // The API server's own CA is a good one, but not the controller's.
    let other = std::fs::read_to_string(&f.cluster.control_plane().ca)?;
    match trusting(&f, &other).await {
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
