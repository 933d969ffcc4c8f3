//! The simulated machines: what a fleet file says, and the node, sysfs tree and NVML state made of it.
//!
//! ```text
//! local/fleets/*.yaml ─► Fleet ─► NodeSpec ─┬─► hardware   which GPUs, at which PCI addresses: nvml.json
//!                                           ├─► sysfs      sys/
//!                                           ├─► devices    which pod has which GPU: the PodResources socket
//!                                           ├─► processes  whose processes run: proc/
//!                                           └─► node       Node object, root/, and what a test may change
//! ```

mod devices;
mod hardware;
mod node;
mod processes;
mod sysfs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use devices::Devices;
pub use node::{KWOK_ANNOTATION, KWOK_ANNOTATION_VALUE, Node, Nodes};
pub use processes::Processes;

/// All machines of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fleet {
    /// In order of creation.
    pub nodes: Vec<NodeSpec>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeSpec {
    /// Name of the Node.
    pub name: String,
    /// DMI product name.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// Allocatable CPUs, a Kubernetes quantity.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// Allocatable memory, a Kubernetes quantity.
    #[serde(default = "default_memory")]
    pub memory: String,
    /// Node labels besides those that every node has.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// In PCI order.
    #[serde(default)]
    pub gpus: Vec<GpuGroup>,
    /// MIG profiles that every GPU is cut into; none: MIG is off.
    #[serde(default)]
    pub mig: Vec<String>,
    /// How the device plugin hands out one GPU several times.
    #[serde(default)]
    pub sharing: Sharing,
    /// Whether the vendor's driver is installed.
    #[serde(default)]
    pub driver: Driver,
    /// Whether a device plugin advertises the GPUs, once there is a driver.
    #[serde(default = "yes")]
    pub device_plugin: bool,
    /// Faults of the fake NVML from the start, in its own format.
    #[serde(default)]
    pub faults: Vec<serde_json::Value>,
}

/// GPUs of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuGroup {
    /// `h100`, `a100`, `l40s`, `t4`.
    pub model: String,
    /// How many.
    pub count: u32,
}

/// How a device plugin shares GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharing {
    /// How.
    pub strategy: SharingStrategy,
    /// How many devices it makes of one GPU.
    pub replicas: u32,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            strategy: SharingStrategy::None,
            replicas: 1,
        }
    }
}

/// Ways of sharing, named as in the device plugin's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum SharingStrategy {
    None,
    TimeSlicing,
    Mps,
}

/// State of the vendor's driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Driver {
    #[default]
    Present,
    Absent,
}

fn default_machine() -> String {
    "Standard PC".to_owned()
}

fn default_cpu() -> String {
    "128".to_owned()
}

fn default_memory() -> String {
    "1Ti".to_owned()
}

fn yes() -> bool {
    true
}

impl NodeSpec {
    /// A machine with a driver, a device plugin and these GPUs (`count` 0: none).
    pub fn new(name: &str, model: &str, count: u32) -> Self {
        Self {
            name: name.to_owned(),
            machine: default_machine(),
            cpu: default_cpu(),
            memory: default_memory(),
            labels: BTreeMap::new(),
            gpus: if count == 0 {
                vec![]
            } else {
                vec![GpuGroup {
                    model: model.to_owned(),
                    count,
                }]
            },
            mig: vec![],
            sharing: Sharing::default(),
            driver: Driver::Present,
            device_plugin: true,
            faults: vec![],
        }
    }

    /// The same machine before its driver is installed.
    pub fn without_driver(mut self) -> Self {
        self.driver = Driver::Absent;
        self
    }

    /// The same machine in a cluster without a device plugin.
    pub fn without_device_plugin(mut self) -> Self {
        self.device_plugin = false;
        self
    }

    /// Devices that a device plugin advertises once there is a driver; `None`: the machine has no plugin, or no GPUs.
    fn devices(&self) -> Option<u32> {
        let gpus: u32 = self.gpus.iter().map(|group| group.count).sum();
        (self.device_plugin && gpus > 0).then_some(gpus * self.sharing.replicas)
    }
}

impl Fleet {
    /// The fleet that is used when none is named.
    pub fn default_file() -> PathBuf {
        crate::checkout().join("local/fleets/default.yaml")
    }

    /// Reads and checks a fleet file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        let wrong = |reason: String| Error::Fleet {
            path: path.to_path_buf(),
            reason,
        };
        let fleet: Self = serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        fleet.check().map_err(wrong)?;
        Ok(fleet)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for node in &self.nodes {
            node.check()
                .map_err(|reason| format!("node {:?}: {reason}", node.name))?;
            if !names.insert(&node.name) {
                return Err(format!("node {:?} is there twice", node.name));
            }
        }
        Ok(())
    }
}

impl NodeSpec {
    fn check(&self) -> Result<(), String> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 63 || !self.name.chars().all(label) {
            return Err("a name is 1 to 63 of a-z, 0-9 and -".to_owned());
        }
        if self.sharing.replicas == 0 {
            return Err("sharing.replicas is at least 1".to_owned());
        }
        for group in &self.gpus {
            if !hardware::is_known(&group.model) {
                let known = hardware::models().collect::<Vec<_>>().join(", ");
                return Err(format!("GPU model {:?} is not one of {known}", group.model));
            }
        }
        let gpus: u32 = self.gpus.iter().map(|group| group.count).sum();
        if gpus > hardware::MAX_GPUS {
            return Err(format!("{gpus} GPUs; a machine has at most {}", hardware::MAX_GPUS));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_fleet_is_what_the_readme_shows() {
        let fleet = Fleet::read(&Fleet::default_file()).unwrap();
        let shown: Vec<String> = fleet
            .nodes
            .iter()
            .map(|n| {
                let gpus: Vec<String> = n.gpus.iter().map(|g| format!("{}×{}", g.count, g.model)).collect();
                format!("{} {} {:?} {:?}", n.name, gpus.join("+"), n.driver, n.devices())
            })
            .collect();
        assert_eq!(
            shown,
            [
                "h100-0 8×h100 Present Some(8)",
                "h100-1 8×h100 Present Some(8)",
                "a100-0 8×a100 Present Some(8)",
                "l40s-0 4×l40s Present Some(4)",
                "t4-0 4×t4 Present Some(4)",
                "mixed-0 2×a100+2×t4 Present Some(4)",
                "nodriver-0 4×h100 Absent Some(4)",
                "cpu-0  Present None",
            ]
        );
    }

    #[test]
    fn what_cannot_be_is_said() {
        let cases = [
            ("nodes: [{name: a}, {name: a}]", "node \"a\" is there twice"),
            ("nodes: [{name: A}]", "node \"A\": a name is 1 to 63 of a-z, 0-9 and -"),
            ("nodes: [{name: a, gpus: [{model: h101, count: 1}]}]", "h101"),
            ("nodes: [{name: a, gpus: [{model: t4, count: 99}]}]", "99 GPUs"),
            (
                "nodes: [{name: a, sharing: {strategy: time-slicing, replicas: 0}}]",
                "at least 1",
            ),
        ];
        for (yaml, want) in cases {
            let fleet: Fleet = serde_saphyr::from_str(yaml).unwrap();
            let reason = fleet.check().unwrap_err();
            assert!(reason.contains(want), "{reason}");
        }
        assert!(serde_saphyr::from_str::<Fleet>("nodes: [{name: a, colour: red}]").is_err());
    }
}
