//! What KEDA is told: which backlog the workers are scaled by, and with which token to ask for it.

use berth_crds::youxam::keys;
use serde_json::{Value, json};

use crate::kinds::aimodel::validate::Validated;
use crate::kinds::children::Kind;

/// Fewest workers.
const MIN_REPLICAS: i32 = 1;
/// Seconds between two looks at the backlog.
const POLLING_INTERVAL: i32 = 5;

/// The ScaledObject; `None`: nothing to scale by.
pub fn scaled_object(model: &Validated) -> Option<Value> {
    let scaling = model.scaling.as_ref()?;
    let name = keys::scaled_object(&model.name);
    let mut trigger = json!({"type": "pulsar", "metadata": {
        "adminURL": scaling.admin_url.as_ref()?,
        "topic": format!("persistent://public/default/model-{}", model.model),
        "subscription": format!("model-{}-subscription", model.model),
        "msgBacklogThreshold": scaling.threshold.to_string(),
    }});
    if needs_token(model) {
        trigger["metadata"]["authModes"] = "bearer".into();
        trigger["authenticationRef"] = json!({"name": name});
    }
    Some(json!({
        "apiVersion": Kind::ScaledObject.resource().api_version,
        "kind": Kind::ScaledObject.as_str(),
        "metadata": {"name": name, "namespace": model.namespace},
        "spec": {
            "scaleTargetRef": {"name": keys::deployment(&model.name)},
            "minReplicaCount": MIN_REPLICAS,
            "pollingInterval": POLLING_INTERVAL,
            "triggers": [trigger],
        },
    }))
}

/// The TriggerAuthentication: KEDA takes the token from where the workers have it, so that it is written nowhere else.
pub fn trigger_authentication(model: &Validated) -> Option<Value> {
    model.scaling.as_ref()?.admin_url.as_ref()?;
    needs_token(model).then(|| {
        json!({
            "apiVersion": Kind::TriggerAuthentication.resource().api_version,
            "kind": Kind::TriggerAuthentication.as_str(),
            "metadata": {"name": keys::scaled_object(&model.name), "namespace": model.namespace},
            "spec": {"env": [{"parameter": "bearerToken", "name": "PULSAR_TOKEN", "containerName": model.name}]},
        })
    })
}

fn needs_token(model: &Validated) -> bool {
    !model.pulsar_token.is_empty()
}
