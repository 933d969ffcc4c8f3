//! Whether NVIDIA's fabric manager runs: it is a process of the machine, and where the machine's process table can be seen it is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The process's name, as the kernel cuts it.
const NAME: &str = "nv-fabricmanage";
/// A table without it is gone through this often: it is long, and the process is there or not.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// PCI class of an NVSwitch: another bridge.
const BRIDGE: u32 = 0x06_8000;

/// Where to look. Machines without NVSwitches have no fabric manager, and are not searched.
pub struct FabricManager {
    tables: Vec<PathBuf>,
    expected: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    process: Option<PathBuf>,
    looked: Option<(Instant, Option<bool>)>,
}

impl FabricManager {
    /// `roots`: of file systems whose `proc` may be the machine's; `sysfs`: a `/sys`.
    pub fn new(roots: &[PathBuf], sysfs: &Path) -> Self {
        Self {
            tables: roots.iter().map(|root| root.join("proc")).collect(),
            expected: has_nvswitch(sysfs),
            known: Mutex::default(),
        }
    }

    /// `None`: none is expected, or the process table that is seen here is not the machine's.
    pub fn runs(&self) -> Option<bool> {
        if !self.expected {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.process.as_deref().is_some_and(|p| is_called(p, NAME)) {
            return Some(true);
        }
        let had_one = known.process.take().is_some();
        match known.looked {
            Some((at, found)) if at.elapsed() < LOOK_AGAIN && !had_one => return found,
            _ => {}
        }
        let mut tables = self.tables.iter().filter(|table| is_the_machines(table)).peekable();
        let found = tables.peek().is_some().then(|| {
            known.process = tables.find_map(|table| find(table));
            known.process.is_some()
        });
        known.looked = Some((Instant::now(), found));
        found
    }
}

/// Process 2 of a machine is the kernel's own; a container's table has none of the kernel's.
fn is_the_machines(table: &Path) -> bool {
    is_called(&table.join("2"), "kthreadd")
}

fn find(table: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(table).ok()?.flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    entries
        .filter(|entry| is_process(&entry.file_name()))
        .map(|entry| entry.path())
        .find(|process| is_called(process, NAME))
}

fn is_called(process: &Path, name: &str) -> bool {
    fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
}

fn has_nvswitch(sysfs: &Path) -> bool {
    let hex = |file: &Path| {
        let text = fs::read_to_string(file).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let devices = fs::read_dir(sysfs.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten();
    devices.map(|device| device.path()).any(|device| {
        // Those of a guest are the guest's to manage.
        let given_away = fs::read_link(device.join("driver")).is_ok_and(|driver| driver.ends_with("vfio-pci"));
        !given_away
            && hex(&device.join("class")) == Some(BRIDGE)
            && hex(&device.join("vendor")) == Some(u32::from(berth_core::facts::VENDOR_NVIDIA))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_process_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let look = || FabricManager::new(&[root.into()], &root.join("sys")).runs();
        put(root, "proc/2/comm", "bash\n");
        assert_eq!(look(), None, "no NVSwitch");
        put(root, "sys/bus/pci/devices/0000:07:00.0/class", "0x068000\n");
        put(root, "sys/bus/pci/devices/0000:07:00.0/vendor", "0x10de\n");
        assert_eq!(look(), None, "a container's processes");
        put(root, "proc/2/comm", "kthreadd\n");
        assert_eq!(look(), Some(false));
        put(root, "proc/77/comm", "nv-fabricmanage\n");
        let manager = FabricManager::new(&[root.into()], &root.join("sys"));
        assert_eq!(manager.runs(), Some(true));
        fs::remove_dir_all(root.join("proc/77")).unwrap();
        assert_eq!(manager.runs(), Some(false), "it is seen at once that it went");
        put(root, "proc/78/comm", "nv-fabricmanage\n");
        assert_eq!(manager.runs(), Some(false), "and within a minute that another is there");
    }
}
