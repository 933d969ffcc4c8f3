//! Who of the replicas works: one Lease, judged on each one's own monotonic clock.
//!
//! ```text
//! Standby ──(no holder, holder silent for its lease)──► Claim ──► Renew every 2.5 s ──(10 s without success, or taken)──► exit
//! ```
//!
//! A holder stops (its process exits) 10 s after its last successful renewal was *sent*, a successor claims 15 s after it last *saw* the
//! Lease change: with clocks that merely run at the same speed the two never overlap. Times written in the Lease are for people.

mod label;
mod lease;

use std::time::Duration;

use jiff::Timestamp;

pub use label::run as keep_label;
pub use lease::{Election, Lost};

/// Name of the Lease.
pub const LEASE_NAME: &str = "berth-controller";
/// A holder that is not seen to renew for this long has lost the Lease.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time between two renewals, and between two looks of a standby.
pub const RENEW_EVERY: Duration = Duration::from_millis(2500);
/// A holder that could not renew for this long stops.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// The Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Identity of the holder; empty: released.
    pub holder: String,
    /// When the holder became it. Two processes of one identity differ here.
    pub acquired: Option<Timestamp>,
    /// Last renewal. Only ever compared for equality: another machine's clock.
    pub renewed: Option<Timestamp>,
    /// What the holder claims.
    pub duration: Duration,
}

/// What to do about the Lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Write ourselves in.
    Claim,
    /// It is ours: renew it.
    Renew,
    /// It is another's.
    Standby,
}

/// `observed` is `None` where there is no Lease; `held_since` is the acquire time that this process wrote, if it did;
/// `unchanged_for` is how long this process has seen `observed` unchanged, on its monotonic clock.
pub fn decide(
    observed: Option<&Observed>,
    me: &str,
    held_since: Option<Timestamp>,
    unchanged_for: Duration,
) -> Decision {
    let Some(lease) = observed else { return Decision::Claim };
    match held_since {
        Some(since) if lease.holder == me && lease.acquired == Some(since) => Decision::Renew,
        // We held it and somebody wrote over it, a twin of our name included.
        Some(_) => Decision::Standby,
        None if lease.holder.is_empty() => Decision::Claim,
        // An earlier life of this pod; the kubelet starts a container only after the one before it is gone.
        None if lease.holder == me => Decision::Claim,
        // A claim of hours or of nothing is nobody's intent.
        None if unchanged_for >= lease.duration.clamp(Duration::from_secs(1), 4 * LEASE_DURATION) => Decision::Claim,
        None => Decision::Standby,
    }
}

/// This process in the Lease: its pod, or something unique where there is none.
pub fn identity(pod_name: &str, host: &str, random: u32) -> String {
    if pod_name.is_empty() {
        format!("{host}-{random:08x}")
    } else {
        pod_name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(second: i64) -> Timestamp {
        Timestamp::constant(second, 0)
    }

    fn lease(holder: &str, seconds: u64) -> Observed {
        Observed {
            holder: holder.into(),
            acquired: Some(at(100)),
            renewed: Some(at(200)),
            duration: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn decisions() {
        use Decision::{Claim, Renew, Standby};
        // What it is called, the Lease, since when this process holds it, seconds that it was seen unchanged, the decision.
        type Case = (&'static str, Option<Observed>, Option<Timestamp>, u64, Decision);
        let cases: &[Case] = &[
            ("no lease", None, None, 0, Claim),
            ("lease deleted under a holder", None, Some(at(100)), 0, Claim),
            ("released", Some(lease("", 1)), None, 0, Claim),
            ("another's, fresh", Some(lease("b", 15)), None, 0, Standby),
            ("another's, not yet over", Some(lease("b", 15)), None, 14, Standby),
            ("another's, over", Some(lease("b", 15)), None, 15, Claim),
            ("another's, absurdly long", Some(lease("b", 86400)), None, 59, Standby),
            (
                "another's, absurdly long, silent",
                Some(lease("b", 86400)),
                None,
                60,
                Claim,
            ),
            (
                "another's of no duration, just seen",
                Some(lease("b", 0)),
                None,
                0,
                Standby,
            ),
            ("mine", Some(lease("a", 15)), Some(at(100)), 0, Renew),
            ("mine, long unchanged", Some(lease("a", 15)), Some(at(100)), 60, Renew),
            ("my earlier life's", Some(lease("a", 15)), None, 0, Claim),
            ("taken by my twin", Some(lease("a", 15)), Some(at(99)), 0, Standby),
            ("taken by another", Some(lease("b", 15)), Some(at(100)), 0, Standby),
            (
                "taken, and silent since",
                Some(lease("b", 15)),
                Some(at(100)),
                60,
                Standby,
            ),
            ("emptied under me", Some(lease("", 15)), Some(at(100)), 0, Standby),
        ];
        for (name, observed, held, unchanged, want) in cases {
            let got = decide(observed.as_ref(), "a", *held, Duration::from_secs(*unchanged));
            assert_eq!(got, *want, "{name}");
        }
    }

    #[test]
    fn a_holder_stops_before_a_successor_starts() {
        assert!(RENEW_DEADLINE + RENEW_EVERY < LEASE_DURATION);
        assert!(RENEW_EVERY * 3 < RENEW_DEADLINE);
    }

    #[test]
    fn identities() {
        assert_eq!(identity("pod-1", "host", 7), "pod-1");
        assert_eq!(identity("", "host", 7), "host-00000007");
    }
}
