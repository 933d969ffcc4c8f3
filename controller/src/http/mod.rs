//! Plain HTTP for people, kubelet and Prometheus: `/livez`, `/readyz`, `/metrics`, `/explain`, `/nodes`. Every replica serves it.

mod explain;
mod nodes;
mod pods;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::placement::Explanations;

/// What this process is, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Waits to lead.
    Standby,
    /// Leads, and does not serve agents yet.
    Starting,
    /// Leads and serves.
    Leading,
    /// On its way out.
    Stopping,
}

/// The role, shared.
#[derive(Debug)]
pub struct RoleCell(AtomicU8);

impl Default for RoleCell {
    fn default() -> Self {
        Self(AtomicU8::new(Role::Standby as u8))
    }
}

impl RoleCell {
    /// Changes it.
    pub fn set(&self, role: Role) {
        self.0.store(role as u8, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> Role {
        [Role::Standby, Role::Starting, Role::Leading]
            .into_iter()
            .find(|r| *r as u8 == self.0.load(Ordering::Relaxed))
            .unwrap_or(Role::Stopping)
    }
}

/// What the handlers read.
#[derive(Clone)]
pub struct Served {
    /// The picture; empty on a standby.
    pub cluster: Arc<Cluster>,
    /// Metrics of this process.
    pub metrics: Arc<Metrics>,
    /// What this process is.
    pub role: Arc<RoleCell>,
    /// Why placement decided as it did, for the last pods.
    pub explanations: Explanations,
}

/// Connections that are still open this long after `stop` are dropped.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, served: Served, stop: CancellationToken) -> std::io::Result<()> {
    let server = axum::serve(listener, router(served)).with_graceful_shutdown(stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = async { server.await } => ended,
        () = drained => Ok(()),
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/explain", get(explain_all))
        .route("/explain/{namespace}/{pod}", get(explain_one))
        .route("/nodes", get(all_nodes))
        .with_state(served)
}

async fn readyz(State(served): State<Served>) -> Response {
    match served.role.get() {
        Role::Standby => (StatusCode::OK, "standby").into_response(),
        Role::Leading => (StatusCode::OK, "leading").into_response(),
        Role::Starting => (StatusCode::SERVICE_UNAVAILABLE, "leading, not serving agents yet").into_response(),
        Role::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping").into_response(),
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    let text = served.metrics.encode(&served.cluster.read(), Instant::now());
    let kind = (
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    );
    match text {
        Ok(text) => ([kind], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn explain_all(State(served): State<Served>) -> Response {
    leading(&served).unwrap_or_else(|| Json(explain::all(&served.cluster.read())).into_response())
}

async fn explain_one(State(served): State<Served>, Path((namespace, pod)): Path<(String, String)>) -> Response {
    if let Some(refused) = leading(&served) {
        return refused;
    }
    let outcome = explain::one(&served.cluster.read(), &namespace, &pod);
    let decision = served.explanations.explain(&namespace, &pod);
    match (outcome, decision) {
        (Some(outcome), decision) => Json(json!({"outcome": outcome, "decision": decision})).into_response(),
        // Finished or deleted since; what was decided is still worth telling.
        (None, Some(decision)) => Json(json!({"outcome": null, "decision": decision})).into_response(),
        (None, None) => {
            let error = format!("no unfinished pod {namespace}/{pod} is known");
            (StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response()
        }
    }
}

async fn all_nodes(State(served): State<Served>) -> Response {
    leading(&served).unwrap_or_else(|| Json(nodes::all(&served.cluster.read(), Instant::now())).into_response())
}

/// A standby has no picture: its answer would be wrong rather than empty.
fn leading(served: &Served) -> Option<Response> {
    match served.role.get() {
        Role::Starting | Role::Leading => None,
        Role::Standby | Role::Stopping => {
            let error = "this replica does not lead; ask the pod labelled berth.dev/leader=true";
            Some((StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": error}))).into_response())
        }
    }
}
