//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

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
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

impl Run {
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
