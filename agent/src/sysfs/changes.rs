//! When to scan again: on the kernel's word, on a change in a folder that stands for a `/sys`, and every so often in case neither came.
//!
//! ```text
//! kernel's uevents ───────┐
//! inotify (no real sysfs) ┴─► wait for the rest of the burst ─► scan ─► once more a moment later
//! nobody's word            ─► every 5 s the registers of the functions that are known, now and then a scan
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{inotify, statfs};

use crate::uevent::Socket;

/// Scans are this far apart where events tell what is new. (The partition mode of an AMD GPU changes without one.)
const WITH_EVENTS: Duration = Duration::from_secs(30);
/// The same without: a scan is some dozens of small reads.
const WITHOUT_EVENTS: Duration = Duration::from_secs(5);
/// What the kernel says of known functions is read this often: nobody tells that one has fallen off the bus.
const READINGS: Duration = Duration::from_secs(5);
/// A driver that binds eight GPUs tells some dozens of things; each is worth a scan, all of them together are worth one.
const BURST: Duration = Duration::from_millis(50);
/// A file may come a moment after the word of it.
const ONCE_MORE: Duration = Duration::from_secs(1);
/// `f_type` of a real sysfs, which tells inotify nothing of what the kernel does.
const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Why a scan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nothing was scanned before.
    Start,
    /// The kernel told of a device or a module.
    Uevent,
    /// A folder that stands for a `/sys` changed.
    Folder,
    /// NVML no longer lists a GPU.
    Nvml,
    /// It was time.
    Timer,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Start, Self::Uevent, Self::Folder, Self::Nvml, Self::Timer];
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Uevent => "uevent",
            Self::Folder => "folder",
            Self::Nvml => "nvml",
            Self::Timer => "timer",
        })
    }
}

/// Asks for a scan, from any thread. Without a descriptor for it there is none before its time.
#[derive(Debug, Clone, Default)]
pub struct Ask(Option<Arc<OwnedFd>>);

impl Ask {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        let asked = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Self(asked.ok().map(Arc::new))
    }

    /// A scan, as soon as may be.
    pub fn scan(&self) {
        if let Some(asked) = &self.0 {
            // It fails only where many have asked already.
            let _ = rustix::io::write(asked, &1_u64.to_ne_bytes());
        }
    }

    /// Whether anybody asked since.
    fn take(&self) -> bool {
        let asked = self.0.as_ref();
        asked.is_some_and(|asked| rustix::io::read(asked, &mut [0; 8][..]).is_ok())
    }
}

/// All there is to wait for.
#[derive(Debug)]
pub struct Changes {
    asked: Ask,
    kernel: Option<Socket>,
    folder: Option<Folder>,
    /// Whether what is waited for tells all there is to tell.
    told: bool,
    /// A scan that nobody asks for is made then.
    due: Instant,
}

impl Changes {
    /// Of a `/sys`, real or not. What cannot be had is done without.
    pub fn of(root: &Path, asked: Ask) -> Self {
        let kernel = Socket::open();
        let is_sysfs = statfs(root).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(SYSFS_MAGIC));
        let folder = (!is_sysfs).then(|| Folder::new(root)).transpose();
        match (&kernel, &folder) {
            (Err(why), _) if is_sysfs => {
                tracing::warn!(%why, "no events from the kernel: sysfs is scanned every {WITHOUT_EVENTS:?}")
            }
            (_, Err(why)) => tracing::warn!(%why, "no inotify: the folder is scanned every {WITHOUT_EVENTS:?}"),
            _ => {}
        }
        let (kernel, folder) = (kernel.ok(), folder.ok().flatten());
        let mut changes = Self {
            asked,
            told: if is_sysfs { kernel.is_some() } else { folder.is_some() },
            kernel,
            folder,
            due: Instant::now(),
        };
        changes.due += changes.pause();
        changes
    }

    /// Time between scans that nobody asks for.
    fn pause(&self) -> Duration {
        match self.told {
            true => WITH_EVENTS,
            false => WITHOUT_EVENTS,
        }
    }

    /// The last scan failed: the next one is not put off.
    pub fn failed(&mut self) {
        self.due = self.due.min(Instant::now() + WITHOUT_EVENTS);
    }

    /// To be called before each scan, so that nothing falls in between.
    pub fn watch(&self) {
        if let Some(folder) = &self.folder {
            folder.watch();
        }
    }

    /// Waits until it is worth scanning again. `None`: what is known has to be read again, no more.
    pub fn wait(&mut self) -> Option<Cause> {
        let end = self.due.min(Instant::now() + READINGS);
        loop {
            let now = Instant::now();
            if now >= end {
                return self.is_due(now).then_some(Cause::Timer);
            }
            self.sleep(end - now);
            if let Some(cause) = self.take() {
                std::thread::sleep(BURST);
                self.take();
                self.due = Instant::now() + ONCE_MORE;
                return Some(cause);
            }
        }
    }

    /// Whether it is time for a scan, which puts the next one off.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.pause();
        }
        is_due
    }

    fn sleep(&self, at_most: Duration) {
        let kernel = self.kernel.as_ref().map(Socket::as_fd);
        let folder = self.folder.as_ref().map(|f| f.inotify.as_fd());
        let asked = self.asked.0.as_ref().map(|fd| fd.as_fd());
        let mut readable: Vec<_> = [kernel, folder, asked]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let at_most = Timespec::try_from(at_most).ok();
        if poll(&mut readable, at_most.as_ref()).is_err() {
            // A signal, or something that would be so again at once.
            std::thread::sleep(BURST);
        }
    }

    /// Reads what has come; what of it is worth a scan.
    fn take(&self) -> Option<Cause> {
        let folder = self.folder.as_ref().is_some_and(Folder::take);
        let kernel = self.kernel.as_ref().is_some_and(Socket::take);
        let asked = self.asked.take();
        match (kernel, folder) {
            (true, _) => Some(Cause::Uevent),
            (false, true) => Some(Cause::Folder),
            (false, false) => asked.then_some(Cause::Nvml),
        }
    }
}

