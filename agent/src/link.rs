//! The one connection to the controller: opened again and again, one session after the other.

use std::convert::Infallible;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_proto::v1::agent_link_client::AgentLinkClient;
use berth_proto::v1::controller_message::Body;
use berth_proto::v1::{AgentMessage, ControllerMessage};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::backoff::{Backoff, Ended};
use crate::metrics::Metrics;
use crate::observer::{self, Driver};
use crate::picture::Picture;
use crate::session::Session;

/// Where the controller is and how to prove who we are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `host:port`.
    pub controller: String,
    /// Name in its certificate.
    pub controller_name: String,
    /// Authorities.
    pub ca: PathBuf,
    /// Token.
    pub token: PathBuf,
}

/// Longest try to connect, TLS and the first answer included; the welcome may take as long again.
const CONNECT: Duration = Duration::from_secs(10);
/// A peer that is gone without a word is noticed after both together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The kubelet renews a token when a fifth of its time is left; looking at the file costs a read.
const TOKEN_LOOK: Duration = Duration::from_secs(5);
/// Messages between this task and the connection. What waits there is no longer the newest, so few.
const OUTBOUND: usize = 4;
/// Little comes down: acknowledgements and orders.
const WINDOW: u32 = 65_535;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum NoSession {
    #[error("no {what} at {}: {problem}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        problem: String,
    },
    #[error("the controller's address {address:?}: {problem}")]
    Address { address: String, problem: String },
    #[error("cannot connect to {address}: {problem}")]
    Connect { address: String, problem: String },
    #[error("the controller ended the session: {0}")]
    Ended(String),
    #[error("a newer session of this node is open")]
    Replaced,
}

/// Keeps a session open for as long as the process runs.
pub async fn run(
    settings: Settings,
    picture: Picture,
    observer: observer::Handle,
    metrics: Arc<Metrics>,
) -> Infallible {
    let link = Link {
        settings,
        picture,
        observer,
        metrics,
    };
    let mut backoff = Backoff::default();
    let mut last_problem = String::new();
    loop {
        let start = Instant::now();
        let mut greeted = None;
        let problem = link.session(&mut greeted).await;
        link.metrics.connected.set(0);
        if greeted.is_some() {
            last_problem.clear();
        }
        // Once a change: a controller that is away for an hour is one line.
        if problem.to_string() != last_problem {
            last_problem = problem.to_string();
            tracing::warn!(%problem, "no session with the controller");
        }
        let ended = match problem {
            NoSession::Replaced => Ended::Replaced,
            NoSession::File { .. } | NoSession::Address { .. } | NoSession::Connect { .. } | NoSession::Ended(_) => {
                Ended::After(greeted.map_or(Duration::ZERO, |()| start.elapsed()))
            }
        };
        sleep(backoff.pause(ended, rand::random())).await;
    }
}

struct Link {
    settings: Settings,
    picture: Picture,
    observer: observer::Handle,
    metrics: Arc<Metrics>,
}

fn read(what: &'static str, path: &Path) -> Result<String, NoSession> {
    let no = |problem: String| NoSession::File {
        what,
        path: path.into(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|e| no(e.to_string()))?;
    match text.trim() {
        "" => Err(no("is empty".into())),
        trimmed => Ok(trimmed.to_owned()),
    }
}

/// An error with its causes: tonic keeps what matters at the bottom.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn ended(status: &Status) -> NoSession {
    match status.code() {
        Code::Aborted => NoSession::Replaced,
        code => {
            let cause = status
                .source()
                .map(causes)
                .filter(|c| !status.message().contains(c.as_str()));
            let cause = cause.map(|c| format!(" ({c})")).unwrap_or_default();
            NoSession::Ended(format!("{code:?}: {}{cause}", status.message()))
        }
    }
}

impl Link {
    fn endpoint(&self) -> Result<Endpoint, NoSession> {
        let address = &self.settings.controller;
        let wrong = |e: tonic::transport::Error| NoSession::Address {
            address: address.clone(),
            problem: causes(&e),
        };
        let ca = read("CA bundle", &self.settings.ca)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name(self.settings.controller_name.clone());
        Ok(Endpoint::from_shared(format!("https://{address}"))
            .map_err(wrong)?
            .tls_config(tls)
            .map_err(wrong)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .buffer_size(OUTBOUND))
    }

    /// One session, from connecting to its end.
    async fn session(&self, greeted: &mut Option<()>) -> NoSession {
        match self.try_session(greeted).await {
            Ok(never) => match never {},
            Err(problem) => problem,
        }
    }

