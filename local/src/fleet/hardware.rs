//! The GPUs of a machine, as its `nvml.json` (read by the fake NVML library at every call) holds them.

use std::path::{Path, PathBuf};

use nvidia_ml::models::Model;
use nvidia_ml::state::{Driver, Fault, Gpu, State};
use serde_json::Value;

use super::NodeSpec;
use crate::error::{Error, Result};
use crate::files;

/// Largest number of GPUs in a machine.
pub const MAX_GPUS: u32 = 16;
/// PCI subsystem device id of every board; nothing depends on it.
pub const SUBSYSTEM: u16 = 0x16c1;

/// Name in fleet files → name in the fake library.
const MODELS: [(&str, &str); 4] = [
    ("h100", "H100-80GB-HBM3"),
    ("a100", "A100-SXM4-40GB"),
    ("l40s", "L40S"),
    ("t4", "T4"),
];

/// Whether a fleet file may name this model.
pub fn is_known(slug: &str) -> bool {
    model(slug).is_some()
}

/// All that a fleet file may name.
pub fn models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(slug, _)| *slug)
}

fn model(slug: &str) -> Option<&'static Model> {
    let (_, key) = MODELS.iter().find(|(s, _)| *s == slug)?;
    Model::find(key)
}

/// Version of the simulated driver.
pub fn driver_version() -> String {
    Driver::default().version
}

/// A machine's GPUs in PCI order, the same at every start.
pub fn gpus(spec: &NodeSpec) -> Result<Vec<Gpu>> {
    let parts = spec
        .gpus
        .iter()
        .filter_map(|group| Some((model(&group.model)?, group.count)));
    let each = parts.flat_map(|(part, count)| (0..count).map(move |_| part));
    let profiles: Vec<&str> = spec.mig.iter().map(String::as_str).collect();
    (0..)
        .zip(each)
        .map(|(index, part)| {
            let mut gpu = part.gpu(index, &spec.name);
            if !profiles.is_empty() {
                let problem = Error::malformed(format!("mig of node {}", spec.name));
                gpu.enable_mig(&profiles).map_err(problem)?;
            }
            Ok(gpu)
        })
        .collect()
}

/// What the fake NVML says of a machine.
#[derive(Debug, Clone)]
pub struct NvmlState {
    path: PathBuf,
}

impl NvmlState {
    /// Writes the first state.
    pub fn create(path: &Path, spec: &NodeSpec, loaded: bool) -> Result<Self> {
        let this = Self {
            path: path.to_path_buf(),
        };
        this.write(&State {
            driver: Driver {
                loaded,
                ..Driver::default()
            },
            gpus: gpus(spec)?,
            faults: faults(spec.faults.clone())?,
            ..State::default()
        })?;
        Ok(this)
    }

    /// One that is there.
    pub fn open(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel driver is loaded.
    pub fn set_loaded(&self, loaded: bool) -> Result<()> {
        self.change(|state| {
            state.driver.loaded = loaded;
            Ok(())
        })
    }

    /// Replaces the list of faults.
    pub fn set_faults(&self, list: Vec<Value>) -> Result<()> {
        let list = faults(list)?;
        self.change(|state| {
            state.faults = list;
            Ok(())
        })
    }

    /// Bytes in use on the GPU of an index.
    pub fn set_memory_used(&self, index: usize, bytes: u64) -> Result<()> {
        self.change(|state| match state.gpus.get_mut(index) {
            Some(gpu) => {
                gpu.memory_used_bytes = bytes;
                Ok(())
            }
            None => Err(format!("no GPU {index}")),
        })
    }

    /// Any change.
    pub fn change(&self, change: impl FnOnce(&mut State) -> Result<(), String>) -> Result<()> {
        let text = std::fs::read(&self.path).map_err(Error::file("read", &self.path))?;
        let what = || self.path.display().to_string();
        let mut state: State = serde_json::from_slice(&text).map_err(Error::malformed(what()))?;
        change(&mut state).map_err(Error::malformed(what()))?;
        self.write(&state)
    }

    fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_string_pretty(state).map_err(Error::malformed("the state of the fake NVML"))?;
        files::write(&self.path, text.as_bytes(), 0o644)
    }
}

fn faults(list: Vec<Value>) -> Result<Vec<Fault>> {
    serde_json::from_value(Value::Array(list)).map_err(Error::malformed("faults of the fake NVML"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_of_a_fleet_file_is_one_of_the_fake_library() {
        assert!(models().all(is_known));
        assert!(!is_known("h1000"));
    }

    #[test]
    fn a_machine_is_the_same_at_every_start_and_no_other() {
        let machine = |name| gpus(&NodeSpec::new(name, "t4", MAX_GPUS)).unwrap();
        assert_eq!(machine("a"), machine("a"));
        let uuids = [machine("a"), machine("b")].concat().into_iter().map(|g| g.uuid);
        assert_eq!(
            uuids.collect::<std::collections::BTreeSet<_>>().len(),
            2 * MAX_GPUS as usize
        );
        let addresses: std::collections::BTreeSet<_> = machine("a").into_iter().map(|g| g.pci_address).collect();
        assert_eq!(addresses.len(), MAX_GPUS as usize);
    }

    #[test]
    fn mig_profiles_are_those_of_the_part() {
        let mut spec = NodeSpec::new("m", "h100", 1);
        spec.mig = vec!["3g.40gb".into(), "1g.10gb".into()];
        assert_eq!(gpus(&spec).unwrap()[0].mig.as_ref().map(|m| m.devices.len()), Some(2));
        spec.mig = vec!["9g.1gb".into()];
        assert!(gpus(&spec).unwrap_err().to_string().contains("9g.1gb"));
    }
}
