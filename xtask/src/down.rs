//! `cargo xtask down`: ends a cluster, and makes sure that nothing of it is left.

use std::path::PathBuf;
use std::time::Duration;

use berth_local::process;
use berth_local::state;

use crate::status;

/// A run that ends by itself needs 5 s; with what follows, all of `down` stays below 30 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// Arguments of `down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that holds everything of the cluster.
    #[arg(long, default_value_os_t = status::default_folder())]
    pub state: PathBuf,
}

/// Ends the cluster of a state folder.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Ok(state) = std::fs::canonicalize(&args.state) else {
        say!("nothing is running: there is no {}", args.state.display());
        return Ok(());
    };
    let owner = state::held_by(&state);
    if let Some(owner) = &owner {
        say!("ending the cluster of process {}", owner.pid);
        status::end(owner, PATIENCE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let left = runtime.block_on(process::sweep(&state))?;
    match (owner, left.len()) {
        (None, 0) => say!("nothing is running"),
        (None, n) => say!("ended {n} processes of an earlier run"),
        (Some(_), _) => say!("ended; nothing is left running"),
    }
    Ok(())
}
