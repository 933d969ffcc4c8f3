//! One process from start to end: everybody serves HTTP, the leader does the work.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::Settings;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::events::Events;
use crate::http::{self, Role, RoleCell};
use crate::leader::{self, Election};
use crate::metrics::Metrics;
use crate::placement::Explanations;
use crate::trust::Trust;
use crate::{agents, client, cluster, kinds, nodes, placement};

/// Longest wait for parts that were told to stop; with the release of the Lease this stays below five seconds.
const WIND_DOWN: Duration = Duration::from_millis(2500);

/// Serves until a signal comes (`Ok`) or the process may not go on (`Err`).
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let client = client::connect().await?;
    let served = http::Served {
        cluster: Arc::new(Cluster::with(
            settings.breaker_limits(),
            settings
                .extra_conditions
                .iter()
                .map(|(type_, _)| type_.clone())
                .collect(),
        )),
        metrics: Arc::new(Metrics::default()),
        role: Arc::new(RoleCell::default()),
        explanations: Explanations::default(),
    };
    let context = Context {
        events: Events::start(client.clone(), &settings.pod_name),
        client,
        cluster: served.cluster.clone(),
        settings: Arc::new(settings),
        metrics: served.metrics.clone(),
        explanations: served.explanations.clone(),
    };
    let listener = bind(context.settings.http_address, "health and metrics").await?;
    let http = tokio::spawn(http::serve(listener, served.clone(), stop.clone()));

    let settings = &context.settings;
    let identity = leader::identity(&settings.pod_name, &host_name(), rand::random());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        identity,
        namespace = settings.namespace,
        "started"
    );
    let mut election = Election::new(context.client.clone(), &settings.namespace, identity);
    let led = match election.win(&stop).await {
        true => lead(&context, &served, &mut election, &stop).await,
        false => Ok(Relinquish::Nothing),
    };
    stop.cancel();
    if matches!(led, Ok(Relinquish::Lease) | Err(Stopped::Failed(_))) {
        election.release().await;
    }
    // It was told to stop long ago; a slow reader of /metrics is no reason to stay.
    http.abort();
    match led {
        Ok(_) => Ok(()),
        Err(Stopped::Lost(lost)) => Err(lost.into()),
        Err(Stopped::Failed(error)) => Err(error),
    }
}

/// What has to be given back after an orderly end.
enum Relinquish {
    Nothing,
    Lease,
}

/// Why leading ended in disorder.
enum Stopped {
    /// The Lease is another's: nothing may be written any more.
    Lost(leader::Lost),
    /// A part of the work ended; the Lease is still ours.
    Failed(anyhow::Error),
}

async fn lead(
    context: &Context,
    served: &http::Served,
    election: &mut Election,
    stop: &CancellationToken,
) -> Result<Relinquish, Stopped> {
    tracing::info!("leading");
    served.role.set(Role::Starting);
    served.metrics.set_leader(true);
    context.cluster.set_leader(Instant::now());

    let mut work: JoinSet<anyhow::Result<&'static str>> = JoinSet::new();
    let never_ends = |what: &'static str| move |()| Ok(what);
    {
        use futures::FutureExt;
        let c = || context.clone();
        work.spawn(
            cluster::watch(context.client.clone(), context.cluster.clone(), context.metrics.clone())
                .map(never_ends("watches")),
        );
        work.spawn(nodes::run(c()).map(never_ends("node labels")));
        work.spawn(placement::run(c()).map(never_ends("placement")));
        work.spawn(kinds::run(c()).map(never_ends("kinds")));
    }
    let link_stop = stop.child_token();
    let mut link = tokio::spawn(serve_agents(context.clone(), served.clone(), link_stop.clone()));

    let ended = tokio::select! {
        biased;
        lost = election.keep() => Err(Stopped::Lost(lost)),
        () = stop.cancelled() => Ok(Relinquish::Lease),
        ended = work.join_next() => Err(Stopped::Failed(match ended {
            Some(Ok(Ok(part))) => anyhow!("{part} ended by itself"),
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => anyhow!(panic).context("a part of the work failed"),
            None => anyhow!("no work is left"),
        })),
        ended = &mut link => Err(Stopped::Failed(match ended {
            Ok(Ok(())) => anyhow!("the agent link ended by itself"),
            Ok(Err(error)) => error,
            Err(panic) => anyhow!(panic).context("the agent link failed"),
        })),
    };
    served.role.set(Role::Stopping);
    served.metrics.set_leader(false);
    // Whatever writes stops first; agents are told next, the Lease comes last.
    work.abort_all();
    link_stop.cancel();
    let abort_link = link.abort_handle();
    let wound_down = async {
        while work.join_next().await.is_some() {}
        if !link.is_finished() {
            let _ = link.await;
        }
    };
    // A process that lost the Lease has no time for manners.
    if !matches!(ended, Err(Stopped::Lost(_))) && tokio::time::timeout(WIND_DOWN, wound_down).await.is_err() {
        tracing::warn!("some parts did not stop in time");
    }
    abort_link.abort();
    ended
}

/// Certificates, then the listener, then the label that brings agents here.
async fn serve_agents(context: Context, served: http::Served, stop: CancellationToken) -> anyhow::Result<()> {
    let mut trust = Trust::new(context.client.clone(), &context.settings);
    let tls = trust.server_config();
    tokio::select! {
        () = trust.establish() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let listener = bind(context.settings.agents_address, "agents").await?;
    served.role.set(Role::Leading);
    let label = leader::keep_label(
        context.client.clone(),
        context.settings.namespace.clone(),
        context.settings.pod_name.clone(),
    );
    tokio::select! {
        served = agents::run(context, served.metrics, listener, tls, stop) => Ok(served?),
        () = trust.keep() => Err(anyhow!("certificates are not looked after any more")),
        () = label => Err(anyhow!("the leader label is not looked after any more")),
    }
}

async fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        // A host without IPv6 at all: the wildcard of the other family is meant as well.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
    .with_context(|| format!("cannot listen on {address} for {what}"))?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "listening for {what}");
    Ok(listener)
}

/// Cancelled by SIGTERM or SIGINT; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
            stop.cancel();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(1);
        }
    });
    Ok(stop)
}

/// For the identity of a process that runs by hand.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".into(), |n| n.trim().to_owned())
}
