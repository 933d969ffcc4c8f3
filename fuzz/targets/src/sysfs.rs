//! A `/sys`: whatever its files say, a scan ends with facts that make valid labels.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::facts::NodeFacts;
use berth_core::sysfs::{Tree, scan};

use crate::labels;

/// `data` is a `/sys`, a line a file: `path content`, with `\n` for the lines of the content; or `path -> target`.
pub fn run(data: &[u8]) {
    let tree = Files::parse(&String::from_utf8_lossy(data));
    let found = scan(&tree);
    assert_eq!(scan(&tree), found, "the same files say the same");
    assert!(found.pci.is_sorted_by(|a, b| a.address <= b.address));
    for address in found
        .amd_gpus
        .iter()
        .map(|g| &g.pci_address)
        .chain(found.intel_gpus.iter().map(|g| &g.pci_address))
    {
        assert!(
            found.pci.iter().any(|f| f.address == *address),
            "{address} is no function"
        );
    }
    labels::check(&NodeFacts {
        machine: found.machine,
        pci: found.pci,
        kernel_driver_version: found.kernel_driver_version,
        amd_gpus: found.amd_gpus,
        amd_driver: found.amd_driver,
        intel_gpus: found.intel_gpus,
        ..NodeFacts::default()
    });
}

/// Files by path, links by path, names by folder.
#[derive(Default)]
struct Files {
    files: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
    folders: BTreeMap<String, BTreeSet<String>>,
}

impl Files {
    fn parse(text: &str) -> Self {
        let mut tree = Self::default();
        for line in text.lines() {
            let (path, content) = line.split_once(' ').unwrap_or((line, ""));
            // A folder in each other; deeper than the kernel's there is nothing to find.
            for (at, _) in path.match_indices('/').take(16) {
                let (folder, rest) = (&path[..at], &path[at + 1..]);
                let name = rest.split('/').next().unwrap_or_default();
                tree.folders
                    .entry(folder.to_owned())
                    .or_default()
                    .insert(name.to_owned());
            }
            match content.strip_prefix("-> ") {
                Some(target) => {
                    let last = target.rsplit('/').next().unwrap_or_default();
                    tree.links.insert(path.to_owned(), last.to_owned());
                }
                None => {
                    tree.files.insert(path.to_owned(), content.replace("\\n", "\n"));
                }
            }
        }
        tree
    }
}

impl Tree for Files {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }

    fn list(&self, folder: &str) -> Vec<String> {
        self.folders.get(folder).into_iter().flatten().cloned().collect()
    }

    fn link(&self, path: &str) -> Option<String> {
        self.links.get(path).cloned()
    }
}
