//! Models that an init container downloads before the engine starts.
//!
//! The scripts are constants: what differs from model to model comes to them by the environment.

use k8s_openapi::api::core::v1::{Container, EnvVar, VolumeMount};

use super::names::Names;
use super::{Asked, ModelField, Serving, uri};
use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::status::problems::Findings;

/// The directory of models in the images that take downloads.
pub const MODELS: &str = "/models";

const DOWNLOAD: &str = include_str!("scripts/download.sh");

/// What an init container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Brings one file to where LocalAI looks for models.
    LocalAi,
    /// Copies LocalAI's configuration files to its models.
    LocalAiConfigs,
    /// Brings one file into Triton's model repository.
    TritonFile,
    /// Unpacks an archive in Triton's model repository.
    TritonArchive,
}

impl Script {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 4] = [
        Self::LocalAi,
        Self::LocalAiConfigs,
        Self::TritonFile,
        Self::TritonArchive,
    ];

    /// For `sh -c`. Without comments: it is part of the pod template, and a better comment shall not make new pods.
    pub fn text(self) -> String {
        let parts: &[&str] = match self {
            Self::LocalAi => &[DOWNLOAD, include_str!("scripts/localai.sh")],
            Self::LocalAiConfigs => &[include_str!("scripts/localai-configs.sh")],
            Self::TritonFile => &[DOWNLOAD, include_str!("scripts/triton-file.sh")],
            Self::TritonArchive => &[DOWNLOAD, include_str!("scripts/triton-archive.sh")],
        };
        let lines = parts.iter().flat_map(|part| part.lines());
        let code = lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'));
        code.flat_map(|line| [line, "\n"]).collect()
    }
}

/// The init containers of one pod.
pub struct InitContainers {
    engine: Container,
    names: Names,
    models: Names,
    containers: Vec<Container>,
}

impl InitContainers {
    /// In the engine's image, with its rights and its directory of models. The engine's container is complete but for its arguments.
    pub fn new(asked: &Asked<'_>, serving: &Serving) -> Self {
        let mounts = serving.container.volume_mounts.iter().flatten();
        let models = mounts.filter(|m| m.mount_path.trim_end_matches('/') == MODELS);
        Self {
            engine: Container {
                image: serving.container.image.clone(),
                image_pull_policy: serving.container.image_pull_policy.clone(),
                security_context: serving.container.security_context.clone(),
                volume_mounts: Some(
                    models
                        .map(|mount| VolumeMount {
                            // The engine itself may be kept from writing there.
                            read_only: None,
                            ..mount.clone()
                        })
                        .collect(),
                ),
                ..Container::default()
            },
            names: Names::of_containers(asked.spec),
            models: Names::default(),
            containers: Vec::new(),
        }
    }

    /// Runs a script as a container of this name.
    pub fn run(&mut self, name: &str, script: Script, env: Vec<EnvVar>) -> &mut Container {
        self.containers.push(Container {
            name: self.names.container(name),
            command: Some(vec!["sh".into(), "-c".into(), script.text()]),
            env: (!env.is_empty()).then_some(env),
            ..self.engine.clone()
        });
        self.containers.last_mut().expect("one was just pushed")
    }

    /// Downloads a model by a script.
    pub fn download(&mut self, name: &str, script: Script, model: &ResolvedModel, url: &str) {
        let file = self.models.file(&model.name);
        self.run(
            name,
            script,
            vec![variable("MODEL_NAME", &file), variable("MODEL_PATH", url)],
        );
    }

    /// In the order in which they run.
    pub fn into_containers(self) -> Vec<Container> {
        self.containers
    }
}

/// A variable with a value.
pub fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.into()),
        ..EnvVar::default()
    }
}

/// The model's uri. One that is meant to be an HTTP URL must be one.
pub fn checked_uri<'a>(model: &'a ResolvedModel, findings: &mut Findings) -> Option<&'a str> {
    let uri = uri(model, findings)?;
    let Some(rest) = after_scheme(uri) else {
        return Some(uri);
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || uri.contains(|c: char| c.is_whitespace() || c.is_control()) {
        findings.invalid(
            model.field(ModelField::Uri),
            format_args!("{uri:?} is no URL: it has no host, or has spaces in it"),
            "write it as a browser shows it, with %20 for a space",
        );
        return None;
    }
    Some(uri)
}

/// Whether it is downloaded from a web server.
pub fn is_http(uri: &str) -> bool {
    after_scheme(uri).is_some()
}

/// Whether the URL is that of a tar archive, compressed or not; `.target` is none.
pub fn is_archive(url: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = after_scheme(url).and_then(|rest| rest.split_once('/'));
    rest.is_some_and(|(_, path)| {
        [".tar", ".tgz"].iter().any(|ending| {
            path.match_indices(ending)
                .any(|(at, _)| ends(&path[at + ending.len()..]))
        })
    })
}

fn after_scheme(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once("://")?;
    ["http", "https"]
        .iter()
        .any(|s| scheme.eq_ignore_ascii_case(s))
        .then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_names() {
        for (uri, http) in [
            ("https://x/y", true),
            ("HTTP://x", true),
            ("http-model", false),
            ("huggingface://a/b/c.gguf", false),
            ("phi-2", false),
        ] {
            assert_eq!(is_http(uri), http, "{uri}");
        }
    }

    #[test]
    fn archives_are_told_by_their_ending_wherever_it_stands() {
        for (url, archive) in [
            ("https://x/m.tar", true),
            ("https://x/m.tar.gz", true),
            ("https://x/m.tgz?download=1", true),
            ("https://x/get?file=m.tar&x=1", true),
            ("https://my.target.com/m.onnx", false),
            ("https://x/my.target/m.onnx", false),
            ("https://m.tar/model.onnx", false),
            ("https://x/model.onnx", false),
        ] {
            assert_eq!(is_archive(url), archive, "{url}");
        }
    }

    /// Kubernetes expands `$(NAME)` in commands, and makes one dollar of two.
    #[test]
    fn kubernetes_leaves_the_scripts_as_they_are() {
        for script in Script::ALL {
            let text = script.text();
            assert!(!text.contains("$(") && !text.contains("$$"), "{text}");
        }
    }
}
