//! The pod template.

use berth_crds::names;
use berth_crds::premlabs::keys;
use k8s_openapi::api::core::v1::{PodTemplateSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use sha2::{Digest, Sha256};

use super::engines::ConfigFile;
use super::{node_affinity, selector};
use crate::kinds::aideployment::validate::{Placing, Validated};
use crate::kinds::workload::gpus::{gate, tolerate};

/// The template of all pods.
pub fn template(model: &Validated) -> PodTemplateSpec {
    let mut spec = model.base.clone();
    let mut labels = model.pod_labels.clone();
    let mut annotations = model.pod_annotations.clone();
    let serving = &model.serving;

    match serving.replaces.and_then(|at| spec.containers.get_mut(at)) {
        Some(container) => *container = serving.container.clone(),
        None => spec.containers.push(serving.container.clone()),
    }
    spec.init_containers
        .get_or_insert_default()
        .extend(serving.init_containers.clone());
    let volumes = spec.volumes.get_or_insert_default();
    for volume in &serving.volumes {
        if !volumes.iter().any(|v| v.name == volume.name) {
            volumes.push(volume.clone());
        }
    }
    if !serving.image_pull_secrets.is_empty() && spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
        spec.image_pull_secrets = Some(serving.image_pull_secrets.clone());
    }
    spec.automount_service_account_token = Some(false);
    spec.node_selector = Some(model.node_selector.clone());
    if model.needs_nvidia_runtime {
        spec.runtime_class_name
            .get_or_insert_with(|| names::NVIDIA_RUNTIME_CLASS.into());
    }
    if model.uses_gpus {
        tolerate(&mut spec, &model.gpu_tolerations);
    }

    // A label of any value is the original's way to opt out.
    if !labels.contains_key(keys::SPREAD_TOPOLOGY) {
        labels.insert(keys::SPREAD_TOPOLOGY.into(), keys::SPREAD_TOPOLOGY_VALUE.into());
        spec.topology_spread_constraints.get_or_insert_default().push(spread());
    }
    // Last: without it the selector would not find the pods.
    labels.extend(selector(&model.name));

    if let Some(hash) = config_hash(&serving.config_files) {
        annotations.insert(names::CONFIG_HASH.into(), hash);
    }
    match &model.placing {
        Placing::Unmanaged => {}
        Placing::Managed(asked) => {
            gate(&mut spec);
            annotations.extend(asked.clone());
        }
        Placing::Scheduler { classes, capability } => node_affinity::require(&mut spec, classes, *capability),
    }
    if let Some(version) = model.rather_capability {
        node_affinity::prefer_capability(&mut spec, version);
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// A running pod does not see that its files changed: their hash in the template makes new pods. Without files there is none, so that the
/// template is the original's.
fn config_hash(files: &[ConfigFile]) -> Option<String> {
    let mut hash = Sha256::new();
    for part in files.iter().flat_map(|f| [&f.key, &f.text]) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    // Half of it is far more than enough to tell versions apart.
    (!files.is_empty()).then(|| digest[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn spread() -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(LabelSelector {
            match_labels: Some([(keys::SPREAD_TOPOLOGY.into(), keys::SPREAD_TOPOLOGY_VALUE.into())].into()),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    }
}
