//! Intel GPUs as the drivers i915 and xe show them.

use super::{PCI, Tree, number};
use crate::facts::{IntelGpu, PciFunction, VENDOR_INTEL};

const DRIVERS: [&str; 2] = ["i915", "xe"];

/// The GPUs among `functions` that a driver serves, by address. A function that is split into virtual ones is handed out as those.
pub(super) fn gpus(tree: &impl Tree, functions: &[PciFunction]) -> Vec<IntelGpu> {
    let served =
        |f: &&PciFunction| f.vendor == VENDOR_INTEL && f.driver.as_deref().is_some_and(|d| DRIVERS.contains(&d));
    functions
        .iter()
        .filter(served)
        .filter_map(|function| {
            let folder = format!("{PCI}/{}", function.address);
            if number(tree, &format!("{folder}/sriov_numvfs")).is_some_and(|n| n > 0) {
                return None;
            }
            let card = numbered(tree, &format!("{folder}/drm"), "card").min()?;
            let card_folder = format!("{folder}/drm/card{card}");
            let tiles =
                numbered(tree, &format!("{card_folder}/gt"), "gt").count() + numbered(tree, &folder, "tile").count();
            let tiles = u32::try_from(tiles).unwrap_or(u32::MAX).max(1);
            let per_tile = number(tree, &format!("{card_folder}/lmem_total_bytes"));
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
fn numbered(tree: &impl Tree, folder: &str, name: &'static str) -> impl Iterator<Item = u32> {
    tree.list(folder)
        .into_iter()
        .filter_map(move |entry| entry.strip_prefix(name)?.parse().ok())
}
