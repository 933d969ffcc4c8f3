//! The workers' pod template.

use berth_crds::youxam::keys;
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec, PodTemplateSpec, SecretKeySelector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::selector;
use crate::kinds::aimodel::validate::{Text, Validated};

/// The template; `account_made`: when the ServiceAccount was made. Tokens are bound to one ServiceAccount: the pods of one that was deleted
/// and made anew have to be made anew too, once.
pub fn template(model: &Validated, account_made: &str) -> PodTemplateSpec {
    let mut labels = model.labels.clone();
    labels.extend(selector(&model.name));
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some([(keys::SERVICE_ACCOUNT_SEEN.to_owned(), account_made.to_owned())].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: model.name.clone(),
                image: Some(model.image.clone()),
                env: Some(env(model)),
                ..Container::default()
            }],
            service_account_name: Some(keys::service_account(&model.name)),
            node_selector: (!model.node_selector.is_empty()).then(|| model.node_selector.clone()),
            ..PodSpec::default()
        }),
    };
    if let Some(gpus) = &model.gpus {
        gpus.put_on(&mut template, &model.name, &model.gpu_tolerations);
    }
    template
}

/// In the order of the original; all of them always, since workers read them without asking whether they are set.
fn env(model: &Validated) -> Vec<EnvVar> {
    vec![
        plain("NODE_TYPE", &model.node_type),
        plain("MODEL_NAME", &model.model),
        plain("API_URL", &model.base_url),
        text("API_KEY", &model.api_key),
        plain("MAX_PROCESS_NUM", &model.max_process_num.to_string()),
        plain("PULSAR_URL", &model.pulsar_url),
        text("PULSAR_TOKEN", &model.pulsar_token),
        plain("RES_TOPIC_NAME", &model.res_topic_name),
        plain("AIMODEL_NAME", &model.name),
        EnvVar {
            name: "AIMODEL_NAMESPACE".into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.namespace".into(),
                    api_version: None,
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        },
    ]
}

fn plain(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.into()),
        ..EnvVar::default()
    }
}

fn text(name: &str, text: &Text) -> EnvVar {
    match text {
        Text::Plain(value) => plain(name, value),
        Text::Secret(secret) => EnvVar {
            name: name.into(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: secret.name.clone(),
                    key: secret.key.clone(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        },
    }
}
