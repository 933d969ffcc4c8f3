//! The volumes of one pod as folders, and what keeps their content current.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;

use super::{Context, fields};
use crate::error::{Error, Result};
use crate::files;

/// Share of a token's life after which it is renewed, as a kubelet does.
const RENEW_AT: f64 = 0.8;
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(5);

/// The volumes of one pod.
#[derive(Debug)]
pub struct Volumes {
    folders: BTreeMap<String, PathBuf>,
    /// The machine's `/proc`, where the pod shares the machine's process ids.
    proc: Option<PathBuf>,
    composed: Vec<Composed>,
}

/// A volume whose files come from the API.
#[derive(Debug)]
struct Composed {
    folder: PathBuf,
    sources: Vec<Source>,
    tokens: BTreeMap<String, Token>,
    written: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug)]
enum Source {
    ConfigMap {
        name: String,
        items: Option<Vec<core::KeyToPath>>,
        optional: bool,
    },
    Secret {
        name: String,
        items: Option<Vec<core::KeyToPath>>,
        optional: bool,
    },
    Downward(Vec<core::DownwardAPIVolumeFile>),
    Token {
        audience: Option<String>,
        expiration_seconds: Option<i64>,
        path: String,
    },
}

#[derive(Debug)]
struct Token {
    content: Vec<u8>,
    renew_at: Timestamp,
}

impl Volumes {
    /// Makes the folders; fails where an object that is not optional is missing, or a kind of volume is not played.
    pub async fn prepare(context: &Context, pod: &core::Pod) -> Result<Self> {
        let spec = pod.spec.clone().unwrap_or_default();
        let node = context.nodes.get(spec.node_name.as_deref().unwrap_or_default())?;
        let base = context.pod_folder(pod);
        let mut this = Self {
            folders: BTreeMap::new(),
            proc: spec
                .host_pid
                .unwrap_or(false)
                .then(|| node.processes().proc().to_path_buf()),
            composed: vec![],
        };
        for volume in spec.volumes.unwrap_or_default() {
            let own = base.join(&volume.name);
            let folder = if let Some(host) = &volume.host_path {
                let path = node.host_path(&host.path);
                if host.type_.as_deref() == Some("DirectoryOrCreate") || host.type_.as_deref().unwrap_or("").is_empty()
                {
                    files::folder(&path)?;
                }
                path
            } else if let Some(sources) = sources(&volume) {
                files::folder(&own)?;
                this.composed.push(Composed {
                    folder: own.clone(),
                    sources,
                    tokens: BTreeMap::new(),
                    written: BTreeMap::new(),
                });
                own
            } else if volume.empty_dir.is_some() {
                files::folder(&own)?;
                own
            } else {
                return Err(Error::Malformed {
                    what: format!("volume {}", volume.name),
                    reason: "this kind of volume is not played on one machine".to_owned(),
                });
            };
            this.folders.insert(volume.name, folder);
        }
        this.refresh(context, pod).await?;
        Ok(this)
    }

    /// Folder of a volume.
    pub fn folder(&self, name: &str) -> Option<&Path> {
        self.folders.get(name).map(PathBuf::as_path)
    }

    /// What the pod's containers have as `/proc`; `None`: that of the process itself.
    pub fn proc(&self) -> Option<&Path> {
        self.proc.as_deref()
    }

    /// Writes what has changed, renews tokens that are due.
    pub async fn refresh(&mut self, context: &Context, pod: &core::Pod) -> Result<()> {
        for volume in &mut self.composed {
            volume.refresh(context, pod).await?;
        }
        Ok(())
    }

