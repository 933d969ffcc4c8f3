//! The host's `/sys` as `berth_core::sysfs` reads it.

mod changes;
pub mod pci;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use berth_core::facts::PciFunction;
use berth_core::sysfs::{PCI, Tree};
use rustix::io::Errno;

use crate::handover::Bindings;

pub use changes::{Ask, Cause, Changes};

pub use berth_core::sysfs::Sysfs;

/// No file of the kernel's is as long: an attribute is one page at most.
const LONGEST: u64 = 64 * 1024;

/// Reads `root` (a `/sys`). What is not there is absent. An error where it could not be told whether something is there: too many open files,
/// no memory.
pub fn scan(root: &Path) -> io::Result<Sysfs> {
    let tree = Folder {
        root,
        failed: Cell::default(),
    };
    let mut found = berth_core::sysfs::scan(&tree);
    if let Some(error) = tree.failed.take() {
        return Err(error);
    }
    for gpu in &mut found.amd_gpus {
        gpu.answers = pci::answers(&root.join(PCI).join(&gpu.pci_address));
    }
    Ok(found)
}

/// What tells the binding of a function to its driver from the next one: the number of the link, which the kernel makes anew each time.
pub fn bindings(root: &Path, functions: &[PciFunction]) -> Bindings {
    let binding = |function: &PciFunction| {
        let link = root.join(PCI).join(&function.address).join("driver");
        Some((function.address.clone(), fs::symlink_metadata(link).ok()?.ino()))
    };
    functions.iter().filter_map(binding).collect()
}

struct Folder<'a> {
    root: &'a Path,
    /// The last error that says nothing of what was looked for.
    failed: Cell<Option<io::Error>>,
}

impl Folder<'_> {
    /// `None` where that is an answer: an attribute that has no value now, or a function that went just now, says so by an error of its own.
    fn seen<T>(&self, read: io::Result<T>) -> Option<T> {
        read.map_err(|error| {
            if is_ours(&error) {
                self.failed.set(Some(error));
            }
        })
        .ok()
    }
}

/// Whether an error is one of this process or its machine, and not of the file.
fn is_ours(error: &io::Error) -> bool {
    const OURS: [Errno; 7] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::INTR,
        Errno::STALE,
        Errno::NOTCONN,
    ];
    Errno::from_io_error(error).is_some_and(|errno| OURS.contains(&errno))
}

impl Tree for Folder<'_> {
    fn read(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        let file = self.seen(File::open(self.root.join(path)))?;
        self.seen(file.take(LONGEST).read_to_string(&mut text))?;
        Some(text)
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let entries = self.seen(fs::read_dir(self.root.join(folder))).into_iter().flatten();
        entries
            .filter_map(|entry| self.seen(entry)?.file_name().into_string().ok())
            .collect()
    }

    fn link(&self, path: &str) -> Option<String> {
        let target = self.seen(fs::read_link(self.root.join(path)))?;
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

        let seen = scan(root).unwrap();
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
        assert_eq!(scan(Path::new("/nowhere")).unwrap(), Sysfs::default());
    }

    #[test]
    fn an_error_of_this_process_is_no_answer_and_one_of_a_file_is() {
        for (errno, ours) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::NOTDIR, false),
            (Errno::ACCESS, false),
            // What attributes say of themselves.
            (Errno::NODEV, false),
            (Errno::IO, false),
            (Errno::INVAL, false),
            (Errno::BUSY, false),
        ] {
            assert_eq!(is_ours(&errno.into()), ours, "{errno:?}");
            let tree = Folder {
                root: Path::new("/nowhere"),
                failed: Cell::default(),
            };
            assert!(tree.seen::<()>(Err(errno.into())).is_none());
            assert_eq!(tree.failed.take().is_some(), ours, "{errno:?}");
        }
    }

    #[test]
    fn a_file_without_end_is_read_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("module/nvidia")).unwrap();
        symlink("/dev/zero", dir.path().join("module/nvidia/version")).unwrap();
        let read = scan(dir.path()).unwrap().kernel_driver_version.unwrap();
        assert_eq!(read.len() as u64, LONGEST);
    }
}