/// A folder laid out as a `/sys`: that of a simulated machine.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    inotify: OwnedFd,
}

/// Folders that the scan reads, or that these may come to be in.
const FOLDERS: [&str; 6] = ["", "bus", "bus/pci", "bus/pci/devices", "module", "class/dmi/id"];
/// The folders in these are watched, too.
const OF_FOLDERS: [&str; 2] = ["bus/pci/devices", "module"];

impl Folder {
    fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: root.into(),
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
        })
    }

    /// A folder that is watched already stays so, under the same number.
    fn watch(&self) {
        let below = OF_FOLDERS.iter().flat_map(|folder| {
            let entries = std::fs::read_dir(self.root.join(folder)).into_iter().flatten();
            entries.flatten().map(|entry| entry.path())
        });
        let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::CLOSE_WRITE;
        for folder in FOLDERS.iter().map(|folder| self.root.join(folder)).chain(below) {
            // One that is not there (yet) is part of another.
            let _ = inotify::add_watch(&self.inotify, &folder, changes | WatchFlags::ONLYDIR);
        }
    }

    fn take(&self) -> bool {
        let mut any = false;
        let mut sink = [0; 4096];
        while rustix::io::read(&self.inotify, &mut sink[..]).is_ok_and(|read| read > 0) {
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_known_is_read_between_scans_that_are_far_apart() {
        let dir = tempfile::tempdir().unwrap();
        let ask = Ask::new();
        let mut changes = Changes::of(dir.path(), ask.clone());
        changes.watch();
        changes.kernel = None;
        assert!(changes.told, "there is inotify");
        let start = Instant::now();
        assert_eq!(changes.wait(), None, "the registers alone");
        assert!(start.elapsed() < WITH_EVENTS / 2, "{:?}", start.elapsed());
        ask.scan();
        assert_eq!(changes.wait(), Some(Cause::Nvml));
        assert_eq!(changes.wait(), Some(Cause::Timer), "once more");
        let now = Instant::now();
        assert!(!changes.is_due(now + READINGS));
        changes.failed();
        assert!(changes.is_due(now + READINGS * 2), "after a scan that failed");
        assert!(!changes.is_due(now + READINGS * 3));
        assert!(changes.is_due(now + READINGS * 2 + WITH_EVENTS));
    }

    #[test]
    fn a_folder_tells_what_comes_goes_and_changes_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let folder = Folder::new(root).unwrap();
        let gpu = root.join("bus/pci/devices/0000:10:00.0");
        let add_bus = || fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
        let add_function = || fs::create_dir(&gpu).unwrap();
        let add_class = || fs::write(gpu.join("class"), "0x030200").unwrap();
        let bind = || std::os::unix::fs::symlink("../x", gpu.join("driver")).unwrap();
        let remove = || fs::remove_dir_all(&gpu).unwrap();
        let steps: [(&str, &dyn Fn()); 5] = [
            ("a bus", &add_bus),
            ("a function", &add_function),
            ("its class", &add_class),
            ("its driver", &bind),
            ("it goes", &remove),
        ];
        for (what, step) in steps {
            folder.watch();
            folder.take();
            assert!(!folder.take(), "before {what}");
            step();
            assert!(folder.take(), "{what}");
        }
    }
}
