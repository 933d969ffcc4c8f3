//! Watches of the API server, each break of which is told and counted.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;

/// Watches objects of a kind for ever. A watch that breaks is taken up again, later with each failure in a row; its error is told and counted
/// here, and passed on for nobody to do anything about.
pub fn watch<K>(
    api: Api<K>,
    config: Config,
    kind: &'static str,
    metrics: &Arc<Metrics>,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    metrics.watch_begins(kind);
    let metrics = metrics.clone();
    watch_stream(api, config).default_backoff().inspect_err(move |error| {
        metrics.watch_broke(kind);
        tracing::warn!(%error, watch = kind, "watch broke; it is taken up again");
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::http::{Request, Response};
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::client::Body;

    use super::*;
    use crate::cluster::Picture;

    /// Lists nothing, and answers a watch, or the list itself, with this status.
    fn answering(code: u16, to_watch: bool) -> Client {
        let server = tower::service_fn(move |request: Request<Body>| async move {
            let is_watch = request.uri().query().is_some_and(|q| q.contains("watch=true"));
            let failure = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "x", "message": "no", "code": code});
            let (code, body) = match (is_watch, to_watch) {
                // Out of date: the answer is well, and what it brings is not.
                (true, true) if code == 410 => (200, serde_json::json!({"type": "ERROR", "object": failure})),
                (false, true) => {
                    let list = serde_json::json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
                    (200, list)
                }
                _ => (code, failure),
            };
            let mut text = body.to_string();
            text.push('\n');
            anyhow::Ok(Response::builder().status(code).body(Body::from(text.into_bytes()))?)
        });
        Client::new(server, "ns")
    }

    #[tokio::test]
    async fn every_break_is_counted() {
        for (what, code, to_watch) in [
            ("a list that is refused", 403, false),
            ("a list that fails", 500, false),
            ("a watch that is refused", 403, true),
            ("a watch that is out of date", 410, true),
        ] {
            let metrics = Arc::new(Metrics::default());
            let api = Api::<ConfigMap>::all(answering(code, to_watch));
            let mut stream = std::pin::pin!(watch(api, Config::default(), "ConfigMap", &metrics));
            let count = || {
                let text = metrics.encode(&Picture::default(), Instant::now()).unwrap();
                let line = text
                    .lines()
                    .find(|l| l.starts_with("berth_controller_watch_errors_total{"));
                line.map(str::to_owned)
            };
            let line = |n: u32| Some(format!("berth_controller_watch_errors_total{{kind=\"ConfigMap\"}} {n}"));
            assert_eq!(count(), line(0), "{what}: known before it breaks");
            while stream.next().await.is_some_and(|event| event.is_ok()) {}
            assert_eq!(count(), line(1), "{what}");
        }
    }
}
