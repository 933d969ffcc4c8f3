//! Kinds whose API a cluster may have, get, or lose: followed while it is there.

use std::time::Duration;

use kube::Client;

use super::Kind;

/// How often it is asked which optional APIs are there: one small request.
const DISCOVERY: Duration = Duration::from_secs(10);
/// Wait after a question that found no answer.
const RETRY: Duration = Duration::from_secs(1);
/// Answers in a row that an API is not there before it is believed of one that was: one of many API servers may have just started.
const GONE_AFTER: u32 = 3;
/// Longest wait for the first list of an optional kind.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Follows the objects of a kind while its API is installed, for ever. `absent`: it is not installed; `ended`: it was, and is no more.
pub async fn while_installed<F: Future<Output = ()>>(
    client: &Client,
    kind: Kind,
    follow: impl Fn() -> F,
    absent: impl Fn(),
    ended: impl Fn(),
) {
    loop {
        match is_installed(client, kind).await {
            None => tokio::time::sleep(RETRY).await,
            Some(false) => {
                absent();
                tokio::time::sleep(DISCOVERY).await;
            }
            Some(true) => {
                tokio::select! {
                    () = follow() => {}
                    () = gone(client, kind) => {}
                }
                ended();
                tokio::time::sleep(DISCOVERY).await;
            }
        }
    }
}

/// Whether the API server serves a kind; `None`: it cannot be told.
async fn is_installed(client: &Client, kind: Kind) -> Option<bool> {
    let resource = kind.resource();
    match client.list_api_group_resources(&resource.api_version).await {
        Ok(list) => Some(list.resources.iter().any(|r| r.name == resource.plural)),
        // Who may not ask may not use it either.
        Err(kube::Error::Api(status)) if [401, 403, 404].contains(&status.code) => Some(false),
        Err(error) => {
            tracing::debug!(%error, kind = kind.as_str(), "cannot tell whether its API is installed");
            None
        }
    }
}

/// Waits until the API server no longer serves a kind.
async fn gone(client: &Client, kind: Kind) {
    let mut in_a_row = 0;
    while in_a_row < GONE_AFTER {
        tokio::time::sleep(DISCOVERY).await;
        in_a_row = match is_installed(client, kind).await {
            Some(false) => in_a_row + 1,
            Some(true) => 0,
            None => in_a_row,
        };
    }
}
