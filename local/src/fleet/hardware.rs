//! The GPUs of a machine, as its `nvml.json` (read by the fake NVML library at every call) holds them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::NodeSpec;
use crate::error::{Error, Result};
use crate::files;

/// Version of the simulated driver.
pub const DRIVER_VERSION: &str = "550.163.01";
/// Its CUDA version: 1000 × major + 10 × minor.
const CUDA_VERSION: u32 = 12_040;
/// PCI buses that are handed out.
pub const MAX_GPUS: u32 = 16;

const MIB: u64 = 1 << 20;

/// A GPU on the market.
#[derive(Debug)]
pub struct Model {
    /// Name in fleet files.
    slug: &'static str,
    /// Name in NVML.
    name: &'static str,
    /// MiB of memory.
    memory_mib: u64,
    compute: (u32, u32),
    mig_capable: bool,
    /// PCI device id.
    pub device: u16,
    /// PCI subsystem device id.
    pub subsystem: u16,
}

const MODELS: [Model; 4] = [
    Model {
        slug: "h100",
        name: "NVIDIA H100 80GB HBM3",
        memory_mib: 81_559,
        compute: (9, 0),
        mig_capable: true,
        device: 0x2330,
        subsystem: 0x16c1,
    },
    Model {
        slug: "a100",
        name: "NVIDIA A100-SXM4-40GB",
        memory_mib: 40_960,
        compute: (8, 0),
        mig_capable: true,
        device: 0x20b0,
        subsystem: 0x134f,
    },
    Model {
        slug: "l40s",
        name: "NVIDIA L40S",
        memory_mib: 46_068,
        compute: (8, 9),
        mig_capable: false,
        device: 0x26b9,
        subsystem: 0x1851,
    },
    Model {
        slug: "t4",
        name: "Tesla T4",
        memory_mib: 15_360,
        compute: (7, 5),
        mig_capable: false,
        device: 0x1eb8,
        subsystem: 0x12a2,
    },
];

/// Whether a fleet file may name this model.
pub fn is_known(slug: &str) -> bool {
    MODELS.iter().any(|model| model.slug == slug)
}

/// All that a fleet file may name.
pub fn models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.slug)
}

/// The models of a machine's GPUs with their PCI addresses, in PCI order.
pub fn gpus(spec: &NodeSpec) -> Vec<(String, &'static Model)> {
    spec.gpus
        .iter()
        .filter_map(|group| Some((MODELS.iter().find(|model| model.slug == group.model)?, group.count)))
        .flat_map(|(model, count)| (0..count).map(move |_| model))
        .enumerate()
        .map(|(index, model)| (format!("0000:{:02x}:00.0", 0x10 + index * 8), model))
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
        let gpus: Vec<Value> = gpus(spec)
            .iter()
            .enumerate()
            .map(|(index, (address, model))| gpu(spec, index, address, model))
            .collect();
        let state = json!({
            "driver": {
                "version": DRIVER_VERSION,
                "cuda_version": CUDA_VERSION,
                "nvml_version": format!("12.{DRIVER_VERSION}"),
                "loaded": loaded,
            },
            "gpus": gpus,
            "faults": spec.faults,
        });
        let this = Self {
            path: path.to_path_buf(),
        };
        this.write(&state)?;
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
            state["driver"]["loaded"] = loaded.into();
            Ok(())
        })
    }

    /// Replaces the list of faults.
    pub fn set_faults(&self, faults: Vec<Value>) -> Result<()> {
        self.change(|state| {
            state["faults"] = faults.into();
            Ok(())
        })
    }

    /// Bytes in use on the GPU of an index.
    pub fn set_memory_used(&self, index: usize, bytes: u64) -> Result<()> {
        self.change(|state| match state["gpus"].get_mut(index) {
            Some(gpu) => {
                gpu["memory_used_bytes"] = bytes.into();
                Ok(())
            }
            None => Err(format!("no GPU {index}")),
        })
    }

    /// Any change, in the format of the fake NVML.
    pub fn change(&self, change: impl FnOnce(&mut Value) -> Result<(), String>) -> Result<()> {
        let text = std::fs::read(&self.path).map_err(Error::file("read", &self.path))?;
        let what = || self.path.display().to_string();
        let mut state: Value = serde_json::from_slice(&text).map_err(Error::malformed(what()))?;
        change(&mut state).map_err(Error::malformed(what()))?;
        self.write(&state)
    }

    fn write(&self, state: &Value) -> Result<()> {
        files::write(&self.path, format!("{state:#}\n").as_bytes(), 0o644)
    }
}

fn gpu(spec: &NodeSpec, index: usize, address: &str, model: &Model) -> Value {
    let mut gpu = json!({
        "uuid": uuid(&spec.name, index),
        "name": model.name,
        "pci_address": address,
        "memory_total_bytes": model.memory_mib * MIB,
        "memory_used_bytes": 0,
        "compute_major": model.compute.0,
        "compute_minor": model.compute.1,
        "serial": format!("16{:08}{index:02}", stable_number(&spec.name) % 100_000_000),
    });
    if model.mig_capable {
        gpu["mig"] = json!({"enabled": !spec.mig.is_empty(), "profiles": spec.mig});
    }
    gpu
}

/// The same GPU has the same identity at every start.
fn uuid(node: &str, index: usize) -> String {
    let n = stable_number(&format!("{node}/{index}"));
    let m = stable_number(&format!("{index}/{node}"));
    format!(
        "GPU-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        n >> 32,
        (n >> 16) & 0xffff,
        n & 0xffff,
        m >> 48,
        m & 0xffff_ffff_ffff
    )
}

fn stable_number(text: &str) -> u64 {
    use sha2::{Digest, Sha256};
    Sha256::digest(text)
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_the_same_at_every_start_and_no_other() {
        let uuids = |name| -> Vec<String> { (0..8).map(|i| uuid(name, i)).collect() };
        assert_eq!(uuids("h100-0"), uuids("h100-0"));
        let mut all = [uuids("h100-0"), uuids("h100-1")].concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16);
        assert_eq!(all[0].len(), "GPU-00000000-0000-0000-0000-000000000000".len());
    }

    #[test]
    fn sixteen_gpus_have_sixteen_addresses() {
        let addresses: std::collections::BTreeSet<String> = gpus(&NodeSpec::new("n", "t4", MAX_GPUS))
            .into_iter()
            .map(|(address, _)| address)
            .collect();
        assert_eq!(addresses.len(), 16);
        assert!(addresses.iter().all(|a| a.len() == "0000:00:00.0".len()));
    }
}
