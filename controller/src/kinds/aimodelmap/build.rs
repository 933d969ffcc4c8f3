//! Validated map → its ConfigMap as it should be. Pure.

use std::collections::BTreeMap;

use berth_crds::premlabs::keys;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::validate::Validated;

/// The ConfigMap; none where no variant has a configuration file.
pub fn build(map: &Validated) -> Option<ConfigMap> {
    let named = BTreeMap::from([(keys::AI_MODEL_MAP.to_owned(), map.name.clone())]);
    (!map.files.is_empty()).then(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(map.name.clone()),
            namespace: Some(map.namespace.clone()),
            labels: Some(named.clone()),
            annotations: Some(named),
            ..ObjectMeta::default()
        },
        data: Some(map.files.clone()),
        ..ConfigMap::default()
    })
}
