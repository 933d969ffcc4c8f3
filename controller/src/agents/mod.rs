//! The agents' link: who calls, what each session says, and how it gets into the picture.
//!
//! ```text
//! door ─► TLS ─► token ─► identity (TokenReview) ─► sessions (one a node, the newest) ─► session (pure) ─► merge (pure) ─► cluster
//!        nodes, pods ─► orders (pure) ─► outbox, one a session: rate, let go of the driver
//! ```
//!
//! Only the leader listens. A session ends when its token expires without a renewal, when its pod is gone, when a newer one of the node
//! opens, and when this process stops; what it said stays in the picture.

mod door;
mod identity;
mod link;
mod merge;
mod orders;
mod outbox;
mod refusal;
#[cfg(test)]
mod replay;
mod server;
mod session;
mod sessions;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::metrics::Metrics;
use door::{Door, Limits};
use identity::{ApiReviewer, Expected, Identifier};
use link::Link;

/// Time between two looks for sessions whose pod was gone before anybody watched.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The picture knows a pod for certain when its session is older than this.
const POD_KNOWN_AFTER: Duration = Duration::from_secs(60);
/// Pods that go together end their sessions together.
const GATHER: Duration = Duration::from_millis(50);

/// Serves agents on `listener` until `stop`, then ends every stream.
pub async fn run(
    context: Context,
    metrics: Arc<Metrics>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let settings = &context.settings;
    let expected = Expected::agents(&settings.namespace, &settings.agent_service_account);
    let identifier = Identifier::new(Arc::new(ApiReviewer::new(context.client.clone())), expected);
    let door = Arc::new(Door::new(Limits::default(), metrics.clone()));
    let link = Arc::new(Link::new(
        identifier,
        context.cluster.clone(),
        metrics,
        settings.sampling(),
    ));
    tokio::select! {
        served = server::serve(listener, tls, link.clone(), door, stop) => served,
        never = end_with_pods(&link) => match never {},
        never = orders::run(&link) => match never {},
    }
}

async fn end_with_pods(link: &Link) -> Infallible {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            gone = link.cluster.gone_pods.next_batch(GATHER) => link.end_pods(&gone),
            _ = sweep.tick() => {
                let known: Option<BTreeSet<String>> = {
                    let picture = link.cluster.read();
                    picture.pods_synced.then(|| picture.pods.keys().cloned().collect())
                };
                if let Some(known) = known {
                    link.sessions.end_unknown(POD_KNOWN_AFTER, Instant::now(), |pod| known.contains(pod));
                }
            }
        }
    }
}
