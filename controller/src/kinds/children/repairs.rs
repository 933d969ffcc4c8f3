//! How often a child is set back to what it had been made, when somebody keeps changing it.

use std::time::Duration;

use jiff::Timestamp;

/// Repairs that follow each change at once: an edit by hand, or a few.
const AT_ONCE: u32 = 5;
/// After these, one in so long: a program that changes a field back at once would keep the API server and itself busy for ever.
pub const THEN_EVERY: Duration = Duration::from_secs(120);
/// After so long without a repair the next one is the first again.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Of one child.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs {
    count: u32,
    last: Option<Timestamp>,
}

impl Repairs {
    /// How long the child is to be left as it is. `None`: it may be repaired now.
    pub fn wait(&self, now: Timestamp) -> Option<Duration> {
        let since = self.since(now)?;
        let remaining = THEN_EVERY.checked_sub(since)?;
        (self.count >= AT_ONCE && !remaining.is_zero()).then_some(remaining)
    }

    /// The same after a repair.
    pub fn repaired(self, now: Timestamp) -> Self {
        let count = match self.since(now) {
            Some(since) if since < FORGOTTEN => self.count.saturating_add(1),
            _ => 1,
        };
        Self { count, last: Some(now) }
    }

    fn since(&self, now: Timestamp) -> Option<Duration> {
        Some(now.duration_since(self.last?).try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn a_few_at_once_then_slowly_and_after_a_quiet_time_anew() {
        let mut repairs = Repairs::default();
        for n in 0..5 {
            assert_eq!(repairs.wait(at(n)), None, "{n}");
            repairs = repairs.repaired(at(n));
        }
        assert_eq!(repairs.wait(at(5)), Some(Duration::from_secs(119)));
        assert_eq!(repairs.wait(at(124)), None);
        repairs = repairs.repaired(at(124));
        assert_eq!(repairs.wait(at(125)), Some(Duration::from_secs(119)), "it goes on");
        assert_eq!(repairs.wait(at(1000)), None);
        repairs = repairs.repaired(at(1000));
        assert_eq!(repairs.wait(at(1001)), None, "long after, it is the first again");
    }
}
