//! LocalAI: any number of models, each a name that it knows, a file to download, or a configuration file.

use std::collections::BTreeSet;

use berth_crds::premlabs::aimodelmap::VariantList;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, EmptyDirVolumeSource, KeyToPath, Probe, ProjectedVolumeSource, Volume, VolumeMount,
    VolumeProjection,
};

use super::download::{InitContainers, MODELS, Script, checked_uri, is_http, variable};
use super::names::Names;
use super::{Asked, ConfigFile, Engine, ModelField, Probes, Serving, config_map_name, http_probe};
use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::status::problems::Findings;

/// Port of the server in the image.
const PORT: u16 = 8080;
/// Where the init container finds the configuration files.
const CONFIGS: &str = "/configs";
/// Tells the server where its models are.
const MODELS_PATH: &str = "MODELS_PATH";
/// Bytes that fit into a ConfigMap, with room for the rest of the object.
const MOST_CONFIG: usize = 1_000_000;

/// LocalAI.
pub const ENGINE: Engine = Engine {
    name: "localai",
    options: &["imageRepository", "imageTag"],
    model_fields: &[ModelField::Uri, ModelField::EngineConfigFile],
    variants: Some(VariantList::LocalAi),
    read,
};

fn read(asked: &Asked<'_>, findings: &mut Findings) -> Option<Serving> {
    let spec = asked.spec;
    let mut serving = Serving::on_port(PORT, spec, findings).on_template(spec);
    serving.image(asked, ENGINE.name, "quay.io/go-skynet/local-ai", "latest");
    serving.probes(probes());
    // Memory, as in the original: it counts against the container's limit.
    serving.with_volume(empty_dir("models", Some("Memory")), MODELS);
    serving.volumes.push(empty_dir("cache", None));
    serving.env = vec![variable(MODELS_PATH, MODELS)];
    let given = spec.env.iter().find(|v| v.name == MODELS_PATH);
    if given.is_some_and(|v| v.value.as_deref() != Some(MODELS)) {
        findings.ignored(
            format_args!("spec.env[{MODELS_PATH}]"),
            format_args!("the models are in {MODELS}"),
        );
    }

    let mut args = Vec::new();
    let mut init = InitContainers::new(asked, &serving);
    let mut configs = Configs::default();
    for model in asked.models {
        if let Some(text) = &model.engine_config_file {
            let inline = spec.models.get(model.index).and_then(|m| m.uri.as_deref());
            if inline.is_some_and(|uri| !uri.trim().is_empty()) {
                findings.ignored(
                    format_args!("{}.uri", model.path()),
                    "the model's configuration file says what to serve",
                );
            }
            configs.add(model, text);
            continue;
        }
        match checked_uri(model, findings) {
            Some(uri) if is_http(uri) => {
                init.download(&format!("init-models-{}", asked.name), Script::LocalAi, model, uri);
            }
            Some(uri) => args.push(uri.to_owned()),
            None => {}
        }
    }
    if !configs.files.is_empty() {
        configs.check(asked, findings);
        let container = init.run(
            &format!("init-configs-{}", asked.name),
            Script::LocalAiConfigs,
            Vec::new(),
        );
        container.volume_mounts.get_or_insert_default().insert(
            0,
            VolumeMount {
                name: "configs".into(),
                mount_path: CONFIGS.into(),
                ..VolumeMount::default()
            },
        );
        serving.volumes.push(configs.volume(asked.name));
        serving.config_files = configs.files;
    }
    serving.args(args);
    serving.init_containers = init.into_containers();
    Some(serving)
}

fn probes() -> Probes {
    Probes {
        startup: Probe {
            initial_delay_seconds: Some(1),
            period_seconds: Some(10),
            failure_threshold: Some(120),
            ..http_probe("/readyz", PORT)
        },
        readiness: Probe {
            failure_threshold: Some(3),
            ..http_probe("/healthz", PORT)
        },
        liveness: Probe {
            period_seconds: Some(30),
            timeout_seconds: Some(15),
            failure_threshold: Some(10),
            ..http_probe("/healthz", PORT)
        },
    }
}

fn empty_dir(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The configuration files, from the models as they were resolved: so those of inline models, of overrides and of other namespaces' maps are
/// there, which a mount of the maps' own ConfigMaps does not give.
#[derive(Default)]
struct Configs {
    files: Vec<ConfigFile>,
    items: Vec<KeyToPath>,
    keys: Names,
    paths: Names,
    /// Models by what they would be called, and text: the same twice is one file.
    seen: BTreeSet<(String, String, String)>,
}

impl Configs {
    /// Maps may have variants of one name, and one variant may be given twice with different texts: the later file gets a number, as
    /// LocalAI reads every file, whatever its name.
    fn add(&mut self, model: &ResolvedModel, text: &str) {
        let (variant, host) = (&model.variant, &model.hostname);
        if !self.seen.insert((variant.clone(), host.clone(), text.to_owned())) {
            return;
        }
        let key = self.keys.key(&format!("localai-{variant}-engineConfigFile"));
        self.items.push(KeyToPath {
            key: key.clone(),
            path: format!("engine/{}.yaml", self.paths.file(host)),
            mode: None,
        });
        self.files.push(ConfigFile {
            key,
            text: text.to_owned(),
        });
    }

    fn check(&self, asked: &Asked<'_>, findings: &mut Findings) {
        let size: usize = self.files.iter().map(|f| f.key.len() + f.text.len()).sum();
        if size > MOST_CONFIG {
            findings.invalid(
                "spec.models",
                format_args!("the configuration files are {size} bytes together, and a ConfigMap holds {MOST_CONFIG}"),
                "shorten them, or spread the models over more AIDeployments",
            );
        }
        let template = asked.spec.deployment.as_ref().and_then(|d| d.template.as_ref());
        let pod = template.and_then(|t| t.spec.as_ref());
        let mut volumes = pod.into_iter().flat_map(|p| p.volumes.iter().flatten());
        if volumes.any(|v| v.name == "configs") {
            findings.invalid(
                "spec.deployment.template.spec.volumes[configs]",
                "has the name of the volume with the models' configuration files",
                "give it another name",
            );
        }
    }

    fn volume(&self, aideployment: &str) -> Volume {
        Volume {
            name: "configs".into(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: config_map_name(aideployment),
                        items: Some(self.items.clone()),
                        optional: None,
                    }),
                    ..VolumeProjection::default()
                }]),
                default_mode: None,
            }),
            ..Volume::default()
        }
    }
}
