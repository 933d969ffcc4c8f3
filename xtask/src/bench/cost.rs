//! What a process costs, from the kernel's own accounting.

use anyhow::Context as _;
use serde::Serialize;

/// One process, over the measured time.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Proportional set size: shared pages counted by share.
    pub pss_kib: u64,
    /// Resident set size, shared pages counted whole.
    pub rss_kib: u64,
    /// Share of one core.
    pub cpu_percent: f64,
}

impl Cost {
    /// Of the `seconds` since [`cpu_ticks`] gave `before`.
    pub fn since(pid: u32, before: u64, seconds: f64) -> anyhow::Result<Self> {
        let (pss_kib, rss_kib) = memory(pid)?;
        let ticks = cpu_ticks(pid)?.saturating_sub(before);
        Ok(Self {
            pss_kib,
            rss_kib,
            cpu_percent: ticks as f64 / rustix::param::clock_ticks_per_second() as f64 / seconds * 100.0,
        })
    }
}

/// (PSS, RSS) in KiB, from the kernel's own sums.
fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .with_context(|| format!("{path} has no {name}"))?;
        let number = line
            .split_whitespace()
            .next()
            .with_context(|| format!("{path}: {name} has no value"))?;
        number
            .parse::<u64>()
            .with_context(|| format!("{path}: {name} {number}"))
    };
    Ok((line("Pss:")?, line("Rss:")?))
}

/// User and system time so far, in clock ticks.
pub fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The command, in parentheses, may hold blanks; utime and stime are the 14th and 15th field.
    let rest = text
        .rsplit_once(')')
        .with_context(|| format!("{path} has no command"))?
        .1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |n: usize| {
        fields
            .get(n - 3)
            .and_then(|f| f.parse::<u64>().ok())
            .with_context(|| format!("{path}: field {n}"))
    };
    Ok(field(14)? + field(15)?)
}

/// What a figure was measured on.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|l| l.trim_start_matches([' ', '\t', ':']).to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}", model.unwrap_or_else(|| "processor unknown".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_measured() {
        let (pss, rss) = memory(std::process::id()).unwrap();
        assert!(pss > 0 && rss >= pss);
        cpu_ticks(std::process::id()).unwrap();
        assert!(memory(0).is_err());
    }
}
