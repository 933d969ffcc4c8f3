//! What is kept of a GPU from one sample to the next: readings that are differences.

use std::time::{Duration, Instant};

use super::gpm::Gpm;

/// Of one GPU, for as long as the library is open.
#[derive(Default)]
pub(super) struct History {
    pub(super) gpm: Gpm,
    pub(super) nvlink: Traffic,
}

/// A counter of KiB that only grows.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// The count and when it was read, and the rate up to then.
    last: Option<(u64, Instant, Option<u64>)>,
}

/// Counts that are closer together give no rate that means anything.
const APART: Duration = Duration::from_millis(100);

impl Traffic {
    /// Bytes a second since the count before; nothing for the first, and nothing where the count went back: the GPU was reset.
    pub(super) fn rate(&mut self, kib: Option<u64>, at: Instant) -> Option<u64> {
        let Some(kib) = kib else {
            self.last = None;
            return None;
        };
        let rate = match self.last {
            None => None,
            Some((_, before, rate)) if at.saturating_duration_since(before) < APART => return rate,
            Some((count, before, _)) => {
                let micros = at.saturating_duration_since(before).as_micros();
                let bytes = kib.checked_sub(count).map(|grown| u128::from(grown) * 1024);
                bytes.and_then(|bytes| u64::try_from(bytes * 1_000_000 / micros).ok())
            }
        };
        self.last = Some((kib, at, rate));
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_counts_that_are_apart_and_grow() {
        let start = Instant::now();
        let mut traffic = Traffic::default();
        for (ms, kib, want) in [
            (0, Some(1000), None),
            (1000, Some(2000), Some(1_024_000)),
            (1050, Some(9000), Some(1_024_000)),
            (3000, Some(2000), Some(0)),
            (4000, Some(10), None),
            (4500, Some(20), Some(20_480)),
            (5500, None, None),
            (6500, Some(50), None),
        ] {
            let at = start + Duration::from_millis(ms);
            assert_eq!(traffic.rate(kib, at), want, "at {ms} ms");
        }
    }
}
