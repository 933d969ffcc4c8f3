//! Time between two tries to reach the controller: full jitter, so that a fleet that lost its leader does not come back in one moment.

use std::time::Duration;

/// Shortest pause.
const SHORTEST: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(10);
/// A session that lasted this long was a good one: the next failure is the first.
const GOOD: Duration = Duration::from_secs(10);
/// Failures that a session ended by a newer one of the same node counts for: the two must not take turns quickly.
const REPLACED: u32 = 5;

/// How a session, or the try to open one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// For whatever reason, after so long.
    After(Duration),
    /// Because a newer session of this node is open.
    Replaced,
}

/// Failures in a row.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Time to wait, where `random` is uniform in 0..1.
    pub fn pause(&mut self, ended: Ended, random: f64) -> Duration {
        self.failures = match ended {
            Ended::After(lasted) if lasted >= GOOD => 1,
            Ended::After(_) => self.failures.saturating_add(1),
            Ended::Replaced => self.failures.saturating_add(1).max(REPLACED),
        };
        let ceiling = SHORTEST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        SHORTEST + ceiling.saturating_sub(SHORTEST).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Ended = Ended::After(Duration::ZERO);

    #[test]
    fn ceilings_double_up_to_ten_seconds_and_a_good_session_starts_over() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<_> = (0..8).map(|_| backoff.pause(SHORT, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.pause(Ended::After(GOOD), 1.0).as_millis(), 400);
        assert_eq!(backoff.pause(Ended::Replaced, 1.0).as_millis(), 6400);
    }

    #[test]
    fn jitter_is_full() {
        for (random, expected) in [(0.0, 200), (0.5, 300), (1.0, 400)] {
            assert_eq!(Backoff::default().pause(SHORT, random).as_millis(), expected);
        }
        for _ in 0..40 {
            assert!(Backoff { failures: u32::MAX }.pause(SHORT, 1.0) <= LONGEST);
        }
    }
}
