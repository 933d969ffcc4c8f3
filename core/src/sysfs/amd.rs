//! AMD GPUs as the amdgpu driver shows them: the PCI device's own files, and its node in the KFD topology.

use std::collections::BTreeMap;

use super::{PCI, Tree, hex, number, text};
use crate::facts::{AmdDriver, AmdGpu, PciFunction, VENDOR_AMD};

const DRIVER: &str = "amdgpu";
/// Folder of the KFD topology's nodes.
const NODES: &str = "class/kfd/kfd/topology/nodes";
/// Parts of a GPU with firmware, as AMD's labeller names them, and the beginning of the file with its version.
const FIRMWARE: [(&str, &str); 10] = [
    ("VCE", "vce"),
    ("UVD", "uvd"),
    ("MC", "mc"),
    ("ME", "me"),
    ("PFP", "pfp"),
    ("CE", "ce"),
    ("RLC", "rlc"),
    ("MEC", "mec"),
    ("SMC", "smc"),
    ("SDMA0", "sdma"),
];

/// The GPUs among `functions` that the driver serves, by address.
pub(super) fn gpus(tree: &impl Tree, functions: &[PciFunction]) -> Vec<AmdGpu> {
    let served = |f: &&PciFunction| f.vendor == VENDOR_AMD && f.driver.as_deref() == Some(DRIVER);
    let mut nodes = None;
    functions
        .iter()
        .filter(served)
        .map(|function| {
            let folder = format!("{PCI}/{}", function.address);
            let nodes = nodes.get_or_insert_with(|| Node::by_minor(tree));
            let node = render_minor(tree, &folder).and_then(|minor| nodes.get(&minor));
            gpu(tree, function, &folder, node)
        })
        .collect()
}

/// The driver's versions, where it serves a GPU.
pub(super) fn driver(tree: &impl Tree, gpus: &[AmdGpu]) -> Option<AmdDriver> {
    (!gpus.is_empty()).then(|| AmdDriver {
        version: text(tree, &format!("module/{DRIVER}/version")),
        source_version: text(tree, &format!("module/{DRIVER}/srcversion")),
    })
}

fn gpu(tree: &impl Tree, function: &PciFunction, folder: &str, node: Option<&Node>) -> AmdGpu {
    let of = |name| node.and_then(|n| n.get(name)).and_then(|v| u32::try_from(v).ok());
    let file = |name| format!("{folder}/{name}");
    // Only the GPUs themselves say in how many ways they can be divided.
    let can = |name| text(tree, &file(name)).is_some();
    AmdGpu {
        pci_address: function.address.clone(),
        device: function.device,
        product: text(tree, &file("product_name")),
        vram_bytes: number(tree, &file("mem_info_vram_total")).or_else(|| node?.memory_bytes(tree)),
        simd_count: of("simd_count"),
        simd_per_cu: of("simd_per_cu"),
        gfx_target_version: of("gfx_target_version"),
        compute_partition: text(tree, &file("current_compute_partition")),
        memory_partition: text(tree, &file("current_memory_partition")),
        compute_partitioning: can("available_compute_partition"),
        memory_partitioning: can("available_memory_partition"),
        uncorrectable_errors: uncorrectable_errors(tree, &file("ras")),
        // The configuration is no text.
        answers: None,
        firmware: FIRMWARE
            .iter()
            .filter_map(|(name, file)| {
                let version = hex(tree, &format!("{folder}/fw_version/{file}_fw_version"))?;
                Some(((*name).to_owned(), version))
            })
            .collect(),
    }
}

/// All blocks together: each has a file of two lines, `ue: 0` and `ce: 0`. `None`: the part counts none, or the driver does not tell.
fn uncorrectable_errors(tree: &impl Tree, ras: &str) -> Option<u64> {
    let files = tree.list(ras);
    let counts = files.iter().filter(|f| f.ends_with("_err_count")).filter_map(|file| {
        let lines = tree.read(&format!("{ras}/{file}"))?;
        let count = lines.lines().find_map(|line| line.strip_prefix("ue:"))?;
        count.trim().parse().ok()
    });
    counts.reduce(u64::saturating_add)
}

/// N of the device's `renderDN`.
fn render_minor(tree: &impl Tree, folder: &str) -> Option<u64> {
    let entries = tree.list(&format!("{folder}/drm"));
    let minors = entries.iter().filter_map(|e| e.strip_prefix("renderD")?.parse().ok());
    minors.min()
}

/// A node of the KFD topology: a processor or a GPU. The files are lines of a name and a number.
struct Node {
    folder: String,
    properties: String,
}

impl Node {
    /// By the minor number of their render device; processors have none.
    fn by_minor(tree: &impl Tree) -> BTreeMap<u64, Self> {
        let mut names = tree.list(NODES);
        names.sort();
        let nodes = names.into_iter().filter_map(|name| {
            let folder = format!("{NODES}/{name}");
            let properties = tree.read(&format!("{folder}/properties"))?;
            let minor = property(&properties, "drm_render_minor")?;
            Some((minor, Self { folder, properties }))
        });
        nodes.collect()
    }

    fn get(&self, name: &str) -> Option<u64> {
        property(&self.properties, name)
    }

    fn memory_bytes(&self, tree: &impl Tree) -> Option<u64> {
        property(
            &text(tree, &format!("{}/mem_banks/0/properties", self.folder))?,
            "size_in_bytes",
        )
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

    struct Files(BTreeMap<&'static str, &'static str>);

    impl Tree for Files {
        fn read(&self, path: &str) -> Option<String> {
            self.0.get(path).map(|&text| text.to_owned())
        }

        fn list(&self, folder: &str) -> Vec<String> {
            let below = self
                .0
                .keys()
                .filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/'));
            below.map(str::to_owned).collect()
        }

        fn link(&self, _path: &str) -> Option<String> {
            None
        }
    }

    #[test]
    fn uncorrectable_errors_of_all_blocks() {
        let files = Files(
            [
                ("ras/umc_err_count", "ue: 2\nce: 9\n"),
                ("ras/sdma_err_count", "ue: 1\nce: 0\n"),
                ("ras/features", "feature mask: 0x7fff\n"),
            ]
            .into(),
        );
        assert_eq!(uncorrectable_errors(&files, "ras"), Some(3));
        assert_eq!(uncorrectable_errors(&files, "elsewhere"), None);
    }

    #[test]
    fn properties_of_the_topology() {
        let lines = "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\nunique_id nonsense\n";
        assert_eq!(property(lines, "simd_count"), Some(1216));
        assert_eq!(property(lines, "simd"), None);
        assert_eq!(property(lines, "unique_id"), None);
    }
}
