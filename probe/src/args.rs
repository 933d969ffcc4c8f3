//! Command line.

use std::path::PathBuf;
use std::time::Duration;

use berth_core::freshness;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;

/// Reads NVIDIA GPUs through NVML for the berth-agent beside it.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve on a unix socket until told to end.
    Serve(Serve),
}

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Unix socket to listen on; a stale one is replaced.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Root of a file system that may hold the driver's library, in order of preference; repeatable.
    #[arg(long, value_name = "DIR", default_values = ["/"])]
    pub driver_root: Vec<PathBuf>,
    /// Exactly this libnvidia-ml.so.1 and no search; repeatable.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Vec<PathBuf>,
    /// Where the host's /sys is.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sysfs_root: PathBuf,
    /// The kernel's log, /dev/kmsg, to follow for XIDs. Absent: it is not followed.
    #[arg(long, value_name = "PATH")]
    pub kernel_log: Option<PathBuf>,
    /// The kubelet's PodResources socket, kubelet.sock, to ask which pods hold the GPUs. Absent: it is not asked.
    #[arg(long, value_name = "PATH")]
    pub pod_resources: Option<PathBuf>,
    /// A /proc that shows the host's processes, to tell whose pods' processes are on the GPUs. Absent: they are not told.
    #[arg(long, value_name = "DIR")]
    pub proc_root: Option<PathBuf>,
    /// The kubelet's folder of pod logs, which names the pods of processes.
    #[arg(long, value_name = "DIR", requires = "proc_root")]
    pub pod_logs: Option<PathBuf>,
    /// End when standard input does: whoever started this process is gone then.
    #[arg(long)]
    pub until_stdin_ends: bool,
    /// Deadline of one NVML call.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = DEFAULT_CALL_TIMEOUT)]
    pub call_timeout: Duration,
    /// Deadline of a call that may take the driver long (validating an infoROM). Readings go on meanwhile.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = DEFAULT_SLOW_CALL_TIMEOUT)]
    pub slow_call_timeout: Duration,
    /// error, warn, info, debug or trace; RUST_LOG, which may also name targets, wins.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

const DEFAULT_CALL_TIMEOUT: &str = "5s";
const DEFAULT_SLOW_CALL_TIMEOUT: &str = "30s";
const _: () = assert!(
    freshness::NVML_SLOW_CALL.as_secs() == 30,
    "the default above is that of the table of times"
);
const _: () = assert!(
    freshness::NVML_CALL.as_secs() == 5,
    "the default above is that of the table of times"
);

/// `5s`, `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 5s or 250ms");
    let (number, unit): (&str, fn(u64) -> Duration) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, Duration::from_secs),
    };
    let duration = number.parse().map(unit).map_err(|_| wrong())?;
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}

/// What is logged: RUST_LOG where it says something that can be read, or else everything from `level` up.
pub fn log_filter(rust_log: Option<&str>, level: tracing::Level) -> Targets {
    rust_log
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_wins_over_the_level() {
        use tracing::Level;
        for (rust_log, own, others) in [
            (None, Level::INFO, Level::INFO),
            (Some(""), Level::INFO, Level::INFO),
            (Some("berth_probe=nonsense"), Level::INFO, Level::INFO),
            (Some("debug"), Level::DEBUG, Level::DEBUG),
            (Some("warn,berth_probe::link=trace"), Level::TRACE, Level::WARN),
        ] {
            let filter = log_filter(rust_log, Level::INFO);
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(
                    filter.would_enable("berth_probe::link", &level),
                    level <= own,
                    "{rust_log:?} {level}"
                );
                assert_eq!(
                    filter.would_enable("h2", &level),
                    level <= others,
                    "{rust_log:?} {level}"
                );
            }
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("5s", Some(Duration::from_secs(5))),
            ("250ms", Some(Duration::from_millis(250))),
            ("5", None),
            ("0s", None),
            ("-1s", None),
            ("", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
    }
}
