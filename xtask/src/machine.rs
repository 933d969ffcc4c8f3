//! Programs that tests run beside our own, as the images of the engines have them: installed where they are missing and this is possible.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Program and its Debian package.
const PROGRAMS: &[(&str, &str)] = &[
    ("sh", "dash"),
    ("curl", "curl"),
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("find", "findutils"),
    ("awk", "mawk"),
    // Its tools are those of the image that downloads MLModels.
    ("busybox", "busybox-static"),
];

/// Installs what is missing.
pub fn ensure() -> anyhow::Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say!("installing {}", missing.join(", "));
    for arguments in [
        &["update", "-q"][..],
        &[&["install", "-qy", "--no-install-recommends"], &missing[..]].concat(),
    ] {
        let status = Command::new("apt-get")
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
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok()
}
