//! Secret and ConfigMap on the API server.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use berth_crds::names::{self, managers};

use super::material::{Material, keys};
use super::plan::Stored;
use crate::args::Settings;

/// A call that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("{object}: {source}")]
pub struct StoreError {
    object: String,
    source: kube::Error,
}

/// Resource version of the Secret that was read; `None`: there was none.
pub type Version = Option<String>;

/// The two objects.
pub struct Store {
    secrets: Api<Secret>,
    secret: String,
    config_maps: Api<ConfigMap>,
    config_map: String,
}

impl Store {
    /// As the settings name them.
    pub fn new(client: Client, settings: &Settings) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            secret: settings.trust_secret.clone(),
            config_maps: Api::namespaced(client, &settings.namespace),
            config_map: settings.ca_config_map.clone(),
        }
    }

    /// Name of the Secret.
    pub fn secret_name(&self) -> &str {
        &self.secret
    }

    /// Reads and judges the Secret.
    pub async fn read(&self, names: &[String], now: Timestamp) -> Result<(Stored, Version), StoreError> {
        let Some(secret) = self
            .secrets
            .get_opt(&self.secret)
            .await
            .map_err(|e| self.on_secret(e))?
        else {
            return Ok((Stored::Missing, None));
        };
        let stored = match Material::from_data(&secret.data.unwrap_or_default(), names, now) {
            Ok(material) => Stored::Good(Box::new(material)),
            Err(damage) => Stored::Damaged(damage),
        };
        Ok((stored, Some(secret.metadata.resource_version.unwrap_or_default())))
    }

    /// Writes the Secret; fails where it is not as it was read.
    pub async fn write(&self, material: &Material, read: Version) -> Result<(), StoreError> {
        let data = material.to_data();
        match read {
            None => {
                let data = data.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
                let secret = Secret {
                    metadata: metadata(&self.secret),
                    data: Some(data),
                    ..Secret::default()
                };
                self.secrets.create(&post_params(), &secret).await
            }
            Some(version) => {
                let data: BTreeMap<&str, Value> = keys::ALL.iter().map(|k| (*k, json!(data.get(k)))).collect();
                let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
                self.secrets
                    .patch(&self.secret, &patch_params(), &Patch::Merge(patch))
                    .await
            }
        }
        .map(drop)
        .map_err(|e| self.on_secret(e))
    }

    /// Publishes the CAs; whether anything had to be written.
    pub async fn publish(&self, authorities: &str) -> Result<bool, StoreError> {
        let failed = |source| StoreError {
            object: format!("ConfigMap {}", self.config_map),
            source,
        };
        let data = BTreeMap::from([(keys::CA_CERTIFICATE.to_owned(), authorities.to_owned())]);
        match self.config_maps.get_opt(&self.config_map).await.map_err(failed)? {
            Some(found)
                if found.data.as_ref().and_then(|d| d.get(keys::CA_CERTIFICATE)) == data.get(keys::CA_CERTIFICATE) =>
            {
                return Ok(false);
            }
            Some(_) => {
                let patch = Patch::Merge(json!({"data": data}));
                self.config_maps
                    .patch(&self.config_map, &patch_params(), &patch)
                    .await
                    .map_err(failed)?;
            }
            None => {
                let config_map = ConfigMap {
                    metadata: metadata(&self.config_map),
                    data: Some(data),
                    ..ConfigMap::default()
                };
                self.config_maps
                    .create(&post_params(), &config_map)
                    .await
                    .map_err(failed)?;
            }
        }
        tracing::info!(config_map = self.config_map, "CA of the agent link published");
        Ok(true)
    }

    fn on_secret(&self, source: kube::Error) -> StoreError {
        StoreError {
            object: format!("Secret {}", self.secret),
            source,
        }
    }
}

fn metadata(name: &str) -> ObjectMeta {
    let labels = [
        ("app.kubernetes.io/name", "berth"),
        ("app.kubernetes.io/part-of", "berth"),
        (names::MANAGED_BY, names::MANAGED_BY_BERTH),
    ];
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        ..ObjectMeta::default()
    }
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(managers::CONTROLLER.into()),
        ..PatchParams::default()
    }
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(managers::CONTROLLER.into()),
        ..PostParams::default()
    }
}
