//! How long each NVML call took, by the probe's log.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What the probe is to log: each call with its time.
pub const LOG: &str = "error,berth_probe::worker=trace";

/// Of each call: how often, and microseconds.
fn times(log: &str) -> BTreeMap<&str, Vec<u64>> {
    let mut times: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for line in log.lines() {
        let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        if let (Some(call), Some(us)) = (word("call="), word("us=").and_then(|us| us.parse().ok())) {
            times.entry(call.trim_matches('"')).or_default().push(us);
        }
    }
    times.values_mut().for_each(|of_call| of_call.sort_unstable());
    times
}

/// As Markdown, the slowest first.
pub fn table(log: &str) -> String {
    let mut rows: Vec<_> = times(log).into_iter().collect();
    rows.sort_by_key(|(_, us)| std::cmp::Reverse(us.last().copied()));
    let mut out = "| NVML call | times | median, µs | most, µs |\n|---|---|---|---|\n".to_owned();
    for (call, us) in rows {
        let (median, most) = (us[us.len() / 2], us[us.len() - 1]);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| `{call}` | {} | {median} | {most} |", us.len());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_log() {
        let log = "2026-01-01T00:00:00Z TRACE berth_probe::worker: NVML call=\"nvmlInit_v2\" us=12000\n\
                   note: something else call= us=\n\
                   2026-01-01T00:00:01Z TRACE berth_probe::worker: NVML call=\"nvmlDeviceGetName\" us=3\n\
                   2026-01-01T00:00:01Z TRACE berth_probe::worker: NVML call=\"nvmlDeviceGetName\" us=9\n";
        let rows: Vec<String> = table(log).lines().skip(2).map(str::to_owned).collect();
        assert_eq!(
            rows,
            [
                "| `nvmlInit_v2` | 1 | 12000 | 12000 |",
                "| `nvmlDeviceGetName` | 2 | 9 | 9 |"
            ]
        );
    }
}
