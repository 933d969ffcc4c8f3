//! `/livez`, `/readyz` and `/metrics`. The agent is ready as soon as it runs: having no controller is a state, not unreadiness.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::{Metrics, text};
use crate::picture::Picture;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, picture: Picture) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(scrape))
        .with_state((metrics, picture));
    axum::serve(listener, router).await
}

async fn scrape(State((metrics, picture)): State<(Arc<Metrics>, Picture)>) -> impl IntoResponse {
    ([(CONTENT_TYPE, text::CONTENT_TYPE)], metrics.text(&picture))
}
