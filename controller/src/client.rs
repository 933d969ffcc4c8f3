//! One Kubernetes client with two temperaments: a request must answer soon or fail, a watch may be silent for minutes.

use std::time::Duration;

use kube::client::Body;
use kube::{Client, Config};

/// Bytes of an answer must keep coming at least this often; without it a dead connection would hold a call for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// A request has its answer's head after this time, all of kube's own retries (429, 503, 504) included, or it has failed.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// The API server's address and our credentials could not be made out.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error("no Kubernetes configuration: {0}")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("the Kubernetes configuration cannot be used: {0}")]
    Client(#[source] kube::Error),
}

/// A client as KUBECONFIG or the pod's ServiceAccount say. Everybody may watch through it: watches take a road of their own, without a
/// read timeout (kube's watcher has its own idle timeout).
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer().await.map_err(ConnectError::Config)?;
    let mut for_requests = config.clone();
    for_requests.read_timeout = Some(READ_TIMEOUT);
    // Else the time that a pooled connection was idle counts against the next answer on it.
    for_requests.reset_reader_on_write = true;
    let namespace = config.default_namespace.clone();
    let requests = Client::try_from(for_requests).map_err(ConnectError::Client)?;
    let watches = Client::try_from(config).map_err(ConnectError::Client)?;
    let route = tower::service_fn(move |request: axum::http::Request<Body>| {
        let (requests, watches) = (requests.clone(), watches.clone());
        async move {
            if is_watch(request.uri().query()) {
                return watches.send(request).await.map_err(tower::BoxError::from);
            }
            let what = format!("{} {}", request.method(), request.uri().path());
            match tokio::time::timeout(REQUEST_DEADLINE, requests.send(request)).await {
                Ok(answer) => answer.map_err(tower::BoxError::from),
                Err(_) => Err(format!("{what} had no answer within {REQUEST_DEADLINE:?}").into()),
            }
        }
    });
    Ok(Client::new(route, namespace))
}

/// Whether a request's query asks for a watch.
fn is_watch(query: Option<&str>) -> bool {
    query.is_some_and(|q| q.split('&').any(|p| matches!(p, "watch=true" | "watch=1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_told_from_requests() {
        assert!(is_watch(Some("&watch=true&timeoutSeconds=290")));
        assert!(is_watch(Some("limit=5&watch=true")));
        assert!(!is_watch(Some("limit=500")));
        assert!(!is_watch(Some("fieldSelector=watch%3Dtrue")));
        assert!(!is_watch(None));
    }
}