    /// Keeps the content current until dropped.
    pub async fn keep(mut self, context: &Context, pod: &core::Pod) {
        let mut changed = context.sources.changed.clone();
        loop {
            let next = self
                .composed
                .iter()
                .flat_map(|v| v.tokens.values())
                .map(|t| t.renew_at)
                .min();
            let wait = next.map_or(Duration::from_secs(3600), until);
            tokio::select! {
                result = changed.changed() => if result.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
            if let Err(error) = self.refresh(context, pod).await {
                tracing::warn!(pod = fields::name(pod), %error, "cannot refresh volumes");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

fn sources(volume: &core::Volume) -> Option<Vec<Source>> {
    if let Some(config_map) = &volume.config_map {
        return Some(vec![Source::ConfigMap {
            name: config_map.name.clone(),
            items: config_map.items.clone(),
            optional: config_map.optional.unwrap_or(false),
        }]);
    }
    if let Some(secret) = &volume.secret {
        return Some(vec![Source::Secret {
            name: secret.secret_name.clone().unwrap_or_default(),
            items: secret.items.clone(),
            optional: secret.optional.unwrap_or(false),
        }]);
    }
    if let Some(downward) = &volume.downward_api {
        return Some(vec![Source::Downward(downward.items.clone().unwrap_or_default())]);
    }
    let projected = volume.projected.as_ref()?;
    let mut list = vec![];
    for projection in projected.sources.iter().flatten() {
        if let Some(token) = &projection.service_account_token {
            list.push(Source::Token {
                audience: token.audience.clone(),
                expiration_seconds: token.expiration_seconds,
                path: token.path.clone(),
            });
        }
        if let Some(map) = &projection.config_map {
            let optional = map.optional.unwrap_or(false);
            list.push(Source::ConfigMap {
                name: map.name.clone(),
                items: map.items.clone(),
                optional,
            });
        }
        if let Some(secret) = &projection.secret {
            let optional = secret.optional.unwrap_or(false);
            list.push(Source::Secret {
                name: secret.name.clone(),
                items: secret.items.clone(),
                optional,
            });
        }
        if let Some(downward) = &projection.downward_api {
            list.push(Source::Downward(downward.items.clone().unwrap_or_default()));
        }
    }
    Some(list)
}

impl Composed {
    async fn refresh(&mut self, context: &Context, pod: &core::Pod) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for source in &self.sources {
            match source {
                Source::ConfigMap { name, items, optional } => {
                    let content = config_map(context, pod, name);
                    select(
                        &mut wanted,
                        content,
                        items.as_deref(),
                        *optional,
                        &format!("ConfigMap {name}"),
                    )?;
                }
                Source::Secret { name, items, optional } => {
                    let content = secret(context, pod, name);
                    select(
                        &mut wanted,
                        content,
                        items.as_deref(),
                        *optional,
                        &format!("Secret {name}"),
                    )?;
                }
                Source::Downward(items) => {
                    for item in items {
                        let path = item.field_ref.as_ref().map_or("", |field| field.field_path.as_str());
                        let value = fields::value(pod, path)?;
                        wanted.insert(item.path.clone(), value.into_bytes());
                    }
                }
                Source::Token {
                    audience,
                    expiration_seconds,
                    path,
                } => {
                    let due = self
                        .tokens
                        .get(path)
                        .is_none_or(|token| token.renew_at <= Timestamp::now());
                    if due {
                        let token = request_token(context, pod, audience.as_deref(), *expiration_seconds).await?;
                        self.tokens.insert(path.clone(), token);
                    }
                    if let Some(token) = self.tokens.get(path) {
                        wanted.insert(path.clone(), token.content.clone());
                    }
                }
            }
        }
        for (path, content) in &wanted {
            if self.written.get(path) != Some(content) {
                let file = inside(&self.folder, path)?;
                if let Some(parent) = file.parent() {
                    files::folder(parent)?;
                }
                files::write(&file, content, 0o600)?;
            }
        }
        for path in self.written.keys().filter(|path| !wanted.contains_key(*path)) {
            files::remove(&inside(&self.folder, path)?)?;
        }
        self.written = wanted;
        Ok(())
    }
}

/// A path of a volume's file; one that leaves the volume is refused.
fn inside(folder: &Path, path: &str) -> Result<PathBuf> {
    if Path::new(path).components().all(|c| matches!(c, Component::Normal(_))) {
        return Ok(folder.join(path));
    }
    Err(Error::Malformed {
        what: format!("volume path {path:?}"),
        reason: "it leaves the volume".to_owned(),
    })
}

type Content = BTreeMap<String, Vec<u8>>;

fn config_map(context: &Context, pod: &core::Pod, name: &str) -> Option<Content> {
    let map = context
        .sources
        .config_maps
        .get(&ObjectRef::new(name).within(&fields::namespace(pod)))?;
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()));
    Some(text.chain(binary).collect())
}

fn secret(context: &Context, pod: &core::Pod, name: &str) -> Option<Content> {
    let secret = context
        .sources
        .secrets
        .get(&ObjectRef::new(name).within(&fields::namespace(pod)))?;
    Some(
        secret
            .data
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.0.clone()))
            .collect(),
    )
}

