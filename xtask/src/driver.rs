//! `cargo xtask driver`: installs or removes the driver of a simulated node.

use std::path::PathBuf;

use anyhow::Context;
use berth_local::fleet::Node;
use berth_local::{controlplane, state};
use clap::ValueEnum;

/// Arguments of `driver`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node.
    node: String,
    /// What its driver is to be.
    driver: Driver,
    /// Folder that holds everything of the cluster.
    #[arg(long, default_value_os_t = crate::status::default_folder())]
    state: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Present,
    Absent,
}

/// Changes the machine as an installation of the driver would.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        const NONE: &str = "no cluster is running: `cargo xtask up` starts one";
        let state = std::fs::canonicalize(&args.state).context(NONE)?;
        state::held_by(&state).context(NONE)?;
        let client = controlplane::client(&state.join("kubeconfig")).await?;
        let node = Node::open(&state, &args.node, client)?;
        node.set_driver(args.driver == Driver::Present).await?;
        say!("{}: driver {:?}", args.node, args.driver);
        Ok(())
    })
}
