//! The command that fetches a model into its volume: a script, to which everything comes by environment.

use std::collections::BTreeMap;

/// Run by the shell of the download's image; it says itself what it needs and does.
pub const SCRIPT: &str = include_str!("download.sh");

/// Where the volume is mounted while a model is downloaded.
pub const MOUNT: &str = "/mnt/model";

/// What is downloaded, and where it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Download {
    /// URL, with every character escaped that has no place in one.
    pub url: String,
    /// Name of the model: its folder on the volume.
    pub name: String,
    /// Name of the file in the end, where it is no archive.
    pub file: String,
    /// Archives are unpacked.
    pub unpack: bool,
    /// Pattern of the file whose folder in an archive is the model; empty: the whole archive is.
    pub marker: &'static str,
    /// Name that the file found by the marker gets; `None`: it keeps its own.
    pub rename: Option<&'static str>,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: Option<String>,
    /// What the download is known by.
    pub source: String,
}

impl Download {
    /// The environment of the script.
    pub fn env(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("MODEL_URL", self.url.clone()),
            ("MODEL_DIR", MOUNT.to_owned()),
            ("MODEL_NAME", self.name.clone()),
            ("MODEL_FILE", self.file.clone()),
            ("MODEL_UNPACK", if self.unpack { "yes" } else { "no" }.to_owned()),
            ("MODEL_MARKER", self.marker.to_owned()),
            ("MODEL_RENAME", self.rename.unwrap_or_default().to_owned()),
            ("MODEL_SHA256", self.sha256.clone().unwrap_or_default()),
            ("MODEL_SOURCE", self.source.clone()),
        ])
    }
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
