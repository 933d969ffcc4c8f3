//! Validated model + what was observed → the children as they should be. Pure.

mod pod;
mod scaling;

use std::collections::BTreeMap;

use berth_crds::youxam::keys;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::Value;

use super::fetch::Observed;
use super::validate::Validated;

/// Group of Roles.
const RBAC: &str = "rbac.authorization.k8s.io";

/// The children of one AIModel.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    /// Who the workers are.
    pub service_account: ServiceAccount,
    /// What lets them report errors.
    pub role: Role,
    /// That for them.
    pub role_binding: RoleBinding,
    /// The workers; absent as long as their ServiceAccount is not there.
    pub deployment: Option<Deployment>,
    /// How KEDA gets at the backlog; absent where that takes no token.
    pub trigger_authentication: Option<Value>,
    /// What KEDA scales the workers by.
    pub scaled_object: Option<Value>,
}

/// The children as they should be; `is_healthy`: no worker has reported an error since the spec was changed.
pub fn build(model: &Validated, observed: &Observed, is_healthy: bool) -> Children {
    let is_scaled = is_healthy && observed.keda;
    Children {
        service_account: ServiceAccount {
            metadata: metadata(model, keys::service_account(&model.name)),
            ..ServiceAccount::default()
        },
        role: role(model),
        role_binding: role_binding(model),
        deployment: deployment(model, observed),
        trigger_authentication: is_scaled.then(|| scaling::trigger_authentication(model)).flatten(),
        scaled_object: is_scaled.then(|| scaling::scaled_object(model)).flatten(),
    }
}

/// Whether others own the number of workers, as soon as there are any: KEDA, or an autoscaler of the user's. That workers failed changes
/// nothing: the number stays what it is.
pub fn is_driven(model: &Validated, observed: &Observed) -> bool {
    let by_keda = observed.keda && model.scaling.as_ref().is_some_and(|s| s.admin_url.is_some());
    by_keda || observed.autoscaler.is_some()
}

/// Workers report errors as Events, and nothing else is granted to them.
fn role(model: &Validated) -> Role {
    Role {
        metadata: metadata(model, keys::role(&model.name)),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["events".into()]),
            verbs: ["create", "patch", "update"].map(str::to_owned).into(),
            ..PolicyRule::default()
        }]),
    }
}

fn role_binding(model: &Validated) -> RoleBinding {
    RoleBinding {
        metadata: metadata(model, keys::role_binding(&model.name)),
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: keys::service_account(&model.name),
            namespace: Some(model.namespace.clone()),
            api_group: None,
        }]),
        role_ref: RoleRef {
            api_group: RBAC.into(),
            kind: "Role".into(),
            name: keys::role(&model.name),
        },
    }
}

fn deployment(model: &Validated, observed: &Observed) -> Option<Deployment> {
    let service_account = observed.service_account.as_ref()?;
    let made = service_account.object["metadata"]["creationTimestamp"].as_str()?;
    let leaves_number = observed.deployment.is_some() && is_driven(model, observed);
    Some(Deployment {
        metadata: metadata(model, keys::deployment(&model.name)),
        spec: Some(DeploymentSpec {
            replicas: (!leaves_number).then_some(model.replicas),
            selector: LabelSelector {
                match_labels: Some(selector(&model.name)),
                ..LabelSelector::default()
            },
            template: pod::template(model, made),
            ..DeploymentSpec::default()
        }),
        status: None,
    })
}

/// What finds the pods.
fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(keys::SELECTOR.to_owned(), name.to_owned())])
}

fn metadata(model: &Validated, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(model.namespace.clone()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
