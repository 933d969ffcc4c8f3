//! `cargo xtask test`: everything that must hold before a change is merged; the first failure ends it.

mod lanes;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use berth_local::Progress;
use berth_local::toolchain;
use berth_local::toolchain::{Tool, Toolchain};

/// Variable that tells behaviour tests where our programs are; see `berth_local::toolchain::BUILT`.
const PROGRAMS: &str = toolchain::BUILT;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tests whose name contains this; generated files, format and lints are not checked then.
    filter: Option<String>,
}

/// Runs the steps.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    let started = Instant::now();
    step("programs of this machine", crate::machine::ensure)?;
    if args.filter.is_none() {
        step("generated files", || crate::r#gen::run(true))?;
        step("format", || cargo(&["fmt", "--check"], &[]))?;
        step("lints", || {
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
        })?;
    }
    if args.filter.is_none() {
        step("charts", charts)?;
    }
    // The same selection of packages everywhere, so that no dependency is compiled twice.
    step("build", || cargo(&["build", "--workspace"], &[]))?;
    step("unit tests", || {
        cargo(&["test", "--workspace", "--lib", "--bins"], &filter)
    })?;
    let mut arm64 = None;
    if args.filter.is_none() {
        step("arm64", || {
            arm64 = crate::arm64::compare()?;
            Ok(())
        })?;
    }
    step("behaviour tests", || behaviour(&filter))?;
    say!("\nall passed in {} s", started.elapsed().as_secs());
    if let Some(why) = arm64 {
        say!("arm64 was NOT checked: {why}");
    }
    Ok(())
}

/// Tests of whole programs, on clusters of their own.
fn behaviour(filter: &[&str]) -> anyhow::Result<()> {
    let mut build = command(&[
        "test",
        "--workspace",
        "--test",
        "*",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ])?;
    let built = build.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !built.status.success() {
        bail!("building the tests: {}", built.status);
    }
    let programs = lanes::programs(&String::from_utf8_lossy(&built.stdout))?;
    let own = self::programs()?;
    lanes::run(programs, |command| {
        command.args(filter).env(PROGRAMS, &own).env("INSTA_UPDATE", "no");
    })
}

/// Lint, refused values, and the rendered output against the golden files. Builds the control plane where it is not cached.
fn charts() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let toolchain = runtime.block_on(Toolchain::ensure(&Progress::stdout(Tool::ALL.len())))?;
    let mut command = Command::new(berth_local::checkout().join("deploy/charts/check.sh"));
    command.env("HELM", toolchain.path(Tool::Helm));
    let status = command.status().context("cannot run deploy/charts/check.sh")?;
    if !status.success() {
        bail!("deploy/charts/check.sh: {status}");
    }
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    say!("\n══ {name}");
    let started = Instant::now();
    let result = work();
    let word = if result.is_ok() { "ok" } else { "FAILED" };
    say!("══ {name}: {word} ({:.1} s)", started.elapsed().as_secs_f32());
    result.with_context(|| format!("{name} failed"))
}

pub(crate) fn cargo(args: &[&str], filter: &[&str]) -> anyhow::Result<()> {
    let status = command(args)?.args(filter).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} {}: {status}", args.join(" "), filter.join(" "));
    }
    Ok(())
}

/// Cargo in this checkout, as every step runs it.
pub(crate) fn command(args: &[&str]) -> anyhow::Result<Command> {
    let mut command = toolchain::cargo();
    command
        .current_dir(berth_local::checkout())
        .args(args)
        .env(PROGRAMS, programs()?)
        // Snapshots are compared, never accepted on the way.
        .env("INSTA_UPDATE", "no");
    Ok(command)
}

/// Folder of our own programs: this one was built into the same.
pub(crate) fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own folder")?;
    own.parent().map(PathBuf::from).context("this program has no folder")
}
