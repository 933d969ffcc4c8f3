//! The state folder of one cluster: who owns it, and what it is called where names must be short.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::process::Identity;

/// A state folder longer than this gets a short name: below it, a kubelet's socket is 55 bytes more and the name of its node, and 107 is the
/// limit.
const LONGEST: usize = 30;
/// Files that are not the cluster's: the lock, and what `cargo xtask up` writes about its run.
const KEPT: [&str; 4] = ["lock", "owner.json", "up.log", "status.json"];

/// The state folder, locked for as long as this lives; a crash unlocks it too.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    short: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Makes and locks the folder, readable for its owner only.
    pub fn lock(path: &Path) -> Result<Self> {
        files::folder(path)?;
        let path = std::fs::canonicalize(path).map_err(Error::file("find", path))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).map_err(Error::file("protect", &path))?;
        let lock = try_lock(&path)?.ok_or_else(|| Error::InUse {
            owner: owner(&path).map_or_else(|| "unknown".to_owned(), |owner| owner.pid.to_string()),
            state: path.clone(),
        })?;
        let own = serde_json::to_vec(&Identity::own()).map_err(Error::malformed("owner"))?;
        files::write(&path.join("owner.json"), &own, 0o600)?;
        let short = short_name(&path);
        if short != path {
            files::link(&path, &short)?;
        }
        Ok(Self {
            path,
            short,
            _lock: lock,
        })
    }

    /// Its full name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name of the same folder that leaves room for a unix socket's.
    pub fn short(&self) -> &Path {
        &self.short
    }

    /// Removes what an earlier cluster left in it.
    pub fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.path).map_err(Error::file("read", &self.path))? {
            let entry = entry.map_err(Error::file("read", &self.path))?;
            if !KEPT.iter().any(|name| entry.file_name() == *name) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        if self.short != self.path {
            let _ = files::remove(&self.short);
        }
    }
}

fn try_lock(path: &Path) -> Result<Option<File>> {
    let path = path.join("lock");
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive)
        .is_ok()
        .then_some(file))
}

fn owner(path: &Path) -> Option<Identity> {
    serde_json::from_slice(&std::fs::read(path.join("owner.json")).ok()?).ok()
}

/// The process that has the folder locked.
pub fn held_by(path: &Path) -> Option<Identity> {
    let path = std::fs::canonicalize(path).ok()?;
    match try_lock(&path) {
        Ok(None) => owner(&path),
        Ok(Some(_)) | Err(_) => None,
    }
}

fn short_name(path: &Path) -> PathBuf {
    if path.as_os_str().len() <= LONGEST {
        return path.to_path_buf();
    }
    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    std::env::temp_dir().join(format!("berth-{hash}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_a_short_name() {
        let long = "a-folder-with-a-name-that-leaves-no-room-for-a-socket";
        let path = std::env::temp_dir()
            .join(format!("berth-state-{}", std::process::id()))
            .join(long);
        assert_eq!(held_by(&path), None);
        let state = StateFolder::lock(&path).unwrap();
        assert!(matches!(StateFolder::lock(&path), Err(Error::InUse { .. })));
        assert_eq!(held_by(&path), Some(Identity::own()));
        assert!(state.short().as_os_str().len() < 30);
        std::fs::write(state.short().join("x"), "").unwrap();
        std::fs::write(path.join("up.log"), "").unwrap();
        state.clear().unwrap();
        assert!(!path.join("x").exists() && path.join("up.log").exists());
        let short = state.short().to_path_buf();
        drop(state);
        assert!(std::fs::symlink_metadata(short).is_err());
        assert_eq!(held_by(&path), None);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
