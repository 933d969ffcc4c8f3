//! Which PCI functions the NVIDIA driver serves: NVML finds its GPUs once, so another set is a reason to open it anew.

use std::collections::BTreeSet;
use std::path::Path;

/// Addresses, from `root`, a `/sys`. None where the driver is not loaded.
pub fn functions(root: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(root.join("bus/pci/drivers/nvidia"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // Beside `bind`, `new_id` and the like.
        .filter(|name| name.contains(':'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_told_from_the_drivers_own_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(functions(dir.path()).is_empty());
        let driver = dir.path().join("bus/pci/drivers/nvidia");
        std::fs::create_dir_all(&driver).unwrap();
        for name in ["bind", "uevent", "0000:10:00.0", "0009:01:00.0"] {
            std::fs::write(driver.join(name), "").unwrap();
        }
        assert_eq!(
            functions(dir.path()),
            ["0000:10:00.0".to_owned(), "0009:01:00.0".to_owned()].into()
        );
    }
}
