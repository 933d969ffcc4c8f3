//! Names that an engine gives to parts of a pod: legal ones, and each once.

use std::collections::BTreeSet;

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::keys;
use sha2::{Digest, Sha256};

/// Longest DNS label.
const LABEL: usize = 63;
/// Longest key of a ConfigMap.
const KEY: usize = 253;
/// Longest name of a file here: file systems take 255, and endings and prefixes come on top.
const FILE: usize = 150;

/// Names that are in use.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Those of all containers that the template brings, and of the engine's.
    pub fn of_containers(spec: &AIDeploymentSpec) -> Self {
        let template = spec.deployment.as_ref().and_then(|d| d.template.as_ref());
        let pod = template.and_then(|t| t.spec.as_ref());
        let containers = pod.into_iter().flat_map(|p| &p.containers);
        let init_containers = pod.into_iter().flat_map(|p| p.init_containers.iter().flatten());
        let names = containers.chain(init_containers).map(|c| c.name.clone());
        Self(names.chain([keys::SERVING_CONTAINER.to_owned()]).collect())
    }

    /// A container's name: what is wanted as a DNS label.
    pub fn container(&mut self, wanted: &str) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let label: String = wanted.to_ascii_lowercase().chars().map(fits).collect();
        self.free(label.trim_matches('-'), LABEL)
    }

    /// A file's name, without its ending.
    pub fn file(&mut self, wanted: &str) -> String {
        self.free(wanted, FILE)
    }

    /// A key of a ConfigMap.
    pub fn key(&mut self, wanted: &str) -> String {
        self.free(wanted, KEY)
    }

    /// What is wanted, for the first who wants it; a number follows for others.
    fn free(&mut self, wanted: &str, longest: usize) -> String {
        let mut name = cut(wanted, longest);
        let mut number = 2;
        while !self.0.insert(name.clone()) {
            let suffix = format!("-{number}");
            name = cut(wanted, longest - suffix.len()) + &suffix;
            number += 1;
        }
        name
    }
}

/// Long texts end in a hash of the whole, so that different ones stay different.
fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let digest = Sha256::digest(text);
    let hash: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let end = text.floor_char_boundary(longest - hash.len() - 1);
    format!("{}-{hash}", text[..end].trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_are_dns_labels_and_the_first_keeps_the_wanted_name() {
        let mut names = Names::default();
        assert_eq!(
            names.container("init-tinyllama-1.1b-chat-v0.1"),
            "init-tinyllama-1-1b-chat-v0-1"
        );
        assert_eq!(names.container("init-m"), "init-m");
        assert_eq!(names.container("init-m"), "init-m-2");
        assert_eq!(names.container("init-m"), "init-m-3");
        assert_eq!(
            names.container("init-m.2"),
            "init-m-2-2",
            "another name that is written the same"
        );
        assert_eq!(names.container("-Ü_x-"), "x");

        let long = |last: char| format!("init-models-{}{last}", "a".repeat(60));
        let (a, b, again) = (
            names.container(&long('a')),
            names.container(&long('b')),
            names.container(&long('a')),
        );
        for name in [&a, &b, &again] {
            assert!(name.len() <= 63 && name.starts_with("init-models-aaa"), "{name}");
        }
        assert!(a != b && a != again && b != again, "{a} {b} {again}");
    }

    #[test]
    fn a_long_name_of_any_script_is_cut() {
        let name = Names::default().file(&"模".repeat(100));
        assert!(name.len() <= FILE && name.starts_with("模模"), "{name}");
    }
}
