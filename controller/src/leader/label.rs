//! The label that steers the agents' Service to the leader: on this pod, and on no other of the Deployment.

use std::time::Duration;

use berth_crds::names::{self, managers};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

/// Label that the chart puts on all pods of the controller.
const CONTROLLER_PODS: &str = "app.kubernetes.io/component=controller";
/// A label that was edited by hand is repaired within this time.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Pause after a failed look.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the label where it belongs while this process leads. Without a pod (run by hand) there is nothing to label.
pub async fn run(client: Client, namespace: String, pod_name: String) {
    if pod_name.is_empty() {
        tracing::info!("no pod name is given: no leader label is set");
        return std::future::pending().await;
    }
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    loop {
        let pause = match set(&pods, &pod_name).await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(%error, pod = pod_name, "leader label could not be set");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn set(pods: &Api<Pod>, me: &str) -> Result<(), kube::Error> {
    let list = pods
        .list_metadata(&ListParams::default().labels(CONTROLLER_PODS))
        .await?;
    let labelled = list
        .items
        .iter()
        .map(|p| (p.name_any(), p.labels().get(names::LEADER).map(String::as_str)));
    // Others first: for a moment nobody has it rather than two.
    for (pod, want) in changes(labelled, me) {
        let params = PatchParams {
            field_manager: Some(managers::CONTROLLER.into()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({"metadata": {"labels": {names::LEADER: want}}}));
        match pods.patch_metadata(&pod, &params, &patch).await {
            Ok(_) => tracing::info!(
                pod,
                label = names::LEADER,
                value = want.unwrap_or("(none)"),
                "leader label written"
            ),
            Err(kube::Error::Api(s)) if s.is_not_found() && pod != me => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Pods whose label has to become something else; ours last.
fn changes<'a>(
    labelled: impl Iterator<Item = (String, Option<&'a str>)>,
    me: &str,
) -> Vec<(String, Option<&'static str>)> {
    let mut changes = Vec::new();
    let mut mine = None;
    for (pod, value) in labelled {
        if pod == me {
            mine = value;
        } else if value.is_some() {
            changes.push((pod, None));
        }
    }
    if mine != Some("true") {
        changes.push((me.to_owned(), Some("true")));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_leader_carries_the_label() {
        type Case<'a> = (&'a [(&'a str, Option<&'a str>)], &'a [(&'a str, Option<&'a str>)]);
        let cases: &[Case<'_>] = &[
            (&[("a", None), ("b", None)], &[("a", Some("true"))]),
            (&[("a", None), ("b", Some("true"))], &[("b", None), ("a", Some("true"))]),
            (&[("a", Some("true")), ("b", None)], &[]),
            (&[("a", Some("false"))], &[("a", Some("true"))]),
            // Not in the list (its labels differ): still ours to label.
            (&[], &[("a", Some("true"))]),
        ];
        for (pods, want) in cases {
            let got = changes(pods.iter().map(|(p, v)| ((*p).to_owned(), *v)), "a");
            let got: Vec<_> = got.iter().map(|(p, v)| (p.as_str(), *v)).collect();
            assert_eq!(got, *want);
        }
    }
}
