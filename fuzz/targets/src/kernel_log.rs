//! The kernel log: bytes as they are read, cut into lines, each perhaps a record with an XID.

use std::time::Duration;

use berth_core::facts::{GpuEventKind, SOURCE_KERNEL_LOG};
use berth_core::health::kernel_lines::{LONGEST, Lines};
use berth_core::health::kernel_log::parse;
use berth_core::health::{Part, Recent, Tracker, judge};

/// Bytes of a detail that are kept, at most.
const DETAIL: usize = 512;

/// `data` is a log.
pub fn run(data: &[u8]) {
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    Lines::default().push(data, |line| whole.push(line.to_owned()));
    let mut lines = Lines::default();
    let size = data.first().map_or(1, |b| usize::from(*b) + 1);
    for piece in data.chunks(size) {
        lines.push(piece, |line| pieces.push(line.to_owned()));
    }
    assert_eq!(whole, pieces, "however it is read");

    let (mut tracker, mut recent) = (Tracker::new(), Recent::default());
    for line in whole {
        // Each byte that is no text becomes three.
        assert!(line.len() <= 3 * LONGEST, "{}", line.len());
        let Some(record) = parse(&line) else { continue };
        let Some(event) = record.event(Duration::from_secs(1), SOURCE_KERNEL_LOG) else {
            continue;
        };
        assert!(event.detail.len() <= DETAIL && event.age <= Duration::from_secs(1));
        if let GpuEventKind::Xid(xid) = event.kind {
            // The kernel's words are read differently for each generation.
            for (driver_major, compute_capability) in
                [(None, None), (Some(550), Some((9, 0))), (Some(580), Some((10, 0)))]
            {
                let part = Part {
                    driver_major,
                    compute_capability,
                };
                let _ = judge(xid, &event.detail, part);
            }
        }
        let _ = recent.is_new(&event, Duration::from_secs(1));
        tracker.on_event(&event, Duration::from_secs(1));
    }
    assert!(
        tracker.health(Duration::from_secs(2)).gpus.is_empty(),
        "a log names no GPU into being"
    );
}
