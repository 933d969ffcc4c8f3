//! For what share of the last ten minutes heat or power held a GPU's clocks down.

use std::time::Duration;

/// Bits of NVML's clocks-event-reasons that say so: HW slowdown, SW thermal, HW thermal, HW power brake. A power cap (0x4) is set by people.
pub const HELD_DOWN: u64 = 0x8 | 0x20 | 0x40 | 0x80;

/// Ten buckets of a minute.
const BUCKETS: usize = 10;
const BUCKET: Duration = Duration::from_secs(60);
/// A sample stands for the time since the one before, at most this long.
const MOST: Duration = Duration::from_secs(5);
/// Less than this says nothing.
const LEAST_FOR_NOW: Duration = Duration::from_secs(60);
const LEAST_FOR_MOSTLY: Duration = Duration::from_secs(300);

/// How much the clocks were held down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// A tenth of the time.
    Now,
    /// Half of the time.
    Mostly,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    minute: u64,
    seen: Duration,
    held: Duration,
}

/// Share of time, with a memory of a fixed size.
#[derive(Debug, Clone, Default)]
pub struct Duty {
    buckets: [Bucket; BUCKETS],
    last: Option<Duration>,
    held: Option<Held>,
}

impl Duty {
    /// One sample. True where [`Self::held`] is another now.
    pub fn on(&mut self, reasons: u64, at: Duration) -> bool {
        let stands_for = self
            .last
            .map_or(Duration::ZERO, |last| at.saturating_sub(last).min(MOST));
        let held = if reasons & HELD_DOWN == 0 {
            Duration::ZERO
        } else {
            stands_for
        };
        self.add(stands_for, held, at)
    }

    /// A span of time that ends at `at`, and how much of it the clocks were held down. True where [`Self::held`] is another now.
    pub fn add(&mut self, seen: Duration, held: Duration, at: Duration) -> bool {
        self.last = Some(at);
        let minute = at.as_secs() / BUCKET.as_secs();
        let slot = usize::try_from(minute % BUCKETS as u64).unwrap_or(0);
        let bucket = &mut self.buckets[slot];
        if bucket.minute != minute {
            *bucket = Bucket {
                minute,
                ..Bucket::default()
            };
        }
        bucket.seen += seen;
        bucket.held += held.min(seen);
        let before = self.held;
        self.held = self.judged(minute);
        self.held != before
    }

    /// Time that was seen of the last ten minutes, and how much of it the clocks were held down.
    fn shares(&self, minute: u64) -> (Duration, Duration) {
        let recent = self.buckets.iter().filter(|b| b.minute + (BUCKETS as u64) > minute);
        recent.fold((Duration::ZERO, Duration::ZERO), |(s, h), b| (s + b.seen, h + b.held))
    }

    fn judged(&self, minute: u64) -> Option<Held> {
        let (seen, held) = self.shares(minute);
        if seen >= LEAST_FOR_MOSTLY && held * 2 >= seen {
            Some(Held::Mostly)
        } else if seen >= LEAST_FOR_NOW && held * 10 >= seen {
            Some(Held::Now)
        } else {
            None
        }
    }

    /// The verdict of the last sample.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Whether there was any sample with reasons.
    pub fn was_seen(&self) -> bool {
        self.last.is_some()
    }

    /// Whether enough was seen to say anything.
    pub fn can_tell(&self) -> bool {
        self.last
            .is_some_and(|at| self.shares(at.as_secs() / BUCKET.as_secs()).0 >= LEAST_FOR_NOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_time() {
        for (what, seconds, held_of_ten, want) in [
            ("too short to tell", 50, 10, None),
            ("never", 600, 0, None),
            ("a tenth", 600, 1, Some(Held::Now)),
            ("half, but not for long", 120, 5, Some(Held::Now)),
            ("half", 600, 5, Some(Held::Mostly)),
            ("always", 600, 10, Some(Held::Mostly)),
        ] {
            let mut duty = Duty::default();
            for second in 0..=seconds {
                let reasons = if second % 10 < held_of_ten { 0x40 } else { 0x4 };
                duty.on(reasons, Duration::from_secs(second));
            }
            assert_eq!(duty.held(), want, "{what}");
        }
    }

    #[test]
    fn a_gap_between_samples_is_not_held_time() {
        let mut duty = Duty::default();
        for n in 0..10 {
            duty.on(0x8, Duration::from_secs(n * 59));
        }
        // Nine samples of 5 s at most: too little to tell.
        assert_eq!(duty.held(), None);
    }
}
