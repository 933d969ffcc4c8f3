//! Which NVIDIA functions are virtual GPUs: their configuration space says so, beyond its first 64 bytes, which are all that others may read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::facts::{VENDOR_NVIDIA, Vgpu};

/// A device that is asked for its configuration may have to be woken; one that does not wake must not hold up the rest.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of each NVIDIA display function. Each is read once while it is there: reading wakes a sleeping GPU.
pub struct Vgpus {
    root: PathBuf,
    known: Mutex<BTreeMap<String, Option<Vgpu>>>,
}

impl Vgpus {
    /// Nothing read yet. `root` is a `/sys`.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            known: Mutex::default(),
        }
    }

    fn read(&self) -> Vec<Vgpu> {
        let folder = self.root.join("bus/pci/devices");
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeMap::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !is_nvidia_display(&path) {
                continue;
            }
            let Some(address) = entry.file_name().to_str().map(str::to_ascii_lowercase) else {
                continue;
            };
            let vgpu = known.remove(&address).unwrap_or_else(|| {
                let host = berth_core::vgpu::read(&std::fs::read(path.join("config")).ok()?)?;
                Some(Vgpu {
                    pci_address: address.clone(),
                    host_driver_version: host.version,
                    host_driver_branch: host.branch,
                })
            });
            now.insert(address, vgpu);
        }
        *known = now;
        known.values().flatten().cloned().collect()
    }
}

/// Reads on a thread of its own. Late is as if there were none.
pub async fn look(vgpus: &Arc<Vgpus>) -> Vec<Vgpu> {
    // One that hangs holds the lock: do not send others after it.
    if vgpus.known.try_lock().is_err() {
        return Vec::new();
    }
    let reading = tokio::task::spawn_blocking({
        let vgpus = Arc::clone(vgpus);
        move || vgpus.read()
    });
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn is_nvidia_display(folder: &Path) -> bool {
    let hex = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    hex("class").is_some_and(|class| class >> 16 == 0x03) && hex("vendor") == Some(u32::from(VENDOR_NVIDIA))
}
