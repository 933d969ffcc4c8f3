//! The gRPC service: admits a call, then carries its conversation into the picture.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::sampling::Sampling;
use berth_proto::v1::agent_link_server::AgentLink;
use berth_proto::v1::{AgentMessage, ControllerMessage, Welcome};
use futures::future::{Fuse, FutureExt};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Caller, Pass};
use super::identity::{Identifier, Identity, bearer};
use super::merge;
use super::orders;
use super::outbox::{self, Outbox};
use super::refusal::Refusal;
use super::session::{Session, Step, Taken};
use super::sessions::{End, Gate, Sessions};
use crate::cluster::{Agent, AgentChange, Cluster};
use crate::metrics::Metrics;

/// `Hello` comes within this time or the call is over.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before a renewal's token is reviewed again after the API server could not be asked.
const RENEW_RETRY: Duration = Duration::from_secs(5);

/// Everything that sessions share.
pub struct Link {
    identifier: Identifier,
    /// Open sessions.
    pub sessions: Sessions,
    /// The picture.
    pub cluster: Arc<Cluster>,
    metrics: Arc<Metrics>,
    /// How often GPUs are read.
    pub sampling: Sampling,
    /// Sessions under way.
    pub tasks: TaskTracker,
}

impl Link {
    /// No session is open.
    pub fn new(identifier: Identifier, cluster: Arc<Cluster>, metrics: Arc<Metrics>, sampling: Sampling) -> Self {
        Self {
            identifier,
            sessions: Sessions::default(),
            cluster,
            metrics,
            sampling,
            tasks: TaskTracker::new(),
        }
    }

    /// These pods are gone: their sessions end, and their tokens open no others.
    pub fn end_pods(&self, gone: &BTreeSet<String>) {
        self.identifier.pods_gone(gone);
        self.sessions.end_pods(gone);
    }

    async fn admit(&self, authorization: Option<&str>) -> Result<Identity, Refusal> {
        let identity = self.identifier.identify(bearer(authorization)?).await?;
        let picture = self.cluster.read();
        if let Some(pod) = picture.pods.get(&identity.pod_uid)
            && let Some(runs_on) = pod.node.as_ref().filter(|n| **n != identity.node)
        {
            return Err(Refusal::PodElsewhere {
                pod: format!("{}/{}", pod.namespace, pod.name),
                node: identity.node,
                runs_on: runs_on.clone(),
            });
        }
        if picture
            .nodes
            .get(&identity.node)
            .is_some_and(|n| n.uid != identity.node_uid)
        {
            return Err(Refusal::NodeReplaced {
                node: identity.node,
                uid: identity.node_uid,
            });
        }
        Ok(identity)
    }

    fn refuse(&self, refusal: &Refusal, who: Option<&Identity>, peer: Option<SocketAddr>) {
        self.metrics.agent_refused(refusal.reason());
        let (node, pod) = who.map_or(("", ""), |i| (i.node.as_str(), i.pod.as_str()));
        let peer = peer.map(|p| p.to_string()).unwrap_or_default();
        tracing::warn!(reason = refusal.reason(), %refusal, node, pod, peer, "agent refused");
    }

