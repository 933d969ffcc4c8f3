//! The host's `/sys` as `berth_core::sysfs` reads it.

mod changes;
pub mod pci;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use berth_core::sysfs::{PCI, Tree};

pub use changes::{Cause, Changes};

pub use berth_core::sysfs::Sysfs;

/// No file of the kernel's is as long: an attribute is one page at most.
const LONGEST: u64 = 64 * 1024;

/// Reads `root` (a `/sys`). What cannot be read is absent.
pub fn scan(root: &Path) -> Sysfs {
    let mut found = berth_core::sysfs::scan(&Folder(root));
    for gpu in &mut found.amd_gpus {
        gpu.answers = pci::answers(&root.join(PCI).join(&gpu.pci_address));
    }
    found
}

struct Folder<'a>(&'a Path);

impl Tree for Folder<'_> {
    fn read(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        let file = File::open(self.0.join(path)).ok()?;
        file.take(LONGEST).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.0.join(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Content of a file without the blanks around it; `None` where that is nothing.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

fn hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(text(file)?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::facts::PciFunction;
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

    #[test]
    fn a_file_without_end_is_read_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("module/nvidia")).unwrap();
        symlink("/dev/zero", dir.path().join("module/nvidia/version")).unwrap();
        let read = scan(dir.path()).kernel_driver_version.unwrap();
        assert_eq!(read.len() as u64, LONGEST);
    }
}
