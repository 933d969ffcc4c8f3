//! Follows the kernel log for XIDs. It goes on while NVML hangs, and knows what happened before this process started.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_core::facts::{GpuEvent, GpuEventKind, SOURCE_KERNEL_LOG, SOURCE_KERNEL_LOG_EARLIER};
use berth_core::health::kernel_lines::{LONGEST, Lines};
use berth_core::health::kernel_log::{Line, parse};
use berth_core::health::{Effect, Part, judge};

use crate::feed::{Feed, Item};

/// Pause before another try where the log cannot be opened; it doubles each time.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest such pause: a log that is not there, or must not be read, mostly stays so.
const LONGEST_PAUSE: Duration = Duration::from_secs(32);
/// Pause before another look at a log that is no device, and so cannot be waited for.
const LOOK: Duration = Duration::from_millis(100);
/// Of what was in the log before, so much of the newest is told.
const MOST_EARLIER: usize = 32;
/// The buffer is small; a thread that reads needs no more.
const STACK: usize = 128 * 1024;

/// Starts a thread that follows the log for ever. Without the right to read it, this lane is lost, and nothing else.
pub fn start(path: PathBuf, feed: Feed) {
    let started = std::thread::Builder::new()
        .name("kernel-log".into())
        .stack_size(STACK)
        .spawn(move || {
            let mut said = None;
            let mut seen = Seen::default();
            let mut pause = AGAIN;
            loop {
                let begun = Instant::now();
                let Err(error) = follow(&path, &feed, &mut seen);
                if begun.elapsed() > AGAIN {
                    pause = AGAIN;
                }
                if said.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(path = %path.display(), %error, "the kernel log is not followed; it is tried again");
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    if let Err(error) = started {
        tracing::error!(%error, "no thread to follow the kernel log");
    }
}

/// Time on the kernel log's clock.
fn kernel_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

fn follow(path: &Path, feed: &Feed, seen: &mut Seen) -> Result<std::convert::Infallible, io::Error> {
    let mut log = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    tracing::info!(path = %path.display(), "the kernel log is followed");
    let mut reader = Reader::new(seen);
    loop {
        match reader.step(&mut log, feed)? {
            Step::Read => {}
            Step::AtEnd => std::thread::sleep(LOOK),
            Step::MustWait => wait(&log)?,
        }
    }
}

/// What is known of the log, however often it is opened.
#[derive(Debug, Default)]
struct Seen {
    /// All that was in it before has been read and told once.
    earlier: bool,
    /// Number of the newest record that mattered.
    last: Option<u64>,
}

/// How far a reader is in an open log, and so what a record is.
#[derive(Debug)]
enum Pass {
    /// It was there before this process followed the log; those that matter are kept until all of it has been read.
    Earlier(Vec<GpuEvent>),
    /// The log was opened anew: there are records that were told, and newer ones.
    Again,
    /// It is new.
    Live,
}

/// One pass through an open log.
struct Reader<'a> {
    seen: &'a mut Seen,
    pass: Pass,
    lines: Lines,
    buffer: [u8; LONGEST],
}

/// What came of one read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There may be more.
    Read,
    /// The end of something that is no device.
    AtEnd,
    /// All is read; the kernel says when there is more.
    MustWait,
}

impl<'a> Reader<'a> {
    fn new(seen: &'a mut Seen) -> Self {
        let pass = match seen.earlier {
            false => Pass::Earlier(Vec::new()),
            true => Pass::Again,
        };
        Self {
            seen,
            pass,
            lines: Lines::default(),
            buffer: [0; LONGEST],
        }
    }

    fn step(&mut self, log: &mut impl io::Read, feed: &Feed) -> io::Result<Step> {
        let step = match log.read(&mut self.buffer) {
            Ok(0) => Step::AtEnd,
            Ok(read) => {
                let Self { seen, pass, .. } = self;
                self.lines
                    .push(&self.buffer[..read], |line| on_line(line, seen, pass, feed));
                return Ok(Step::Read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::MustWait,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Step::Read),
            // Records were overwritten before they were read; the next read has the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                tracing::warn!("the kernel log was overwritten before it was read: XIDs may be missed");
                return Ok(Step::Read);
            }
            Err(error) => return Err(error),
        };
        self.all_read(feed);
        Ok(step)
    }

    /// What was in the log has been read; what comes from now on is new.
    fn all_read(&mut self, feed: &Feed) {
        self.seen.earlier = true;
        if let Pass::Earlier(events) = std::mem::replace(&mut self.pass, Pass::Live) {
            for event in events {
                tracing::warn!(kind = ?event.kind, pci_address = event.pci_address, "GPU event before this process started");
                feed.tell(Item::Event(event, Instant::now()));
            }
        }
    }
}

fn on_line(line: &str, seen: &mut Seen, pass: &mut Pass, feed: &Feed) {
    let Some(record) = parse(line) else { return };
    let number = line.split(',').nth(1).and_then(|number| number.parse().ok());
    let was_told = number <= seen.last;
    seen.last = seen.last.max(number);
    let tell = |age_from: Duration| {
        if let Some(event) = record.event(age_from, SOURCE_KERNEL_LOG) {
            tracing::warn!(kind = ?event.kind, pci_address = event.pci_address, detail = event.detail, "GPU event");
            feed.tell(Item::Event(event, Instant::now()));
        }
    };
    match (pass, &record.line) {
        (Pass::Live | Pass::Again, Line::DriverLoaded) => {}
        // It was read when it was written. Its own time says less: the log's clock and the one that can be read drift apart.
        (Pass::Live, Line::Xid { .. }) => tell(record.at),
        (Pass::Again, Line::Xid { .. }) if was_told => {}
        // Written while nobody read.
        (Pass::Again, Line::Xid { .. }) => tell(kernel_now()),
        // What was before has been reset.
        (Pass::Earlier(events), Line::DriverLoaded) => events.clear(),
        (Pass::Earlier(events), Line::Xid { .. }) => {
            let matters = |event: &GpuEvent| match event.kind {
                GpuEventKind::Xid(xid) => judge(xid, &event.detail, Part::default()).effect > Effect::Counted,
                GpuEventKind::Other(_) => false,
            };
            if let Some(event) = record.event(kernel_now(), SOURCE_KERNEL_LOG_EARLIER).filter(matters) {
                if events.len() == MOST_EARLIER {
                    events.remove(0);
                }
                events.push(event);
            }
        }
    }
}

fn wait(log: &File) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: log.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, and the count says one; the file is open for as long as it is borrowed.
    match unsafe { libc::poll(&raw mut poll, 1, -1) } {
        n if n < 0 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of a log, one a read.
    struct Log(std::collections::VecDeque<Result<&'static str, i32>>);

    impl io::Read for Log {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let answer = self.0.pop_front().unwrap_or(Err(libc::EAGAIN));
            let text = answer.map_err(io::Error::from_raw_os_error)?;
            buffer[..text.len()].copy_from_slice(text.as_bytes());
            Ok(text.len())
        }
    }

    /// XIDs that were told, where from, and whether they are as new as can be.
    fn told(feed: &Feed) -> Vec<(u64, String, bool)> {
        let items = feed.listen().0.into_iter();
        items
            .map(|item| match item {
                Item::Event(event, _) => match event.kind {
                    GpuEventKind::Xid(xid) => (xid, event.source, event.age.is_zero()),
                    GpuEventKind::Other(name) => panic!("{name}"),
                },
                Item::State(status) => panic!("{status:?}"),
            })
            .collect()
    }

    fn live(xid: u64) -> (u64, String, bool) {
        (xid, "kmsg".into(), true)
    }

    fn earlier(xid: u64) -> (u64, String, bool) {
        (xid, "kmsg-earlier".into(), false)
    }

    const XID_95: &str = "4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 95, x\n";
    const XID_62: &str = "4,2,2,-;NVRM: Xid (PCI:0000:3b:00): 62, x\n";
    const XID_79: &str = "4,900,3,-;NVRM: Xid (PCI:0000:3b:00): 79, x\n";

    /// Reads until the log fails.
    fn read<const N: usize>(answers: [Result<&'static str, i32>; N], seen: &mut Seen, feed: &Feed) -> Vec<Step> {
        let mut log = Log(answers.into());
        let mut reader = Reader::new(seen);
        std::iter::from_fn(|| reader.step(&mut log, feed).ok()).collect()
    }

    #[test]
    fn a_log_that_was_overwritten_is_read_on() {
        let (feed, mut seen) = (Feed::new(), Seen::default());
        let answers = [
            Ok(XID_95),
            Err(libc::EINTR),
            Err(libc::EAGAIN),
            Ok(XID_62),
            Err(libc::EPIPE),
            Ok(XID_79),
            Err(libc::EAGAIN),
            Err(libc::EACCES),
        ];
        use Step::{MustWait, Read};
        let steps = read(answers, &mut seen, &feed);
        assert_eq!(steps, [Read, Read, MustWait, Read, Read, Read, MustWait]);
        assert_eq!(told(&feed), [earlier(95), live(62), live(79)]);
    }

    #[test]
    fn a_log_that_fails_is_read_again_and_each_xid_is_told_once() {
        let (feed, mut seen) = (Feed::new(), Seen::default());
        read([Ok(XID_95), Err(libc::EACCES)], &mut seen, &feed);
        assert_eq!(told(&feed), [], "not all of it is known");
        let answers = [Ok(XID_95), Err(libc::EAGAIN), Ok(XID_62), Err(libc::EACCES)];
        read(answers, &mut seen, &feed);
        assert_eq!(told(&feed), [earlier(95), live(62)]);
        // Opened anew, it begins with its oldest record.
        let answers = [Ok(XID_95), Ok(XID_62), Ok(XID_79), Err(libc::EAGAIN), Err(libc::EACCES)];
        read(answers, &mut seen, &feed);
        assert_eq!(told(&feed), [(79, "kmsg".into(), false)], "as old as it is");
    }

    #[test]
    fn a_log_that_comes_late_is_read_as_one_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        let feed = Feed::new();
        start(path.clone(), feed.clone());
        // Past the first try to open it.
        std::thread::sleep(AGAIN / 2);
        let partial = dir.path().join("partial");
        std::fs::write(&partial, XID_95).unwrap();
        std::fs::rename(partial, path).unwrap();
        let start = Instant::now();
        loop {
            let told = told(&feed);
            if !told.is_empty() {
                assert_eq!(told, [earlier(95)]);
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn what_was_before_the_driver_was_loaded_is_over() {
        let (feed, mut seen) = (Feed::new(), Seen::default());
        let xid_13 = "4,3,3,-;NVRM: Xid (PCI:0000:3b:00): 13, x\n";
        let loaded = "5,2,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.163.01\n";
        let answers = [
            Ok(XID_95),
            Ok(loaded),
            Ok(xid_13),
            Ok(XID_79),
            Err(libc::EAGAIN),
            Ok(XID_62),
            Err(libc::EACCES),
        ];
        read(answers, &mut seen, &feed);
        assert_eq!(told(&feed), [earlier(79), live(62)]);
    }
}