    /// The identity of a renewal's token; while the API server cannot be asked, it is asked again until the session's own token expires.
    async fn renewed(&self, token: String, session: Identity) -> Result<Identity, Refusal> {
        loop {
            match self.identifier.identify(&token).await {
                Ok(new) if new.pod_uid == session.pod_uid && new.node_uid == session.node_uid => return Ok(new),
                Ok(new) => {
                    return Err(Refusal::OtherPod {
                        pod: new.pod,
                        node: new.node,
                    });
                }
                Err(problem @ (Refusal::ReviewUnavailable { .. } | Refusal::Overloaded)) => {
                    tracing::warn!(%problem, node = session.node, "renewal waits");
                    tokio::time::sleep(RENEW_RETRY).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn converse(
        &self,
        identity: &Identity,
        gate: &Gate,
        mut inbound: impl Stream<Item = Result<AgentMessage, Status>> + Unpin,
        outbox: &Outbox,
    ) -> End {
        let mut session = Session::default();
        let mut expiry = std::pin::pin!(tokio::time::sleep(until(identity.expires)));
        let mut hello = std::pin::pin!(tokio::time::sleep(HELLO_DEADLINE));
        let mut renewal = std::pin::pin!(Fuse::terminated());
        loop {
            let message = tokio::select! {
                biased;
                end = gate.ended() => return end,
                () = &mut expiry => return End::Refused(Refusal::TokenExpired),
                () = &mut hello, if !session.is_greeted() => return End::Refused(Refusal::HelloMissing),
                new = &mut renewal => match new {
                    Ok(new) => {
                        let new: Identity = new;
                        expiry.as_mut().reset(tokio::time::Instant::now() + until(new.expires));
                        continue;
                    }
                    Err(refusal) => return End::Refused(refusal),
                },
                message = inbound.next() => message,
            };
            // Broken connections and hang-ups look alike from here; the agent's silence is what counts.
            let Some(Ok(message)) = message else { return End::HungUp };
            let taken = match session.take(message) {
                Ok(taken) => taken,
                Err(refusal) => return End::Refused(refusal),
            };
            match self.apply(identity, gate, outbox, taken) {
                Ok(Some(token)) => renewal.set(self.renewed(token, identity.clone()).fuse()),
                Ok(None) => {}
                Err(end) => return end,
            }
        }
    }

    /// Puts a message into the picture, then acknowledges it. A token to renew with is handed back.
    fn apply(&self, identity: &Identity, gate: &Gate, outbox: &Outbox, taken: Taken) -> Result<Option<String>, End> {
        let now = Instant::now();
        let update = |change: &mut dyn FnMut(&mut Agent) -> AgentChange| {
            gate.apply(|| {
                self.cluster
                    .update_agent(&identity.node, &identity.node_uid, now, |agent| {
                        agent.connected = true;
                        change(agent)
                    });
            })
        };
        let mut token = None;
        match taken.step {
            Step::Welcome {
                protocol,
                mut agent_version,
            } => {
                let mut memory = Vec::new();
                update(&mut |agent| {
                    memory.clone_from(&agent.memory);
                    merge::connected(agent, std::mem::take(&mut agent_version))
                })?;
                let name = BTreeSet::from([identity.node.clone()]);
                let orders = orders::orders(&name, &self.cluster.read(), self.sampling);
                let interval = orders.values().next().map(|o| o.sample_interval_ms);
                // The rest as soon as the node is known: at once, or with the first list of a new leader.
                self.cluster.orders.push(identity.node.clone());
                self.metrics.agent_session();
                outbox.welcome(Welcome {
                    protocol,
                    controller_version: env!("CARGO_PKG_VERSION").into(),
                    sample_interval_ms: interval.unwrap_or_else(|| millis(self.sampling.busy)),
                    token_expires_in_ms: millis(until(identity.expires)),
                    memory,
                });
            }
            Step::Facts(mut facts) => update(&mut |agent| merge::facts(agent, std::mem::take(&mut facts), now))?,
            Step::Health { mut health, mut memory } => update(&mut |agent| {
                agent.memory = std::mem::take(&mut memory);
                merge::health(agent, std::mem::take(&mut health))
            })?,
            Step::Samples(mut samples) => {
                update(&mut |agent| merge::samples(agent, std::mem::take(&mut samples), now))?;
            }
            Step::Events { events, lost } => {
                update(&mut |_| AgentChange::Nothing)?;
                self.metrics.gpu_events(&events, lost);
                let first = events.first();
                tracing::warn!(
                    node = identity.node,
                    count = events.len(),
                    lost,
                    ?first,
                    "GPU events reported"
                );
            }
            Step::Renew(new) => {
                update(&mut |_| AgentChange::Nothing)?;
                token = Some(new);
            }
            Step::Nothing => update(&mut |_| AgentChange::Nothing)?,
        }
        if taken.gap {
            self.metrics.agent_resync();
            outbox.resync(&format!("messages before {} are missing", taken.seq));
        }
        outbox.ack(taken.seq);
        Ok(token)
    }

    async fn run_session(
        self: Arc<Self>,
        identity: Identity,
        peer: Option<SocketAddr>,
        gate: Arc<Gate>,
        inbound: Streaming<AgentMessage>,
        outbox: Arc<Outbox>,
    ) {
        let (node, pod) = (identity.node.as_str(), identity.pod.as_str());
        tracing::info!(node, pod, "agent session open");
        let end = self.converse(&identity, &gate, inbound, &outbox).await;
        match &end {
            End::Refused(refusal) => self.refuse(refusal, Some(&identity), peer),
            End::HungUp | End::Superseded | End::ShuttingDown => {
                tracing::info!(node, pod, ?end, "agent session over");
            }
        }
        self.sessions
            .close(&gate, || self.cluster.disconnect_agent(node, &identity.node_uid));
        outbox.end(end.status());
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Time left until a wall-clock moment; none if it has passed.
fn until(moment: Timestamp) -> Duration {
    Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default()
}

#[tonic::async_trait]
impl AgentLink for LinkService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let link = &self.0;
        let pass = request.extensions().get::<Pass>().cloned();
        let peer = pass.as_ref().map(Pass::peer);
        let caller = pass.map(|pass| pass.call());
        let authorization = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let identity = match link.admit(authorization).await {
            Ok(identity) => identity,
            Err(refusal) => {
                link.refuse(&refusal, None, peer);
                return Err(refusal.status());
            }
        };
        if link.tasks.is_closed() {
            return Err(End::ShuttingDown.status().unwrap_or_else(|| Status::unavailable("")));
        }
        let gate = link.sessions.open(&identity, Instant::now());
        let outbox = gate.outbox.clone();
        let admitted = caller.map(Caller::admitted);
        let session = link
            .clone()
            .run_session(identity, peer, gate, request.into_inner(), outbox.clone());
        link.tasks.spawn(async move {
            session.await;
            drop(admitted);
        });
        Ok(Response::new(Box::pin(outbox::stream(outbox))))
    }
}

/// What tonic serves.
pub struct LinkService(pub Arc<Link>);
