//! The pods: one that downloads, and those that serve.

use std::collections::BTreeMap;

use berth_crds::tmforum::keys;
use berth_crds::tmforum::mlmodel::AccessMode;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, PersistentVolumeClaimVolumeSource,
    PodAffinity, PodAffinityTerm, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile, SecurityContext,
    TCPSocketAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kinds::mlmodel::download::{MOUNT, SCRIPT};
use crate::kinds::mlmodel::validate::{MODELS, Validated};

/// Who downloads, and whose the volume's files are: nobody in particular. The servers may read them, whoever they are.
const NOBODY: i64 = 65532;

/// The pod that downloads; `beside`: labels of pods that hold the volume.
pub fn download(
    model: &Validated,
    labels: BTreeMap<String, String>,
    beside: Option<&BTreeMap<String, String>>,
) -> PodTemplateSpec {
    let env = model.download.env();
    let container = Container {
        name: keys::download_container(&model.name),
        image: Some(model.download_image.clone()),
        command: Some(vec!["/bin/sh".into(), "-c".into()]),
        args: Some(vec![SCRIPT.into()]),
        env: Some(variables(env.into_iter())),
        volume_mounts: Some(vec![mount(MOUNT)]),
        // The last lines tell why it failed.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let shares_a_volume = model.access_mode == AccessMode::ReadWriteOnce;
    let spec = PodSpec {
        affinity: beside.filter(|_| shares_a_volume).map(on_one_node),
        restart_policy: Some("OnFailure".into()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(NOBODY),
            run_as_group: Some(NOBODY),
            fs_group: Some(NOBODY),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..pod(model, container)
    };
    template(labels, spec)
}

/// A pod that serves.
pub fn server(model: &Validated, labels: BTreeMap<String, String>) -> PodTemplateSpec {
    let start = &model.start;
    let port = i32::from(model.port);
    let container = Container {
        name: keys::SERVER_CONTAINER.into(),
        image: Some(model.image.clone()),
        command: Some(start.command.iter().map(|c| (*c).to_owned()).collect()),
        args: Some(start.args.iter().map(|arg| literal(arg)).collect()),
        env: Some(variables(start.env.clone().into_iter())),
        ports: Some(vec![ContainerPort {
            container_port: port,
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            http_get: start.ready.as_ref().map(|path| HTTPGetAction {
                path: Some(path.clone()),
                port: IntOrString::Int(port),
                ..HTTPGetAction::default()
            }),
            tcp_socket: start.ready.is_none().then_some(TCPSocketAction {
                port: IntOrString::Int(port),
                host: None,
            }),
            ..Probe::default()
        }),
        volume_mounts: Some(vec![mount(MODELS)]),
        ..Container::default()
    };
    let shares_a_node = model.replicas > 1 && model.access_mode == AccessMode::ReadWriteOnce;
    let spec = PodSpec {
        affinity: shares_a_node.then(|| on_one_node(&labels)),
        ..pod(model, container)
    };
    let mut template = template(labels, spec);
    if let Some(wish) = &model.gpus {
        wish.put_on(&mut template, keys::SERVER_CONTAINER, &model.gpu_tolerations);
    }
    template
}

fn template(labels: BTreeMap<String, String>, spec: PodSpec) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn pod(model: &Validated, container: Container) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        containers: vec![container],
        volumes: Some(vec![Volume {
            name: keys::VOLUME.into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: keys::claim(&model.name),
                read_only: None,
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn mount(path: &str) -> VolumeMount {
    VolumeMount {
        name: keys::VOLUME.into(),
        mount_path: path.into(),
        ..VolumeMount::default()
    }
}

/// A volume of which one node has hold: the others could not start elsewhere.
fn on_one_node(labels: &BTreeMap<String, String>) -> Affinity {
    Affinity {
        pod_affinity: Some(PodAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![PodAffinityTerm {
                topology_key: "kubernetes.io/hostname".into(),
                label_selector: Some(LabelSelector {
                    match_labels: Some(labels.clone()),
                    ..LabelSelector::default()
                }),
                ..PodAffinityTerm::default()
            }]),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

fn variables(env: impl Iterator<Item = (&'static str, String)>) -> Vec<EnvVar> {
    env.map(|(name, value)| EnvVar {
        name: name.into(),
        value: Some(literal(&value)),
        value_from: None,
    })
    .collect()
}

/// Kubernetes replaces `$(NAME)` in values and arguments; nothing in a name or an address means that.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}
