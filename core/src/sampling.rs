//! How often a node's GPUs are read.

use std::time::Duration;

use crate::freshness;

/// Times between two readings of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// On a node where a pod with GPUs runs or is promised.
    pub busy: Duration,
    /// On any other.
    pub idle: Duration,
}

impl Sampling {
    /// The two times, neither longer than [`freshness::SLOWEST_SAMPLE`]. An idle node is where the next model goes: a reading that is stale
    /// only because it is taken rarely would keep the model away.
    pub fn new(busy: Duration, idle: Duration) -> Self {
        Self {
            busy: busy.min(freshness::SLOWEST_SAMPLE),
            idle: idle.min(freshness::SLOWEST_SAMPLE),
        }
    }

    /// For one node.
    pub fn interval(self, is_busy: bool) -> Duration {
        if is_busy { self.busy } else { self.idle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reading_is_stale_because_it_is_taken_rarely() {
        const MS: fn(u64) -> Duration = Duration::from_millis;
        for (busy, idle, want) in [
            (1000, 3000, (1000, 3000)),
            (250, 1000, (250, 1000)),
            (1000, 10_000, (1000, 3000)),
            (60_000, 60_000, (3000, 3000)),
            // Whoever wants an idle node to be read more often has a reason.
            (2000, 500, (2000, 500)),
        ] {
            let sampling = Sampling::new(MS(busy), MS(idle));
            assert_eq!(
                (sampling.interval(true), sampling.interval(false)),
                (MS(want.0), MS(want.1)),
                "{busy} {idle}"
            );
        }
        assert!(freshness::SLOWEST_SAMPLE < freshness::SAMPLE_STALE);
    }
}
