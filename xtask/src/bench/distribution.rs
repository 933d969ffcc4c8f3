//! Many measurements of one thing in a few numbers.

use std::time::Duration;

use serde::Serialize;

/// Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Distribution {
    /// How many there were.
    pub n: usize,
    /// Half took no longer.
    pub p50_ms: f64,
    /// 95 of 100 took no longer.
    pub p95_ms: f64,
    /// 99 of 100 took no longer; of fewer than 100, all.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Distribution {
    /// By nearest rank. `None`: nothing was measured.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let n = times.len();
        let rank = |percent: usize| {
            let at = (n * percent).div_ceil(100).max(1) - 1;
            times.get(at).map(|time| time.as_secs_f64() * 1000.0)
        };
        Some(Self {
            n,
            p50_ms: rank(50)?,
            p95_ms: rank(95)?,
            p99_ms: rank(99)?,
            max_ms: rank(100)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_nearest() {
        assert!(Distribution::of(Vec::new()).is_none());
        let all = |n: u64| Distribution::of((1..=n).rev().map(Duration::from_millis).collect()).unwrap();
        let of = |d: Distribution| (d.n, d.p50_ms, d.p95_ms, d.p99_ms, d.max_ms);
        assert_eq!(of(all(1)), (1, 1.0, 1.0, 1.0, 1.0));
        assert_eq!(of(all(50)), (50, 25.0, 48.0, 50.0, 50.0));
        assert_eq!(of(all(200)), (200, 100.0, 190.0, 198.0, 200.0));
    }
}
