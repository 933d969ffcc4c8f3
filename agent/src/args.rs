//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::Targets;

use crate::link;

/// Reports this node's GPUs to the Berth controller.
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
    /// Report until told to end.
    Run(Run),
    /// Print the labels of this machine. No cluster is needed.
    Labels(Labels),
    /// Check the GPUs of this machine. No cluster is needed. Ends with 0: healthy, 1: suspect, 2: unhealthy, 3: cannot be told, 64: wrong usage.
    Check(Check),
}

/// The machine that the commands without a cluster look at.
#[derive(Debug, clap::Args)]
pub struct Machine {
    /// Exactly this libnvidia-ml.so.1 and no search; repeatable.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Vec<PathBuf>,
    /// Root of a file system that may hold the driver's library, in order of preference; repeatable. Default: /.
    #[arg(long, value_name = "DIR")]
    pub driver_root: Vec<PathBuf>,
    /// Where the host's /sys is.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sysfs_root: PathBuf,
    /// The berth-probe to ask NVML with. Default: the one beside this program.
    #[arg(long, value_name = "PATH", env = "BERTH_PROBE")]
    pub probe: Option<PathBuf>,
    /// How long to wait for NVML.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "15")]
    pub deadline: Duration,
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// What to look at.
    #[command(flatten)]
    pub machine: Machine,
    /// The kernel's log, for the XIDs since the driver was loaded. Without the right to read it they are missing.
    #[arg(long, value_name = "PATH", default_value = "/dev/kmsg")]
    pub kernel_log: PathBuf,
    /// Format.
    #[arg(short, long, value_enum, default_value_t = CheckOutput::Table)]
    pub output: CheckOutput,
}

/// Formats of `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// For people.
    Table,
    /// One object, GPUs with their checks in it.
    Json,
}

/// Arguments of `labels`.
#[derive(Debug, clap::Args)]
pub struct Labels {
    /// What to look at.
    #[command(flatten)]
    pub machine: Machine,
    /// Configuration of NVIDIA's device plugin, for MIG strategy and sharing. Default: neither.
    #[arg(long, value_name = "FILE")]
    pub device_plugin_config: Option<PathBuf>,
    /// Write nvidia.com/gfd.timestamp too.
    #[arg(long)]
    pub timestamp: bool,
    /// Format.
    #[arg(short, long, value_enum, default_value_t = Output::Json)]
    pub output: Output,
    /// Write to this file, by rename, and not to stdout.
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

/// Formats of `labels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One object, key to value.
    Json,
    /// The same.
    Yaml,
    /// Lines of key=value, as node feature discovery reads them from its folder features.d.
    #[value(name = "features.d")]
    FeaturesD,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(n @ 1..) => Ok(Duration::from_secs(n)),
        _ => Err(format!("{text:?} is not a number of seconds from 1 up")),
    }
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Where the controller listens for agents.
    #[arg(long, value_name = "HOST:PORT")]
    pub controller: String,
    /// Name in the controller's certificate; default: the host of --controller.
    #[arg(long, value_name = "NAME")]
    pub controller_name: Option<String>,
    /// PEM file with the authorities that may have signed that certificate. Read again for each connection; may come later.
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// File with this pod's token. Read again for each connection and when it changes; may come later.
    #[arg(long, value_name = "FILE")]
    pub token: PathBuf,
    /// Unix socket of the berth-probe beside this agent.
    #[arg(long, value_name = "PATH")]
    pub probe_socket: PathBuf,
    /// Where the host's /sys is.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sysfs_root: PathBuf,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9401")]
    pub http_address: SocketAddr,
    /// What metrics call this node. Default: the name that the machine (or the container) calls itself.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// error, warn, info, debug or trace; RUST_LOG, which may also name targets, wins.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

impl Run {
    /// What metrics call this node; empty where nobody knows.
    pub fn node_name(&self) -> String {
        let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let given = self.node_name.clone().filter(|name| !name.is_empty());
        given.unwrap_or_else(|| own().trim().to_owned())
    }

    /// What the link needs of it.
    pub fn link(&self) -> link::Settings {
        let host = self
            .controller
            .rsplit_once(':')
            .map_or(self.controller.as_str(), |(host, _)| host);
        link::Settings {
            controller: self.controller.clone(),
            controller_name: self.controller_name.clone().unwrap_or_else(|| host.to_owned()),
            ca: self.ca.clone(),
            token: self.token.clone(),
        }
    }
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
            (Some("berth_agent=nonsense"), Level::INFO, Level::INFO),
            (Some("debug"), Level::DEBUG, Level::DEBUG),
            (Some("warn,berth_agent::link=trace"), Level::TRACE, Level::WARN),
        ] {
            let filter = log_filter(rust_log, Level::INFO);
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(
                    filter.would_enable("berth_agent::link", &level),
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
}
