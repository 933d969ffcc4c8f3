//! What the kernel says of the hardware with no driver at all: PCI functions, the machine's name, the loaded NVIDIA module.

mod amd;
mod changes;
mod intel;
pub mod pci;

use std::fs;
use std::path::Path;

use berth_core::facts::{AmdDriver, AmdGpu, IntelGpu, PciFunction, is_wanted_class};

pub use changes::{Cause, Changes};

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

/// Reads `root` (a `/sys`). What cannot be read is absent.
pub fn scan(root: &Path) -> Sysfs {
    let mut pci: Vec<_> = fs::read_dir(root.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .filter_map(|entry| function(&entry.ok()?.path()))
        .collect();
    pci.sort_by(|a, b| a.address.cmp(&b.address));
    let amd_gpus = amd::gpus(root, &pci);
    Sysfs {
        amd_driver: amd::driver(root, &amd_gpus),
        amd_gpus,
        intel_gpus: intel::gpus(root, &pci),
        machine: text(&root.join("class/dmi/id/product_name")),
        pci,
        kernel_driver_version: text(&root.join("module/nvidia/version")),
    }
}

fn function(folder: &Path) -> Option<PciFunction> {
    // The class first: most functions of a machine are of no interest, and one read each is all they cost.
    let class = hex(&folder.join("class")).filter(|class| is_wanted_class(*class))?;
    let id = |name| hex(&folder.join(name)).and_then(|v| u16::try_from(v).ok());
    let driver = fs::read_link(folder.join("driver")).ok();
    Some(PciFunction {
        address: folder.file_name()?.to_str()?.to_ascii_lowercase(),
        vendor: id("vendor")?,
        device: id("device")?,
        class,
        subsystem_vendor: id("subsystem_vendor"),
        subsystem_device: id("subsystem_device"),
        driver: driver
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|n| n.to_str())
            .map(str::to_owned),
        numa_node: text(&folder.join("numa_node"))
            .and_then(|t| t.parse().ok())
            .filter(|node| *node >= 0),
        sriov_total_vfs: text(&folder.join("sriov_totalvfs")).and_then(|t| t.parse().ok()),
    })
}

/// Content of a file without the blanks around it; `None` where that is nothing.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// A decimal number.
fn number(file: &Path) -> Option<u64> {
    text(file)?.parse().ok()
}

fn hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(text(file)?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, address: &str, files: &[(&str, &str)]) {
        let folder = root.join("bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            fs::write(folder.join(name), format!("{content}\n")).unwrap();
        }
    }

    #[test]
    fn a_machine_with_gpus_and_other_things() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(
            root,
            "0000:1B:00.0",
            &[
                ("class", "0x030200"),
                ("vendor", "0x10de"),
                ("device", "0x2330"),
                ("subsystem_vendor", "0x10de"),
                ("subsystem_device", "0x16c1"),
                ("numa_node", "1"),
                ("sriov_totalvfs", "16"),
            ],
        );
        fs::create_dir_all(root.join("bus/pci/drivers/nvidia")).unwrap();
        symlink("../../drivers/nvidia", root.join("bus/pci/devices/0000:1B:00.0/driver")).unwrap();
        put(
            root,
            "0000:04:00.0",
            &[
                ("class", "0x030000"),
                ("vendor", "0x1a03"),
                ("device", "0x2000"),
                ("numa_node", "-1"),
            ],
        );
        put(
            root,
            "0000:05:00.0",
            &[("class", "0x120000"), ("vendor", "0x1002"), ("device", "0x74a1")],
        );
        put(
            root,
            "0000:06:00.0",
            &[("class", "0x0b4000"), ("vendor", "0x8086"), ("device", "0x4940")],
        );
        put(
            root,
            "0000:02:00.0",
            &[("class", "0x020000"), ("vendor", "0x15b3"), ("device", "0x1021")],
        );
        put(root, "0000:07:00.0", &[("class", "nonsense"), ("vendor", "0x10de")]);
        fs::create_dir_all(root.join("class/dmi/id")).unwrap();
        fs::write(root.join("class/dmi/id/product_name"), "DGX H100\n").unwrap();
        fs::create_dir_all(root.join("module/nvidia")).unwrap();
        fs::write(root.join("module/nvidia/version"), "550.163.01\n").unwrap();

        let seen = scan(root);
        assert_eq!(seen.machine.as_deref(), Some("DGX H100"));
        assert_eq!(seen.kernel_driver_version.as_deref(), Some("550.163.01"));
        let addresses: Vec<_> = seen.pci.iter().map(|f| f.address.as_str()).collect();
        assert_eq!(
            addresses,
            ["0000:04:00.0", "0000:05:00.0", "0000:06:00.0", "0000:1b:00.0"]
        );
        assert_eq!(seen.pci[0].numa_node, None);
        let expected = PciFunction {
            address: "0000:1b:00.0".into(),
            vendor: 0x10de,
            device: 0x2330,
            class: 0x03_02_00,
            subsystem_vendor: Some(0x10de),
            subsystem_device: Some(0x16c1),
            driver: Some("nvidia".into()),
            numa_node: Some(1),
            sriov_total_vfs: Some(16),
        };
        assert_eq!(seen.pci[3], expected);
    }

    #[test]
    fn a_machine_without_pci_has_nothing() {
        assert_eq!(scan(Path::new("/nowhere")), Sysfs::default());
    }
}
