//! A reading over time: its last value and age, the growth of a counter.
//!
//! ```text
//! told ─► value, as of now         no answer ─► the value before, with its age
//! old and passed ─► unknown        old and ill ─► still ill: silence clears nothing
//! ```

use std::time::Duration;

use super::row::{Outcome, Row};

/// Readings are taken every 15 s; one that was not renewed for this long says nothing of now.
pub(super) const STALE: Duration = Duration::from_secs(300);
/// The same of those that are taken once an hour.
pub(super) const STALE_HOURLY: Duration = Duration::from_secs(3 * 3600);

/// The last value of one reading.
#[derive(Debug, Clone)]
pub(super) struct Last<T> {
    value: Option<(T, Duration)>,
    unclear: bool,
}

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self {
            value: None,
            unclear: false,
        }
    }
}

impl<T> Last<T> {
    /// One round at `at`; `unclear`: the call gave no answer, and may the next time.
    pub fn on(&mut self, new: Option<T>, unclear: bool, at: Duration) {
        self.unclear = unclear && new.is_none();
        if let Some(value) = new {
            self.value = Some((value, at));
        }
    }

    pub fn value(&self) -> Option<&T> {
        self.value.as_ref().map(|(value, _)| value)
    }

    pub fn is_fresh(&self, now: Duration) -> bool {
        matches!(&self.value, Some((_, at)) if now.saturating_sub(*at) < STALE)
    }

    /// What the reading says at `now`, as `judge` has it.
    pub fn row(&self, check: &'static str, now: Duration, judge: impl FnOnce(&T) -> Row) -> Row {
        self.row_within(STALE, check, now, judge)
    }

    /// The same of a reading that is taken less often.
    pub fn row_within(
        &self,
        stale: Duration,
        check: &'static str,
        now: Duration,
        judge: impl FnOnce(&T) -> Row,
    ) -> Row {
        match &self.value {
            Some((value, at)) => match judge(value) {
                row if row.outcome == Outcome::Passed && now.saturating_sub(*at) >= stale => {
                    Row::unknown(check, "it passed when it could last be read, long ago")
                }
                row => row,
            },
            None if self.unclear => Row::unknown(check, "the driver gives no answer at the moment"),
            None => Row::new(check, Outcome::NotSupported),
        }
    }
}

/// A counter's growth in the last whole minute that was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Rate {
    from: Option<(Duration, u64)>,
    a_minute: Option<u64>,
}

/// What is said of a rate or a share before there is one.
pub(super) const TOO_SHORT: &str = "known after a minute of watching";

impl Rate {
    const OVER: Duration = Duration::from_secs(60);

    pub fn on(&mut self, count: u64, at: Duration) {
        match self.from {
            // It went back: the GPU was reset.
            Some((_, before)) if count < before => *self = Self::default(),
            Some((since, before)) if at.saturating_sub(since) >= Self::OVER => {
                let seconds = at.saturating_sub(since).as_secs().max(1);
                self.a_minute = Some(((count - before).saturating_mul(60)).div_ceil(seconds));
            }
            Some(_) => return,
            None => {}
        }
        self.from = Some((at, count));
    }

    /// A row by whether there were more than `most` in a minute.
    pub fn row(&self, check: &'static str, most: u64, ill: impl FnOnce() -> Row) -> Row {
        match self.a_minute {
            None => Row {
                reading: self
                    .from
                    .map(|(_, count)| format!("{count} so far"))
                    .unwrap_or_default(),
                ..Row::unknown(check, TOO_SHORT)
            },
            Some(n) if n > most => ill(),
            Some(n) => Row::passed(check, format!("{n} a minute")),
        }
    }
}

/// A counter of what should never happen: that it grew stays worth watching for a while.
#[derive(Debug, Clone, Default)]
pub(super) struct Growth {
    last: Option<u64>,
    grew: Option<Duration>,
}

impl Growth {
    /// How long.
    pub const HOLDS: Duration = Duration::from_secs(600);

    pub fn on(&mut self, count: u64, at: Duration) {
        if self.last.is_some_and(|before| count > before) {
            self.grew = Some(at);
        }
        self.last = Some(count);
    }

    /// Whether it was ever read.
    pub fn was_seen(&self) -> bool {
        self.last.is_some()
    }

    pub fn is_recent(&self, now: Duration) -> bool {
        self.grew.is_some_and(|at| now.saturating_sub(at) < Self::HOLDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Reason;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn judge(good: &bool) -> Row {
        match good {
            true => Row::passed("x", ""),
            false => Row::unhealthy("x", Reason::InforomCorrupted, "m"),
        }
    }

    #[test]
    fn silence_neither_clears_nor_convicts() {
        use Outcome::*;
        for (what, rounds, now, want) in [
            ("never told", &[(None, false, 0)][..], 0, NotSupported),
            ("no answer yet", &[(None, true, 0)], 0, Unknown),
            ("passed", &[(Some(true), false, 0)], 10, Passed),
            ("one missed", &[(Some(true), false, 0), (None, true, 15)], 15, Passed),
            (
                "passed long ago",
                &[(Some(true), false, 0), (None, true, 300)],
                300,
                Unknown,
            ),
            ("ill", &[(Some(false), false, 0)], 10, Unhealthy),
            (
                "ill, and silent",
                &[(Some(false), false, 0), (None, true, 15)],
                900,
                Unhealthy,
            ),
            (
                "told again",
                &[(Some(false), false, 0), (Some(true), false, 900)],
                900,
                Passed,
            ),
        ] {
            let mut last = Last::default();
            for (value, unclear, at) in rounds {
                last.on(*value, *unclear, S(*at));
            }
            assert_eq!(last.row("x", S(now), judge).outcome, want, "{what}");
        }
    }

    #[test]
    fn growth_is_remembered_for_ten_minutes() {
        let mut growth = Growth::default();
        assert!(!growth.was_seen());
        for (at, count, want) in [
            (0, 7, false),
            (10, 7, false),
            (20, 8, true),
            (619, 8, true),
            (620, 8, false),
        ] {
            growth.on(count, S(at));
            assert_eq!(growth.is_recent(S(at)), want, "at {at} s");
        }
    }
}
