//! Follows the kernel log for XIDs. It goes on while NVML hangs, and knows what happened before this process started.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_core::facts::{GpuEvent, GpuEventKind, SOURCE_KERNEL_LOG, SOURCE_KERNEL_LOG_EARLIER};
use berth_core::health::kernel_lines::{LONGEST, Lines};
use berth_core::health::kernel_log::{Line, parse};
use berth_core::health::{Effect, verdict};

use crate::feed::{Feed, Item};

/// Pause before another try where the log cannot be opened, and before another look at one that is no device.
const AGAIN: Duration = Duration::from_secs(1);
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
    let mut earlier = Some(Vec::new());
    let mut lines = Lines::default();
    let mut buffer = [0; LONGEST];
    loop {
        match log.read(&mut buffer) {
            Ok(0) => {
                tell_all(feed, &mut earlier, tell_earlier);
                std::thread::sleep(AGAIN);
            }
            Ok(read) => lines.push(&buffer[..read], |line| on_line(line, &mut earlier, feed)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tell_all(feed, &mut earlier, tell_earlier);
                wait(&log)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Records were overwritten before they were read; the next read has the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                tracing::warn!("the kernel log was overwritten before it was read: XIDs may be missed");
            }
            Err(error) => return Err(error),
        }
    }
}

fn on_line(line: &str, earlier: &mut Option<Vec<GpuEvent>>, feed: &Feed) {
    let Some(record) = parse(line) else { return };
    let now = kernel_now();
    match (earlier, &record.line) {
        (None, Line::DriverLoaded) => {}
        (None, Line::Xid { .. }) => {
            if let Some(event) = record.event(now, SOURCE_KERNEL_LOG) {
                tracing::warn!(kind = ?event.kind, pci_address = event.pci_address, detail = event.detail, "GPU event");
                feed.tell(Item::Event(event, Instant::now()));
            }
        }
        // What was before has been reset.
        (Some(events), Line::DriverLoaded) => events.clear(),
        (Some(events), Line::Xid { .. }) => {
            let matters = |event: &GpuEvent| match event.kind {
                GpuEventKind::Xid(xid) => verdict(xid).effect(&event.detail).0 > Effect::Counted,
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
