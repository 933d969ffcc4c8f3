//! Where the built shared object is.

use std::io;
use std::path::PathBuf;
use std::process::Command;

/// Name under which NVML's clients look for the library.
pub const FILE_NAME: &str = "libnvidia-ml.so.1";

/// Builds the library with the cargo that runs us (or the one on PATH) and returns the file, to be copied or linked as [`FILE_NAME`].
pub fn build() -> io::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--package",
            "berth-fake-nvml",
            "--lib",
            "--message-format",
            "json",
        ])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "building berth-fake-nvml failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    output
        .stdout
        .split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "nvidia_ml")
        .filter_map(|message| message["filenames"].as_array().cloned())
        .flatten()
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .find(|file| file.extension().is_some_and(|e| e == "so"))
        .ok_or_else(|| io::Error::other("cargo built berth-fake-nvml and named no shared object"))
}
