//! What the kernel says of the hardware with no driver at all: PCI functions, the machine's name, the loaded NVIDIA module.
//!
//! ```text
//! Tree (files, by the caller) ─► function ─► PCI functions ─┬─► amd    the GPUs that amdgpu serves
//!                                                           └─► intel  those that i915 or xe serve
//! ```

mod amd;
mod intel;

use crate::facts::{AmdDriver, AmdGpu, IntelGpu, PciFunction, is_wanted_class};

/// A `/sys`. Paths are below it, with `/` between names.
pub trait Tree {
    /// A file's content; `None`: it is not there, has no value now, or is no text. Whoever reads bounds the length, and has to know by itself
    /// where something could not be found out: what is not there counts as gone.
    fn read(&self, path: &str) -> Option<String>;
    /// Names in a folder, in any order; none where it is not there.
    fn list(&self, folder: &str) -> Vec<String>;
    /// Last name of a symbolic link's target.
    fn link(&self, path: &str) -> Option<String>;
}

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysfs {
    /// DMI product name.
    pub machine: Option<String>,
    /// Functions of the classes below, by address.
    pub pci: Vec<PciFunction>,
    /// Version of the loaded NVIDIA kernel module.
    pub kernel_driver_version: Option<String>,
    /// Those that amdgpu serves, by address.
    pub amd_gpus: Vec<AmdGpu>,
    /// That driver.
    pub amd_driver: Option<AmdDriver>,
    /// Those that i915 or xe serve, by address.
    pub intel_gpus: Vec<IntelGpu>,
}

/// Folder of the PCI functions.
pub const PCI: &str = "bus/pci/devices";

/// Reads a `/sys`. What cannot be read is absent.
pub fn scan(tree: &impl Tree) -> Sysfs {
    let mut pci: Vec<_> = tree
        .list(PCI)
        .iter()
        .filter_map(|address| function(tree, address))
        .collect();
    pci.sort_by(|a, b| a.address.cmp(&b.address));
    let amd_gpus = amd::gpus(tree, &pci);
    Sysfs {
        amd_driver: amd::driver(tree, &amd_gpus),
        amd_gpus,
        intel_gpus: intel::gpus(tree, &pci),
        machine: text(tree, "class/dmi/id/product_name"),
        pci,
        kernel_driver_version: text(tree, "module/nvidia/version"),
    }
}

fn function(tree: &impl Tree, name: &str) -> Option<PciFunction> {
    let file = |file| format!("{PCI}/{name}/{file}");
    // The class first: most functions of a machine are of no interest, and one read each is all they cost.
    let class = hex(tree, &file("class")).filter(|class| is_wanted_class(*class))?;
    let id = |name| hex(tree, &file(name)).and_then(|v| u16::try_from(v).ok());
    Some(PciFunction {
        address: name.to_ascii_lowercase(),
        vendor: id("vendor")?,
        device: id("device")?,
        class,
        subsystem_vendor: id("subsystem_vendor"),
        subsystem_device: id("subsystem_device"),
        driver: tree.link(&file("driver")),
        numa_node: text(tree, &file("numa_node"))
            .and_then(|t| t.parse().ok())
            .filter(|node| *node >= 0),
        sriov_total_vfs: text(tree, &file("sriov_totalvfs")).and_then(|t| t.parse().ok()),
    })
}

/// Content of a file without the blanks around it; `None` where that is nothing.
fn text(tree: &impl Tree, file: &str) -> Option<String> {
    let text = tree.read(file)?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// A decimal number.
fn number(tree: &impl Tree, file: &str) -> Option<u64> {
    text(tree, file)?.parse().ok()
}

/// A number such as `0x10de`; a class has 24 bits.
fn hex(tree: &impl Tree, file: &str) -> Option<u32> {
    u32::from_str_radix(text(tree, file)?.strip_prefix("0x")?, 16).ok()
}
