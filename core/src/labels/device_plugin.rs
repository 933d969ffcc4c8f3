//! The configuration of NVIDIA's device plugin, as far as labels depend on it: version `v1`, YAML or JSON.
//!
//! The plugin and GFD read the same file. Where it is a ConfigMap, each of its keys is one configuration, and the node label
//! `nvidia.com/device-plugin.config` says which of them is the node's.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::settings::{MigStrategy, Replicated, Settings, SharingStrategy};

/// Node label that selects a key of the ConfigMap.
pub const CONFIG_LABEL: &str = "nvidia.com/device-plugin.config";
/// The key of a node without that label.
const DEFAULT_KEY: &str = "default";
/// Domain of resources that are named without one.
const DOMAIN: &str = "nvidia.com/";
/// The only version there is.
const KNOWN_VERSION: &str = "v1";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Neither YAML nor JSON of the right shape.
    #[error("the device plugin's configuration cannot be read: {0}")]
    Syntax(String),
    /// Of another version.
    #[error("the device plugin's configuration is of version {0:?}; known: {KNOWN_VERSION}")]
    Version(String),
    /// An unknown MIG strategy.
    #[error("migStrategy {0:?} is none of none, single, mixed")]
    MigStrategy(String),
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    flags: Option<Flags>,
    #[serde(default)]
    sharing: Option<Sharing>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Flags {
    #[serde(default)]
    mig_strategy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sharing {
    #[serde(default)]
    time_slicing: Option<Replication>,
    #[serde(default)]
    mps: Option<Replication>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Replication {
    #[serde(default)]
    rename_by_default: Option<bool>,
    #[serde(default)]
    resources: Option<Vec<Resource>>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    rename: Option<String>,
    #[serde(default)]
    replicas: Option<u32>,
}

/// Reads one configuration. What it does not say is as without one.
pub fn parse(text: &str) -> Result<Settings, ConfigError> {
    if text.trim().is_empty() {
        return Ok(Settings::default());
    }
    let config: Config = serde_saphyr::from_str(text).map_err(|error| ConfigError::Syntax(first_line(&error)))?;
    match config.version.as_deref() {
        None | Some("" | KNOWN_VERSION) => {}
        Some(other) => return Err(ConfigError::Version(other.to_owned())),
    }
    let mig_strategy = match config.flags.and_then(|f| f.mig_strategy).as_deref() {
        None | Some("" | "none") => MigStrategy::None,
        Some("single") => MigStrategy::Single,
        Some("mixed") => MigStrategy::Mixed,
        Some(other) => return Err(ConfigError::MigStrategy(other.to_owned())),
    };
    let (time_slicing, mps) = config.sharing.map_or((None, None), |s| (s.time_slicing, s.mps));
    let (time_slicing, mps) = (replicated(time_slicing), replicated(mps));
    // As the plugin decides: a section counts where it replicates something, and MPS before time-slicing.
    let any = |of: &[Replicated]| of.iter().any(|r| r.replicas > 1);
    let (sharing, replicated) = if any(&mps) {
        (SharingStrategy::Mps, mps)
    } else if any(&time_slicing) {
        (SharingStrategy::TimeSlicing, time_slicing)
    } else {
        (SharingStrategy::None, Vec::new())
    };
    Ok(Settings {
        mig_strategy,
        sharing,
        replicated,
        timestamp: None,
    })
}

fn replicated(section: Option<Replication>) -> Vec<Replicated> {
    let Some(section) = section else { return Vec::new() };
    let rename_by_default = section.rename_by_default.unwrap_or(false);
    let resources = section.resources.unwrap_or_default();
    resources
        .into_iter()
        .map(|resource| Replicated {
            replicas: resource.replicas.unwrap_or(1),
            renamed: rename_by_default || resource.rename.is_some_and(|name| !name.is_empty()),
            resource: if resource.name.starts_with(DOMAIN) {
                resource.name
            } else {
                format!("{DOMAIN}{}", resource.name)
            },
        })
        .collect()
}

fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The key of a ConfigMap's `data` that holds for a node: the one that its label names; without the label the one called `default`,
/// or the only one. `Err`: the label names one that is not there.
pub fn select<'a>(data: &'a BTreeMap<String, String>, label: Option<&str>) -> Result<Option<&'a str>, String> {
    match label.filter(|l| !l.is_empty()) {
        Some(key) => match data.get(key) {
            Some(text) => Ok(Some(text)),
            None => Err(key.to_owned()),
        },
        None => Ok(data
            .get(DEFAULT_KEY)
            .or_else(|| data.values().next().filter(|_| data.len() == 1))
            .map(String::as_str)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(resource: &str, replicas: u32, renamed: bool) -> Replicated {
        Replicated {
            resource: resource.into(),
            replicas,
            renamed,
        }
    }

    #[test]
    fn configurations_of_the_plugin() {
        let settings = |mig_strategy, sharing, replicated| Settings {
            mig_strategy,
            sharing,
            replicated,
            timestamp: None,
        };
        for (what, text, want) in [
            ("empty", "", Settings::default()),
            ("version alone", "version: v1\n", Settings::default()),
            (
                "strategy, and flags that are none of ours",
                "version: v1\nflags:\n  migStrategy: mixed\n  failOnInitError: true\n  plugin:\n    passDeviceSpecs: false\n",
                settings(MigStrategy::Mixed, SharingStrategy::None, vec![]),
            ),
            (
                "time-slicing",
                "version: v1\nsharing:\n  timeSlicing:\n    failRequestsGreaterThanOne: true\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 10\n    - name: mig-1g.10gb\n      replicas: 2\n      rename: nvidia.com/mig-shared\n",
                settings(
                    MigStrategy::None,
                    SharingStrategy::TimeSlicing,
                    vec![
                        shared("nvidia.com/gpu", 10, false),
                        shared("nvidia.com/mig-1g.10gb", 2, true),
                    ],
                ),
            ),
            (
                "MPS, renamed by default, as JSON",
                r#"{"version":"v1","flags":{"migStrategy":"none"},"sharing":{"mps":{"renameByDefault":true,"resources":[{"name":"nvidia.com/gpu","replicas":4}]}}}"#,
                settings(
                    MigStrategy::None,
                    SharingStrategy::Mps,
                    vec![shared("nvidia.com/gpu", 4, true)],
                ),
            ),
            (
                "one replica is no sharing",
                "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 1\n",
                Settings::default(),
            ),
            (
                "sections without anything",
                "version: v1\nflags:\nsharing:\n",
                Settings::default(),
            ),
        ] {
            assert_eq!(parse(text), Ok(want), "{what}");
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        assert_eq!(parse("version: v2\n"), Err(ConfigError::Version("v2".into())));
        assert_eq!(
            parse("version: v1\nflags: {migStrategy: both}\n"),
            Err(ConfigError::MigStrategy("both".into()))
        );
        for text in [
            "sharing: [",
            "version: v1\nsharing: {timeSlicing: {resources: [{replicas: 2}]}}",
            "- a",
        ] {
            assert!(matches!(parse(text), Err(ConfigError::Syntax(_))), "{text}");
        }
    }

    #[test]
    fn the_nodes_label_selects() {
        let data = |keys: &[&str]| -> BTreeMap<String, String> {
            keys.iter().map(|k| ((*k).to_owned(), format!("of {k}"))).collect()
        };
        for (keys, label, want) in [
            (&["a", "default"][..], None, Ok(Some("of default"))),
            (&["a", "default"], Some("a"), Ok(Some("of a"))),
            (&["a", "default"], Some("b"), Err("b".to_owned())),
            (&["a"], None, Ok(Some("of a"))),
            (&["a"], Some(""), Ok(Some("of a"))),
            (&["a", "b"], None, Ok(None)),
            (&[], None, Ok(None)),
        ] {
            assert_eq!(select(&data(keys), label), want, "{keys:?} {label:?}");
        }
    }
}