    async fn try_session(&self, greeted: &mut Option<()>) -> Result<Infallible, NoSession> {
        let mut token = read("token", &self.settings.token)?;
        let address = &self.settings.controller;
        let cannot = |problem: String| NoSession::Connect {
            address: address.clone(),
            problem,
        };
        let late = |_| cannot(format!("no answer within {} s", CONNECT.as_secs()));
        let endpoint = self.endpoint()?;
        let channel = tokio::time::timeout(CONNECT, endpoint.connect())
            .await
            .map_err(late)?
            .map_err(|e| cannot(causes(&e)))?;

        let mut session = Session::default();
        let (up, outbound) = mpsc::channel(OUTBOUND);
        // The other side reads the greeting before it answers the call: it has to be on its way by then.
        up.try_send(session.hello()).map_err(|e| cannot(e.to_string()))?;
        let mut request = Request::new(ReceiverStream::new(outbound));
        let mut bearer: MetadataValue<_> = format!("Bearer {token}").parse().map_err(|_| NoSession::File {
            what: "token",
            path: self.settings.token.clone(),
            problem: "is not a header's value".into(),
        })?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        let mut client = AgentLinkClient::new(channel);
        let mut down = tokio::time::timeout(CONNECT, client.session(request))
            .await
            .map_err(late)?
            .map_err(|status| ended(&status))?
            .into_inner();

        self.metrics.sessions.inc();
        let mut changes = self.picture.follow();
        let mut look = interval(TOKEN_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut unsent, mut renewal) = (true, None);
        let mut patience = pin!(sleep(CONNECT));
        loop {
            tokio::select! {
                // Orders are heard while there is no room to speak. Room first, then the message: it is made of the newest.
                // The welcome before all: what is held since before this process started is part of the first word.
                room = up.reserve(), if unsent && greeted.is_some() => {
                    let room = room.map_err(|_| hung_up())?;
                    let renew = renewal.take().map(|token| session.renew(token));
                    match renew.or_else(|| self.next(&mut session)) {
                        Some(message) => room.send(message),
                        None => unsent = false,
                    }
                }
                message = down.message() => match message {
                    Ok(Some(message)) => {
                        if greeted.is_none() && matches!(message.body, Some(Body::Welcome(_))) {
                            *greeted = Some(());
                            self.metrics.connected.set(1);
                        }
                        self.obey(&mut session, message);
                        unsent = true;
                    }
                    Ok(None) => return Err(NoSession::Ended("it hung up".into())),
                    Err(status) => return Err(ended(&status)),
                },
                // One that answers the call and then says nothing would have this node stay silent for ever.
                () = &mut patience, if greeted.is_none() => {
                    return Err(cannot(format!("no welcome within {} s", CONNECT.as_secs())));
                }
                // The picture outlives every session.
                _ = changes.changed() => unsent = true,
                _ = look.tick() => {
                    if let Ok(new) = read("token", &self.settings.token) && new != token {
                        token.clone_from(&new);
                        (unsent, renewal) = (true, Some(new));
                    }
                }
            }
        }
    }

    /// What there is to say, if anything.
    fn next(&self, session: &mut Session) -> Option<AgentMessage> {
        let revision = self.picture.revision();
        let now = self.picture.now();
        session.set_interval(self.observer.interval());
        let message = self.picture.read(|state| session.next(state, revision, now))?;
        if let Some(berth_proto::v1::agent_message::Body::Samples(samples)) = &message.body {
            self.metrics.samples_sent.inc_by(samples.gpus.len() as u64);
        }
        Some(message)
    }

    fn set_interval(&self, ms: u64) {
        self.observer.set_interval(ms);
        self.metrics
            .sample_interval_ms
            .set(u64::try_from(self.observer.interval().as_millis()).unwrap_or(u64::MAX));
    }

    fn obey(&self, session: &mut Session, message: ControllerMessage) {
        match message.body {
            Some(Body::Welcome(welcome)) => {
                tracing::info!(
                    controller = welcome.controller_version,
                    protocol = welcome.protocol,
                    token_expires_s = welcome.token_expires_in_ms / 1000,
                    "session with the controller"
                );
                self.set_interval(welcome.sample_interval_ms);
                self.picture
                    .update(|state, _, _| state.handover.on_welcome(welcome.memory));
            }
            Some(Body::Ack(ack)) => {
                if let Some(sent) = session.acknowledged(ack.seq) {
                    self.picture.update(|state, _, _| state.ring.acknowledged(sent));
                }
            }
            Some(Body::SetRate(rate)) => self.set_interval(rate.sample_interval_ms),
            Some(Body::ReleaseDriver(_)) => self.observer.set_driver(Driver::LetGo),
            Some(Body::ResumeDriver(_)) => self.observer.set_driver(Driver::Hold),
            Some(Body::Resync(resync)) => {
                tracing::info!(reason = resync.reason, "the controller wants everything again");
                session.resync();
            }
            // An order of a newer controller.
            None => {}
        }
    }
}

fn hung_up() -> NoSession {
    NoSession::Ended("it hung up".into())
}
