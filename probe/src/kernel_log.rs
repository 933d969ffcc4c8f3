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

/// Pause before another try where the log cannot be opened.
const AGAIN: Duration = Duration::from_secs(1);
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
            loop {
                // What is in the log the second time was mostly told the first time.
                let Err(error) = follow(&path, &feed, said.is_none());
                if said.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(path = %path.display(), %error, "the kernel log is not followed; it is tried again");
                }
                std::thread::sleep(AGAIN);
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

fn follow(path: &Path, feed: &Feed, tell_earlier: bool) -> Result<std::convert::Infallible, io::Error> {
    let mut log = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    tracing::info!(path = %path.display(), "the kernel log is followed");
    let mut reader = Reader {
        earlier: Some(Vec::new()),
        tell_earlier,
        lines: Lines::default(),
        buffer: [0; LONGEST],
    };
    loop {
        match reader.step(&mut log, feed)? {
            Step::Read => {}
            Step::AtEnd => std::thread::sleep(LOOK),
            Step::MustWait => wait(&log)?,
        }
    }
}

/// One pass through an open log.
struct Reader {
    /// What was in the log before, until all of it has been read.
    earlier: Option<Vec<GpuEvent>>,
    tell_earlier: bool,
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

impl Reader {
    fn step(&mut self, log: &mut impl io::Read, feed: &Feed) -> io::Result<Step> {
        let step = match log.read(&mut self.buffer) {
            Ok(0) => Step::AtEnd,
            Ok(read) => {
                let earlier = &mut self.earlier;
                self.lines
                    .push(&self.buffer[..read], |line| on_line(line, earlier, feed));
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
        tell_all(feed, &mut self.earlier, self.tell_earlier);
        Ok(step)
    }
}

fn on_line(line: &str, earlier: &mut Option<Vec<GpuEvent>>, feed: &Feed) {
    let Some(record) = parse(line) else { return };
    let now = kernel_now();
    match (earlier, &record.line) {
        (None, Line::DriverLoaded) => {}
        (None, Line::Xid { .. }) => {
            // It was read when it was written. Its own time says less: the log's clock and the one that can be read drift apart.
            if let Some(event) = record.event(record.at, SOURCE_KERNEL_LOG) {
                tracing::warn!(kind = ?event.kind, pci_address = event.pci_address, detail = event.detail, "GPU event");
                feed.tell(Item::Event(event, Instant::now()));
            }
        }
        // What was before has been reset.
        (Some(events), Line::DriverLoaded) => events.clear(),
        (Some(events), Line::Xid { .. }) => {
            let matters = |event: &GpuEvent| match event.kind {
                GpuEventKind::Xid(xid) => judge(xid, &event.detail, Part::default()).effect > Effect::Counted,
                GpuEventKind::Other(_) => false,
            };
            if let Some(event) = record.event(now, SOURCE_KERNEL_LOG_EARLIER).filter(matters) {
                if events.len() == MOST_EARLIER {
                    events.remove(0);
                }
                events.push(event);
            }
        }
    }
}

/// What was in the log has been read; what comes from now on is new.
fn tell_all(feed: &Feed, earlier: &mut Option<Vec<GpuEvent>>, tell: bool) {
    for event in earlier.take().into_iter().flatten().filter(|_| tell) {
        tracing::warn!(kind = ?event.kind, pci_address = event.pci_address, "GPU event before this process started");
        feed.tell(Item::Event(event, Instant::now()));
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

    #[test]
    fn a_log_that_was_overwritten_is_read_on() {
        let feed = Feed::new();
        let mut reader = Reader {
            earlier: Some(Vec::new()),
            tell_earlier: true,
            lines: Lines::default(),
            buffer: [0; LONGEST],
        };
        let mut log = Log(std::collections::VecDeque::from([
            Ok("4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 95, x\n"),
            Err(libc::EINTR),
            Err(libc::EAGAIN),
            Ok("4,2,2,-;NVRM: Xid (PCI:0000:3b:00): 62, x\n"),
            Err(libc::EPIPE),
            Ok("4,900,3,-;NVRM: Xid (PCI:0000:3b:00): 79, x\n"),
            Err(libc::EAGAIN),
            Err(libc::EACCES),
        ]));
        let steps: Vec<_> = (0..7).map(|_| reader.step(&mut log, &feed).unwrap()).collect();
        use Step::{MustWait, Read};
        assert_eq!(steps, [Read, Read, MustWait, Read, Read, Read, MustWait]);
        assert!(reader.step(&mut log, &feed).is_err());
        let told: Vec<_> = feed
            .listen()
            .0
            .into_iter()
            .map(|item| match item {
                Item::Event(event, _) => (event.kind, event.source, event.age.is_zero()),
                Item::State(status) => panic!("{status:?}"),
            })
            .collect();
        let live = |xid| (GpuEventKind::Xid(xid), "kmsg".to_owned(), true);
        assert_eq!(told[1..], [live(62), live(79)], "as old as when they were read");
        assert_eq!(told[0], (GpuEventKind::Xid(95), "kmsg-earlier".to_owned(), false));
    }

    #[test]
    fn what_was_before_the_driver_was_loaded_is_over() {
        let feed = Feed::new();
        let mut earlier = Some(Vec::new());
        let xid = |n: u64| format!("4,1,1,-;NVRM: Xid (PCI:0000:3b:00): {n}, x");
        for line in [
            xid(95),
            "5,2,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.163.01".into(),
            xid(13),
            xid(79),
        ] {
            on_line(&line, &mut earlier, &feed);
        }
        tell_all(&feed, &mut earlier, true);
        on_line(&xid(48), &mut earlier, &feed);
        let told: Vec<_> = feed
            .listen()
            .0
            .into_iter()
            .map(|item| match item {
                Item::Event(event, _) => (event.kind, event.source),
                Item::State(status) => panic!("{status:?}"),
            })
            .collect();
        assert_eq!(
            told,
            [
                (GpuEventKind::Xid(79), "kmsg-earlier".to_owned()),
                (GpuEventKind::Xid(48), "kmsg".to_owned())
            ]
        );
    }
}