fn select(
    wanted: &mut Content,
    content: Option<Content>,
    items: Option<&[core::KeyToPath]>,
    optional: bool,
    what: &str,
) -> Result<()> {
    let missing = |reason: &str| Error::Malformed {
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let Some(content) = content else {
        return if optional {
            Ok(())
        } else {
            Err(missing("it does not exist"))
        };
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        wanted.extend(content);
        return Ok(());
    };
    for item in items {
        match content.get(&item.key) {
            Some(value) => drop(wanted.insert(item.path.clone(), value.clone())),
            None if optional => {}
            None => return Err(missing(&format!("it has no key {}", item.key))),
        }
    }
    Ok(())
}

/// A value of a ConfigMap's or Secret's key, for environment variables.
pub fn key(context: &Context, pod: &core::Pod, source: &core::EnvVarSource) -> Result<Option<String>> {
    let (content, name, key, optional) = if let Some(from) = &source.config_map_key_ref {
        (
            config_map(context, pod, &from.name),
            &from.name,
            &from.key,
            from.optional,
        )
    } else if let Some(from) = &source.secret_key_ref {
        (secret(context, pod, &from.name), &from.name, &from.key, from.optional)
    } else {
        return Err(Error::Malformed {
            what: "environment variable".to_owned(),
            reason: "its source is not played on one machine".to_owned(),
        });
    };
    match content.and_then(|content| content.get(key).cloned()) {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::Malformed {
            what: name.clone(),
            reason: format!("it does not exist, or has no key {key}"),
        }),
    }
}

/// A real token of the pod's ServiceAccount, bound to the pod: it dies with it, and carries its node's name.
async fn request_token(
    context: &Context,
    pod: &core::Pod,
    audience: Option<&str>,
    expiration_seconds: Option<i64>,
) -> Result<Token> {
    let namespace = fields::namespace(pod);
    let account = fields::service_account(pod);
    let what = format!("request a token of {namespace}/{account} for pod {}", fields::name(pod));
    let request: authentication::TokenRequest = serde_json::from_value(json!({
        "spec": {
            "audiences": audience.map(|a| vec![a]).unwrap_or_default(),
            "expirationSeconds": expiration_seconds.unwrap_or(3600),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        },
    }))
    .map_err(Error::malformed(what.clone()))?;
    let api: Api<core::ServiceAccount> = Api::namespaced(context.client.clone(), &namespace);
    let answer = api
        .create_token_request(&account, &PostParams::default(), &request)
        .await;
    let no_status = || Error::Malformed {
        what: what.clone(),
        reason: "the answer has no token".to_owned(),
    };
    let status = answer
        .map_err(Error::kube(what.clone()))?
        .status
        .ok_or_else(no_status)?;
    let now = Timestamp::now();
    let life = status.expiration_timestamp.0.duration_since(now).as_secs_f64();
    let renew_at = now + jiff::SignedDuration::from_secs_f64((life * RENEW_AT).max(1.0));
    Ok(Token {
        content: status.token.into_bytes(),
        renew_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_in_its_volume() {
        let folder = Path::new("/v");
        assert_eq!(inside(folder, "a/b").unwrap(), Path::new("/v/a/b"));
        for path in ["../x", "/etc/x", "a/../../x"] {
            assert!(inside(folder, path).is_err(), "{path}");
        }
    }

    #[test]
    fn keys_are_selected_and_missing_ones_said() {
        let content = || {
            Some(BTreeMap::from([
                ("a".to_owned(), b"1".to_vec()),
                ("b".to_owned(), b"2".to_vec()),
            ]))
        };
        let item = |key: &str| core::KeyToPath {
            key: key.to_owned(),
            path: format!("to-{key}"),
            mode: None,
        };
        let run = |content, items: Option<&[core::KeyToPath]>, optional| {
            let mut wanted = BTreeMap::new();
            select(&mut wanted, content, items, optional, "ConfigMap x")
                .map(|()| wanted.into_keys().collect::<Vec<_>>().join(" "))
                .map_err(|e| e.to_string())
        };
        assert_eq!(run(content(), None, false).unwrap(), "a b");
        assert_eq!(run(content(), Some(&[item("b")]), false).unwrap(), "to-b");
        assert_eq!(run(content(), Some(&[item("c")]), true).unwrap(), "");
        assert_eq!(run(None, None, true).unwrap(), "");
        assert_eq!(run(None, None, false).unwrap_err(), "ConfigMap x: it does not exist");
        assert_eq!(
            run(content(), Some(&[item("c")]), false).unwrap_err(),
            "ConfigMap x: it has no key c"
        );
    }
}
