//! Signs that another look for a driver is worth it: the kernel's uevents, files in the folders searched, mounts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::PathBuf;

use berth_core::uevent::Uevent;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The NVIDIA module, or a function that it may serve, came, went, was bound or unbound.
    Kernel,
    /// Something in a folder that is searched, or a mount.
    Files,
}

/// Where signs come from; each as far as it is to be had here.
#[derive(Debug)]
pub struct Signs {
    kernel: Option<AsyncFd<OwnedFd>>,
    /// While folders are watched.
    files: Option<AsyncFd<OwnedFd>>,
    /// That they cannot be was said.
    no_files: bool,
    mounts: Option<AsyncFd<File>>,
}

impl Signs {
    /// From now on. Needs a runtime.
    pub fn new() -> Self {
        let told = |what: &str, why: io::Error| tracing::warn!(%why, "no {what}: a driver is looked for more often");
        Self {
            kernel: uevents().map_err(|why| told("events from the kernel", why)).ok(),
            files: None,
            no_files: false,
            mounts: mounts().map_err(|why| told("word of mounts", why)).ok(),
        }
    }

    /// Watches folders for files, `devices` for device nodes (everybody writes to some of these). `false`: not all of it can be watched, so
    /// that files may come unseen.
    pub fn watch(&mut self, folders: impl IntoIterator<Item = PathBuf>, devices: &str) -> bool {
        if self.files.is_none() {
            match files() {
                Ok(files) => self.files = Some(files),
                Err(why) if !std::mem::replace(&mut self.no_files, true) => {
                    tracing::warn!(%why, "no inotify: a driver is looked for more often");
                }
                Err(_) => {}
            }
        }
        let Some(files) = &self.files else { return false };
        let nodes = WatchFlags::CREATE | WatchFlags::DELETE;
        let content = nodes | WatchFlags::MOVE | WatchFlags::CLOSE_WRITE;
        // A folder that is watched already stays so. One that is gone meanwhile was a change in another.
        let add = |folder: &PathBuf, changes| match inotify::add_watch(files, folder, changes | WatchFlags::ONLYDIR) {
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => true,
            Err(_) => false,
        };
        let watched: Vec<bool> = folders.into_iter().map(|folder| add(&folder, content)).collect();
        add(&devices.into(), nodes) & watched.into_iter().all(|watched| watched) & self.mounts.is_some()
    }

    /// Watches no folder any more: whoever takes the driver's folders away finds nothing of this process in them.
    pub fn unwatch(&mut self) {
        self.files = None;
    }

    /// Waits for the next sign; `files`: those count, too.
    pub async fn next(&self, files: bool) -> Sign {
        loop {
            let sign = tokio::select! {
                sign = came(self.kernel.as_ref(), Interest::READABLE, concerns_nvidia) => sign.then_some(Sign::Kernel),
                sign = came(self.files.as_ref().filter(|_| files), Interest::READABLE, any) => sign.then_some(Sign::Files),
                // There is nothing to read: that it changed is all that it tells.
                sign = came(self.mounts.as_ref().filter(|_| files), Interest::PRIORITY, |_| true) => sign.then_some(Sign::Files),
            };
            if let Some(sign) = sign {
                return sign;
            }
        }
    }

    /// Forgets what has come: the rest of a burst of which the first was told.
    pub fn forget(&self) {
        if let Some(kernel) = &self.kernel {
            concerns_nvidia(kernel.get_ref());
        }
        if let Some(files) = &self.files {
            any(files.get_ref());
        }
    }
}

/// Waits until there is something, and says whether `take`, which reads all of it, finds it of interest.
async fn came<T: AsRawFd>(from: Option<&AsyncFd<T>>, interest: Interest, take: impl Fn(&T) -> bool) -> bool {
    let ready = match from {
        Some(from) => from.ready(interest).await,
        None => std::future::pending().await,
    };
    match ready {
        Ok(mut ready) => {
            // Before reading: what comes meanwhile makes it ready again.
            ready.clear_ready();
            take(ready.get_inner())
        }
        // The runtime is ending.
        Err(_) => std::future::pending().await,
    }
}

fn registered<T: AsRawFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: each type here owns its descriptor, which stays open and the same until it is dropped with its registration.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// The kernel's uevents. They reach every network namespace that belongs to the initial user namespace; elsewhere the agent, or time, tells.
fn uevents() -> io::Result<AsyncFd<OwnedFd>> {
    const KERNEL: u32 = 1;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    registered(socket, Interest::READABLE)
}

