//! Programs that tests need beside our own (those of the engines' images, compiler and emulator for another architecture): installed where
//! they are missing and this is possible.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Programs, or files by their whole paths, each with the Debian packages that it takes.
type Programs = [(&'static str, &'static [&'static str])];

/// What the behaviour tests run.
const PROGRAMS: &Programs = &[
    ("sh", &["dash"]),
    ("curl", &["curl"]),
    ("tar", &["tar"]),
    ("gzip", &["gzip"]),
    ("find", &["findutils"]),
    ("awk", &["mawk"]),
    // Its tools are those of the image that downloads MLModels.
    ("busybox", &["busybox-static"]),
];

/// What builds for arm64 elsewhere, and runs it.
const ARM64: &Programs = &[
    ("aarch64-linux-gnu-gcc", &["gcc-aarch64-linux-gnu"]),
    // The compiler's package only recommends it.
    ("/usr/aarch64-linux-gnu/lib/libc.so.6", &["libc6-dev-arm64-cross"]),
    ("qemu-aarch64", &["qemu-user"]),
];

/// Installs what is missing of the programs that tests run.
pub fn ensure() -> anyhow::Result<()> {
    install(PROGRAMS)
}

/// Installs what is missing to build for arm64 and to run it.
pub fn ensure_arm64() -> anyhow::Result<()> {
    install(ARM64)
}

fn install(programs: &Programs) -> anyhow::Result<()> {
    let missing = programs.iter().filter(|(program, _)| !is_there(program));
    let missing: Vec<&str> = missing.flat_map(|(_, packages)| *packages).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    say!("installing {}", missing.join(", "));
    for arguments in [
        &["update", "-q"][..],
        &[&["install", "-qy", "--no-install-recommends"], &missing[..]].concat(),
    ] {
        let status = Command::new("apt-get")
            .args(["-o", "Acquire::http::Timeout=30", "-o", "DPkg::Lock::Timeout=60"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .with_context(|| format!("cannot run apt-get; install {} and try again", missing.join(", ")))?;
        if !status.success() {
            bail!(
                "apt-get {}: {status}; install {} and try again",
                arguments[0],
                missing.join(", ")
            );
        }
    }
    Ok(())
}

/// Every one of them knows `--version`, but for dash, which fails on it all the same only after it was found.
fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok()
}
