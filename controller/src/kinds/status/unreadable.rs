//! An object that the API server took and our types cannot read: its author is told which field it is, as with any other mistake.
//!
//! The watch keeps only such an object's metadata, so it is read again as it is. Nothing else of it is touched: what an earlier spec made
//! keeps running, and the status keeps what it told of it.

use berth_crds::conditions::{self, Desired, Reason, Status, Type};
use berth_crds::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, ListParams, Patch, PatchParams};
use kube::core::{DynamicObject, NamespaceResourceScope};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{notices, tell};
use crate::cluster::ObjectKey;
use crate::context::Context;
use crate::kinds::children::apply::timed;
use crate::kinds::error::Error;

/// A kind, as far as it has a say in this.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name, as in manifests.
    pub name: &'static str,
    /// Field manager of its status.
    pub manager: &'static str,
    /// Puts into a status, beside the condition, what the kind has of its own for a spec that cannot be carried out, by its message.
    pub own_fields: fn(&mut Map<String, Value>, &str),
}

/// Tells in the status, and by an Event, which field of an object cannot be read.
pub async fn report<K>(context: &Context, kind: Kind, key: &ObjectKey) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned,
{
    let (namespace, name) = key;
    let resource = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    let what = (kind.name, namespace.as_str(), name.as_str());
    // A list of one: the right to list is there for the watch.
    let one = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = timed("read", what, api.list(&one)).await?.items.pop();
    let Some(object) = found.filter(|o| o.metadata.deletion_timestamp.is_none()) else {
        return Ok(());
    };
    let raw = serde_json::to_value(&object).unwrap_or_default();
    let (Some(message), false) = (why::<K>(&raw), object.annotations().contains_key(names::PAUSED)) else {
        // Corrected meanwhile: the watch is about to show it. Or nobody wants to hear of it.
        return Ok(());
    };
    tracing::warn!(kind = kind.name, namespace, name, message, "an object cannot be read");
    let before = raw
        .get("status")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let old = conditions_of(&before);
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let (status, new) = status(&before, kind, &message, object.metadata.generation, now);
    if status == before {
        return Ok(());
    }
    let body = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "uid": object.metadata.uid},
        "status": status,
    });
    let params = PatchParams::apply(kind.manager).force();
    let patch = Patch::Apply(&body);
    timed("write status of", what, api.patch_status(name, &params, &patch)).await?;
    let reference: ObjectReference = object.object_ref(&resource);
    tell(&context.events, &reference, notices(&old, &new));
    Ok(())
}

/// Which field cannot be read, and why; `None`: all can be.
fn why<K: DeserializeOwned>(raw: &Value) -> Option<String> {
    let error = serde_path_to_error::deserialize::<_, K>(raw).err()?;
    let path = error.path().to_string();
    Some(format!("{path}: cannot be read: {}; correct it", error.inner()))
}

/// The status with `Accepted` put as it is, and all else left as it was; and its conditions.
fn status(
    before: &Map<String, Value>,
    kind: Kind,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> (Map<String, Value>, Vec<Condition>) {
    let old = conditions_of(before);
    let accepted = Desired::new(Type::Accepted, Status::False, Reason::InvalidSpec, message);
    let mut new = conditions::merge(&old, std::slice::from_ref(&accepted), generation, now);
    new.extend(old.into_iter().filter(|c| c.type_ != Type::Accepted.as_str()));
    let mut status = before.clone();
    status.insert("conditions".into(), json!(new));
    (kind.own_fields)(&mut status, &accepted.message);
    (status, new)
}

/// The conditions that can be read.
fn conditions_of(status: &Map<String, Value>) -> Vec<Condition> {
    let all = status.get("conditions").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|c| serde_json::from_value(c.clone()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use berth_crds::premlabs::{AIDeployment, AutoNodeLabeler};

    use super::*;

    const KIND: Kind = Kind {
        name: "AIDeployment",
        manager: "test",
        own_fields: |status, message| {
            status.insert("errMsg".into(), message.into());
        },
    };

    fn object(spec: Value) -> Value {
        json!({"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "metadata": {"name": "m"}, "spec": spec})
    }

    #[test]
    fn the_field_is_named() {
        let why = |spec| why::<AIDeployment>(&object(spec)).unwrap_or_default();
        for (spec, path) in [
            (
                json!({"deployment": {"replicas": "many"}}),
                "spec.deployment.replicas: ",
            ),
            (
                json!({"deployment": {"replicas": 1_i64 << 40}}),
                "spec.deployment.replicas: ",
            ),
            (
                json!({"deployment": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": "x"}]}]}}}}),
                "spec.deployment.template.spec.containers[1].ports[0].containerPort: ",
            ),
            (json!({"env": [{"value": "x", "name": 3}]}), "spec.env[0].name: "),
            (
                json!({"deployment": {"labels": {"a": 1}}}),
                "spec.deployment.labels.a: ",
            ),
            (json!({"models": [null]}), "spec.models[0]: "),
        ] {
            let said = why(spec);
            assert!(said.starts_with(path), "{said}");
        }
        assert_eq!(why(json!({"deployment": {"resources": {"limits": {"cpu": 2}}}})), "");
        let rule = json!({"metadata": {}, "spec": {"matchExpression": {"values": [1]}}});
        let said = super::why::<AutoNodeLabeler>(&rule).unwrap_or_default();
        assert!(said.starts_with("spec.matchExpression.values[0]: "), "{said}");
    }

    #[test]
    fn the_status_keeps_what_it_told_and_settles() {
        let now = Timestamp::from_second(5).unwrap();
        let available = json!({"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "",
            "lastTransitionTime": "1970-01-01T00:00:01Z", "observedGeneration": 1});
        let before = json!({"readyReplicas": 1, "conditions": [available, {"nobody": "can read this"}]});
        let before = before.as_object().unwrap();
        let (first, conditions) = status(before, KIND, "spec.x: bad", Some(2), now);
        assert_eq!(
            (&first["readyReplicas"], &first["errMsg"]),
            (&json!(1), &json!("spec.x: bad"))
        );
        let told: Vec<_> = conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str()))
            .collect();
        assert_eq!(told, [("Accepted", "False"), ("Available", "True")]);
        let (again, _) = status(&first, KIND, "spec.x: bad", Some(2), Timestamp::from_second(9).unwrap());
        assert_eq!(again, first);
    }
}