fn files() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    registered(inotify, Interest::READABLE)
}

/// The driver container's root is a mount that comes and goes, which inotify does not tell.
fn mounts() -> io::Result<AsyncFd<File>> {
    registered(File::open("/proc/self/mountinfo")?, Interest::PRIORITY)
}

fn concerns_nvidia(socket: &OwnedFd) -> bool {
    let mut concerns = false;
    let mut message = [0; 8192];
    loop {
        match recv(socket, &mut message[..], RecvFlags::empty()) {
            Ok((read, _)) => {
                let event = Uevent::parse(message.get(..read).unwrap_or_default());
                concerns |= event.is_some_and(|e| e.concerns_nvidia());
            }
            // Some were dropped.
            Err(Errno::NOBUFS) => concerns = true,
            Err(Errno::INTR) => {}
            Err(_) => return concerns,
        }
    }
}

fn any(inotify: &OwnedFd) -> bool {
    let mut any = false;
    let mut sink = [0; 4096];
    while rustix::io::read(inotify.as_fd(), &mut sink[..]).is_ok_and(|read| read > 0) {
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_file_is_a_sign_and_a_device_that_is_written_to_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, devices) = (dir.path().join("lib"), dir.path().join("dev"));
        for path in [&folder, &devices] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(devices.join("null"), "").unwrap();
        // Mounts of this machine would be signs as well.
        let mut signs = Signs {
            kernel: None,
            mounts: None,
            ..Signs::new()
        };
        let gone = dir.path().join("gone");
        signs.watch([folder.clone(), gone], devices.to_str().unwrap());
        std::fs::write(devices.join("null"), "x").unwrap();
        assert!(timeout(MOMENT, signs.next(true)).await.is_err());
        for file in [folder.join("libnvidia-ml.so.1"), devices.join("nvidiactl")] {
            std::fs::write(file, "").unwrap();
            assert_eq!(timeout(PATIENCE, signs.next(true)).await, Ok(Sign::Files));
            signs.forget();
        }
        std::fs::remove_file(devices.join("nvidiactl")).unwrap();
        assert!(timeout(MOMENT, signs.next(false)).await.is_err(), "not asked for");
        assert_eq!(timeout(PATIENCE, signs.next(true)).await, Ok(Sign::Files));
    }

    /// Set in the process that has mounts of its own.
    const APART: &str = "BERTH_TEST_MOUNTS_APART";

    /// Mounts are the machine's: so it runs itself for this test alone, where its mounts are nobody else's.
    #[test]
    fn a_mount_is_a_sign_and_so_is_its_end() {
        if std::env::var_os(APART).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            return runtime.unwrap().block_on(mounts_are_signs());
        }
        let apart = [&["--mount"][..], &["--user", "--map-root-user", "--mount"]];
        let may = |how: &&&[&str]| {
            let tried = Command::new("unshare").args(**how).arg("true").output();
            tried.is_ok_and(|tried| tried.status.success())
        };
        let Some(how) = apart.iter().find(may) else {
            eprintln!("skipped: no mount namespace can be made here");
            return;
        };
        let ran = Command::new("unshare")
            .args(*how)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "signs::tests::a_mount_is_a_sign_and_so_is_its_end"])
            .env(APART, "")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }

    async fn mounts_are_signs() {
        let dir = tempfile::tempdir().unwrap();
        let mut signs = Signs {
            kernel: None,
            ..Signs::new()
        };
        assert!(signs.watch([dir.path().into()], "/dev"), "all can be watched");
        signs.unwatch();
        let run = |words: &[&str], at: &Path| {
            let ran = Command::new(words[0]).args(&words[1..]).arg(at).status();
            assert!(ran.unwrap().success(), "{words:?}");
        };
        assert!(timeout(MOMENT, signs.next(true)).await.is_err(), "nothing happened yet");
        for change in [&["mount", "-t", "tmpfs", "none"][..], &["umount"]] {
            run(change, dir.path());
            assert!(timeout(MOMENT, signs.next(false)).await.is_err(), "not asked for");
            assert_eq!(timeout(PATIENCE, signs.next(true)).await, Ok(Sign::Files), "{change:?}");
            assert!(timeout(MOMENT, signs.next(true)).await.is_err(), "told once");
        }
    }
}
