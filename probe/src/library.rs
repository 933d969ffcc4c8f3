//! Where the driver's library is: on a plain host, in a driver container's root, in the places of managed distributions.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Name under which NVML's library is installed.
const FILE_NAME: &str = "libnvidia-ml.so.1";

/// Folders under a root, in order: the distributions' multi-arch and plain folders, the container toolkit's, GKE's, WSL's.
const FOLDERS: [&str; 10] = [
    #[cfg(target_arch = "x86_64")]
    "usr/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib64/nvidia",
    "usr/lib",
    "usr/lib/nvidia",
    "usr/local/nvidia/lib64",
    "usr/local/lib",
    "home/kubernetes/bin/nvidia/lib64",
    "opt/nvidia/lib64",
    "usr/lib/wsl/lib",
];

/// Files whose coming or going says that the kernel driver came or went.
const DRIVER_SIGNS: [&str; 3] = ["/sys/module/nvidia", "/proc/driver/nvidia/version", "/dev/nvidiactl"];
/// Where the last of them appears.
pub const DEVICES: &str = "/dev";

/// Symbolic links that are followed before a path counts as a loop.
const MAX_LINKS: usize = 16;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Search {
    exactly: Vec<PathBuf>,
    roots: Vec<PathBuf>,
}

/// What the file system showed; two that are equal mean that another try would find the same files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Existing libraries in order of preference, symbolic links resolved within their root.
    pub libraries: Vec<PathBuf>,
    /// (device, inode, size, mtime) of each library; presence of each sign of the kernel driver.
    stamps: Vec<(u64, u64, u64, i64)>,
    signs: [bool; DRIVER_SIGNS.len()],
}

impl Search {
    /// `exactly`, where it is not empty, wins over `roots`.
    pub fn new(exactly: Vec<PathBuf>, roots: Vec<PathBuf>) -> Self {
        Self { exactly, roots }
    }

    /// Looks at the file system: some dozens of `stat` calls.
    pub fn look(&self) -> Found {
        let mut found = Found {
            signs: DRIVER_SIGNS.map(|sign| Path::new(sign).exists()),
            ..Found::default()
        };
        let mut add = |library: PathBuf| {
            if let Ok(meta) = std::fs::metadata(&library)
                && meta.is_file()
                && !found.libraries.contains(&library)
            {
                found.stamps.push((meta.dev(), meta.ino(), meta.size(), meta.mtime()));
                found.libraries.push(library);
            }
        };
        if self.exactly.is_empty() {
            for root in &self.roots {
                for folder in FOLDERS {
                    if let Some(library) = resolve(root, &Path::new(folder).join(FILE_NAME)) {
                        add(library);
                    }
                }
            }
        } else {
            self.exactly.iter().cloned().for_each(&mut add);
        }
        found
    }

    /// Folders in which something happens when a library comes: those searched, or the deepest there is of the way to one.
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        if !self.exactly.is_empty() {
            return self
                .exactly
                .iter()
                .filter_map(|file| deepest(Path::new("/"), file.parent()?))
                .collect();
        }
        let roots = self.roots.iter();
        roots
            .flat_map(|root| {
                FOLDERS
                    .iter()
                    .filter_map(move |folder| deepest(root, Path::new(folder)))
            })
            .collect()
    }
}

/// The deepest folder that is there, of `folder` and those it is in.
fn deepest(root: &Path, folder: &Path) -> Option<PathBuf> {
    folder
        .ancestors()
        .filter_map(|ancestor| resolve(root, ancestor))
        .find(|path| path.is_dir())
        // Of a root that comes later, where it will be; of one further away, only time tells.
        .or_else(|| root.parent().map(Path::to_path_buf))
}

/// Follows symbolic links as a process with this root would: an absolute link of a mounted host file system starts at the mount.
fn resolve(root: &Path, inner: &Path) -> Option<PathBuf> {
    let mut pending: Vec<_> = inner.components().rev().map(owned).collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(component) = pending.pop() {
        match component.as_path().components().next()? {
            Component::RootDir | Component::Prefix(_) => done.clear(),
            Component::CurDir => {}
            Component::ParentDir => {
                done.pop();
            }
            Component::Normal(name) => {
                done.push(name);
                let here = root.join(&done);
                match std::fs::symlink_metadata(&here) {
                    Ok(meta) if meta.is_symlink() => {
                        links += 1;
                        if links > MAX_LINKS {
                            return None;
                        }
                        done.pop();
                        let target = std::fs::read_link(&here).ok()?;
                        pending.extend(target.components().rev().map(owned));
                    }
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        }
    }
    Some(root.join(done))
}

fn owned(component: Component<'_>) -> PathBuf {
    PathBuf::from(component.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "elf").unwrap();
        path
    }

    #[test]
    fn roots_are_searched_in_order_and_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (host, container) = (dir.path().join("host"), dir.path().join("host/run/nvidia/driver"));
        let search = Search::new(Vec::new(), vec![host.clone(), container.clone()]);
        assert_eq!(search.look().libraries, Vec::<PathBuf>::new());

        let real = put(&container, "opt/driver/libnvidia-ml.so.550.163.01");
        fs::create_dir_all(container.join("usr/lib64")).unwrap();
        symlink(
            "/opt/driver/libnvidia-ml.so.550.163.01",
            container.join("usr/lib64/libnvidia-ml.so.1"),
        )
        .unwrap();
        let first = search.look();
        assert_eq!(first.libraries, std::slice::from_ref(&real));
        assert_eq!(first, search.look());

        let on_host = put(&host, "usr/lib64/libnvidia-ml.so.1");
        let second = search.look();
        assert_eq!(second.libraries, [on_host, real]);
        assert_ne!(first, second);
    }

    #[test]
    fn folders_to_watch_get_deeper_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let search = Search::new(Vec::new(), vec![root.clone()]);
        assert_eq!(search.folders(), [dir.path().into()].into());
        fs::create_dir_all(root.join("usr")).unwrap();
        assert_eq!(search.folders(), [root.clone(), root.join("usr")].into());
        fs::create_dir_all(root.join("opt/driver")).unwrap();
        symlink("/opt/driver", root.join("usr/lib64")).unwrap();
        assert!(
            search.folders().contains(&root.join("opt/driver")),
            "{:?}",
            search.folders()
        );
        let exactly = Search::new(vec![root.join("opt/driver/nvml.so")], vec![]);
        assert_eq!(exactly.folders(), [root.join("opt/driver")].into());
    }

    #[test]
    fn a_loop_of_links_is_no_library() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib64")).unwrap();
        symlink("libnvidia-ml.so.1", dir.path().join("usr/lib64/libnvidia-ml.so.1")).unwrap();
        assert_eq!(
            Search::new(Vec::new(), vec![dir.path().into()]).look().libraries,
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn an_exact_path_wins_and_a_replaced_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "usr/lib64/libnvidia-ml.so.1");
        let exact = put(dir.path(), "elsewhere/nvml.so");
        let search = Search::new(vec![exact.clone()], vec![dir.path().into()]);
        let before = search.look();
        assert_eq!(before.libraries, [exact]);
        put(dir.path(), "elsewhere/next.so");
        fs::rename(
            dir.path().join("elsewhere/next.so"),
            dir.path().join("elsewhere/nvml.so"),
        )
        .unwrap();
        assert_ne!(before, search.look());
    }
}
