//! Children that the original still writes after Berth adopted them: how long each is left alone. Losing this costs one more try.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::Evidence;
use crate::cluster::ObjectKey;
use crate::kinds::children::Kind;

/// How long the original must have been quiet before a child is adopted again. Doubles with each time that it took the child back.
const QUIET: Duration = Duration::from_secs(30);
/// Longest of these waits: whoever stops the original late does not wait much longer than this.
const LONGEST: Duration = Duration::from_secs(240);
/// After so long without a contest the next one is the first again.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// A child is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Since when the original has been quiet: moves with everything that it writes.
    pub since: Timestamp,
    /// How much longer.
    pub remaining: Duration,
}

#[derive(Debug)]
struct Contest {
    evidence: Evidence,
    since: Timestamp,
    /// Times that the child was taken back before.
    count: u32,
    /// Berth adopted it again; what comes now is a new contest.
    is_settled: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Contests(Mutex<HashMap<(Kind, ObjectKey), Contest>>);

impl Contests {
    /// The original wrote a child that Berth wants to write: whether to wait.
    pub fn wait(&self, kind: Kind, key: &ObjectKey, evidence: &Evidence, now: Timestamp) -> Option<Wait> {
        let mut contests = self.0.lock();
        contests.retain(|_, c| !(c.is_settled && elapsed(c.since, now) > FORGOTTEN));
        let contest = contests.entry((kind, key.clone())).or_insert_with(|| Contest {
            evidence: evidence.clone(),
            // A write of long ago, seen for the first time, is no contest.
            since: evidence.last.map_or(now, |last| last.min(now)),
            count: 0,
            is_settled: false,
        });
        if contest.is_settled {
            contest.count = contest.count.saturating_add(1);
        }
        if contest.is_settled || contest.evidence != *evidence {
            contest.evidence = evidence.clone();
            contest.since = now;
            contest.is_settled = false;
        }
        let quiet = QUIET.saturating_mul(1 << contest.count.min(8)).min(LONGEST);
        let remaining = quiet.checked_sub(elapsed(contest.since, now))?;
        let since = contest.since;
        (!remaining.is_zero()).then_some(Wait { since, remaining })
    }

    /// Whether a child was found written by the original and has not been adopted since.
    pub fn is_open(&self, kind: Kind, key: &ObjectKey) -> bool {
        let contests = self.0.lock();
        contests.get(&(kind, key.clone())).is_some_and(|c| !c.is_settled)
    }

    /// Whether the original took the child back of late: what happens to it then is told and slowed here.
    pub fn is_known(&self, kind: Kind, key: &ObjectKey, now: Timestamp) -> bool {
        let contests = self.0.lock();
        let contest = contests.get(&(kind, key.clone()));
        contest.is_some_and(|c| !c.is_settled || elapsed(c.since, now) <= FORGOTTEN)
    }

    /// Berth adopted the child.
    pub fn settle(&self, kind: Kind, key: &ObjectKey, now: Timestamp) {
        if let Some(contest) = self.0.lock().get_mut(&(kind, key.clone())) {
            contest.is_settled = true;
            contest.since = now;
        }
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn written(second: Option<i64>) -> Evidence {
        Evidence {
            manager: Some("manager".into()),
            last: second.map(at),
            marks_gone: second.is_none(),
        }
    }

    struct Trial(Contests);

    impl Trial {
        /// Seconds that are left.
        fn wait(&self, evidence: &Evidence, now: i64) -> Option<u64> {
            let key = ("ns".to_owned(), "m".to_owned());
            let wait = self.0.wait(Kind::Service, &key, evidence, at(now));
            wait.map(|w| w.remaining.as_secs())
        }

        fn settle(&self, now: i64) {
            self.0.settle(Kind::Service, &("ns".into(), "m".into()), at(now));
        }
    }

    #[test]
    fn quiet_is_waited_for_and_every_write_starts_it_anew() {
        let t = Trial(Contests::default());
        assert_eq!(t.wait(&written(Some(0)), 0), Some(30));
        assert_eq!(t.wait(&written(Some(0)), 20), Some(10));
        assert_eq!(t.wait(&written(Some(20)), 20), Some(30), "it wrote again");
        assert_eq!(t.wait(&written(Some(20)), 50), None);
        let key = ("ns".to_owned(), "m".to_owned());
        assert!(t.0.is_open(Kind::Service, &key));
        t.settle(50);
        assert!(!t.0.is_open(Kind::Service, &key));
        assert!(t.0.is_known(Kind::Service, &key, at(3650)));
        assert!(!t.0.is_known(Kind::Service, &key, at(3651)));
    }

    #[test]
    fn a_write_of_long_ago_is_no_contest_and_one_without_time_counts_from_now() {
        assert_eq!(Trial(Contests::default()).wait(&written(Some(0)), 1000), None);
        let t = Trial(Contests::default());
        assert_eq!(t.wait(&written(None), 1000), Some(30));
        assert_eq!(t.wait(&written(None), 1031), None);
        // A server whose clock is ahead does not make it longer.
        assert_eq!(Trial(Contests::default()).wait(&written(Some(5000)), 1000), Some(30));
    }

    #[test]
    fn each_time_it_is_taken_back_the_wait_doubles_up_to_a_limit() {
        let t = Trial(Contests::default());
        let mut now = 0;
        for want in [30, 60, 120, 240, 240] {
            assert_eq!(t.wait(&written(None), now), Some(want));
            now += 300;
            assert_eq!(t.wait(&written(None), now), None);
            t.settle(now);
        }
        assert_eq!(
            t.wait(&written(None), now + 3601),
            Some(30),
            "long after, it is the first again"
        );
    }
}
