//! `cargo xtask`: what is done with this checkout, by people and by CI.
//!
//! - `up`, `driver`, `down`: a whole cluster on this machine
//! - `test`: everything that must hold before a change is merged
//! - `gen`: files that are made from the code
//! - `arm64`: what runs on nodes, built for arm64 and run by an emulator
//! - `hardware`: a machine with real GPUs, read by Berth and by nvidia-smi
//! - `bench`: measurements

/// A line for people. Nobody reading any more (`| head`) is no reason to stop, least of all before a cluster was ended.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod arm64;
mod bench;
mod down;
mod driver;
mod r#gen;
mod hardware;
mod machine;
mod show;
mod status;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole cluster on this machine, and show what Berth does in it.
    Up(up::Args),
    /// Install or remove the driver of a simulated node, and watch its labels follow.
    Driver(driver::Args),
    /// End the cluster that `up` has started.
    Down(down::Args),
    /// Check generated files, format and lints, then run every test.
    Test(test::Args),
    /// Write the files that are made from the code.
    Gen {
        /// Write nothing; fail if a file is not up to date.
        #[arg(long)]
        check: bool,
    },
    /// Build agent and probe for arm64, and compare what they say, emulated, with what those of this machine say.
    Arm64,
    /// Compare what Berth reads of this machine's GPUs with nvidia-smi.
    Hardware(hardware::Args),
    /// Measure.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // The client reports every refused connection as an error; while a server starts that is no news.
        .unwrap_or_else(|_| "warn,kube_client::client=off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match Args::parse().command {
        Command::Up(args) => up::run(args),
        Command::Driver(args) => driver::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Arm64 => arm64::run(),
        Command::Hardware(args) => hardware::run(&args),
        Command::Gen { check } => r#gen::run(check),
        Command::Bench { bench } => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    /// Else the dependencies that differ, and what depends on them, would be compiled once for this program and again for all others.
    #[test]
    fn dependencies_have_the_features_that_they_have_in_the_workspace() {
        let crates = |of: &[&str]| -> std::collections::BTreeSet<String> {
            let mut cargo = berth_local::toolchain::cargo();
            cargo.current_dir(berth_local::checkout()).args(["tree", "--locked"]);
            cargo.args([
                "--edges=normal,build",
                "--prefix=none",
                "--no-dedupe",
                "--format={p} {f}",
            ]);
            let output = cargo.args(of).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        };
        let (own, all) = (crates(&["-p", "berth-xtask"]), crates(&["--workspace"]));
        assert!(own.len() > 100, "{own:?}");
        let other: Vec<_> = own.difference(&all).collect();
        assert!(
            other.is_empty(),
            "name what lacks features in xtask/Cargo.toml: {other:#?}"
        );
    }

    /// Cargo reads the manifest of every member, also of those that are not built.
    #[test]
    fn the_image_is_built_from_every_member_of_the_workspace() {
        let manifest = include_str!("../../Cargo.toml");
        let context = include_str!("../../deploy/images/Dockerfile.dockerignore");
        let members = manifest
            .split_once("members = [")
            .and_then(|(_, rest)| rest.split_once(']'));
        let members: Vec<&str> = members
            .map(|(list, _)| list.split('"').skip(1).step_by(2).collect())
            .unwrap_or_default();
        assert!(members.contains(&"core"), "{members:?}");
        for member in members {
            let is_there = context
                .lines()
                .filter_map(|line| line.strip_prefix('!'))
                .any(|kept| member == kept || member.starts_with(&format!("{kept}/")));
            assert!(is_there, "{member} is not in Dockerfile.dockerignore");
        }
    }
}
