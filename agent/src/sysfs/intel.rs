//! Intel GPUs as the drivers i915 and xe show them.

use std::fs;
use std::path::Path;

use berth_core::facts::{IntelGpu, PciFunction, VENDOR_INTEL};

use super::number;

const DRIVERS: [&str; 2] = ["i915", "xe"];

/// The GPUs among `functions` that a driver serves, by address. A function that is split into virtual ones is handed out as those.
pub fn gpus(root: &Path, functions: &[PciFunction]) -> Vec<IntelGpu> {
    let served =
        |f: &&PciFunction| f.vendor == VENDOR_INTEL && f.driver.as_deref().is_some_and(|d| DRIVERS.contains(&d));
    functions
        .iter()
        .filter(served)
        .filter_map(|function| {
            let folder = root.join("bus/pci/devices").join(&function.address);
            if number(&folder.join("sriov_numvfs")).is_some_and(|n| n > 0) {
                return None;
            }
            let card = entries(&folder.join("drm"), "card").next()?;
            let card_folder = folder.join("drm").join(format!("card{card}"));
            let tiles = entries(&card_folder.join("gt"), "gt").count() + entries(&folder, "tile").count();
            let tiles = u32::try_from(tiles).unwrap_or(u32::MAX).max(1);
            let per_tile = number(&card_folder.join("lmem_total_bytes"));
            Some(IntelGpu {
                pci_address: function.address.clone(),
                card,
                tiles,
                memory_bytes: per_tile.and_then(|bytes| bytes.checked_mul(tiles.into())),
            })
        })
        .collect()
}

/// Numbers of the entries that are called `<name><number>`.
fn entries(folder: &Path, name: &'static str) -> impl Iterator<Item = u32> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(move |entry| entry.file_name().to_str()?.strip_prefix(name)?.parse().ok())
}
