//! AMD GPUs as the amdgpu driver shows them: the PCI device's own files, and its node in the KFD topology.

use std::fs;
use std::path::{Path, PathBuf};

use berth_core::facts::{AmdDriver, AmdGpu, PciFunction, VENDOR_AMD};

use super::{number, pci, text};

const DRIVER: &str = "amdgpu";

/// The GPUs among `functions` that the driver serves, by address.
pub fn gpus(root: &Path, functions: &[PciFunction]) -> Vec<AmdGpu> {
    let served = |f: &&PciFunction| f.vendor == VENDOR_AMD && f.driver.as_deref() == Some(DRIVER);
    let mut nodes = None;
    functions
        .iter()
        .filter(served)
        .map(|function| {
            let folder = root.join("bus/pci/devices").join(&function.address);
            let nodes = nodes.get_or_insert_with(|| Node::all(root));
            let node =
                render_minor(&folder).and_then(|minor| nodes.iter().find(|n| n.get("drm_render_minor") == Some(minor)));
            gpu(function, &folder, node)
        })
        .collect()
}

/// The driver's versions, where it serves a GPU.
pub fn driver(root: &Path, gpus: &[AmdGpu]) -> Option<AmdDriver> {
    let module = root.join("module").join(DRIVER);
    (!gpus.is_empty()).then(|| AmdDriver {
        version: text(&module.join("version")),
        source_version: text(&module.join("srcversion")),
    })
}

fn gpu(function: &PciFunction, folder: &Path, node: Option<&Node>) -> AmdGpu {
    let of = |name| node.and_then(|n| n.get(name)).and_then(|v| u32::try_from(v).ok());
    // Only the GPUs themselves say in how many ways they can be divided.
    let can = |name| text(&folder.join(name)).is_some();
    AmdGpu {
        pci_address: function.address.clone(),
        device: function.device,
        product: text(&folder.join("product_name")),
        vram_bytes: number(&folder.join("mem_info_vram_total")).or_else(|| node.and_then(Node::memory_bytes)),
        simd_count: of("simd_count"),
        simd_per_cu: of("simd_per_cu"),
        gfx_target_version: of("gfx_target_version"),
        compute_partition: text(&folder.join("current_compute_partition")),
        memory_partition: text(&folder.join("current_memory_partition")),
        compute_partitioning: can("available_compute_partition"),
        memory_partitioning: can("available_memory_partition"),
        uncorrectable_errors: uncorrectable_errors(&folder.join("ras")),
        answers: pci::answers(folder),
    }
}

/// All blocks together: each has a file of two lines, `ue: 0` and `ce: 0`. `None`: the part counts none, or the driver does not tell.
fn uncorrectable_errors(ras: &Path) -> Option<u64> {
    let counts = fs::read_dir(ras).ok()?.flatten().filter_map(|entry| {
        entry.file_name().to_str()?.strip_suffix("_err_count")?;
        let lines = fs::read_to_string(entry.path()).ok()?;
        let count = lines.lines().find_map(|line| line.strip_prefix("ue:"))?;
        count.trim().parse().ok()
    });
    counts.reduce(u64::saturating_add)
}

/// N of the device's `renderDN`.
fn render_minor(folder: &Path) -> Option<u64> {
    fs::read_dir(folder.join("drm"))
        .ok()?
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("renderD")?.parse().ok())
}

/// A node of the KFD topology: a processor or a GPU. The files are lines of a name and a number.
struct Node {
    folder: PathBuf,
    properties: String,
}

impl Node {
    fn all(root: &Path) -> Vec<Self> {
        fs::read_dir(root.join("class/kfd/kfd/topology/nodes"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let folder = entry.path();
                let properties = fs::read_to_string(folder.join("properties")).ok()?;
                Some(Self { folder, properties })
            })
            .collect()
    }

    fn get(&self, name: &str) -> Option<u64> {
        property(&self.properties, name)
    }

    fn memory_bytes(&self) -> Option<u64> {
        property(&text(&self.folder.join("mem_banks/0/properties"))?, "size_in_bytes")
    }
}

fn property(lines: &str, name: &str) -> Option<u64> {
    lines.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncorrectable_errors_of_all_blocks() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(uncorrectable_errors(&dir.path().join("ras")), None);
        for (file, content) in [
            ("umc_err_count", "ue: 2\nce: 9\n"),
            ("sdma_err_count", "ue: 1\nce: 0\n"),
            ("features", "feature mask: 0x7fff\n"),
        ] {
            fs::write(dir.path().join(file), content).unwrap();
        }
        assert_eq!(uncorrectable_errors(dir.path()), Some(3));
    }

    #[test]
    fn properties_of_the_topology() {
        let lines = "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\nunique_id nonsense\n";
        assert_eq!(property(lines, "simd_count"), Some(1216));
        assert_eq!(property(lines, "simd"), None);
        assert_eq!(property(lines, "unique_id"), None);
    }
}
