//! Clocks held down, and how far the GPU is from that.

use std::time::Duration;

use super::reading::{Last, TOO_SHORT};
use super::row::{Outcome, Row};
use crate::health::Reason;
use crate::health::throttle::{Duty, Held};

/// A longer time without a reading says nothing of when in it the clocks were held down.
const LONGEST_SPAN: Duration = Duration::from_secs(60);

/// What was read of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks {
    /// By the reasons in the samples.
    sampled: Duty,
    /// By the driver's own count of the time: it misses nothing between two samples.
    counted: Duty,
    violation: Option<(Duration, Duration)>,
    /// Degrees Celsius below slowdown.
    pub margin: Last<i32>,
}

impl Clocks {
    /// True where the verdict is another one now.
    pub fn on_reasons(&mut self, reasons: u64, at: Duration) -> bool {
        self.sampled.on(reasons, at)
    }

    /// Time that heat held the clocks down so far.
    pub fn on_violation(&mut self, held: Duration, at: Duration) {
        if let Some((since, before)) = self.violation
            && held >= before
            && at.saturating_sub(since) <= LONGEST_SPAN
        {
            self.counted.add(at.saturating_sub(since), held - before, at);
        }
        self.violation = Some((at, held));
    }

    pub fn rows(&self, now: Duration) -> Vec<Row> {
        vec![
            self.throttling(),
            self.margin.row("temperature", now, |margin| temperature(*margin)),
        ]
    }

    fn throttling(&self) -> Row {
        const CHECK: &str = "throttling";
        let ill = |outcome: fn(&'static str, Reason, String) -> Row, share: &str| {
            outcome(
                CHECK,
                Reason::Throttled,
                format!(
                    "heat or power held the clocks down for {share} of the last 10 minutes: check cooling and power"
                ),
            )
        };
        match self.sampled.held().max(self.counted.held()) {
            Some(Held::Now) => ill(Row::suspect, "a tenth"),
            Some(Held::Mostly) => ill(Row::unhealthy, "most"),
            None if self.sampled.can_tell() || self.counted.can_tell() => Row::passed(CHECK, ""),
            None if self.sampled.was_seen() || self.counted.was_seen() => Row::unknown(CHECK, TOO_SHORT),
            None => Row::new(CHECK, Outcome::NotSupported),
        }
    }
}

fn temperature(margin: i32) -> Row {
    const CHECK: &str = "temperature";
    match margin {
        ..=0 => Row::suspect(
            CHECK,
            Reason::Overheated,
            "the GPU is as hot as it may be before its clocks are lowered: check cooling",
        ),
        degrees => Row::passed(CHECK, format!("{degrees} °C below slowdown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_drivers_count_of_time_counts_where_samples_see_nothing() {
        for (held_of_fifteen, want) in [(0, Outcome::Passed), (2, Outcome::Suspect), (8, Outcome::Unhealthy)] {
            let mut clocks = Clocks::default();
            for round in 0..=40 {
                clocks.on_reasons(0x1, S(round * 15));
                clocks.on_violation(S(100 + round * held_of_fifteen), S(round * 15));
            }
            assert_eq!(clocks.throttling().outcome, want, "{held_of_fifteen} s of 15");
        }
    }

    #[test]
    fn a_count_that_went_back_is_a_reset() {
        let mut clocks = Clocks::default();
        clocks.on_violation(S(10_000), S(0));
        clocks.on_violation(S(0), S(15));
        assert_eq!(clocks.throttling().outcome, Outcome::NotSupported);
    }
}
